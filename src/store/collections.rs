//! Collections: made, listed, bound to an embedding model, deleted with all that is in them.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{
    Result, Store, StoreError,
    attributes::{Attributes, from_json, to_json},
    documents::cancel_ingest,
    new_id, now_ms,
};
use crate::domain::documents::{Collection, EmbeddingIdentity};

pub(super) const COLUMNS: &str = "id, name, metadata, embedding, dimensions, created";

pub(super) fn read_row(row: &Row<'_>) -> rusqlite::Result<Collection> {
    let (name, dimensions): (Option<String>, Option<usize>) = (row.get(3)?, row.get(4)?);
    Ok(Collection {
        id: row.get(0)?,
        name: row.get(1)?,
        metadata: from_json(row.get_ref(2)?.as_str()?),
        embedding: name.zip(dimensions).map(|(name, dimensions)| EmbeddingIdentity { name, dimensions }),
        created_ms: row.get(5)?,
    })
}

fn find(connection: &Connection, id_or_name: &str) -> Result<Option<Collection>> {
    // Names cannot be mistaken for ids of other collections: the id goes first. Of those that share a name, which only
    // OpenAI's clients can make, the oldest answers to it; those without one answer to their ids only.
    let query = format!(
        "SELECT {COLUMNS} FROM collections WHERE id = ?1 OR (name = ?1 AND name <> '')
         ORDER BY id = ?1 DESC, created, id LIMIT 1"
    );
    Ok(connection.query_row(&query, [id_or_name], read_row).optional()?)
}

/// Changes a collection, whoever else has its new name.
pub(super) fn update(
    transaction: &Transaction<'_>,
    id: String,
    name: Option<String>,
    metadata: Option<Attributes>,
) -> Result<Collection> {
    if let Some(name) = name {
        transaction.execute("UPDATE collections SET name = ? WHERE id = ?", [&name, &id])?;
    }
    if let Some(metadata) = metadata {
        transaction.execute("UPDATE collections SET metadata = ? WHERE id = ?", [&to_json(&metadata), &id])?;
    }
    find(transaction, &id)?.ok_or(StoreError::NotFound { what: "collection", id })
}

/// A new collection, whoever else has its name.
pub(super) fn insert(transaction: &Transaction<'_>, name: String, metadata: Attributes) -> Result<Collection> {
    let (id, created_ms) = (new_id("vs_"), now_ms());
    transaction.execute(
        "INSERT INTO collections (id, name, metadata, created) VALUES (?, ?, ?, ?)",
        params![id, name, to_json(&metadata), created_ms],
    )?;
    Ok(Collection { id, name, metadata, created_ms, embedding: None })
}

impl Store {
    /// # Errors
    /// [`StoreError::NameTaken`]
    pub fn create_collection(&self, name: &str, metadata: Attributes) -> Result<Collection> {
        let name = name.to_owned();
        self.write(move |transaction| {
            let taken = transaction.query_row("SELECT 1 FROM collections WHERE name = ?", [&name], |_| Ok(()));
            if taken.optional()?.is_some() {
                return Err(StoreError::NameTaken(name));
            }
            insert(transaction, name, metadata)
        })
    }

    /// All collections, the oldest first.
    pub fn collections(&self) -> Result<Vec<Collection>> {
        self.read(|connection| {
            let mut query = connection.prepare(&format!("SELECT {COLUMNS} FROM collections ORDER BY created, id"))?;
            Ok(query.query_map([], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// By id or name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub fn collection(&self, id_or_name: &str) -> Result<Collection> {
        let not_found = || StoreError::NotFound { what: "collection", id: id_or_name.to_owned() };
        self.read(|connection| find(connection, id_or_name))?.ok_or_else(not_found)
    }

    /// Changes a collection's name or metadata.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NameTaken`]
    pub fn update_collection(
        &self,
        id: &str,
        name: Option<String>,
        metadata: Option<Attributes>,
    ) -> Result<Collection> {
        let id = id.to_owned();
        self.write(move |transaction| {
            if let Some(name) = &name {
                let taken =
                    transaction
                        .query_row("SELECT 1 FROM collections WHERE name = ? AND id <> ?", [name, &id], |_| Ok(()));
                if taken.optional()?.is_some() {
                    return Err(StoreError::NameTaken(name.clone()));
                }
            }
            update(transaction, id, name, metadata)
        })
    }

    /// Binds a collection to what makes its vectors; the first vectors do.
    ///
    /// # Errors
    /// [`StoreError::OtherEmbedding`] if it is bound to something else.
    pub fn bind_collection(&self, id: &str, embedding: &EmbeddingIdentity) -> Result<()> {
        let (id, embedding) = (id.to_owned(), embedding.clone());
        self.write(move |transaction| {
            let found = find(transaction, &id)?.ok_or(StoreError::NotFound { what: "collection", id: id.clone() })?;
            match found.embedding {
                Some(stored) if stored == embedding => Ok(()),
                Some(stored) => Err(StoreError::OtherEmbedding { stored: stored.name, asked: embedding.name }),
                None => {
                    let set = "UPDATE collections SET embedding = ?, dimensions = ? WHERE id = ?";
                    transaction.execute(set, params![embedding.name, embedding.dimensions, id])?;
                    Ok(())
                }
            }
        })
    }

    /// Deletes a collection, its documents and chunks; files stay. Whether it was there.
    pub fn delete_collection(&self, id: &str) -> Result<bool> {
        let id = id.to_owned();
        self.write(move |transaction| {
            cancel_ingest(transaction, Some(&id), None)?;
            Ok(transaction.execute("DELETE FROM collections WHERE id = ?", [&id])? > 0)
        })
    }
}
