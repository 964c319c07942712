//! `/v1/vector_stores`: bodies and answers.

use std::collections::BTreeMap;

use hearth_domain::{
    documents::{AttributeFilter, AttributeValue, Chunk, Collection, Document, DocumentStatus, LOCAL_ONLY},
    error::Result,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Parsed,
    documents::{Attributes, read_attributes, read_filter, write_attributes},
    fields::{Fields, bad_value, shortened, wrong_type},
    lists::{ListQuery, PAGE, take_one_of},
    policy,
};

pub const ID_PREFIX: &str = "vs_";
const NAME_CHARS_MAX: usize = 256;
/// OpenAI's own bound for a batch.
const FILES_MAX: usize = 2000;
const QUERIES_MAX: usize = 16;
const RESULTS_MAX: i64 = 50;
const RESULTS_DEFAULT: usize = 10;
const STATUSES: [&str; 4] = ["in_progress", "completed", "failed", "cancelled"];

/// `POST /v1/vector_stores`, and of a vector store.
#[derive(Debug)]
pub struct VectorStoreRequest {
    pub name: Option<String>,
    pub metadata: Option<Attributes>,
    pub file_ids: Vec<String>,
}

impl VectorStoreRequest {
    pub fn read_create(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let file_ids = read_file_ids(&mut fields)?.unwrap_or_default();
        Self::read(fields, file_ids, policy::VECTOR_STORE_CREATE, strict)
    }

    pub fn read_update(body: Value, strict: bool) -> Result<Parsed<Self>> {
        Self::read(Fields::body(body)?, Vec::new(), policy::VECTOR_STORE_UPDATE, strict)
    }

    fn read(
        mut fields: Fields,
        file_ids: Vec<String>,
        table: &[policy::FieldPolicy],
        strict: bool,
    ) -> Result<Parsed<Self>> {
        let name = fields.string("name")?;
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_CHARS_MAX) {
            return Err(bad_value("name", format!("`name` is longer than {NAME_CHARS_MAX} characters.")));
        }
        let metadata = fields.map("metadata")?.map(|found| read_attributes(found, "metadata")).transpose()?;
        metadata.as_ref().map_or(Ok(()), check_local_only)?;
        let ignored = policy::apply(fields.rest(), &[table], strict)?;
        Ok(Parsed { request: Self { name, metadata, file_ids }, ignored })
    }
}

/// What is to keep texts on this machine must not be misspelt.
fn check_local_only(metadata: &Attributes) -> Result<()> {
    let is_clear = match metadata.get(LOCAL_ONLY) {
        None | Some(AttributeValue::Bool(_)) => true,
        Some(AttributeValue::Text(text)) => ["true", "false"].contains(&text.as_str()),
        Some(AttributeValue::Number(_)) => false,
    };
    let message = || "`metadata.local_only` must be \"true\" or \"false\".".to_owned();
    if is_clear { Ok(()) } else { Err(bad_value("metadata.local_only", message())) }
}

fn read_file_ids(fields: &mut Fields) -> Result<Option<Vec<String>>> {
    let Some(items) = fields.array("file_ids")? else { return Ok(None) };
    check_count(items.len(), "file_ids")?;
    let ids = items.into_iter().enumerate().map(|(index, item)| match item {
        Value::String(id) => Ok(id),
        other => Err(wrong_type(&format!("file_ids[{index}]"), "a string", &other)),
    });
    ids.collect::<Result<_>>().map(Some)
}

fn check_count(found: usize, path: &str) -> Result<()> {
    if found > FILES_MAX {
        return Err(bad_value(path, format!("`{path}` has {found} files; {FILES_MAX} are allowed.")));
    }
    Ok(())
}

fn take_attributes(fields: &mut Fields) -> Result<Attributes> {
    let path = fields.path("attributes");
    Ok(fields.map("attributes")?.map(|found| read_attributes(found, &path)).transpose()?.unwrap_or_default())
}

/// A file that is to be in a vector store.
#[derive(Debug, PartialEq)]
pub struct VectorStoreFileRequest {
    pub file_id: String,
    pub attributes: Attributes,
}

impl VectorStoreFileRequest {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        Self::read_fields(Fields::body(body)?, strict)
    }

    fn read_fields(mut fields: Fields, strict: bool) -> Result<Parsed<Self>> {
        let file_id = fields.required_string("file_id")?;
        let attributes = take_attributes(&mut fields)?;
        let ignored = policy::apply(fields.rest(), &[policy::VECTOR_STORE_FILE], strict)?;
        Ok(Parsed { request: Self { file_id, attributes }, ignored })
    }
}

