//! Documents: files as members of collections, and the change from one version to the next.

use super::{Attributes, Result};
use hearth_domain::documents::{Document, DocumentStatus, EmbeddingIdentity, NewChunk, Page, PageRequest};

/// The kind of the jobs that read documents; their payload has `collection_id`, `file_id` and `supersedes`.
pub const INGEST: &str = "ingest";

/// The result of adding a file to a collection.
#[derive(Clone, Debug, PartialEq)]
pub enum Upload {
    /// A document that is to be read.
    New(Document),
    /// The existing document in the collection with the same bytes.
    Known(Document),
}

/// What a document's new version changed in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Ids of the new chunks, in their given order.
    pub added: Vec<u64>,
    /// Ids of the old ones.
    pub removed: Vec<u64>,
}

/// The documents of an owner.
pub trait Documents {
    /// Makes a file a member of a collection, to be read by the [`INGEST`] job that is enqueued with it. For the same
    /// file, or another one with the same bytes, the existing document is returned, unless reading that one failed.
    /// Once ready, it replaces the document `supersedes`, which stays searchable until then, and those that that
    /// document was to replace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound) for the collection or the file.
    fn add_document(
        &self,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
        supersedes: Option<&str>,
    ) -> Result<Upload>;

    /// Whether a document must stay on this machine; without a document, whether any of the collection's must.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound) for the collection.
    fn has_local_only(&self, collection_id: &str, file_id: Option<&str>) -> Result<bool>;

    /// Makes a document searchable: in one transaction the new chunks replace the old ones and those of the documents
    /// that it supersedes, which are deleted, with their files if no other collection has them. If the document has
    /// been deleted or cancelled meanwhile, nothing is stored and the call fails. The first chunks bind their collection to the
    /// embedding model of their vectors.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound); [`StoreError::OtherEmbedding`](super::StoreError::OtherEmbedding) if the collection is bound to another model.
    fn replace_chunks(
        &self,
        collection_id: &str,
        file_id: &str,
        embedding: &EmbeddingIdentity,
        chunks: Vec<NewChunk>,
        supersedes: &[String],
    ) -> Result<Replaced>;

    /// Sets the status of a document that is not searchable, or not yet. An earlier version stays searchable.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn set_document_status(&self, collection_id: &str, file_id: &str, status: DocumentStatus) -> Result<Document>;

    /// Fails a document that is being read. `false`, with nothing changed, if it is no longer being read, because it
    /// was cancelled or deleted meanwhile. An earlier version stays searchable.
    fn fail_document(&self, collection_id: &str, file_id: &str, code: &str, reason: &str) -> Result<bool>;

    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn set_document_attributes(&self, collection_id: &str, file_id: &str, attributes: Attributes) -> Result<Document>;

    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn document(&self, collection_id: &str, file_id: &str) -> Result<Document>;

    /// The documents made from a file, in any collection.
    fn documents_of_file(&self, file_id: &str) -> Result<Vec<Document>>;

    /// The last progress event of the last job that read a document.
    fn ingest_progress(&self, collection_id: &str, file_id: &str) -> Result<Option<serde_json::Value>>;

    /// How many documents of a collection are being read without an earlier version that is searchable meanwhile.
    fn num_unsearchable(&self, collection_id: &str) -> Result<usize>;

    /// A page of a collection's documents: all, or those of a batch or with a status.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn documents_page(
        &self,
        collection_id: &str,
        batch_id: Option<&str>,
        status: Option<&str>,
        request: &PageRequest,
    ) -> Result<Page<Document>>;

    /// The documents of up to `limit` files after a file, the newest first, in one collection or in all. All documents
    /// of a file that is in several collections are on one page.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn documents_of_files(
        &self,
        collection_id: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Document>>;

    /// How many documents the owner has, in one collection or in all.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn num_documents(&self, collection_id: Option<&str>) -> Result<usize>;

    /// Deletes a document; the file stays. Returns its chunks' ids.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn delete_document(&self, collection_id: &str, file_id: &str) -> Result<Vec<u64>>;
}
