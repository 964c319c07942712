//! Documents and the jobs that read them.

use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row, Transaction};

use super::{
    attributes::{from_json, to_json},
    chunks, collections, jobs, no_timeout,
    owned::{PostgresOwned, one_at_a_time, refuse_documents_over},
    pages::{Listing, page},
    storable, values,
};
use crate::store::{Attributes, Collections, Documents, INGEST, NewJob, Replaced, Result, StoreError, Upload};
use hearth_domain::documents::{Document, DocumentStatus, EmbeddingIdentity, NewChunk, Page, PageRequest};

pub(super) const SELECT: &str = "
SELECT documents.collection_id, documents.file_id, files.filename, files.bytes, documents.status, documents.error_code,
    documents.error_reason, documents.attributes, documents.created, documents.updated,
    (SELECT count(*) FROM chunks WHERE chunks.collection_id = documents.collection_id AND
        chunks.file_id = documents.file_id)
FROM documents
    JOIN files ON files.id = documents.file_id
    JOIN collections ON collections.id = documents.collection_id";

pub(super) fn read_row(row: &Row) -> Document {
    let reason: Option<String> = row.get(6);
    let status = match row.get(4) {
        "ready" => DocumentStatus::Ready,
        "cancelled" => DocumentStatus::Cancelled,
        "failed" => {
            let code: Option<String> = row.get(5);
            DocumentStatus::Failed { code: code.unwrap_or_default(), reason: reason.unwrap_or_default() }
        }
        _ => DocumentStatus::Processing,
    };
    Document {
        collection_id: row.get(0),
        file_id: row.get(1),
        filename: row.get(2),
        bytes: row.get::<_, i64>(3) as u64,
        status,
        attributes: from_json(row.get(7)),
        created_ms: row.get(8),
        updated_ms: row.get(9),
        num_chunks: row.get::<_, i64>(10) as usize,
    }
}

fn not_found(file_id: &str) -> StoreError {
    StoreError::NotFound { what: "document", id: file_id.to_owned() }
}

pub(super) async fn find(
    client: &impl GenericClient,
    owner: &str,
    collection_id: &str,
    file_id: &str,
) -> Result<Document> {
    let query =
        format!("{SELECT} WHERE collections.owner = $1 AND documents.collection_id = $2 AND documents.file_id = $3");
    let rows = client.query_typed(&query, values![TEXT owner, TEXT collection_id, TEXT file_id]).await?;
    rows.first().map(read_row).ok_or_else(|| not_found(file_id))
}

/// Cancels the ingest jobs of the documents that are about to be deleted.
pub(super) async fn cancel_ingest(
    transaction: &Transaction<'_>,
    collection_id: Option<&str>,
    file_id: Option<&str>,
) -> Result<()> {
    // Each condition by itself, so that it finds its index.
    let of = match (collection_id, file_id) {
        (Some(_), Some(_)) => "payload ->> 'collection_id' = $1 AND payload ->> 'file_id' = $2",
        (Some(_), None) => "payload ->> 'collection_id' = $1 AND $2::text IS NULL",
        (None, _) => "payload ->> 'file_id' = $2 AND $1::text IS NULL",
    };
    let cancel = format!(
        "UPDATE jobs SET state = 'cancelled', ready_at = NULL, updated = now_ms()
         WHERE kind = 'ingest' AND state IN ('queued', 'running') AND {of}"
    );
    transaction.execute_typed(&cancel, values![TEXT collection_id, TEXT file_id]).await?;
    Ok(())
}

/// Checks that this owner has both the collection and the file of a document, which stay until the transaction ends.
pub(super) async fn check_exists(
    transaction: &Transaction<'_>,
    owner: &str,
    collection_id: &str,
    file_id: &str,
) -> Result<()> {
    collections::check_exists(transaction, owner, collection_id).await?;
    let found = "SELECT 1 FROM files WHERE id = $1 AND owner = $2 FOR KEY SHARE";
    if transaction.query_typed(found, values![TEXT file_id, TEXT owner]).await?.is_empty() {
        return Err(StoreError::NotFound { what: "file", id: file_id.to_owned() });
    }
    Ok(())
}

/// Locks this owner's document until the transaction ends.
async fn lock_document(transaction: &Transaction<'_>, owner: &str, collection_id: &str, file_id: &str) -> Result<()> {
    let query = "SELECT 1 FROM documents JOIN collections ON collections.id = documents.collection_id
         WHERE collections.owner = $1 AND documents.collection_id = $2 AND documents.file_id = $3
         FOR UPDATE OF documents";
    let found = transaction.query_typed(query, values![TEXT owner, TEXT collection_id, TEXT file_id]).await?;
    if found.is_empty() { Err(not_found(file_id)) } else { Ok(()) }
}

