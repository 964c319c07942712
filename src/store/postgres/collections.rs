//! Collections, and the embedding model that each is bound to.

use tokio_postgres::{GenericClient, Row, Transaction};

use super::{
    attributes::{from_json, to_json},
    documents::cancel_ingest,
    no_timeout,
    owned::{PostgresOwned, one_at_a_time},
    pages::{Listing, page},
    storable, values, vectors,
};
use crate::store::{Attributes, Collections, Result, StoreError, new_id};
use hearth_domain::documents::{Collection, DocumentCounts, EmbeddingIdentity, Page, PageRequest};

pub(super) const COLUMNS: &str = "id, name, metadata, embedding, dimensions, created";

pub(super) fn read_row(row: &Row) -> Collection {
    let (name, dimensions): (Option<String>, Option<i32>) = (row.get(3), row.get(4));
    let embedding = name.zip(dimensions);
    Collection {
        id: row.get(0),
        name: row.get(1),
        metadata: from_json(row.get(2)),
        embedding: embedding.map(|(name, dimensions)| EmbeddingIdentity { name, dimensions: dimensions as usize }),
        created_ms: row.get(5),
    }
}

async fn find(client: &impl GenericClient, owner: &str, id_or_name: &str) -> Result<Option<Collection>> {
    // See the other store: ids come before names, and the oldest of several with one name.
    let query = format!(
        "SELECT {COLUMNS} FROM collections WHERE owner = $2 AND (id = $1 OR (name = $1 AND name <> ''))
         ORDER BY (id = $1) DESC, created, id LIMIT 1"
    );
    Ok(client.query_typed(&query, values![TEXT id_or_name, TEXT owner]).await?.first().map(read_row))
}

/// Changes a collection, even if its new name is taken.
pub(super) async fn update(
    transaction: &Transaction<'_>,
    owner: &str,
    id: &str,
    name: Option<&str>,
    metadata: Option<&Attributes>,
) -> Result<Collection> {
    if let Some(name) = name {
        let set = "UPDATE collections SET name = $1 WHERE id = $2 AND owner = $3";
        transaction.execute_typed(set, values![TEXT storable(name), TEXT id, TEXT owner]).await?;
    }
    if let Some(metadata) = metadata {
        let set = "UPDATE collections SET metadata = $1 WHERE id = $2 AND owner = $3";
        transaction.execute_typed(set, values![JSONB to_json(metadata), TEXT id, TEXT owner]).await?;
    }
    find(transaction, owner, id).await?.ok_or_else(|| StoreError::NotFound { what: "collection", id: id.to_owned() })
}

/// A new collection, even if its name is taken.
pub(super) async fn insert(
    transaction: &Transaction<'_>,
    owner: &str,
    name: &str,
    metadata: &Attributes,
) -> Result<Collection> {
    let insert = format!(
        "INSERT INTO collections (id, owner, name, metadata, created) VALUES ($1, $2, $3, $4, now_ms()) RETURNING {COLUMNS}"
    );
    let rows = transaction
        .query_typed(&insert, values![TEXT new_id("vs_"), TEXT owner, TEXT storable(name), JSONB to_json(metadata)])
        .await?;
    Ok(read_row(&rows[0]))
}

/// Checks that this owner has the collection, which stays until the transaction ends.
pub(super) async fn check_exists(transaction: &Transaction<'_>, owner: &str, id: &str) -> Result<()> {
    let found = "SELECT 1 FROM collections WHERE id = $1 AND owner = $2 FOR KEY SHARE";
    let found = transaction.query_typed(found, values![TEXT id, TEXT owner]).await?;
    if found.is_empty() { Err(StoreError::NotFound { what: "collection", id: id.to_owned() }) } else { Ok(()) }
}

/// Records that what is found in a collection changes with this transaction: the last thing that a transaction does, because the next
/// one that changes the collection waits here.
pub(super) async fn touch(transaction: &Transaction<'_>, id: &str) -> Result<()> {
    transaction.execute_typed("UPDATE collections SET version = version + 1 WHERE id = $1", values![TEXT id]).await?;
    Ok(())
}

/// Binds a collection to the embedding model of its vectors; the first vectors bind it. Returns the model's space.
///
/// # Errors
/// [`StoreError::OtherEmbedding`] if it is bound to another one.
pub(super) async fn bind(transaction: &Transaction<'_>, id: &str, embedding: &EmbeddingIdentity) -> Result<i32> {
    let bound = format!("SELECT {COLUMNS} FROM collections WHERE id = $1");
    let mut rows = transaction.query_typed(&bound, values![TEXT id]).await?;
    if rows.first().is_some_and(|row| read_row(row).embedding.is_none()) {
        let bind = format!(
            "UPDATE collections SET embedding = coalesce(embedding, $2), dimensions = coalesce(dimensions, $3)
             WHERE id = $1 RETURNING {COLUMNS}"
        );
        let parameters = values![TEXT id, TEXT embedding.name, INT4 embedding.dimensions as i32];
        rows = transaction.query_typed(&bind, parameters).await?;
    }
    match rows.first().map(read_row).and_then(|collection| collection.embedding) {
        Some(stored) if stored != *embedding => {
            Err(StoreError::OtherEmbedding { stored: stored.name, asked: embedding.name.clone() })
        }
        _ => vectors::space(transaction, embedding).await,
    }
}

