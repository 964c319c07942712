//! Chunks by their ids, and their vectors.

use std::{collections::HashMap, fmt};

use tokio_postgres::{Row, Transaction};

use super::{PostgresStore, attributes::from_json, owned::PostgresOwned, search, storable, values};
use crate::store::{Chunks, OwnedChunks, Result};
use hearth_domain::documents::{Chunk, NewChunk};

pub(super) const SELECT: &str = "
SELECT chunks.id, chunks.collection_id, chunks.file_id, files.filename, chunks.position, chunks.text, chunks.heading,
    chunks.place, chunks.tokens, documents.attributes
FROM chunks
    JOIN documents ON documents.collection_id = chunks.collection_id AND documents.file_id = chunks.file_id
    JOIN files ON files.id = chunks.file_id";

pub(super) fn read_row(row: &Row) -> Chunk {
    Chunk {
        id: row.get::<_, i64>(0) as u64,
        collection_id: row.get(1),
        file_id: row.get(2),
        filename: row.get(3),
        position: row.get::<_, i32>(4) as _,
        text: row.get(5),
        heading: row.get(6),
        place: row.get::<_, Option<i32>>(7).map(|place| place as _),
        tokens: row.get::<_, i32>(8) as _,
        attributes: from_json(row.get(9)),
    }
}

/// A vector as pgvector reads one from text.
pub(super) fn vector_text(vector: &[f32]) -> String {
    use fmt::Write;

    let mut text = String::with_capacity(12 * vector.len() + 2);
    for (number, value) in vector.iter().enumerate() {
        // Writing into a string cannot fail.
        let _ = write!(text, "{}{value}", if number == 0 { '[' } else { ',' });
    }
    text.push(']');
    text
}

/// Chunks in one statement.
const AT_A_TIME: usize = 256;

/// Adds the chunks of a document with their vectors and words; returns their ids, in their order.
pub(super) async fn insert(
    transaction: &Transaction<'_>,
    collection_id: &str,
    file_id: &str,
    space: i32,
    chunks: &[NewChunk],
) -> Result<Vec<u64>> {
    let mut added = Vec::with_capacity(chunks.len());
    for (part, chunks) in chunks.chunks(AT_A_TIME).enumerate() {
        let positions: Vec<i32> = (0..chunks.len()).map(|number| (part * AT_A_TIME + number) as i32).collect();
        let headings: Vec<_> = chunks.iter().map(|chunk| storable(&chunk.heading)).collect();
        let texts: Vec<_> = chunks.iter().map(|chunk| storable(&chunk.text)).collect();
        let places: Vec<Option<i32>> = chunks.iter().map(|chunk| chunk.place.map(|place| place as i32)).collect();
        let tokens: Vec<i32> = chunks.iter().map(|chunk| chunk.tokens as i32).collect();
        let insert = "INSERT INTO chunks (collection_id, file_id, position, heading, text, place, tokens)
             SELECT $1, $2, new.* FROM unnest($3::int[], $4::text[], $5::text[], $6::int[], $7::int[]) AS new
             RETURNING id, position";
        let parameters = values![
            TEXT collection_id, TEXT file_id, INT4_ARRAY positions, TEXT_ARRAY headings, TEXT_ARRAY texts, INT4_ARRAY places,
            INT4_ARRAY tokens
        ];
        let mut rows: Vec<(i32, i64)> =
            transaction.query_typed(insert, parameters).await?.iter().map(|row| (row.get(1), row.get(0))).collect();
        rows.sort_unstable();
        let ids: Vec<i64> = rows.into_iter().map(|(_, id)| id).collect();
        let vectors: Vec<String> = chunks.iter().map(|chunk| vector_text(&chunk.vector)).collect();
        let insert = "INSERT INTO vectors (chunk_id, collection_id, file_id, space, vector)
             SELECT id, $1, $2, $3, vector::vector FROM unnest($4::bigint[], $5::text[]) AS new (id, vector)";
        let parameters = values![TEXT collection_id, TEXT file_id, INT4 space, INT8_ARRAY ids, TEXT_ARRAY vectors];
        transaction.execute_typed(insert, parameters).await?;
        search::insert_words(transaction, collection_id, &ids, chunks).await?;
        added.extend(ids.into_iter().map(|id| id as u64));
    }
    Ok(added)
}

/// Ids as the database has them.
pub(super) fn ids(ids: &[u64]) -> Vec<i64> {
    ids.iter().map(|&id| id as i64).collect()
}

impl Chunks for PostgresStore {
    fn chunks(&self, wanted: &[u64]) -> Result<Vec<Chunk>> {
        self.read(async |client| {
            let sql = format!("{SELECT} WHERE chunks.id = ANY ($1)");
            let rows = client.query_typed(&sql, values![INT8_ARRAY ids(wanted)]).await?;
            let mut found: HashMap<u64, Chunk> = rows.iter().map(read_row).map(|chunk| (chunk.id, chunk)).collect();
            Ok(wanted.iter().filter_map(|id| found.remove(id)).collect())
        })
    }

    fn chunk_ids(&self, collection_id: &str) -> Result<Vec<u64>> {
        self.read(async |client| {
            let all = "SELECT id FROM chunks WHERE collection_id = $1 ORDER BY id";
            let rows = client.query_typed(all, values![TEXT collection_id]).await?;
            Ok(rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect())
        })
    }

    fn vectors(&self, wanted: &[u64]) -> Result<Vec<(u64, Vec<f32>)>> {
        self.read(async |client| {
            let sql = "SELECT chunk_id, vector::real[] FROM vectors WHERE chunk_id = ANY ($1)";
            let rows = client.query_typed(sql, values![INT8_ARRAY ids(wanted)]).await?;
            let mut found: HashMap<u64, Vec<f32>> =
                rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect();
            Ok(wanted.iter().filter_map(|id| found.remove_entry(id)).collect())
        })
    }
}

impl OwnedChunks for PostgresOwned<'_> {
    fn chunks_between(&self, collection_id: &str, file_id: &str, first: usize, last: usize) -> Result<Vec<Chunk>> {
        self.store.read(async |client| {
            let place = "JOIN collections ON collections.id = chunks.collection_id
                 WHERE collections.owner = $1 AND chunks.collection_id = $2 AND chunks.file_id = $3 AND
                    chunks.position BETWEEN $4 AND $5";
            let sql = format!("{SELECT} {place} ORDER BY chunks.position");
            let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
            let parameters = values![
                TEXT self.access.owner, TEXT collection_id, TEXT file_id, INT4 number(first), INT4 number(last)
            ];
            Ok(client.query_typed(&sql, parameters).await?.iter().map(read_row).collect())
        })
    }
}