/// `POST /v1/vector_stores/{id}/files/{file_id}`: the attributes that take the place of the old ones.
pub fn read_new_attributes(body: Value, strict: bool) -> Result<Parsed<Attributes>> {
    let is_null = body.get("attributes").is_some_and(Value::is_null);
    let mut fields = Fields::body(body)?;
    if fields.peek("attributes").is_none() && !is_null {
        return Err(fields.missing("attributes"));
    }
    let request = take_attributes(&mut fields)?;
    let ignored = policy::apply(fields.rest(), &[policy::VECTOR_STORE_FILE_UPDATE], strict)?;
    Ok(Parsed { request, ignored })
}

/// `POST /v1/vector_stores/{id}/file_batches`.
pub fn read_batch(body: Value, strict: bool) -> Result<Parsed<Vec<VectorStoreFileRequest>>> {
    let mut fields = Fields::body(body)?;
    let ids = read_file_ids(&mut fields)?;
    let files = fields.array("files")?;
    let attributes = take_attributes(&mut fields)?;
    let mut ignored = policy::apply(fields.rest(), &[policy::FILE_BATCH], strict)?;
    let request = match (ids, files) {
        (Some(ids), None) => ids
            .into_iter()
            .map(|file_id| VectorStoreFileRequest { file_id, attributes: attributes.clone() })
            .collect::<Vec<_>>(),
        (None, Some(files)) => {
            check_count(files.len(), "files")?;
            let mut read = Vec::with_capacity(files.len());
            for (index, file) in files.into_iter().enumerate() {
                let file =
                    VectorStoreFileRequest::read_fields(Fields::object(file, &format!("files[{index}]"))?, strict)?;
                ignored.extend(file.ignored);
                read.push(file.request);
            }
            read
        }
        (Some(_), Some(_)) => return Err(bad_value("files", "Send either `file_ids` or `files`, not both.")),
        (None, None) => {
            let message = "`file_ids` is required, or `files`.";
            return Err(bad_value("file_ids", message).with_code("missing_required_parameter"));
        }
    };
    if request.is_empty() {
        return Err(bad_value("file_ids", "A batch has at least one file."));
    }
    Ok(Parsed { request, ignored })
}

/// Which files of a vector store are listed.
#[derive(Debug)]
pub struct VectorStoreFileListQuery {
    pub page: ListQuery,
    /// OpenAI's name of a status.
    status: Option<String>,
}

impl VectorStoreFileListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        let page = ListQuery::take(&mut parameters, PAGE)?;
        Ok(Self { page, status: take_one_of(&mut parameters, "filter", &STATUSES)? })
    }

    pub fn admits(&self, document: &Document) -> bool {
        self.status.as_deref().is_none_or(|status| status == status_name(&document.status))
    }
}

/// `POST /v1/vector_stores/{id}/search`.
#[derive(Debug)]
pub struct VectorStoreSearchRequest {
    pub queries: Vec<String>,
    pub filter: Option<AttributeFilter>,
    pub max_num_results: usize,
    /// By the cosine, 0 to 1.
    pub score_threshold: f32,
    /// Only by meaning, and not by words.
    pub dense_only: bool,
}

impl VectorStoreSearchRequest {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let queries = read_queries(fields.required("query")?)?;
        let filter = fields.take("filters").map(|found| read_filter(found, "filters")).transpose()?;
        let max_num_results = fields.integer("max_num_results", 1, RESULTS_MAX)?;
        let mut score_threshold = None;
        let mut dense_only = false;
        if let Some(mut options) = fields.nested("ranking_options")? {
            score_threshold = options.float("score_threshold", 0.0, 1.0)?;
            match options.string("ranker")?.as_deref() {
                None | Some("auto" | "default-2024-11-15" | "default_2024_08_21") => {}
                Some("none") => dense_only = true,
                Some(other) => {
                    let place = options.path("ranker");
                    let found = shortened(&Value::String(other.to_owned()));
                    let message = format!("`{place}` must be one of none, auto, default-2024-11-15, but is {found}.");
                    return Err(bad_value(place, message));
                }
            }
        }
        let ignored = policy::apply(fields.rest(), &[policy::VECTOR_STORE_SEARCH], strict)?;
        let request = Self {
            queries,
            filter,
            max_num_results: max_num_results.and_then(|max| usize::try_from(max).ok()).unwrap_or(RESULTS_DEFAULT),
            score_threshold: score_threshold.unwrap_or(0.0),
            dense_only,
        };
        Ok(Parsed { request, ignored })
    }
}