impl Collections for PostgresOwned<'_> {
    fn create_collection(&self, name: &str, metadata: Attributes) -> Result<Collection> {
        let owner = self.access.owner;
        let name = &*storable(name);
        self.store.write(async |transaction| {
            one_at_a_time(transaction, "collection", owner, name).await?;
            let taken = "SELECT 1 FROM collections WHERE name = $1 AND owner = $2";
            if !transaction.query_typed(taken, values![TEXT name, TEXT owner]).await?.is_empty() {
                return Err(StoreError::NameTaken(name.to_owned()));
            }
            insert(transaction, owner, name, &metadata).await
        })
    }

    fn collections(&self) -> Result<Vec<Collection>> {
        self.store.read(async |client| {
            let all = format!("SELECT {COLUMNS} FROM collections WHERE owner = $1 ORDER BY created, id");
            Ok(client.query_typed(&all, values![TEXT self.access.owner]).await?.iter().map(read_row).collect())
        })
    }

    fn collections_page(&self, request: &PageRequest) -> Result<Page<Collection>> {
        self.store.read(async |client| {
            let listing = Listing {
                sql: format!("SELECT {COLUMNS} FROM collections WHERE owner = $1"),
                values: vec![self.access.owner.to_owned()],
                created: "created",
                id: "id",
                created_of: "SELECT created FROM collections WHERE owner = $1 AND id = $2",
                of: vec![self.access.owner.to_owned()],
            };
            page(client, listing, request, read_row).await
        })
    }

    fn document_counts(&self, ids: &[String]) -> Result<Vec<DocumentCounts>> {
        self.store.read(async |client| {
            let count = "SELECT documents.collection_id, documents.status, count(*), coalesce(sum(files.bytes) FILTER (WHERE EXISTS (
                    SELECT 1 FROM chunks WHERE chunks.collection_id = documents.collection_id AND
                        chunks.file_id = documents.file_id)), 0)::bigint
                 FROM documents
                    JOIN files ON files.id = documents.file_id
                    JOIN collections ON collections.id = documents.collection_id
                 WHERE collections.owner = $1 AND documents.collection_id = ANY ($2) GROUP BY 1, 2";
            let rows = client.query_typed(count, values![TEXT self.access.owner, TEXT_ARRAY ids]).await?;
            let of = |id: &String| {
                let mut counts = DocumentCounts::default();
                for row in rows.iter().filter(|row| row.get::<_, &str>(0) == id) {
                    *match row.get::<_, &str>(1) {
                        "ready" => &mut counts.ready,
                        "failed" => &mut counts.failed,
                        "cancelled" => &mut counts.cancelled,
                        _ => &mut counts.processing,
                    } = row.get::<_, i64>(2) as usize;
                    counts.searched_bytes += row.get::<_, i64>(3) as u64;
                }
                counts
            };
            Ok(ids.iter().map(of).collect())
        })
    }

    fn collection(&self, id_or_name: &str) -> Result<Collection> {
        let found = self.store.read(async |client| find(client, self.access.owner, id_or_name).await)?;
        found.ok_or_else(|| StoreError::NotFound { what: "collection", id: id_or_name.to_owned() })
    }

    fn update_collection(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection> {
        let owner = self.access.owner;
        let name = name.map(|name| storable(&name).into_owned());
        self.store.write(async |transaction| {
            if let Some(name) = &name {
                one_at_a_time(transaction, "collection", owner, name).await?;
                let taken = "SELECT 1 FROM collections WHERE name = $1 AND id <> $2 AND owner = $3";
                if !transaction.query_typed(taken, values![TEXT name, TEXT id, TEXT owner]).await?.is_empty() {
                    return Err(StoreError::NameTaken(name.clone()));
                }
            }
            update(transaction, owner, id, name.as_deref(), metadata.as_ref()).await
        })
    }

    fn delete_collection(&self, id: &str) -> Result<bool> {
        self.store.write(async |transaction| {
            no_timeout(transaction).await?;
            let delete = "DELETE FROM collections WHERE id = $1 AND owner = $2";
            let deleted = transaction.execute_typed(delete, values![TEXT id, TEXT self.access.owner]).await? > 0;
            if deleted {
                cancel_ingest(transaction, Some(id), None).await?;
            }
            Ok(deleted)
        })
    }
}
