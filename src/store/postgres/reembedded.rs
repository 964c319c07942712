//! Vectors of another embedding model, kept beside the searched ones until every chunk has one.

use super::{
    PostgresStore,
    chunks::{self, ids, vector_text},
    no_timeout, values, vectors,
};
use crate::store::{Reembedding, Result, StoreError};
use hearth_domain::documents::{Chunk, EmbeddingIdentity};

impl Reembedding for PostgresStore {
    fn chunks_to_reembed(
        &self,
        collection_id: &str,
        embedding: &EmbeddingIdentity,
        limit: usize,
    ) -> Result<(Vec<Chunk>, usize)> {
        self.read(async |client| {
            let missing = "WHERE chunks.collection_id = $1 AND NOT EXISTS (
                SELECT 1 FROM reembedded WHERE reembedded.chunk_id = chunks.id AND reembedded.embedding = $2)";
            let count = format!("SELECT count(*) FROM chunks {missing}");
            let left = client.query_typed(&count, values![TEXT collection_id, TEXT embedding.name]).await?;
            let some = format!("{} {missing} ORDER BY chunks.id LIMIT $3", chunks::SELECT);
            let parameters = values![TEXT collection_id, TEXT embedding.name, INT8 limit as i64];
            let found = client.query_typed(&some, parameters).await?;
            Ok((found.iter().map(chunks::read_row).collect(), left[0].get::<_, i64>(0) as usize))
        })
    }

    fn keep_reembedded(&self, embedding: &EmbeddingIdentity, vectors: Vec<(u64, Vec<f32>)>) -> Result<()> {
        let chunks: Vec<u64> = vectors.iter().map(|(id, _)| *id).collect();
        let texts: Vec<String> = vectors.iter().map(|(_, vector)| vector_text(vector)).collect();
        self.write(async |transaction| {
            // Chunks that are there stay until this is committed.
            let keep = "INSERT INTO reembedded (chunk_id, embedding, vector)
                 SELECT chunks.id, $1, new.vector::vector
                 FROM unnest($2::bigint[], $3::text[]) AS new (id, vector) JOIN chunks ON chunks.id = new.id
                 ORDER BY chunks.id FOR KEY SHARE OF chunks
                 ON CONFLICT (chunk_id) DO UPDATE SET embedding = excluded.embedding, vector = excluded.vector";
            transaction
                .execute_typed(keep, values![TEXT embedding.name, INT8_ARRAY ids(&chunks), TEXT_ARRAY texts])
                .await?;
            Ok(())
        })
    }

    fn swap_vectors(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<Option<usize>> {
        self.write(async |transaction| {
            no_timeout(transaction).await?;
            // No chunk is added until all are swapped.
            let lock = "SELECT 1 FROM collections WHERE id = $1 FOR UPDATE";
            if transaction.query_typed(lock, values![TEXT collection_id]).await?.is_empty() {
                return Err(StoreError::NotFound { what: "collection", id: collection_id.to_owned() });
            }
            let missing = "SELECT EXISTS (SELECT 1 FROM chunks WHERE collection_id = $1 AND NOT EXISTS (
                    SELECT 1 FROM reembedded WHERE chunk_id = chunks.id AND embedding = $2))";
            let missing = transaction.query_typed(missing, values![TEXT collection_id, TEXT embedding.name]).await?;
            if missing.first().is_some_and(|row| row.get(0)) {
                return Ok(None);
            }
            let space = vectors::space(transaction, embedding).await?;
            let swap = "INSERT INTO vectors (chunk_id, collection_id, file_id, space, vector)
                 SELECT chunk_id, $1, file_id, $3, vector FROM reembedded JOIN chunks ON chunks.id = chunk_id
                 WHERE collection_id = $1 AND reembedded.embedding = $2
                 ON CONFLICT (chunk_id) DO UPDATE SET space = excluded.space, vector = excluded.vector";
            let parameters = values![TEXT collection_id, TEXT embedding.name, INT4 space];
            let swapped = transaction.execute_typed(swap, parameters).await?;
            let delete = "DELETE FROM reembedded USING chunks WHERE chunks.id = chunk_id AND collection_id = $1";
            transaction.execute_typed(delete, values![TEXT collection_id]).await?;
            let bind = "UPDATE collections SET embedding = $2, dimensions = $3, version = version + 1 WHERE id = $1";
            let parameters = values![TEXT collection_id, TEXT embedding.name, INT4 embedding.dimensions as i32];
            transaction.execute_typed(bind, parameters).await?;
            Ok(Some(swapped as usize))
        })
    }
}
