//! Collections, and the embedding model that each is bound to.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, types::Value as Sql};

use super::{
    SqliteOwned,
    attributes::{from_json, to_json},
    documents::cancel_ingest,
    pages::{Listing, page},
};
use crate::store::{Attributes, Collections, Result, StoreError, new_id, now_ms};
use hearth_domain::documents::{Collection, DocumentCounts, EmbeddingIdentity, Page, PageRequest};

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

fn find(connection: &Connection, owner: &str, id_or_name: &str) -> Result<Option<Collection>> {
    // A name cannot shadow another collection's id, because the id is matched first. If several share a name, which
    // only OpenAI's clients can arrange, the oldest answers to it; one without a name answers only to its id.
    let query = format!(
        "SELECT {COLUMNS} FROM collections WHERE owner = ?2 AND (id = ?1 OR (name = ?1 AND name <> ''))
         ORDER BY id = ?1 DESC, created, id LIMIT 1"
    );
    Ok(connection.query_row(&query, [id_or_name, owner], read_row).optional()?)
}

/// Changes a collection, even if its new name is taken.
pub(super) fn update(
    transaction: &Transaction<'_>,
    owner: &str,
    id: String,
    name: Option<String>,
    metadata: Option<Attributes>,
) -> Result<Collection> {
    if let Some(name) = name {
        transaction.execute("UPDATE collections SET name = ? WHERE id = ? AND owner = ?", [&name, &id, owner])?;
    }
    if let Some(metadata) = metadata {
        let set = "UPDATE collections SET metadata = ? WHERE id = ? AND owner = ?";
        transaction.execute(set, [&to_json(&metadata), &id, owner])?;
    }
    find(transaction, owner, &id)?.ok_or(StoreError::NotFound { what: "collection", id })
}

/// A new collection, even if its name is taken.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    owner: &str,
    name: String,
    metadata: Attributes,
) -> Result<Collection> {
    let (id, created_ms) = (new_id("vs_"), now_ms());
    transaction.execute(
        "INSERT INTO collections (id, owner, name, metadata, created) VALUES (?, ?, ?, ?, ?)",
        params![id, owner, name, to_json(&metadata), created_ms],
    )?;
    Ok(Collection { id, name, metadata, created_ms, embedding: None })
}

/// Checks that this owner has the collection.
pub(super) fn check_exists(connection: &Connection, owner: &str, id: &str) -> Result<()> {
    let found = connection.query_row("SELECT 1 FROM collections WHERE id = ? AND owner = ?", [id, owner], |_| Ok(()));
    found.optional()?.ok_or_else(|| StoreError::NotFound { what: "collection", id: id.to_owned() })
}

/// Binds a collection to the embedding model of its vectors; the first vectors bind it.
///
/// # Errors
/// [`StoreError::OtherEmbedding`] if it is bound to another one.
pub(super) fn bind(transaction: &Transaction<'_>, id: &str, embedding: &EmbeddingIdentity) -> Result<()> {
    let bound = format!("SELECT {COLUMNS} FROM collections WHERE id = ?");
    match transaction.query_row(&bound, [id], read_row)?.embedding {
        Some(stored) if stored == *embedding => Ok(()),
        Some(stored) => Err(StoreError::OtherEmbedding { stored: stored.name, asked: embedding.name.clone() }),
        None => {
            let set = "UPDATE collections SET embedding = ?, dimensions = ? WHERE id = ?";
            transaction.execute(set, params![embedding.name, embedding.dimensions, id])?;
            Ok(())
        }
    }
}

impl Collections for SqliteOwned<'_> {
    fn create_collection(&self, name: &str, metadata: Attributes) -> Result<Collection> {
        let (owner, name) = (self.access.owner.to_owned(), name.to_owned());
        self.store.grow(0, move |transaction| {
            let taken = "SELECT 1 FROM collections WHERE name = ? AND owner = ?";
            let taken = transaction.query_row(taken, [&name, &owner], |_| Ok(()));
            if taken.optional()?.is_some() {
                return Err(StoreError::NameTaken(name));
            }
            insert(transaction, &owner, name, metadata)
        })
    }

    fn collections(&self) -> Result<Vec<Collection>> {
        self.store.read(|connection| {
            let all = format!("SELECT {COLUMNS} FROM collections WHERE owner = ? ORDER BY created, id");
            let mut query = connection.prepare(&all)?;
            Ok(query.query_map([self.access.owner], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn collections_page(&self, request: &PageRequest) -> Result<Page<Collection>> {
        self.store.read(|connection| {
            let listing = Listing {
                sql: format!("SELECT {COLUMNS} FROM collections WHERE owner = ?"),
                parameters: vec![Sql::Text(self.access.owner.to_owned())],
                created: "created",
                id: "id",
            };
            let created_of = |id: &str| {
                let created = "SELECT created FROM collections WHERE id = ? AND owner = ?";
                Ok(connection.query_row(created, [id, self.access.owner], |row| row.get(0)).optional()?)
            };
            page(connection, listing, request, created_of, read_row)
        })
    }

    fn document_counts(&self, ids: &[String]) -> Result<Vec<DocumentCounts>> {
        self.store.read(|connection| {
            let mut query = connection.prepare(
                "SELECT documents.status, count(*), total(files.bytes * EXISTS (
                    SELECT 1 FROM chunks WHERE chunks.collection_id = documents.collection_id AND
                        chunks.file_id = documents.file_id))
                 FROM documents
                    JOIN files ON files.id = documents.file_id
                    JOIN collections ON collections.id = documents.collection_id
                 WHERE collections.owner = ? AND documents.collection_id = ? GROUP BY documents.status",
            )?;
            let mut counts_of = |id: &String| {
                let mut counts = DocumentCounts::default();
                let mut rows = query.query([self.access.owner, id])?;
                while let Some(row) = rows.next()? {
                    *match &*row.get::<_, String>(0)? {
                        "ready" => &mut counts.ready,
                        "failed" => &mut counts.failed,
                        "cancelled" => &mut counts.cancelled,
                        _ => &mut counts.processing,
                    } = row.get(1)?;
                    counts.searched_bytes += row.get::<_, f64>(2)? as u64;
                }
                Ok(counts)
            };
            ids.iter().map(&mut counts_of).collect()
        })
    }

    fn collection(&self, id_or_name: &str) -> Result<Collection> {
        let not_found = || StoreError::NotFound { what: "collection", id: id_or_name.to_owned() };
        self.store.read(|connection| find(connection, self.access.owner, id_or_name))?.ok_or_else(not_found)
    }

    fn update_collection(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection> {
        let (owner, id) = (self.access.owner.to_owned(), id.to_owned());
        self.store.write(move |transaction| {
            if let Some(name) = &name {
                let taken = "SELECT 1 FROM collections WHERE name = ? AND id <> ? AND owner = ?";
                let taken = transaction.query_row(taken, [name, &id, &owner], |_| Ok(()));
                if taken.optional()?.is_some() {
                    return Err(StoreError::NameTaken(name.clone()));
                }
            }
            update(transaction, &owner, id, name, metadata)
        })
    }

    fn delete_collection(&self, id: &str) -> Result<bool> {
        let (owner, id) = (self.access.owner.to_owned(), id.to_owned());
        self.store.write_essential(move |transaction| {
            let delete = "DELETE FROM collections WHERE id = ? AND owner = ?";
            let deleted = transaction.execute(delete, [&id, &owner])? > 0;
            if deleted {
                cancel_ingest(transaction, Some(&id), None)?;
            }
            Ok(deleted)
        })
    }
}
