//! Chunks by their ids, and the vectors that the index is built from.

use rusqlite::{Row, types::Value as Sql};

use super::{SqliteOwned, SqliteStore, attributes::from_json};
use crate::store::{Chunks, OwnedChunks, Result};
use hearth_domain::documents::Chunk;

/// Ids in one query; SQLite takes 32,766 parameters.
const IDS_AT_A_TIME: usize = 1000;

pub(super) const SELECT: &str = "
SELECT chunks.id, chunks.collection_id, chunks.file_id, files.filename, chunks.position, chunks.text, chunks.heading,
    chunks.place, chunks.tokens, documents.attributes
FROM chunks
    JOIN documents ON documents.collection_id = chunks.collection_id AND documents.file_id = chunks.file_id
    JOIN files ON files.id = chunks.file_id";

pub(super) fn read_row(row: &Row<'_>) -> rusqlite::Result<Chunk> {
    Ok(Chunk {
        id: row.get(0)?,
        collection_id: row.get(1)?,
        file_id: row.get(2)?,
        filename: row.get(3)?,
        position: row.get(4)?,
        text: row.get(5)?,
        heading: row.get(6)?,
        place: row.get(7)?,
        tokens: row.get(8)?,
        attributes: from_json(row.get_ref(9)?.as_str()?),
    })
}

impl Chunks for SqliteStore {
    fn chunks(&self, ids: &[u64]) -> Result<Vec<Chunk>> {
        self.read(|connection| {
            let mut found = std::collections::HashMap::new();
            for ids in ids.chunks(IDS_AT_A_TIME) {
                let marks = vec!["?"; ids.len()].join(", ");
                let mut query = connection.prepare(&format!("{SELECT} WHERE chunks.id IN ({marks})"))?;
                let parameters = ids.iter().map(|&id| Sql::Integer(id as i64));
                for chunk in query.query_map(rusqlite::params_from_iter(parameters), read_row)? {
                    let chunk = chunk?;
                    found.insert(chunk.id, chunk);
                }
            }
            Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
        })
    }

    fn chunk_ids(&self, collection_id: &str) -> Result<Vec<u64>> {
        self.read(|connection| {
            let mut query = connection.prepare("SELECT id FROM chunks WHERE collection_id = ? ORDER BY id")?;
            Ok(query.query_map([collection_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn vectors(&self, ids: &[u64]) -> Result<Vec<(u64, Vec<f32>)>> {
        self.read(|connection| {
            let mut query = connection.prepare("SELECT vector FROM vectors WHERE chunk_id = ?")?;
            let mut found = Vec::with_capacity(ids.len());
            for &id in ids {
                let mut rows = query.query([id as i64])?;
                if let Some(row) = rows.next()? {
                    let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
                    let floats = bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four));
                    found.push((id, floats.collect()));
                }
            }
            Ok(found)
        })
    }
}

impl OwnedChunks for SqliteOwned<'_> {
    fn chunks_between(&self, collection_id: &str, file_id: &str, first: usize, last: usize) -> Result<Vec<Chunk>> {
        self.store.read(|connection| {
            let place = "JOIN collections ON collections.id = chunks.collection_id
                 WHERE collections.owner = ? AND chunks.collection_id = ? AND chunks.file_id = ? AND
                    chunks.position BETWEEN ? AND ?";
            let mut query = connection.prepare(&format!("{SELECT} {place} ORDER BY chunks.position"))?;
            let parameters = rusqlite::params![self.access.owner, collection_id, file_id, first, last];
            Ok(query.query_map(parameters, read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }
}
