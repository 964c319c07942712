//! What `/v1/vector_stores` returns.

use hearth_domain::documents::{Chunk, Collection, Document, DocumentCounts, DocumentStatus};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::documents::{Attributes, write_attributes};

/// OpenAI's name for a document's status.
fn status_name(status: &DocumentStatus) -> &'static str {
    match status {
        DocumentStatus::Processing => "in_progress",
        DocumentStatus::Ready => "completed",
        DocumentStatus::Failed { .. } => "failed",
        DocumentStatus::Cancelled => "cancelled",
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize)]
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

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "VectorStore")]
pub struct VectorStoreObject {
    pub id: String,
    #[schemars(extend("const" = "vector_store"))]
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub name: String,
    /// The size of the files that can be searched.
    pub usage_bytes: u64,
    pub file_counts: FileCounts,
    /// `in_progress` while a file is being read, else `completed`.
    #[schemars(extend("enum" = ["in_progress", "completed"]))]
    pub status: &'static str,
    pub expires_after: Option<Value>,
    pub expires_at: Option<i64>,
    pub last_active_at: Option<i64>,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
    pub metadata: Map<String, Value>,
}

impl VectorStoreObject {
    pub fn new(collection: Collection, counts: DocumentCounts) -> Self {
        let file_counts = FileCounts {
            in_progress: counts.processing,
            completed: counts.ready,
            failed: counts.failed,
            cancelled: counts.cancelled,
            total: counts.processing + counts.ready + counts.failed + counts.cancelled,
        };
        Self {
            id: collection.id,
            object: "vector_store",
            created_at: collection.created_ms / 1000,
            name: collection.name,
            usage_bytes: counts.searched_bytes,
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

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "VectorStoreFile")]
pub struct VectorStoreFileObject {
    /// The file's id.
    pub id: String,
    #[schemars(extend("const" = "vector_store.file"))]
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub vector_store_id: String,
    #[schemars(extend("enum" = ["in_progress", "completed", "failed", "cancelled"]))]
    pub status: &'static str,
    pub last_error: Option<LastError>,
    pub usage_bytes: u64,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
    pub attributes: Map<String, Value>,
    /// Always `{"type": "other"}`: chunks follow the document's own structure.
    pub chunking_strategy: Value,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct LastError {
    /// `server_error`, `unsupported_file` or `invalid_file`.
    #[schemars(extend("enum" = ["server_error", "unsupported_file", "invalid_file"]))]
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

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "FileBatch")]
pub struct FileBatchObject {
    pub id: String,
    #[schemars(extend("const" = "vector_store.files_batch"))]
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: i64,
    pub vector_store_id: String,
    #[schemars(extend("enum" = ["in_progress", "completed", "failed", "cancelled"]))]
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
#[derive(Debug, JsonSchema, Serialize)]
pub struct TextContent {
    #[serde(rename = "type")]
    #[schemars(extend("const" = "text"))]
    pub kind: &'static str,
    pub text: String,
}

impl TextContent {
    fn new(text: String) -> Self {
        Self { kind: "text", text }
    }
}

/// The text read from a file, piece by piece; neighbours overlap.
#[derive(Debug, JsonSchema, Serialize)]
pub struct FileContentPage {
    #[schemars(extend("const" = "vector_store.file_content.page"))]
    pub object: &'static str,
    pub file_id: String,
    pub filename: String,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
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

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "VectorStoreSearchResults")]
pub struct SearchResultsPage {
    #[schemars(extend("const" = "vector_store.search_results.page"))]
    pub object: &'static str,
    pub search_query: Vec<String>,
    /// Nearest first.
    pub data: Vec<SearchResult>,
    pub has_more: bool,
    pub next_page: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct SearchResult {
    pub file_id: String,
    pub filename: String,
    /// The cosine of passage and query, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub score: f32,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
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
