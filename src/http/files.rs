//! `/v1/files`: uploaded, listed, read back, deleted.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use hearth_domain::error::{Error, ErrorKind};
use tokio::io::AsyncReadExt;

use super::{
    context::RequestCaller, error::ApiError, extract::QueryParameters, ignored::name_ignored, state::AppState,
    upload::UploadForm,
};
use crate::wire::{
    Parsed,
    files::{Deleted, FileListQuery, FileObject, FileUpload},
    lists::List,
};

/// Bytes of a file held in memory at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// The path parameters, or the contract's 404: no id has bytes that are not UTF-8.
pub(super) fn members<T>(path: Result<Path<T>, PathRejection>) -> Result<T, ApiError> {
    let Path(members) = path.map_err(|rejection| ApiError(Error::new(ErrorKind::NotFound, rejection.body_text())))?;
    Ok(members)
}

pub(super) async fn upload_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    form: UploadForm,
) -> Result<Response, ApiError> {
    let Parsed { request, ignored } = FileUpload::read(form.fields, state.settings.strict)?;
    let file = caller.documents(&state).keep(form.file, &form.filename, &request.purpose).await?;
    Ok(name_ignored(Json(FileObject::from(file)).into_response(), &ignored))
}

pub(super) async fn list_files(
    State(state): State<AppState>,
    caller: RequestCaller,
    QueryParameters(parameters): QueryParameters<BTreeMap<String, String>>,
) -> Result<Json<List<FileObject>>, ApiError> {
    let query = FileListQuery::read(parameters)?;
    let page = caller.documents(&state).files(query.purpose, query.page).await?;
    let objects = page.entries.into_iter().map(FileObject::from).collect();
    Ok(Json(List::new(objects, page.has_more, |file| &file.id)))
}

pub(super) async fn retrieve_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FileObject>, ApiError> {
    Ok(Json(caller.documents(&state).file(&members(id)?).await?.into()))
}

pub(super) async fn delete_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let id = members(id)?;
    caller.documents(&state).delete_file(&id).await?;
    Ok(Json(Deleted::new(id, "file")))
}

/// The bytes as uploaded, with a media type that no browser runs.
pub(super) async fn file_content(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (file, opened) = caller.documents(&state).open_file(&members(id)?).await?;
    let opened = tokio::fs::File::from_std(opened);
    let pieces = stream::try_unfold(opened, |mut opened| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let read = opened.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), opened)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_LENGTH, HeaderValue::from(file.bytes)),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
