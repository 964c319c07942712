//! The vocabulary of documents: what is stored of them, and what is found in them.

use std::{collections::BTreeMap, fmt};

/// A named set of documents that are searched together; OpenAI's vector store.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    /// `vs_` and a UUID.
    pub id: String,
    /// The display name. Collections made by OpenAI's clients may share a name, or have an empty one.
    pub name: String,
    pub metadata: BTreeMap<String, AttributeValue>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// What produced its vectors; `None` while it has none.
    pub embedding: Option<EmbeddingIdentity>,
}

/// The metadata key of a collection that says whether it must stay on this machine: `"true"` or `"false"`.
pub const LOCAL_ONLY: &str = "local_only";

impl Collection {
    /// Whether nothing of the collection may leave this machine. If set, any value other than `false` counts as true.
    pub fn is_local_only(&self) -> bool {
        match self.metadata.get(LOCAL_ONLY) {
            None | Some(AttributeValue::Bool(false)) => false,
            Some(AttributeValue::Text(text)) => text != "false",
            Some(AttributeValue::Bool(true) | AttributeValue::Number(_)) => true,
        }
    }
}

/// What produced a vector. Vectors of different identities are never compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingIdentity {
    /// The weights, pooling, normalization and prefixes, as one string.
    pub name: String,
    pub dimensions: usize,
}

/// An uploaded file, whose bytes are stored in the data directory under its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// `file-` and a UUID.
    pub id: String,
    pub filename: String,
    /// What OpenAI's clients say the file is for, such as `assistants`.
    pub purpose: String,
    pub bytes: u64,
    pub sha256: [u8; 32],
    pub created_ms: i64,
}

/// A file as a member of a collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub collection_id: String,
    /// The id of the file it was made from; also the document's own id within its collection.
    pub file_id: String,
    pub filename: String,
    pub bytes: u64,
    pub status: DocumentStatus,
    /// Attributes that callers filter by.
    pub attributes: BTreeMap<String, AttributeValue>,
    /// Chunks that are searchable now.
    pub num_chunks: usize,
    pub created_ms: i64,
    pub updated_ms: i64,
}

/// Which page of a list is asked for. Cursors are ids of entries, which are not part of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Entries at most.
    pub limit: usize,
    /// The oldest first.
    pub ascending: bool,
    pub after: Option<String>,
    pub before: Option<String>,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub entries: Vec<T>,
    /// Whether the list goes on behind the page.
    pub has_more: bool,
}

/// How many documents of a collection are in each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DocumentCounts {
    pub processing: usize,
    pub ready: usize,
    pub failed: usize,
    pub cancelled: usize,
    /// Bytes of the files of those that are searched.
    pub searched_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentStatus {
    /// Waiting or being read; an earlier version stays searchable meanwhile.
    Processing,
    /// Searchable.
    Ready,
    /// Could not be read; the reason is a sentence for the person who uploaded it.
    Failed {
        code: String,
        reason: String,
    },
    Cancelled,
}

/// A value that documents are filtered by.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    Text(String),
    Number(f64),
    Bool(bool),
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// Which documents are searched.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeFilter {
    Compare {
        key: String,
        comparison: Comparison,
        value: AttributeValue,
    },
    In {
        key: String,
        values: Vec<AttributeValue>,
        negated: bool,
    },
    All(Vec<AttributeFilter>),
    Any(Vec<AttributeFilter>),
    /// Any of these files.
    Files(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// How passages are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchMode {
    /// By meaning: vector similarity.
    Dense,
    /// By words: BM25.
    Lexical,
    /// Both, with fused scores.
    #[default]
    Fused,
}

/// How an answer from documents is tied to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grounding {
    /// Sentences of the passages, selected by their vectors; no chat model runs.
    Extract,
    /// Sentences of the passages, selected by the chat model.
    Quote,
    /// Text the chat model writes; its sentences are then checked against the passages.
    Free,
}

impl Grounding {
    /// Its name in requests and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extract => "extract",
            Self::Quote => "quote",
            Self::Free => "free",
        }
    }
}

/// A piece of a document with its vector, about to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChunk {
    pub text: String,
    /// The headings above it, outermost first, on one line.
    pub heading: String,
    /// Page, sheet or line, where the format has one.
    pub place: Option<u32>,
    /// Tokens of the text by the embedding model's tokenizer.
    pub tokens: usize,
    /// Of unit length.
    pub vector: Vec<f32>,
}

/// A piece of a document, as search returns it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Never reused for another chunk.
    pub id: u64,
    pub collection_id: String,
    pub file_id: String,
    pub filename: String,
    /// Its position in the document, from 0.
    pub position: usize,
    pub text: String,
    pub heading: String,
    pub place: Option<u32>,
    pub tokens: usize,
    pub attributes: BTreeMap<String, AttributeValue>,
}