fn read_queries(value: Value) -> Result<Vec<String>> {
    let items = match value {
        Value::Array(items) => items,
        text => vec![text],
    };
    if items.is_empty() || items.len() > QUERIES_MAX {
        let message = format!("`query` must have 1 to {QUERIES_MAX} entries, but has {}.", items.len());
        return Err(bad_value("query", message));
    }
    let queries = items.into_iter().map(|item| match item {
        Value::String(text) if text.trim().is_empty() => {
            Err(bad_value("query", "`query` must not be an empty string."))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type("query", "a string or an array of strings", &other)),
    });
    queries.collect()
}

/// What OpenAI calls a document's status.
fn status_name(status: &DocumentStatus) -> &'static str {
    match status {
        DocumentStatus::Processing => "in_progress",
        DocumentStatus::Ready => "completed",
        DocumentStatus::Failed { .. } => "failed",
        DocumentStatus::Cancelled => "cancelled",
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileCounts {
    pub in_progress: usize,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub total: usize,
}

impl FileCounts {
    pub fn new(documents: &[Document]) -> Self {
        let mut counts = Self { total: documents.len(), ..Self::default() };
        for document in documents {
            *match document.status {
                DocumentStatus::Processing => &mut counts.in_progress,
                DocumentStatus::Ready => &mut counts.completed,
                DocumentStatus::Failed { .. } => &mut counts.failed,
                DocumentStatus::Cancelled => &mut counts.cancelled,
            } += 1;
        }
        counts
    }
}

#[derive(Debug, Serialize)]
pub struct VectorStoreObject {
    pub id: String,
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub name: String,
    /// Of the files that can be searched.
    pub usage_bytes: u64,
    pub file_counts: FileCounts,
    /// `in_progress` while a file is being read, else `completed`.
    pub status: &'static str,
    pub expires_after: Option<Value>,
    pub expires_at: Option<i64>,
    pub last_active_at: Option<i64>,
    pub metadata: Map<String, Value>,
}

impl VectorStoreObject {
    pub fn new(collection: Collection, documents: &[Document]) -> Self {
        let file_counts = FileCounts::new(documents);
        Self {
            id: collection.id,
            object: "vector_store",
            created_at: collection.created_ms / 1000,
            name: collection.name,
            usage_bytes: documents.iter().map(usage_bytes).sum(),
            file_counts,
            status: if file_counts.in_progress > 0 { "in_progress" } else { "completed" },
            expires_after: None,
            expires_at: None,
            last_active_at: None,
            metadata: write_attributes(&collection.metadata),
        }
    }
}

fn usage_bytes(document: &Document) -> u64 {
    if document.num_chunks > 0 { document.bytes } else { 0 }
}

#[derive(Debug, Serialize)]
pub struct VectorStoreFileObject {
    /// The file's own.
    pub id: String,
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub vector_store_id: String,
    pub status: &'static str,
    pub last_error: Option<LastError>,
    pub usage_bytes: u64,
    pub attributes: Map<String, Value>,
    /// Always `{"type": "other"}`: the document's own structure.
    pub chunking_strategy: Value,
}

#[derive(Debug, Serialize)]
pub struct LastError {
    /// `server_error`, `unsupported_file` or `invalid_file`.
    pub code: &'static str,
    pub message: String,
}

impl From<Document> for VectorStoreFileObject {
    fn from(document: Document) -> Self {
        Self {
            object: "vector_store.file",
            created_at: document.created_ms / 1000,
            status: status_name(&document.status),
            usage_bytes: usage_bytes(&document),
            attributes: write_attributes(&document.attributes),
            chunking_strategy: json!({"type": "other"}),
            last_error: match document.status {
                DocumentStatus::Failed { code, reason } => Some(LastError {
                    // Clients know these three.
                    code: match &code[..] {
                        "unsupported_file" => "unsupported_file",
                        "invalid_file" => "invalid_file",
                        _ => "server_error",
                    },
                    message: reason,
                }),
                DocumentStatus::Processing | DocumentStatus::Ready | DocumentStatus::Cancelled => None,
            },
            vector_store_id: document.collection_id,
            id: document.file_id,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct FileBatchObject {
    pub id: String,
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub vector_store_id: String,
    pub status: &'static str,
    pub file_counts: FileCounts,
}

impl FileBatchObject {
    pub fn new(id: String, created_ms: i64, vector_store_id: String, cancelled: bool, documents: &[Document]) -> Self {
        let file_counts = FileCounts::new(documents);
        let status = if cancelled {
            "cancelled"
        } else if file_counts.in_progress > 0 {
            "in_progress"
        } else if file_counts.failed > 0 && file_counts.failed == file_counts.total {
            "failed"
        } else {
            "completed"
        };
        let (object, created_at) = ("vector_store.files_batch", created_ms / 1000);
        Self { id, object, created_at, vector_store_id, status, file_counts }
    }

    pub fn is_in_progress(&self) -> bool {
        self.file_counts.in_progress > 0
    }
}

/// A piece of text.
#[derive(Debug, Serialize)]
pub struct TextContent {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub text: String,
}

impl TextContent {
    fn new(text: String) -> Self {
        Self { kind: "text", text }
    }
}

/// What was read of a file, piece by piece; neighbours overlap.
#[derive(Debug, Serialize)]
pub struct FileContentPage {
    pub object: &'static str,
    pub file_id: String,
    pub filename: String,
    pub attributes: Map<String, Value>,
    pub data: Vec<TextContent>,
    pub has_more: bool,
    pub next_page: Option<String>,
}

impl FileContentPage {
    pub fn new(document: Document, chunks: Vec<Chunk>) -> Self {
        Self {
            object: "vector_store.file_content.page",
            attributes: write_attributes(&document.attributes),
            file_id: document.file_id,
            filename: document.filename,
            data: chunks.into_iter().map(|chunk| TextContent::new(chunk.text)).collect(),
            has_more: false,
            next_page: None,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct SearchResultsPage {
    pub object: &'static str,
    pub search_query: Vec<String>,
    /// The nearest first.
    pub data: Vec<SearchResult>,
    pub has_more: bool,
    pub next_page: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct SearchResult {
    pub file_id: String,
    pub filename: String,
    /// The cosine of passage and query, 0 to 1.
    pub score: f32,
    pub attributes: Map<String, Value>,
    pub content: Vec<TextContent>,
}

impl SearchResult {
    pub fn new(file_id: String, filename: String, score: f32, attributes: &Attributes, text: String) -> Self {
        let content = vec![TextContent::new(text)];
        Self { file_id, filename, score, attributes: write_attributes(attributes), content }
    }
}

impl SearchResultsPage {
    pub fn new(search_query: Vec<String>, data: Vec<SearchResult>) -> Self {
        let object = "vector_store.search_results.page";
        Self { object, search_query, data, has_more: false, next_page: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bodies_are_refused_by_name() {
        let search = |body| VectorStoreSearchRequest::read(body, false).unwrap_err();
        let batch = |body| read_batch(body, false).unwrap_err();
        let file = |body| VectorStoreFileRequest::read(body, false).unwrap_err();
        let create = |body| VectorStoreRequest::read_create(body, false).unwrap_err();
        for (error, param) in [
            (search(json!({})), "query"),
            (search(json!({"query": []})), "query"),
            (search(json!({"query": " "})), "query"),
            (search(json!({"query": ["a", 1]})), "query"),
            (search(json!({"query": "a", "max_num_results": 51})), "max_num_results"),
            (search(json!({"query": "a", "filters": {"type": "eq"}})), "filters.key"),
            (search(json!({"query": "a", "ranking_options": {"ranker": "best"}})), "ranking_options.ranker"),
            (
                search(json!({"query": "a", "ranking_options": {"score_threshold": 2}})),
                "ranking_options.score_threshold",
            ),
            (create(json!({"metadata": {"local_only": "yes"}})), "metadata.local_only"),
            (batch(json!({})), "file_ids"),
            (batch(json!({"file_ids": []})), "file_ids"),
            (batch(json!({"file_ids": ["a", 1]})), "file_ids[1]"),
            (batch(json!({"file_ids": ["a"], "files": [{"file_id": "a"}]})), "files"),
            (batch(json!({"files": [{"file_id": "a"}, {}]})), "files[1].file_id"),
            (file(json!({"attributes": {}})), "file_id"),
            (file(json!({"file_id": "a", "attributes": {"x": [1]}})), "attributes.x"),
            (file(json!({"file_id": "a", "chunking_strategy": {"type": "static"}})), "chunking_strategy"),
            (create(json!({"name": 7})), "name"),
            (create(json!({"name": "x".repeat(257)})), "name"),
            (create(json!({"file_ids": "a"})), "file_ids"),
            (read_new_attributes(json!({}), false).unwrap_err(), "attributes"),
        ] {
            assert_eq!(error.param(), Some(param), "{error:?}");
        }
        assert!(read_new_attributes(json!({"attributes": null}), false).unwrap().request.is_empty());
        assert!(VectorStoreRequest::read_create(json!({"expires_after": {"days": 1}}), true).is_err());
    }
}
