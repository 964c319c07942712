//! `/v1/vector_stores`: created, filled, searched.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use hearth_domain::documents::{Collection, Document, DocumentStatus, SearchMode};

use super::{
    context::RequestCaller,
    error::ApiError,
    extract::{JsonBody, QueryParameters},
    files::members,
    ignored::name_ignored,
    state::AppState,
};
use crate::{
    retrieval::search::Lookup,
    service::{documents::OwnedDocuments, health::refuse_unless_ready},
    store::{Batch, Member},
    wire::{
        Parsed,
        files::Deleted,
        lists::List,
        vector_store_request::{
            FileBatchRequest, VectorStoreCreate, VectorStoreFileListQuery, VectorStoreFileRequest,
            VectorStoreFileUpdate, VectorStoreListQuery, VectorStoreSearchRequest, VectorStoreUpdate,
        },
        vector_store_response::{
            FileBatchObject, FileContentPage, SearchResult, SearchResultsPage, VectorStoreFileObject, VectorStoreObject,
        },
    },
};

/// Tells a polling SDK how long to wait.
const POLL_AFTER_MS: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const POLL_AFTER: HeaderValue = HeaderValue::from_static("200");

/// One path parameter.
type Id = Result<Path<String>, PathRejection>;
/// The path parameters of a vector store and something in it.
type Ids = Result<Path<(String, String)>, PathRejection>;
type Parameters = QueryParameters<BTreeMap<String, String>>;

/// A file that would never be read is not accepted.
fn refuse_unless_read(state: &AppState) -> Result<(), ApiError> {
    refuse_unless_ready(&state.health.status())?;
    state.documents.retriever()?;
    Ok(())
}

async fn described(documents: &OwnedDocuments, collection: Collection) -> Result<VectorStoreObject, ApiError> {
    let counts = documents.document_counts(vec![collection.id.clone()]).await?;
    Ok(VectorStoreObject::new(collection, counts.first().copied().unwrap_or_default()))
}

pub(super) async fn create_vector_store(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = VectorStoreCreate::read(body, state.settings.strict)?;
    if !request.file_ids.is_empty() {
        refuse_unless_read(&state)?;
    }
    let created = documents.create_vector_store(request.name, request.metadata, request.file_ids).await?;
    Ok(name_ignored(Json(described(&documents, created).await?).into_response(), &ignored))
}

pub(super) async fn list_vector_stores(
    State(state): State<AppState>,
    caller: RequestCaller,
    QueryParameters(parameters): Parameters,
) -> Result<Json<List<VectorStoreObject>>, ApiError> {
    let documents = caller.documents(&state);
    let query = VectorStoreListQuery::read(parameters)?;
    let page = documents.vector_stores(query.page).await?;
    let counts = documents.document_counts(page.entries.iter().map(|store| store.id.clone()).collect()).await?;
    let objects = page.entries.into_iter().zip(counts).map(|(store, counts)| VectorStoreObject::new(store, counts));
    Ok(Json(List::new(objects.collect(), page.has_more, |store| &store.id)))
}

pub(super) async fn retrieve_vector_store(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
) -> Result<Json<VectorStoreObject>, ApiError> {
    let documents = caller.documents(&state);
    let collection = documents.vector_store(&members(id)?).await?;
    Ok(Json(described(&documents, collection).await?))
}

pub(super) async fn update_vector_store(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = VectorStoreUpdate::read(body, state.settings.strict)?;
    let updated = documents.update_vector_store(&members(id)?, request.name, request.metadata).await?;
    Ok(name_ignored(Json(described(&documents, updated).await?).into_response(), &ignored))
}

pub(super) async fn delete_vector_store(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
) -> Result<Json<Deleted>, ApiError> {
    let documents = caller.documents(&state);
    let collection = documents.vector_store(&members(id)?).await?;
    documents.delete_collection(&collection.id).await?;
    Ok(Json(Deleted::new(collection.id, "vector_store.deleted")))
}

pub(super) async fn search_vector_store(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = VectorStoreSearchRequest::read(body, state.settings.strict)?;
    let collection = documents.vector_store(&members(id)?).await?;
    refuse_unless_read(&state)?;
    let collections = vec![collection];
    let lookup = Lookup {
        account: Lookup::account_for(caller.account(), &collections),
        collections,
        filter: request.filter,
        top_k: request.max_num_results,
        min_similarity: request.score_threshold,
        mode: if request.dense_only { SearchMode::Dense } else { SearchMode::Fused },
        rerank: false,
    };
    let found = documents.search_for_any(request.queries.clone(), lookup).await?;
    let results = found.into_iter().map(|passage| {
        SearchResult::new(passage.file_id, passage.filename, passage.similarity, &passage.attributes, passage.text)
    });
    let page = SearchResultsPage::new(request.queries, results.collect());
    Ok(name_ignored(Json(page).into_response(), &ignored))
}

