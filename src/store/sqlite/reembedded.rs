//! Vectors of another embedding model, kept beside the searched ones until every chunk has one.

use rusqlite::params;

use super::{SqliteStore, attributes::Vector, chunks};
use crate::store::{Reembedding, Result, StoreError};
use hearth_domain::documents::{Chunk, EmbeddingIdentity};

impl Reembedding for SqliteStore {
    fn chunks_to_reembed(
        &self,
        collection_id: &str,
        embedding: &EmbeddingIdentity,
        limit: usize,
    ) -> Result<(Vec<Chunk>, usize)> {
        self.read(|connection| {
            let missing = "WHERE chunks.collection_id = ?1 AND NOT EXISTS (
                SELECT 1 FROM reembedded WHERE reembedded.chunk_id = chunks.id AND reembedded.embedding = ?2)";
            let count = format!("SELECT count(*) FROM chunks {missing}");
            let left = connection.query_row(&count, params![collection_id, embedding.name], |row| row.get(0))?;
            let some = format!("{} {missing} ORDER BY chunks.id LIMIT ?3", chunks::SELECT);
            let mut query = connection.prepare(&some)?;
            let found = query.query_map(params![collection_id, embedding.name, limit], chunks::read_row)?;
            Ok((found.collect::<rusqlite::Result<_>>()?, left))
        })
    }

    fn keep_reembedded(&self, embedding: &EmbeddingIdentity, vectors: Vec<(u64, Vec<f32>)>) -> Result<()> {
        let name = embedding.name.clone();
        let bytes = vectors.iter().map(|(_, vector)| 4 * vector.len() + 64).sum::<usize>() as u64;
        self.grow(bytes, move |transaction| {
            let mut keep = transaction.prepare(
                "INSERT INTO reembedded (chunk_id, embedding, vector) SELECT id, ?2, ?3 FROM chunks WHERE id = ?1
                 ON CONFLICT DO UPDATE SET embedding = excluded.embedding, vector = excluded.vector",
            )?;
            for (id, vector) in &vectors {
                keep.execute(params![id, name, Vector(vector)])?;
            }
            Ok(())
        })
    }

    fn swap_vectors(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<Option<usize>> {
        let (id, embedding) = (collection_id.to_owned(), embedding.clone());
        self.grow(0, move |transaction| {
            let of_collection = "(SELECT id FROM chunks WHERE collection_id = ?1)";
            let missing = "SELECT count(*) FROM chunks WHERE collection_id = ?1 AND id NOT IN (
                    SELECT chunk_id FROM reembedded WHERE embedding = ?2)";
            let missing: usize = transaction.query_row(missing, params![id, embedding.name], |row| row.get(0))?;
            if missing > 0 {
                return Ok(None);
            }
            let swap = format!(
                "INSERT INTO vectors (chunk_id, vector)
                 SELECT chunk_id, vector FROM reembedded WHERE chunk_id IN {of_collection}
                 ON CONFLICT DO UPDATE SET vector = excluded.vector"
            );
            let swapped = transaction.execute(&swap, [&id])?;
            transaction.execute(&format!("DELETE FROM reembedded WHERE chunk_id IN {of_collection}"), [&id])?;
            let bind = "UPDATE collections SET embedding = ?, dimensions = ? WHERE id = ?";
            if transaction.execute(bind, params![embedding.name, embedding.dimensions, id])? == 0 {
                return Err(StoreError::NotFound { what: "collection", id });
            }
            Ok(Some(swapped))
        })
    }
}
