//! Batches, and the members that they add.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    SqliteOwned,
    attributes::to_json,
    collections,
    documents::{self, cancel_ingest},
    owned::refuse_documents_over,
};
use crate::store::{Attributes, Batch, Batches, Member, Result, StoreError, new_id, now_ms};
use hearth_domain::documents::{Collection, Document, DocumentStatus};

/// A member that exists already, or is about to, gets the new attributes and is not read again.
fn attach(
    transaction: &Transaction<'_>,
    owner: &str,
    collection_id: &str,
    member: &Member,
    is_local_only: bool,
) -> Result<()> {
    let Member { file_id, attributes } = member;
    documents::check_exists(transaction, owner, collection_id, file_id)?;
    let changed = transaction.execute(
        "UPDATE documents SET attributes = ?, updated = ?
         WHERE collection_id = ? AND file_id = ? AND status IN ('processing', 'ready')",
        params![to_json(attributes), now_ms(), collection_id, file_id],
    )?;
    if changed > 0 {
        if is_local_only {
            documents::keep_local(transaction, collection_id, file_id)?;
        }
        documents::ensure_job(transaction, collection_id, file_id)
    } else {
        documents::enqueue(transaction, collection_id, file_id, attributes, None, is_local_only)
    }
}

fn find(connection: &Connection, owner: &str, collection_id: &str, id: &str) -> Result<Batch> {
    let query = "SELECT batches.created, cancelled FROM batches JOIN collections ON collections.id = collection_id
         WHERE batches.id = ? AND collection_id = ? AND owner = ?";
    let found = connection.query_row(query, [id, collection_id, owner], |row| Ok((row.get(0)?, row.get(1)?)));
    let found = found.optional()?;
    let (created_ms, cancelled) =
        found.ok_or_else(|| StoreError::NotFound { what: "file batch", id: id.to_owned() })?;
    let mut query = connection.prepare(&format!(
        "{} JOIN batch_documents ON batch_documents.collection_id = documents.collection_id AND
            batch_documents.file_id = documents.file_id
         WHERE batch_documents.batch_id = ? ORDER BY documents.created DESC, documents.file_id DESC",
        documents::SELECT
    ))?;
    let documents = query.query_map([id], documents::read_row)?.collect::<rusqlite::Result<_>>()?;
    Ok(Batch { id: id.to_owned(), collection_id: collection_id.to_owned(), created_ms, cancelled, documents })
}

impl Batches for SqliteOwned<'_> {
    fn create_vector_store(&self, name: String, metadata: Attributes, files: Vec<String>) -> Result<Collection> {
        let (owner, quota, is_local_only) =
            (self.access.owner.to_owned(), self.access.quota, self.access.is_local_only);
        self.store.grow(0, move |transaction| {
            let collection = collections::insert(transaction, &owner, name, metadata)?;
            for file_id in files {
                let member = Member { file_id, attributes: Attributes::new() };
                attach(transaction, &owner, &collection.id, &member, is_local_only)?;
            }
            refuse_documents_over(quota, transaction, &owner)?;
            Ok(collection)
        })
    }

    fn update_vector_store(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection> {
        let (owner, id) = (self.access.owner.to_owned(), id.to_owned());
        self.store.write(move |transaction| collections::update(transaction, &owner, id, name, metadata))
    }

    fn attach_document(&self, collection_id: &str, member: Member) -> Result<Document> {
        let (owner, collection_id) = (self.access.owner.to_owned(), collection_id.to_owned());
        let (quota, is_local_only) = (self.access.quota, self.access.is_local_only);
        self.store.grow(0, move |transaction| {
            attach(transaction, &owner, &collection_id, &member, is_local_only)?;
            refuse_documents_over(quota, transaction, &owner)?;
            documents::find(transaction, &owner, &collection_id, &member.file_id)
        })
    }

    fn create_batch(&self, collection_id: &str, members: Vec<Member>) -> Result<Batch> {
        let (owner, collection_id) = (self.access.owner.to_owned(), collection_id.to_owned());
        let (quota, is_local_only) = (self.access.quota, self.access.is_local_only);
        self.store.grow(0, move |transaction| {
            collections::check_exists(transaction, &owner, &collection_id)?;
            let id = new_id("vsfb_");
            transaction.execute(
                "INSERT INTO batches (id, collection_id, created) VALUES (?, ?, ?)",
                params![id, collection_id, now_ms()],
            )?;
            for member in &members {
                attach(transaction, &owner, &collection_id, member, is_local_only)?;
                transaction.execute(
                    "INSERT OR IGNORE INTO batch_documents (batch_id, collection_id, file_id) VALUES (?, ?, ?)",
                    [&id, &collection_id, &member.file_id],
                )?;
            }
            refuse_documents_over(quota, transaction, &owner)?;
            find(transaction, &owner, &collection_id, &id)
        })
    }

    fn batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        self.store.read(|connection| find(connection, self.access.owner, collection_id, id))
    }

    fn cancel_batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        let (owner, collection_id, id) = (self.access.owner.to_owned(), collection_id.to_owned(), id.to_owned());
        self.store.write_essential(move |transaction| {
            let batch = find(transaction, &owner, &collection_id, &id)?;
            let unread = batch.documents.iter().filter(|document| document.status == DocumentStatus::Processing);
            for document in unread {
                cancel_ingest(transaction, Some(&collection_id), Some(&document.file_id))?;
                transaction.execute(
                    "UPDATE documents SET status = 'cancelled', updated = ? WHERE collection_id = ? AND file_id = ?",
                    params![now_ms(), collection_id, document.file_id],
                )?;
                transaction.execute("UPDATE batches SET cancelled = 1 WHERE id = ?", [&id])?;
            }
            find(transaction, &owner, &collection_id, &id)
        })
    }
}
