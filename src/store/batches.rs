//! Adding documents the way OpenAI's API does: each file separately, many in one step, and recorded as a batch.
//!
//! Its clients ask for a member of a vector store by the id of the file that they added, and delete it by that id. So
//! here a file is a document of its own even if another one has the same bytes.

use super::{Attributes, Result};
use hearth_domain::documents::{Collection, Document};

/// A file that is to become a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub file_id: String,
    pub attributes: Attributes,
}

/// Documents that were added together. Those deleted since are no longer in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `vsfb_` and a UUID.
    pub id: String,
    pub collection_id: String,
    pub created_ms: i64,
    /// Whether it was cancelled. Documents that were ready by then are in the collection.
    pub cancelled: bool,
    /// The newest first.
    pub documents: Vec<Document>,
}

/// What the owner of collections does with many documents at once.
pub trait Batches {
    /// A new collection with these members. Its name may be taken or empty.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound) for a file; then nothing is created.
    fn create_vector_store(&self, name: String, metadata: Attributes, files: Vec<String>) -> Result<Collection>;

    /// Changes a collection's name, which may be taken, or its metadata.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn update_vector_store(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection>;

    /// Makes a file a document of its own, to be read by an ingest job.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound) for the collection or the file.
    fn attach_document(&self, collection_id: &str, member: Member) -> Result<Document>;

    /// [`Self::attach_document`] for many files in one step, recorded as a batch.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound) for the collection or a file; then none is added.
    fn create_batch(&self, collection_id: &str, members: Vec<Member>) -> Result<Batch>;

    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn batch(&self, collection_id: &str, id: &str) -> Result<Batch>;

    /// Cancels the unread documents of a batch. A complete batch stays complete.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn cancel_batch(&self, collection_id: &str, id: &str) -> Result<Batch>;
}
