//! Search by vectors inside the store, for stores that several servers share. A store in the data directory has none: there the indexes
//! of the process follow the store.

use super::{Result, Scope};
use hearth_domain::documents::EmbeddingIdentity;

/// Search by vectors in collections of all owners.
pub trait VectorSearch {
    /// Ids of the chunks of a collection whose vectors are nearest to a vector of its embedding model, the nearest first; every chunk that was
    /// searchable when the call began is considered.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn nearest(
        &self,
        scope: Scope<'_>,
        embedding: &EmbeddingIdentity,
        vector: &[f32],
        limit: usize,
    ) -> Result<Vec<u64>>;

    /// A number for each collection that differs after every change of what is found in it, in their order; 0 for one that is gone.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn versions(&self, collection_ids: &[&str]) -> Result<Vec<u64>>;
}
