//! Documents and the jobs that read them.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, types::Value as Sql};
use serde_json::json;

use super::{
    SqliteOwned,
    attributes::{Vector, from_json, to_json},
    collections,
    files::bury,
    jobs,
    owned::refuse_documents_over,
    pages::{Listing, page},
};
use crate::store::{Attributes, Collections, Documents, INGEST, NewJob, Replaced, Result, StoreError, Upload, now_ms};
use hearth_domain::documents::{Document, DocumentStatus, EmbeddingIdentity, NewChunk, Page, PageRequest};

pub(super) const SELECT: &str = "
SELECT documents.collection_id, documents.file_id, files.filename, files.bytes, documents.status, documents.error_code,
    documents.error_reason, documents.attributes, documents.created, documents.updated,
    (SELECT count(*) FROM chunks WHERE chunks.collection_id = documents.collection_id AND
        chunks.file_id = documents.file_id)
FROM documents
    JOIN files ON files.id = documents.file_id
    JOIN collections ON collections.id = documents.collection_id";

pub(super) fn read_row(row: &Row<'_>) -> rusqlite::Result<Document> {
    let reason: Option<String> = row.get(6)?;
    let status = match row.get_ref(4)?.as_str()? {
        "ready" => DocumentStatus::Ready,
        "cancelled" => DocumentStatus::Cancelled,
        "failed" => {
            let code: Option<String> = row.get(5)?;
            DocumentStatus::Failed { code: code.unwrap_or_default(), reason: reason.unwrap_or_default() }
        }
        _ => DocumentStatus::Processing,
    };
    Ok(Document {
        collection_id: row.get(0)?,
        file_id: row.get(1)?,
        filename: row.get(2)?,
        bytes: row.get(3)?,
        status,
        attributes: from_json(row.get_ref(7)?.as_str()?),
        created_ms: row.get(8)?,
        updated_ms: row.get(9)?,
        num_chunks: row.get(10)?,
    })
}

pub(super) fn find(connection: &Connection, owner: &str, collection_id: &str, file_id: &str) -> Result<Document> {
    let query =
        format!("{SELECT} WHERE collections.owner = ? AND documents.collection_id = ? AND documents.file_id = ?");
    let found = connection.query_row(&query, [owner, collection_id, file_id], read_row).optional()?;
    found.ok_or_else(|| StoreError::NotFound { what: "document", id: file_id.to_owned() })
}

