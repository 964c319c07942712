//! The application contract's documents and collections.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use hearth_domain::{documents::Document, error::Error};
use serde_json::Value;

use super::{context::RequestCaller, error::ApiError, extract::QueryParameters, state::AppState, upload::UploadForm};
use crate::{
    service::documents::{DEFAULT_COLLECTION, OwnedDocuments},
    store::{Job, JobState},
    wire::documents::{
        CollectionAnswer, CollectionList, DocumentAnswer, DocumentDeleted, DocumentList, DocumentListQuery,
        DocumentUpload, ReindexAnswer,
    },
};

/// OpenAI's purpose for files that are to be searched.
const PURPOSE: &str = "assistants";

/// A form with `file` and, optionally, `collection`, `attributes` (a JSON object) and `replaces` (the id of the
/// document to replace).
pub(super) async fn upload(
    State(state): State<AppState>,
    caller: RequestCaller,
    form: UploadForm,
) -> Result<Json<DocumentAnswer>, ApiError> {
    let own = caller.documents(&state);
    let UploadForm { file, filename, fields } = form;
    let DocumentUpload { collection, attributes, replaces } = DocumentUpload::read(fields)?;
    let name = collection.as_deref().unwrap_or(DEFAULT_COLLECTION);
    let collection = own.collection_or_new(name).await?;
    let file = own.keep(file, &filename, PURPOSE).await?;
    let document = own.add_uploaded(&collection, &file, attributes, replaces).await?;
    Ok(Json(DocumentAnswer::new(document, None)))
}

pub(super) async fn list(
    State(state): State<AppState>,
    caller: RequestCaller,
    QueryParameters(parameters): QueryParameters<BTreeMap<String, String>>,
) -> Result<Json<DocumentList>, ApiError> {
    let own = caller.documents(&state);
    let query = DocumentListQuery::read(parameters)?;
    let collection = match query.collection {
        Some(name) => Some(own.collection(&name).await?.id),
        None => None,
    };
    let (page, total) = own.documents_of_files(collection, query.after, query.limit).await?;
    let documents = page.entries.into_iter().map(|document| DocumentAnswer::new(document, None)).collect();
    Ok(Json(DocumentList { documents, total, has_more: page.has_more }))
}

pub(super) async fn retrieve(
    State(state): State<AppState>,
    caller: RequestCaller,
    Path(id): Path<String>,
) -> Result<Json<DocumentAnswer>, ApiError> {
    let own = caller.documents(&state);
    let document = first_of_file(&own, &id).await?;
    let progress = own.progress(&document).await?;
    Ok(Json(DocumentAnswer::new(document, progress)))
}

/// A file may be a document in several collections; this is the one it was uploaded to.
async fn first_of_file(own: &OwnedDocuments, id: &str) -> Result<Document, Error> {
    let mut documents = own.documents_of_file(id).await?;
    Ok(documents.swap_remove(0))
}

/// Deletes the document and its file, from every collection.
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: RequestCaller,
    Path(id): Path<String>,
) -> Result<Json<DocumentDeleted>, ApiError> {
    let own = caller.documents(&state);
    first_of_file(&own, &id).await?;
    own.delete_file(&id).await?;
    Ok(Json(DocumentDeleted { document_id: id, deleted: true }))
}

pub(super) async fn collections(
    State(state): State<AppState>,
    caller: RequestCaller,
) -> Result<Json<CollectionList>, ApiError> {
    let collections = caller.documents(&state).collections().await?;
    Ok(Json(CollectionList { collections: collections.into_iter().map(CollectionAnswer::from).collect() }))
}

pub(super) async fn delete_collection(
    State(state): State<AppState>,
    caller: RequestCaller,
    Path(name): Path<String>,
) -> Result<Json<CollectionAnswer>, ApiError> {
    Ok(Json(caller.documents(&state).delete_collection(&name).await?.into()))
}

pub(super) async fn reindex(
    State(state): State<AppState>,
    caller: RequestCaller,
    Path(name): Path<String>,
) -> Result<Json<ReindexAnswer>, ApiError> {
    let job = caller.documents(&state).reindex(&name).await?;
    Ok(Json(reindex_answer(job, None)))
}

pub(super) async fn reindex_state(
    State(state): State<AppState>,
    caller: RequestCaller,
    Path((name, job_id)): Path<(String, String)>,
) -> Result<Json<ReindexAnswer>, ApiError> {
    let (job, last) = caller.documents(&state).reindexing(&name, &job_id).await?;
    Ok(Json(reindex_answer(job, last)))
}

fn reindex_answer(job: Job, progress: Option<Value>) -> ReindexAnswer {
    let (status, result, error) = match job.state {
        JobState::Queued => ("queued", None, None),
        JobState::Running => ("running", None, None),
        JobState::Done { result } => ("done", Some(result), None),
        JobState::Failed { error } => ("failed", None, Some(error)),
        JobState::Cancelled => ("cancelled", None, None),
    };
    ReindexAnswer { job_id: job.id, status, progress, result, error }
}
