//! Chunks by their ids, and the vectors that the index is built from.

use super::Result;
use hearth_domain::documents::Chunk;

/// Chunks of all owners.
pub trait Chunks {
    /// The chunks with these ids, in their order; deleted ones are left out.
    fn chunks(&self, ids: &[u64]) -> Result<Vec<Chunk>>;

    /// Ids of all chunks of a collection, in order: what its index must hold.
    fn chunk_ids(&self, collection_id: &str) -> Result<Vec<u64>>;

    /// The vectors of these chunks; those of deleted ones are left out.
    fn vectors(&self, ids: &[u64]) -> Result<Vec<(u64, Vec<f32>)>>;
}

/// Chunks as their owner sees them.
pub trait OwnedChunks {
    /// The chunks of a document from one position to another, both included.
    fn chunks_between(&self, collection_id: &str, file_id: &str, first: usize, last: usize) -> Result<Vec<Chunk>>;
}