// --- files of a vector store ---

fn member(request: VectorStoreFileRequest) -> Member {
    Member { file_id: request.file_id, attributes: request.attributes }
}

fn file_answer(document: Document) -> Response {
    let polled = document.status == DocumentStatus::Processing;
    let answer = Json(VectorStoreFileObject::from(document)).into_response();
    if polled { poll_again(answer) } else { answer }
}

fn poll_again(mut answer: Response) -> Response {
    answer.headers_mut().insert(POLL_AFTER_MS, POLL_AFTER);
    answer
}

fn file_list(documents: Vec<Document>, has_more: bool) -> Json<List<VectorStoreFileObject>> {
    let objects = documents.into_iter().map(VectorStoreFileObject::from).collect();
    Json(List::new(objects, has_more, |file| &file.id))
}

pub(super) async fn create_vector_store_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = VectorStoreFileRequest::read(body, state.settings.strict)?;
    let collection = documents.vector_store(&members(id)?).await?;
    refuse_unless_read(&state)?;
    let document = documents.attach(&collection.id, member(request)).await?;
    Ok(name_ignored(file_answer(document), &ignored))
}

pub(super) async fn list_vector_store_files(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
    QueryParameters(parameters): Parameters,
) -> Result<Json<List<VectorStoreFileObject>>, ApiError> {
    let own = caller.documents(&state);
    let query = VectorStoreFileListQuery::read(parameters)?;
    let collection = own.vector_store(&members(id)?).await?;
    let page = own.documents(&collection.id, None, query.status, query.page).await?;
    Ok(file_list(page.entries, page.has_more))
}

pub(super) async fn retrieve_vector_store_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let (id, file_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    Ok(file_answer(documents.document(&collection.id, &file_id).await?))
}

pub(super) async fn update_vector_store_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = VectorStoreFileUpdate::read(body, state.settings.strict)?;
    let (id, file_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    let document = documents.set_attributes(&collection.id, &file_id, request.attributes).await?;
    Ok(name_ignored(file_answer(document), &ignored))
}

pub(super) async fn delete_vector_store_file(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
) -> Result<Json<Deleted>, ApiError> {
    let documents = caller.documents(&state);
    let (id, file_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    documents.remove(&collection.id, &file_id).await?;
    Ok(Json(Deleted::new(file_id, "vector_store.file.deleted")))
}

pub(super) async fn vector_store_file_content(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
) -> Result<Json<FileContentPage>, ApiError> {
    let documents = caller.documents(&state);
    let (id, file_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    let (document, chunks) = documents.content(&collection.id, &file_id).await?;
    Ok(Json(FileContentPage::new(document, chunks)))
}

// --- batches of files ---

fn batch_answer(batch: Batch) -> Response {
    let Batch { id, collection_id, created_ms, cancelled, documents } = batch;
    let object = FileBatchObject::new(id, created_ms, collection_id, cancelled, &documents);
    let polled = object.is_in_progress();
    let answer = Json(object).into_response();
    if polled { poll_again(answer) } else { answer }
}

pub(super) async fn create_file_batch(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Id,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let Parsed { request, ignored } = FileBatchRequest::read(body, state.settings.strict)?;
    let collection = documents.vector_store(&members(id)?).await?;
    refuse_unless_read(&state)?;
    let files = request.files.into_iter().map(member).collect();
    let batch = documents.attach_batch(&collection.id, files).await?;
    Ok(name_ignored(batch_answer(batch), &ignored))
}

pub(super) async fn retrieve_file_batch(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let (id, batch_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    Ok(batch_answer(documents.batch(&collection.id, &batch_id).await?))
}

pub(super) async fn cancel_file_batch(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
) -> Result<Response, ApiError> {
    let documents = caller.documents(&state);
    let (id, batch_id) = members(ids)?;
    let collection = documents.vector_store(&id).await?;
    Ok(batch_answer(documents.cancel_batch(&collection.id, &batch_id).await?))
}

pub(super) async fn list_file_batch_files(
    State(state): State<AppState>,
    caller: RequestCaller,
    ids: Ids,
    QueryParameters(parameters): Parameters,
) -> Result<Json<List<VectorStoreFileObject>>, ApiError> {
    let own = caller.documents(&state);
    let query = VectorStoreFileListQuery::read(parameters)?;
    let (id, batch_id) = members(ids)?;
    let collection = own.vector_store(&id).await?;
    let batch = own.batch(&collection.id, &batch_id).await?;
    let page = own.documents(&collection.id, Some(batch.id), query.status, query.page).await?;
    Ok(file_list(page.entries, page.has_more))
}