async fn chunk_ids(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<Vec<u64>> {
    let ids = "SELECT id FROM chunks WHERE collection_id = $1 AND file_id = $2";
    let rows = transaction.query_typed(ids, values![TEXT collection_id, TEXT file_id]).await?;
    Ok(rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect())
}

/// The documents that this one is to supersede and has not superseded yet.
async fn superseded_by(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<Vec<String>> {
    let old = "SELECT DISTINCT old FROM jobs, json_array_elements_text(payload -> 'supersedes') AS old
         WHERE kind = 'ingest' AND state <> 'done' AND payload ->> 'collection_id' = $1 AND payload ->> 'file_id' = $2";
    let rows = transaction.query_typed(old, values![TEXT collection_id, TEXT file_id]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Makes a file a document that is to be read, or to be read again.
pub(super) async fn enqueue(
    transaction: &Transaction<'_>,
    collection_id: &str,
    file_id: &str,
    attributes: &Attributes,
    supersedes: Option<&str>,
    is_local_only: bool,
) -> Result<()> {
    let mut superseded: Vec<String> = supersedes.map(str::to_owned).into_iter().collect();
    if let Some(old) = supersedes {
        // The superseded document may itself not have superseded its predecessors yet, and never will.
        superseded.extend(superseded_by(transaction, collection_id, old).await?);
    }
    let insert = "INSERT INTO documents (collection_id, file_id, status, attributes, created, updated, local_only)
         VALUES ($1, $2, 'processing', $3, now_ms(), now_ms(), $4)
         ON CONFLICT (collection_id, file_id) DO UPDATE SET status = 'processing', error_code = NULL, error_reason = NULL,
            attributes = $3, updated = now_ms(), local_only = documents.local_only OR $4";
    let parameters = values![TEXT collection_id, TEXT file_id, JSONB to_json(attributes), BOOL is_local_only];
    transaction.execute_typed(insert, parameters).await?;
    superseded.retain(|id| id != file_id);
    enqueue_ingest(transaction, collection_id, file_id, &superseded).await
}

/// Enqueues the job that reads a document.
async fn enqueue_ingest(
    transaction: &Transaction<'_>,
    collection_id: &str,
    file_id: &str,
    superseded: &[String],
) -> Result<()> {
    let payload = json!({"collection_id": collection_id, "file_id": file_id, "supersedes": superseded});
    let owned = "SELECT owner FROM collections WHERE id = $1";
    let rows = transaction.query_typed(owned, values![TEXT collection_id]).await?;
    let Some(owner) = rows.first().map(|row| row.get::<_, String>(0)) else { return Ok(()) };
    jobs::enqueue(transaction, &owner, &NewJob { kind: INGEST.to_owned(), payload, followed_by: None }).await?;
    Ok(())
}

/// Makes a document one that must stay on this machine.
pub(super) async fn keep_local(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<()> {
    let keep = "UPDATE documents SET local_only = true WHERE collection_id = $1 AND file_id = $2";
    transaction.execute_typed(keep, values![TEXT collection_id, TEXT file_id]).await?;
    Ok(())
}

/// Gives an unread document a job, unless it has an unfinished one.
pub(super) async fn ensure_job(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<()> {
    // Two statements: what the first one waited for, only the second one sees.
    let lock = "SELECT 1 FROM documents WHERE collection_id = $1 AND file_id = $2 AND status = 'processing' FOR UPDATE";
    if transaction.query_typed(lock, values![TEXT collection_id, TEXT file_id]).await?.is_empty() {
        return Ok(());
    }
    let has_job = "SELECT 1 FROM jobs WHERE kind = 'ingest' AND state IN ('queued', 'running') AND
        payload ->> 'collection_id' = $1 AND payload ->> 'file_id' = $2 LIMIT 1";
    if transaction.query_typed(has_job, values![TEXT collection_id, TEXT file_id]).await?.is_empty() {
        let superseded = superseded_by(transaction, collection_id, file_id).await?;
        enqueue_ingest(transaction, collection_id, file_id, &superseded).await?;
    }
    Ok(())
}

/// [`ensure_job`] for all documents; returns how many got one.
pub(super) async fn enqueue_unread(transaction: &Transaction<'_>) -> Result<usize> {
    let unread = "SELECT collection_id, file_id FROM documents WHERE status = 'processing' AND NOT EXISTS (
            SELECT 1 FROM jobs WHERE kind = 'ingest' AND state IN ('queued', 'running') AND
                payload ->> 'collection_id' = documents.collection_id AND payload ->> 'file_id' = documents.file_id)
         ORDER BY collection_id, file_id";
    let rows = transaction.query_typed(unread, &[]).await?;
    for row in &rows {
        ensure_job(transaction, row.get(0), row.get(1)).await?;
    }
    Ok(rows.len())
}

impl Documents for PostgresOwned<'_> {
    fn add_document(
        &self,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
        supersedes: Option<&str>,
    ) -> Result<Upload> {
        let (owner, quota, is_local_only) = (self.access.owner, self.access.quota, self.access.is_local_only);
        self.store.write(async |transaction| {
            check_exists(transaction, owner, collection_id, file_id).await?;
            one_at_a_time(transaction, "upload", owner, collection_id).await?;
            let same_bytes = format!(
                "{SELECT} WHERE documents.collection_id = $1 AND files.sha256 = (SELECT sha256 FROM files WHERE id = $2) AND \
                 files.owner = $3 AND documents.status IN ('processing', 'ready') LIMIT 1"
            );
            let parameters = values![TEXT collection_id, TEXT file_id, TEXT owner];
            let known = transaction.query_typed(&same_bytes, parameters).await?;
            if let Some(known) = known.first().map(read_row) {
                ensure_job(transaction, collection_id, &known.file_id).await?;
                if is_local_only {
                    keep_local(transaction, collection_id, &known.file_id).await?;
                }
                return Ok(Upload::Known(known));
            }
            enqueue(transaction, collection_id, file_id, &attributes, supersedes, is_local_only).await?;
            refuse_documents_over(quota, transaction, owner).await?;
            Ok(Upload::New(find(transaction, owner, collection_id, file_id).await?))
        })
    }

    fn has_local_only(&self, collection_id: &str, file_id: Option<&str>) -> Result<bool> {
        if self.collection(collection_id)?.is_local_only() {
            return Ok(true);
        }
        self.store.read(async |client| {
            let local = "SELECT EXISTS (SELECT 1 FROM documents
                 WHERE collection_id = $1 AND local_only AND ($2 IS NULL OR file_id = $2))";
            let rows = client.query_typed(local, values![TEXT collection_id, TEXT file_id]).await?;
            Ok(rows.first().is_some_and(|row| row.get(0)))
        })
    }

    fn replace_chunks(
        &self,
        collection_id: &str,
        file_id: &str,
        embedding: &EmbeddingIdentity,
        chunks: Vec<NewChunk>,
        supersedes: &[String],
    ) -> Result<Replaced> {
        let owner = self.access.owner;
        self.store.write(async |transaction| {
            no_timeout(transaction).await?;
            // The collection stays, and its embedding model, until this is committed; other documents may change meanwhile.
            collections::check_exists(transaction, owner, collection_id).await.map_err(|error| match error {
                StoreError::NotFound { .. } => not_found(file_id),
                error => error,
            })?;
            lock_document(transaction, owner, collection_id, file_id).await?;
            let ready = "UPDATE documents SET status = 'ready', error_code = NULL, error_reason = NULL, updated = now_ms()
                 WHERE collection_id = $1 AND file_id = $2 AND status <> 'cancelled'";
            if transaction.execute_typed(ready, values![TEXT collection_id, TEXT file_id]).await? == 0 {
                return Err(not_found(file_id));
            }
            let space = collections::bind(transaction, collection_id, embedding).await?;
            let removed = chunk_ids(transaction, collection_id, file_id).await?;
            let mut replaced = Replaced { added: Vec::new(), removed };
            let delete = "DELETE FROM chunks WHERE collection_id = $1 AND file_id = $2";
            transaction.execute_typed(delete, values![TEXT collection_id, TEXT file_id]).await?;
            // A worker that has lost its job would delete what was added again since: only what a job still has to replace goes.
            let pending = superseded_by(transaction, collection_id, file_id).await?;
            let mut old: Vec<&String> = supersedes.iter().filter(|old| *old != file_id && pending.contains(old)).collect();
            old.sort_unstable();
            for old in old {
                // A transaction that makes the file a document elsewhere holds its row; this one waits, and then sees that document.
                let lock = "SELECT 1 FROM files WHERE id = $1 AND owner = $2 FOR UPDATE";
                transaction.query_typed(lock, values![TEXT old, TEXT owner]).await?;
                replaced.removed.extend(chunk_ids(transaction, collection_id, old).await?);
                let delete = "DELETE FROM documents WHERE collection_id = $1 AND file_id = $2";
                transaction.execute_typed(delete, values![TEXT collection_id, TEXT old]).await?;
                let unused = "DELETE FROM files WHERE id = $1 AND owner = $2 AND
                     NOT EXISTS (SELECT 1 FROM documents WHERE file_id = $1)";
                transaction.execute_typed(unused, values![TEXT old, TEXT owner]).await?;
            }
            replaced.added = chunks::insert(transaction, collection_id, file_id, space, &chunks).await?;
            // A job that restarts after a crash must not delete what has been added again since. Late, because leases are renewed
            // meanwhile.
            let forget = "UPDATE jobs SET payload = jsonb_set(payload::jsonb, '{supersedes}', '[]')::json
                 WHERE kind = 'ingest' AND state IN ('queued', 'running') AND
                    payload ->> 'collection_id' = $1 AND payload ->> 'file_id' = $2 AND json_array_length(payload -> 'supersedes') > 0";
            transaction.execute_typed(forget, values![TEXT collection_id, TEXT file_id]).await?;
            collections::touch(transaction, collection_id).await?;
            Ok(replaced)
        })
    }

    fn set_document_status(&self, collection_id: &str, file_id: &str, status: DocumentStatus) -> Result<Document> {
        let (name, code, reason) = match status {
            DocumentStatus::Processing => ("processing", None, None),
            DocumentStatus::Ready => ("ready", None, None),
            DocumentStatus::Cancelled => ("cancelled", None, None),
            DocumentStatus::Failed { code, reason } => ("failed", Some(code), Some(storable(&reason).into_owned())),
        };
        self.store.write(async |transaction| {
            lock_document(transaction, self.access.owner, collection_id, file_id).await?;
            // One that became ready while this waited for it stays so.
            let set = "UPDATE documents SET status = $1, error_code = $2, error_reason = $3, updated = now_ms()
                 WHERE collection_id = $4 AND file_id = $5 AND ($1 <> 'cancelled' OR status = 'processing')";
            let parameters = values![TEXT name, TEXT code, TEXT reason, TEXT collection_id, TEXT file_id];
            transaction.execute_typed(set, parameters).await?;
            find(transaction, self.access.owner, collection_id, file_id).await
        })
    }

    fn fail_document(&self, collection_id: &str, file_id: &str, code: &str, reason: &str) -> Result<bool> {
        self.store.write(async |transaction| {
            let fail = "UPDATE documents SET status = 'failed', error_code = $1, error_reason = $2, updated = now_ms()
                 WHERE collection_id = $3 AND file_id = $4 AND status = 'processing' AND
                    collection_id IN (SELECT id FROM collections WHERE owner = $5)";
            let parameters =
                values![TEXT code, TEXT storable(reason), TEXT collection_id, TEXT file_id, TEXT self.access.owner];
            Ok(transaction.execute_typed(fail, parameters).await? > 0)
        })
    }

    fn set_document_attributes(&self, collection_id: &str, file_id: &str, attributes: Attributes) -> Result<Document> {
        self.store.write(async |transaction| {
            lock_document(transaction, self.access.owner, collection_id, file_id).await?;
            let set =
                "UPDATE documents SET attributes = $1, updated = now_ms() WHERE collection_id = $2 AND file_id = $3";
            let parameters = values![JSONB to_json(&attributes), TEXT collection_id, TEXT file_id];
            transaction.execute_typed(set, parameters).await?;
            collections::touch(transaction, collection_id).await?;
            find(transaction, self.access.owner, collection_id, file_id).await
        })
    }

    fn document(&self, collection_id: &str, file_id: &str) -> Result<Document> {
        self.store.read(async |client| find(client, self.access.owner, collection_id, file_id).await)
    }

    fn documents_of_file(&self, file_id: &str) -> Result<Vec<Document>> {
        self.store.read(async |client| {
            let order = "ORDER BY documents.created, documents.collection_id";
            let sql = format!("{SELECT} WHERE collections.owner = $1 AND documents.file_id = $2 {order}");
            let rows = client.query_typed(&sql, values![TEXT self.access.owner, TEXT file_id]).await?;
            Ok(rows.iter().map(read_row).collect())
        })
    }

    fn ingest_progress(&self, collection_id: &str, file_id: &str) -> Result<Option<Value>> {
        self.store.read(async |client| {
            let last = "SELECT event FROM job_events WHERE job_id = (
                    SELECT id FROM jobs WHERE owner = $1 AND kind = 'ingest' AND payload ->> 'collection_id' = $2 AND
                        payload ->> 'file_id' = $3
                    ORDER BY created DESC, id DESC LIMIT 1)
                ORDER BY number DESC LIMIT 1";
            let parameters = values![TEXT self.access.owner, TEXT collection_id, TEXT file_id];
            Ok(client.query_typed(last, parameters).await?.first().map(|row| row.get(0)))
        })
    }

    fn num_unsearchable(&self, collection_id: &str) -> Result<usize> {
        self.store.read(async |client| {
            let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
                WHERE collections.owner = $2 AND collection_id = $1 AND status = 'processing' AND NOT EXISTS (
                    SELECT 1 FROM chunks WHERE chunks.collection_id = $1 AND chunks.file_id = documents.file_id)";
            let rows = client.query_typed(count, values![TEXT collection_id, TEXT self.access.owner]).await?;
            Ok(rows[0].get::<_, i64>(0) as usize)
        })
    }

    fn documents_page(
        &self,
        collection_id: &str,
        batch_id: Option<&str>,
        status: Option<&str>,
        request: &PageRequest,
    ) -> Result<Page<Document>> {
        self.store.read(async |client| {
            let mut listing = Listing {
                sql: format!("{SELECT} WHERE collections.owner = $1 AND documents.collection_id = $2"),
                values: vec![self.access.owner.to_owned(), collection_id.to_owned()],
                created: "documents.created",
                id: "documents.file_id",
                created_of: "SELECT created FROM documents WHERE collection_id = $1 AND file_id = $2",
                of: vec![collection_id.to_owned()],
            };
            if let Some(batch_id) = batch_id {
                listing.values.push(batch_id.to_owned());
                let number = listing.values.len();
                listing.sql.push_str(&format!(
                    " AND documents.file_id IN (SELECT file_id FROM batch_documents WHERE batch_id = ${number})"
                ));
            }
            if let Some(status) = status {
                listing.values.push(status.to_owned());
                listing.sql.push_str(&format!(" AND documents.status = ${}", listing.values.len()));
            }
            page(client, listing, request, read_row).await
        })
    }

    fn documents_of_files(
        &self,
        collection_id: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Document>> {
        self.store.read(async |client| {
            let of_owner = "collections.owner = $1 AND ($2 IS NULL OR documents.collection_id = $2)";
            let sql = format!(
                "{SELECT} WHERE {of_owner} AND documents.file_id IN (
                    SELECT DISTINCT documents.file_id FROM documents
                        JOIN collections ON collections.id = documents.collection_id
                    WHERE {of_owner} AND ($3 IS NULL OR documents.file_id < $3)
                    ORDER BY documents.file_id DESC LIMIT $4)
                 ORDER BY documents.file_id DESC, documents.collection_id"
            );
            let parameters = values![TEXT self.access.owner, TEXT collection_id, TEXT after, INT8 limit as i64 + 1];
            let mut entries: Vec<Document> = client.query_typed(&sql, parameters).await?.iter().map(read_row).collect();
            let mut files: Vec<&str> = entries.iter().map(|document| &*document.file_id).collect();
            files.dedup();
            let more = files.get(limit).map(|&file| file.to_owned());
            if let Some(more) = &more {
                entries.retain(|document| document.file_id != *more);
            }
            Ok(Page { entries, has_more: more.is_some() })
        })
    }

    fn num_documents(&self, collection_id: Option<&str>) -> Result<usize> {
        self.store.read(async |client| {
            let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
                WHERE collections.owner = $1 AND ($2 IS NULL OR documents.collection_id = $2)";
            let rows = client.query_typed(count, values![TEXT self.access.owner, TEXT collection_id]).await?;
            Ok(rows[0].get::<_, i64>(0) as usize)
        })
    }

    fn delete_document(&self, collection_id: &str, file_id: &str) -> Result<Vec<u64>> {
        self.store.write(async |transaction| {
            no_timeout(transaction).await?;
            lock_document(transaction, self.access.owner, collection_id, file_id).await?;
            let chunks = chunk_ids(transaction, collection_id, file_id).await?;
            let delete = "DELETE FROM documents WHERE collection_id = $1 AND file_id = $2";
            transaction.execute_typed(delete, values![TEXT collection_id, TEXT file_id]).await?;
            cancel_ingest(transaction, Some(collection_id), Some(file_id)).await?;
            collections::touch(transaction, collection_id).await?;
            Ok(chunks)
        })
    }
}
