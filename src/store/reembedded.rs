//! Vectors of another embedding model, kept beside the searched ones until every chunk has one.

use super::Result;
use hearth_domain::documents::{Chunk, EmbeddingIdentity};

/// The steps of changing the embedding model of a collection.
pub trait Reembedding {
    /// Some of a collection's chunks that have no new vector of this model yet, and how many there are in all.
    fn chunks_to_reembed(
        &self,
        collection_id: &str,
        embedding: &EmbeddingIdentity,
        limit: usize,
    ) -> Result<(Vec<Chunk>, usize)>;

    /// Keeps new vectors, by their chunks' ids; those of deleted chunks are dropped.
    fn keep_reembedded(&self, embedding: &EmbeddingIdentity, vectors: Vec<(u64, Vec<f32>)>) -> Result<()>;

    /// Replaces the old vectors of a collection with the new ones and binds it to their model; returns how many there
    /// are. `None`, with nothing changed, if one is missing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn swap_vectors(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<Option<usize>>;
}
