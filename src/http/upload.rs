//! A file in a multipart form, written to disk as it arrives.
//!
//! No more than one piece of it is in memory. An error in the form is reported after the rest has been read off the
//! wire, since a client that is still writing does not see a response.

use std::time::Duration;

use axum::{
    extract::{FromRequest, Multipart, Request, multipart::Field},
    http::header,
};
use hearth_domain::error::{Error, ErrorKind};

use super::{error::ApiError, state::AppState};
use crate::{store::Incoming, wire::body::FormFields};

/// Longest value of a non-file field, in bytes.
const FIELD_BYTES_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 32;
/// Longest file name, in bytes; file systems allow 255.
const FILENAME_BYTES_MAX: usize = 1024;
/// Bytes of a refused form that are still read off the wire.
const DISCARD_MAX_BYTES: usize = 1 << 30;
const DISCARD_MAX_TIME: Duration = Duration::from_secs(60);

/// A form with one file.
#[derive(Debug)]
pub(super) struct UploadForm {
    pub(super) file: Incoming,
    /// The owner's name for the file: for display, never part of a path.
    pub(super) filename: String,
    /// The other fields.
    pub(super) fields: FormFields,
}

impl FromRequest<AppState> for UploadForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let asks_first = request.headers().contains_key(header::EXPECT);
        let mut form = Multipart::from_request(request, state).await.map_err(|rejection| {
            let message =
                format!("A file is uploaded as multipart/form-data, in a field `file`. {}", rejection.body_text());
            Error::new(ErrorKind::UnsupportedMediaType, message)
        })?;
        let read = if length.is_some_and(|length: u64| length > form_limit(state)) {
            Err(too_large(state))
        } else {
            let most = state.settings.request_body_timeout + time_for(length.unwrap_or_else(|| form_limit(state)));
            let read = read_form(&mut form, length.unwrap_or(0), state);
            tokio::time::timeout(most, read).await.unwrap_or_else(|_elapsed| Err(too_slow()))
        };
        if asks_first && length.is_some_and(|length: u64| length > form_limit(state)) {
            return Err(too_large(state).into());
        }
        if read.is_err() {
            // Whether the rest could be read off the wire does not change the answer.
            let _ = tokio::time::timeout(DISCARD_MAX_TIME, discard(&mut form)).await;
        }
        Ok(read?)
    }
}

/// The limit for the file and the fields around it.
fn form_limit(state: &AppState) -> u64 {
    (state.settings.upload_limit_bytes + FIELDS_MAX * FIELD_BYTES_MAX) as u64
}

/// The time limit for an upload of this size, on the slowest supported connection.
fn time_for(bytes: u64) -> Duration {
    const BYTES_PER_SECOND: u64 = 16 * 1024;
    Duration::from_secs(bytes / BYTES_PER_SECOND)
}

fn too_slow() -> Error {
    Error::new(ErrorKind::RequestTimeout, "The file did not arrive in time; send it without pauses.")
}

fn too_large(state: &AppState) -> Error {
    let limit = state.settings.upload_limit_bytes;
    let message = format!(
        "The file is larger than this server's limit of {limit} bytes. Split it, or start the server with a larger \
         --upload-limit-mib."
    );
    Error::new(ErrorKind::PayloadTooLarge, message)
}

/// `length` is the announced length of the whole form, in bytes.
async fn read_form(form: &mut Multipart, length: u64, state: &AppState) -> Result<UploadForm, Error> {
    let mut file = None;
    let mut fields = FormFields::new();
    while let Some(field) = next_field(form, state).await? {
        let name = field.name().unwrap_or_default().to_owned();
        if !is_field_name(&name) {
            let message = "A field's name must be 1 to 64 letters, digits, `_`, `-`, `.`, `[` or `]`.";
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_code("invalid_multipart"));
        }
        if name == "file" {
            let filename = filename(&field)?;
            if file.is_some() {
                return Err(Error::invalid("file", "One file a request: send each in a request of its own."));
            }
            file = Some((receive(field, length, state).await?, filename));
        } else if fields.len() < FIELDS_MAX {
            let value = text(field, &name, state).await?;
            fields.push((name, value));
        } else {
            let message = format!("The form has more than {FIELDS_MAX} fields.");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
    }
    let missing = || Error::invalid("file", "The form has no field `file` with the file in it.");
    let (file, filename) = file.ok_or_else(|| missing().with_code("missing_required_parameter"))?;
    Ok(UploadForm { file, filename, fields })
}

/// Whether the name matches [`crate::wire::body::FORM_FIELD_NAME`].
fn is_field_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_part)
}

/// The file's own name: old browsers sent the whole path, and the path is private to the sender.
fn filename(field: &Field<'_>) -> Result<String, Error> {
    let sent = field.file_name().unwrap_or_default();
    let clean: String = sent.chars().filter(|c| !c.is_control()).collect();
    // A relative path says where in a tree a document is; parts that climb out of the tree say nothing.
    let parts = clean.split(['/', '\\']).filter(|part| !matches!(part.trim(), "" | "." | ".."));
    let name = parts.collect::<Vec<_>>().join("/");
    if name.is_empty() {
        return Err(Error::invalid("file", "The file in the field `file` has no name; send it with a `filename`."));
    }
    if name.len() > FILENAME_BYTES_MAX {
        let message = format!("The file's name is longer than {FILENAME_BYTES_MAX} bytes.");
        return Err(Error::invalid("file", message));
    }
    Ok(name)
}

async fn receive(mut field: Field<'_>, length: u64, state: &AppState) -> Result<Incoming, Error> {
    let mut incoming = state.documents.receive(length).await?;
    while let Some(bytes) = in_time(field.chunk(), state).await? {
        if incoming.len() + bytes.len() as u64 > state.settings.upload_limit_bytes as u64 {
            return Err(too_large(state));
        }
        incoming = state.documents.receive_more(incoming, bytes).await?;
    }
    Ok(incoming)
}

async fn text(mut field: Field<'_>, name: &str, state: &AppState) -> Result<String, Error> {
    let mut collected = Vec::new();
    while let Some(bytes) = in_time(field.chunk(), state).await? {
        collected.extend_from_slice(&bytes);
        if collected.len() > FIELD_BYTES_MAX {
            return Err(Error::invalid(name, format!("`{name}` is longer than {FIELD_BYTES_MAX} bytes.")));
        }
    }
    String::from_utf8(collected).map_err(|_| Error::invalid(name, format!("`{name}` is not UTF-8.")))
}

async fn next_field<'f>(form: &'f mut Multipart, state: &AppState) -> Result<Option<Field<'f>>, Error> {
    in_time(form.next_field(), state).await
}

/// A large file takes long, but a client that sends nothing for as long as a whole body may take has gone.
async fn in_time<T>(
    read: impl Future<Output = Result<T, axum::extract::multipart::MultipartError>>,
    state: &AppState,
) -> Result<T, Error> {
    match tokio::time::timeout(state.settings.request_body_timeout, read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => {
            let message = format!("The form cannot be read: {}.", error.body_text().trim_end_matches('.'));
            Err(Error::new(ErrorKind::InvalidRequest, message).with_code("invalid_multipart"))
        }
        Err(_elapsed) => Err(too_slow()),
    }
}

async fn discard(form: &mut Multipart) {
    let mut discarded = 0;
    while let Ok(Some(mut field)) = form.next_field().await {
        while let Ok(Some(bytes)) = field.chunk().await {
            discarded += bytes.len();
            if discarded > DISCARD_MAX_BYTES {
                return;
            }
        }
    }
}
