//! Extractors that refuse in the contract's format: a JSON body, read within its size and time limits, and the query
//! parameters.

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    body_room::BodyShare,
    error::ApiError,
    json_cost::{MULTIPLE, most, parsed_bytes},
    origin::is_from_browser,
    state::AppState,
};
use hearth_domain::error::{Error, ErrorKind};
use hearth_text::work::{SHORT_BYTES, off_the_async_threads};

/// Bytes beyond the limit that are still read off the wire before the response: a client that is still writing does not
/// see a response, and loses it if the connection is reset meanwhile.
const DISCARD_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The parsed body of a request.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

/// The parameters of the query.
#[derive(Debug)]
pub(super) struct QueryParameters<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for QueryParameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let Query(parameters) = Query::from_request_parts(parts, state).await.map_err(|rejection| {
            Error::new(ErrorKind::InvalidRequest, format!("The query cannot be read: {}.", rejection.body_text()))
        })?;
        Ok(Self(parameters))
    }
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let limit = state.settings.body_limit_bytes;
        // A client that sends `Expect: 100-continue` gets its answer before it has sent any body.
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if request.headers().contains_key(header::EXPECT) && length.is_some_and(|length: usize| length > limit) {
            return Err(too_large(limit).into());
        }
        let share = request
            .extensions()
            .get::<BodyShare>()
            .cloned()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("the route lacks the layer that shares out room")))?;
        let read = read_body(request.into_body(), limit, &share);
        let bytes = tokio::time::timeout(state.settings.request_body_timeout, read).await.map_err(|_elapsed| {
            Error::new(ErrorKind::RequestTimeout, "The request's body did not arrive in time; send it without pauses.")
        })??;
        let cost = parsed_bytes(&bytes);
        let most = most(limit);
        if cost > most {
            let message = format!(
                "The request's body has more values than this server holds at once: they would take about {} MiB, {} are \
                 allowed. Send them in several requests.",
                cost >> 20,
                most >> 20
            );
            return Err(Error::new(ErrorKind::PayloadTooLarge, message).into());
        }
        if !share.grow_to(bytes.len().max(cost / MULTIPLE)) {
            return Err(no_room().into());
        }
        if bytes.len() <= SHORT_BYTES {
            return Ok(Self(parse(&bytes)?));
        }
        Ok(Self(off_the_async_threads(bytes.len(), move |_| parse(&bytes)).await?))
    }
}

/// `application/json`, anything `+json`, or nothing, as llama-server accepts. A browser must name the type: a page can
/// make it send untyped bytes to any site, but JSON only to sites whose preflight allows it.
fn check_content_type(headers: &HeaderMap) -> Result<(), Error> {
    let unsupported = |message: String| Error::new(ErrorKind::UnsupportedMediaType, message);
    if let Some(value) = headers.get(header::CONTENT_TYPE) {
        let text = value.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" && !essence.ends_with("+json") {
            return Err(unsupported("The body must be JSON: send `Content-Type: application/json`.".to_owned()));
        }
    } else if is_from_browser(headers) {
        let message = "A body without a type is not taken from a browser (the request has `Origin` or `Sec-Fetch-*`): send \
                       `Content-Type: application/json`.";
        return Err(unsupported(message.to_owned()));
    }
    if let Some(value) = headers.get(header::CONTENT_ENCODING)
        && value != "identity"
    {
        return Err(unsupported("A compressed body is not supported; send it without `Content-Encoding`.".to_owned()));
    }
    Ok(())
}

async fn read_body(mut body: Body, limit: usize, share: &BodyShare) -> Result<Bytes, Error> {
    let mut collected = BytesMut::new();
    let mut received = 0usize;
    let mut refusal = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "The connection broke off within the request's body.")
                .with_source(error)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        received = received.saturating_add(data.len());
        if received > limit {
            refusal = Some(too_large(limit));
        } else if refusal.is_none() && !share.grow_to(received) {
            refusal = Some(no_room());
        }
        if refusal.is_none() {
            collected.extend_from_slice(&data);
        } else {
            collected = BytesMut::new();
            share.give_back();
            if received > limit.saturating_add(DISCARD_MAX_BYTES) {
                break;
            }
        }
    }
    refusal.map_or_else(|| Ok(collected.freeze()), Err)
}

fn too_large(limit: usize) -> Error {
    let message = format!("The request's body is larger than this server's limit of {limit} bytes.");
    Error::new(ErrorKind::PayloadTooLarge, message)
}

fn no_room() -> Error {
    let message = "The server has no room for another large request now; retry, or send smaller ones.";
    Error::new(ErrorKind::Overloaded, message)
}

fn parse(bytes: &[u8]) -> Result<Value, Error> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidRequest, message).with_code("invalid_json");
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid("The request's body is empty; a JSON object is needed.".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| invalid(format!("The request's body is not UTF-8 from byte {} on.", error.valid_up_to())))?;
    // serde_json stops at 128 levels of nesting, so that a hostile body cannot exhaust the stack.
    serde_json::from_str(text).map_err(|error| invalid(format!("The request's body is not valid JSON: {error}.")))
}