fn chunk_ids(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<Vec<u64>> {
    let mut query = transaction.prepare("SELECT id FROM chunks WHERE collection_id = ? AND file_id = ?")?;
    Ok(query.query_map([collection_id, file_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Cancels the ingest jobs of the documents that are about to be deleted.
pub(super) fn cancel_ingest(
    transaction: &Transaction<'_>,
    collection_id: Option<&str>,
    file_id: Option<&str>,
) -> rusqlite::Result<()> {
    let cancel = "UPDATE jobs SET state = 'cancelled', updated = ?1
         WHERE kind = ?2 AND state IN ('queued', 'running') AND
            (?3 IS NULL OR payload ->> 'collection_id' = ?3) AND (?4 IS NULL OR payload ->> 'file_id' = ?4)";
    transaction.execute(cancel, params![now_ms(), INGEST, collection_id, file_id])?;
    Ok(())
}

/// Checks that this owner has both the collection and the file of a document.
pub(super) fn check_exists(connection: &Connection, owner: &str, collection_id: &str, file_id: &str) -> Result<()> {
    collections::check_exists(connection, owner, collection_id)?;
    let found = connection.query_row("SELECT 1 FROM files WHERE id = ? AND owner = ?", [file_id, owner], |_| Ok(()));
    found.optional()?.ok_or_else(|| StoreError::NotFound { what: "file", id: file_id.to_owned() })
}

/// Checks that this owner has the document.
fn check_document(connection: &Connection, owner: &str, collection_id: &str, file_id: &str) -> Result<()> {
    let query = "SELECT 1 FROM documents JOIN collections ON collections.id = documents.collection_id
         WHERE collections.owner = ? AND documents.collection_id = ? AND documents.file_id = ?";
    let found = connection.query_row(query, [owner, collection_id, file_id], |_| Ok(()));
    found.optional()?.ok_or_else(|| StoreError::NotFound { what: "document", id: file_id.to_owned() })
}

/// The documents that this one is to supersede and has not superseded yet.
fn superseded_by(connection: &Connection, collection_id: &str, file_id: &str) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare(
        "SELECT DISTINCT old.value FROM jobs, json_each(jobs.payload, '$.supersedes') AS old
         WHERE kind = ? AND state <> 'done' AND payload ->> 'collection_id' = ? AND payload ->> 'file_id' = ?",
    )?;
    query.query_map([INGEST, collection_id, file_id], |row| row.get(0))?.collect()
}

/// Makes a file a document that is to be read, or to be read again.
pub(super) fn enqueue(
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
        superseded.extend(superseded_by(transaction, collection_id, old)?);
    }
    enqueue_superseding(transaction, collection_id, file_id, attributes, superseded, is_local_only)
}

/// [`enqueue`] for a file that supersedes exactly these documents.
pub(super) fn enqueue_superseding(
    transaction: &Transaction<'_>,
    collection_id: &str,
    file_id: &str,
    attributes: &Attributes,
    mut superseded: Vec<String>,
    is_local_only: bool,
) -> Result<()> {
    let now = now_ms();
    transaction.execute(
        "INSERT INTO documents (collection_id, file_id, status, attributes, created, updated, local_only)
         VALUES (?1, ?2, 'processing', ?3, ?4, ?4, ?5)
         ON CONFLICT DO UPDATE SET status = 'processing', error_code = NULL, error_reason = NULL, attributes = ?3,
            updated = ?4, local_only = max(local_only, ?5)",
        params![collection_id, file_id, to_json(attributes), now, is_local_only],
    )?;
    superseded.retain(|id| id != file_id);
    enqueue_ingest(transaction, collection_id, file_id, &superseded)
}

/// Enqueues the job that reads a document.
fn enqueue_ingest(
    transaction: &Transaction<'_>,
    collection_id: &str,
    file_id: &str,
    superseded: &[String],
) -> Result<()> {
    let payload = json!({"collection_id": collection_id, "file_id": file_id, "supersedes": superseded});
    let owned = "SELECT owner FROM collections WHERE id = ?";
    let owner: String = transaction.query_row(owned, [collection_id], |row| row.get(0))?;
    jobs::enqueue(transaction, &owner, &NewJob { kind: INGEST.to_owned(), payload, followed_by: None })?;
    Ok(())
}

/// Roughly what chunks take in the database: their text twice, because its words are indexed, and their vectors.
fn stored_bytes(chunks: &[NewChunk]) -> u64 {
    chunks.iter().map(|chunk| 2 * (chunk.text.len() + chunk.heading.len()) + 4 * chunk.vector.len() + 64).sum::<usize>()
        as u64
}

/// Makes a document one that must stay on this machine.
pub(super) fn keep_local(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> rusqlite::Result<()> {
    let keep = "UPDATE documents SET local_only = 1 WHERE collection_id = ? AND file_id = ?";
    transaction.execute(keep, [collection_id, file_id]).map(drop)
}

/// Gives an unread document a job, unless it has an unfinished one.
pub(super) fn ensure_job(transaction: &Transaction<'_>, collection_id: &str, file_id: &str) -> Result<()> {
    let without = "SELECT count(*) FROM documents
         WHERE collection_id = ?2 AND file_id = ?3 AND status = 'processing' AND NOT EXISTS (
            SELECT 1 FROM jobs WHERE kind = ?1 AND state IN ('queued', 'running') AND
                payload ->> 'collection_id' = ?2 AND payload ->> 'file_id' = ?3)";
    if transaction.query_row(without, [INGEST, collection_id, file_id], |row| row.get::<_, u64>(0))? > 0 {
        let superseded = superseded_by(transaction, collection_id, file_id)?;
        enqueue_ingest(transaction, collection_id, file_id, &superseded)?;
    }
    Ok(())
}

/// [`ensure_job`] for all documents; returns how many got one. Each table is read once, whatever the number of
/// documents.
pub(super) fn enqueue_unread(transaction: &Transaction<'_>) -> Result<usize> {
    type Key = (String, String);
    let key = |row: &Row<'_>| Ok::<Key, rusqlite::Error>((row.get(0)?, row.get(1)?));
    let of_job = "payload ->> 'collection_id' AS of_collection, payload ->> 'file_id' AS of_file";
    let mut processing = transaction.prepare(
        "SELECT collection_id, file_id FROM documents WHERE status = 'processing' ORDER BY created, file_id",
    )?;
    let mut unread: Vec<Key> = processing.query_map([], key)?.collect::<rusqlite::Result<_>>()?;
    if unread.is_empty() {
        return Ok(0);
    }
    let mut unended = transaction.prepare(&format!(
        "SELECT {of_job} FROM jobs WHERE kind = ? AND state IN ('queued', 'running') AND
            of_collection IS NOT NULL AND of_file IS NOT NULL"
    ))?;
    let unended: HashSet<Key> = unended.query_map([INGEST], key)?.collect::<rusqlite::Result<_>>()?;
    unread.retain(|document| !unended.contains(document));
    if unread.is_empty() {
        return Ok(0);
    }
    let mut superseded: HashMap<Key, Vec<String>> = HashMap::new();
    let mut earlier = transaction.prepare(&format!(
        "SELECT DISTINCT {of_job}, old.value FROM jobs, json_each(jobs.payload, '$.supersedes') AS old
         WHERE kind = ? AND state <> 'done' AND of_collection IS NOT NULL AND of_file IS NOT NULL"
    ))?;
    for row in earlier.query_map([INGEST], |row| Ok((key(row)?, row.get(2)?)))? {
        let (document, old) = row?;
        superseded.entry(document).or_default().push(old);
    }
    for document in &unread {
        let (collection_id, file_id) = document;
        let superseded = superseded.remove(document).unwrap_or_default();
        enqueue_ingest(transaction, collection_id, file_id, &superseded)?;
    }
    Ok(unread.len())
}

impl SqliteOwned<'_> {
    /// The owner and the document's key.
    fn owned_key(&self, collection_id: &str, file_id: &str) -> (String, String, String) {
        (self.access.owner.to_owned(), collection_id.to_owned(), file_id.to_owned())
    }
}

impl Documents for SqliteOwned<'_> {
    fn add_document(
        &self,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
        supersedes: Option<&str>,
    ) -> Result<Upload> {
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        let supersedes = supersedes.map(str::to_owned);
        let (quota, is_local_only) = (self.access.quota, self.access.is_local_only);
        self.store.grow(0, move |transaction| {
            check_exists(transaction, &owner, &collection_id, &file_id)?;
            let same_bytes = format!(
                "{SELECT} WHERE documents.collection_id = ? AND files.sha256 = (SELECT sha256 FROM files WHERE id = ?) AND \
                 documents.status IN ('processing', 'ready') LIMIT 1"
            );
            if let Some(known) = transaction.query_row(&same_bytes, [&collection_id, &file_id], read_row).optional()? {
                ensure_job(transaction, &collection_id, &known.file_id)?;
                if is_local_only {
                    keep_local(transaction, &collection_id, &known.file_id)?;
                }
                return Ok(Upload::Known(known));
            }
            let supersedes = supersedes.as_deref();
            enqueue(transaction, &collection_id, &file_id, &attributes, supersedes, is_local_only)?;
            refuse_documents_over(quota, transaction, &owner)?;
            Ok(Upload::New(find(transaction, &owner, &collection_id, &file_id)?))
        })
    }

    fn has_local_only(&self, collection_id: &str, file_id: Option<&str>) -> Result<bool> {
        if self.collection(collection_id)?.is_local_only() {
            return Ok(true);
        }
        self.store.read(|connection| {
            let local = "SELECT EXISTS (SELECT 1 FROM documents
                 WHERE collection_id = ?1 AND local_only AND (?2 IS NULL OR file_id = ?2))";
            Ok(connection.query_row(local, params![collection_id, file_id], |row| row.get(0))?)
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
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        let embedding = embedding.clone();
        let supersedes: Vec<String> = supersedes.iter().filter(|&old| *old != file_id).cloned().collect();
        let (replaced, buried) = self.store.grow(stored_bytes(&chunks), move |transaction| {
            check_document(transaction, &owner, &collection_id, &file_id)?;
            let ready = transaction.execute(
                "UPDATE documents SET status = 'ready', error_code = NULL, error_reason = NULL, updated = ?
                 WHERE collection_id = ? AND file_id = ? AND status <> 'cancelled'",
                params![now_ms(), collection_id, file_id],
            )?;
            if ready == 0 {
                return Err(StoreError::NotFound { what: "document", id: file_id });
            }
            // In this transaction, so that the vectors of two models never meet in one collection.
            collections::bind(transaction, &collection_id, &embedding)?;
            let mut replaced =
                Replaced { added: Vec::new(), removed: chunk_ids(transaction, &collection_id, &file_id)? };
            let delete = "DELETE FROM chunks WHERE collection_id = ? AND file_id = ?";
            transaction.execute(delete, [&collection_id, &file_id])?;
            let mut buried = Vec::new();
            for old in supersedes {
                replaced.removed.extend(chunk_ids(transaction, &collection_id, &old)?);
                transaction
                    .execute("DELETE FROM documents WHERE collection_id = ? AND file_id = ?", [&collection_id, &old])?;
                // In this transaction, so that a file that is attached elsewhere meanwhile stays.
                let unused = "DELETE FROM files WHERE id = ?1 AND owner = ?2 AND
                     NOT EXISTS (SELECT 1 FROM documents WHERE file_id = ?1)";
                if transaction.execute(unused, [&old, &owner])? > 0 {
                    bury(transaction, &old)?;
                    buried.push(old);
                }
            }
            // A job that restarts after a crash must not delete what has been added again since.
            transaction.execute(
                "UPDATE jobs SET payload = json_set(payload, '$.supersedes', json('[]'))
                 WHERE kind = ? AND state IN ('queued', 'running') AND
                    payload ->> 'collection_id' = ? AND payload ->> 'file_id' = ?",
                [INGEST, &collection_id, &file_id],
            )?;
            let mut insert_chunk = transaction.prepare(
                "INSERT INTO chunks (collection_id, file_id, position, heading, text, place, tokens)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?;
            let mut insert_vector = transaction.prepare("INSERT INTO vectors (chunk_id, vector) VALUES (?, ?)")?;
            for (position, chunk) in chunks.iter().enumerate() {
                let NewChunk { text, heading, place, tokens, vector } = chunk;
                insert_chunk.execute(params![collection_id, file_id, position, heading, text, place, tokens])?;
                let id = transaction.last_insert_rowid();
                insert_vector.execute(params![id, Vector(vector)])?;
                replaced.added.push(id as u64);
            }
            Ok((replaced, buried))
        })?;
        buried.iter().for_each(|id| self.store.unlink_deleted(id));
        Ok(replaced)
    }

    fn set_document_status(&self, collection_id: &str, file_id: &str, status: DocumentStatus) -> Result<Document> {
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        self.store.write(move |transaction| {
            let (name, code, reason) = match status {
                DocumentStatus::Processing => ("processing", None, None),
                DocumentStatus::Ready => ("ready", None, None),
                DocumentStatus::Cancelled => ("cancelled", None, None),
                DocumentStatus::Failed { code, reason } => ("failed", Some(code), Some(reason)),
            };
            check_document(transaction, &owner, &collection_id, &file_id)?;
            transaction.execute(
                "UPDATE documents SET status = ?, error_code = ?, error_reason = ?, updated = ?
                 WHERE collection_id = ? AND file_id = ?",
                params![name, code, reason, now_ms(), collection_id, file_id],
            )?;
            find(transaction, &owner, &collection_id, &file_id)
        })
    }

    fn fail_document(&self, collection_id: &str, file_id: &str, code: &str, reason: &str) -> Result<bool> {
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        let (code, reason) = (code.to_owned(), reason.to_owned());
        self.store.write(move |transaction| {
            let fail = "UPDATE documents SET status = 'failed', error_code = ?, error_reason = ?, updated = ?
                 WHERE collection_id = ? AND file_id = ? AND status = 'processing' AND
                    collection_id IN (SELECT id FROM collections WHERE owner = ?)";
            let failed = transaction.execute(fail, params![code, reason, now_ms(), collection_id, file_id, owner])?;
            Ok(failed > 0)
        })
    }

    fn set_document_attributes(&self, collection_id: &str, file_id: &str, attributes: Attributes) -> Result<Document> {
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        self.store.write(move |transaction| {
            check_document(transaction, &owner, &collection_id, &file_id)?;
            transaction.execute(
                "UPDATE documents SET attributes = ?, updated = ? WHERE collection_id = ? AND file_id = ?",
                params![to_json(&attributes), now_ms(), collection_id, file_id],
            )?;
            find(transaction, &owner, &collection_id, &file_id)
        })
    }

    fn document(&self, collection_id: &str, file_id: &str) -> Result<Document> {
        self.store.read(|connection| find(connection, self.access.owner, collection_id, file_id))
    }

    fn documents_of_file(&self, file_id: &str) -> Result<Vec<Document>> {
        self.store.read(|connection| {
            let order = "ORDER BY documents.created, documents.collection_id";
            let sql = format!("{SELECT} WHERE collections.owner = ? AND documents.file_id = ? {order}");
            let mut query = connection.prepare(&sql)?;
            Ok(query.query_map([self.access.owner, file_id], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn ingest_progress(&self, collection_id: &str, file_id: &str) -> Result<Option<serde_json::Value>> {
        self.store.read(|connection| {
            let last = "SELECT event FROM job_events WHERE job_id = (
                    SELECT id FROM jobs WHERE owner = ? AND kind = ? AND payload ->> 'collection_id' = ? AND
                        payload ->> 'file_id' = ?
                    ORDER BY created DESC, id DESC LIMIT 1)
                ORDER BY number DESC LIMIT 1";
            let parameters = [self.access.owner, INGEST, collection_id, file_id];
            let event = connection.query_row(last, parameters, |row| row.get::<_, String>(0));
            Ok(event.optional()?.and_then(|event| serde_json::from_str(&event).ok()))
        })
    }

    fn num_unsearchable(&self, collection_id: &str) -> Result<usize> {
        self.store.read(|connection| {
            let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
                WHERE collections.owner = ?2 AND collection_id = ?1 AND status = 'processing' AND NOT EXISTS (
                    SELECT 1 FROM chunks WHERE chunks.collection_id = ?1 AND chunks.file_id = documents.file_id)";
            Ok(connection.query_row(count, [collection_id, self.access.owner], |row| row.get(0))?)
        })
    }

    fn documents_page(
        &self,
        collection_id: &str,
        batch_id: Option<&str>,
        status: Option<&str>,
        request: &PageRequest,
    ) -> Result<Page<Document>> {
        self.store.read(|connection| {
            let mut listing = Listing {
                sql: format!("{SELECT} WHERE collections.owner = ? AND documents.collection_id = ?"),
                parameters: vec![Sql::Text(self.access.owner.to_owned()), Sql::Text(collection_id.to_owned())],
                created: "documents.created",
                id: "documents.file_id",
            };
            if let Some(batch_id) = batch_id {
                let of_batch = " AND documents.file_id IN (SELECT file_id FROM batch_documents WHERE batch_id = ?)";
                listing.sql.push_str(of_batch);
                listing.parameters.push(Sql::Text(batch_id.to_owned()));
            }
            if let Some(status) = status {
                listing.sql.push_str(" AND documents.status = ?");
                listing.parameters.push(Sql::Text(status.to_owned()));
            }
            let created_of = |id: &str| {
                let created = "SELECT created FROM documents WHERE collection_id = ? AND file_id = ?";
                Ok(connection.query_row(created, [collection_id, id], |row| row.get(0)).optional()?)
            };
            page(connection, listing, request, created_of, read_row)
        })
    }

    fn documents_of_files(
        &self,
        collection_id: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Document>> {
        self.store.read(|connection| {
            let of_owner = "collections.owner = ?1 AND (?2 IS NULL OR documents.collection_id = ?2)";
            let sql = format!(
                "{SELECT} WHERE {of_owner} AND documents.file_id IN (
                    SELECT DISTINCT documents.file_id FROM documents
                        JOIN collections ON collections.id = documents.collection_id
                    WHERE {of_owner} AND (?3 IS NULL OR documents.file_id < ?3)
                    ORDER BY documents.file_id DESC LIMIT ?4)
                 ORDER BY documents.file_id DESC, documents.collection_id"
            );
            let mut query = connection.prepare(&sql)?;
            let rows = query.query_map(params![self.access.owner, collection_id, after, limit + 1], read_row)?;
            let mut entries: Vec<Document> = rows.collect::<rusqlite::Result<_>>()?;
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
        self.store.read(|connection| {
            let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
                WHERE collections.owner = ?1 AND (?2 IS NULL OR documents.collection_id = ?2)";
            Ok(connection.query_row(count, params![self.access.owner, collection_id], |row| row.get(0))?)
        })
    }

    fn delete_document(&self, collection_id: &str, file_id: &str) -> Result<Vec<u64>> {
        let (owner, collection_id, file_id) = self.owned_key(collection_id, file_id);
        self.store.write_essential(move |transaction| {
            check_document(transaction, &owner, &collection_id, &file_id)?;
            let chunks = chunk_ids(transaction, &collection_id, &file_id)?;
            cancel_ingest(transaction, Some(&collection_id), Some(&file_id))?;
            let delete = "DELETE FROM documents WHERE collection_id = ? AND file_id = ?";
            transaction.execute(delete, [&collection_id, &file_id])?;
            Ok(chunks)
        })
    }
}
