//! Collections: created, listed, and deleted with everything in them.

use super::{Attributes, Result};
use hearth_domain::documents::{Collection, DocumentCounts, Page, PageRequest};

/// The collections of an owner.
pub trait Collections {
    /// # Errors
    /// [`StoreError::NameTaken`](super::StoreError::NameTaken)
    fn create_collection(&self, name: &str, metadata: Attributes) -> Result<Collection>;

    /// All collections, the oldest first.
    fn collections(&self) -> Result<Vec<Collection>>;

    /// A page of the collections.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn collections_page(&self, request: &PageRequest) -> Result<Page<Collection>>;

    /// The number of documents in each of these collections, in their order.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn document_counts(&self, ids: &[String]) -> Result<Vec<DocumentCounts>>;

    /// By id or name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn collection(&self, id_or_name: &str) -> Result<Collection>;

    /// Changes a collection's name or metadata.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound), [`StoreError::NameTaken`](super::StoreError::NameTaken)
    fn update_collection(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection>;

    /// Deletes a collection, its documents and chunks; files stay. Returns whether it existed.
    fn delete_collection(&self, id: &str) -> Result<bool>;
}
