//! Batches, and the members that they add.

use tokio_postgres::{GenericClient, Transaction};

use super::{
    attributes::to_json,
    collections,
    documents::{self, cancel_ingest},
    owned::{PostgresOwned, one_at_a_time, refuse_documents_over},
    values,
};
use crate::store::{Attributes, Batch, Batches, Member, Result, StoreError, new_id};
use hearth_domain::documents::{Collection, Document, DocumentStatus};

/// A member that exists already, or is about to, gets the new attributes and is not read again.
async fn attach(
    transaction: &Transaction<'_>,
    owner: &str,
    collection_id: &str,
    member: &Member,
    is_local_only: bool,
) -> Result<()> {
    let Member { file_id, attributes } = member;
    documents::check_exists(transaction, owner, collection_id, file_id).await?;
    one_at_a_time(transaction, "upload", owner, collection_id).await?;
    let set = "UPDATE documents SET attributes = $1, updated = now_ms()
         WHERE collection_id = $2 AND file_id = $3 AND status IN ('processing', 'ready')";
    let parameters = values![JSONB to_json(attributes), TEXT collection_id, TEXT file_id];
    if transaction.execute_typed(set, parameters).await? > 0 {
        if is_local_only {
            documents::keep_local(transaction, collection_id, file_id).await?;
        }
        documents::ensure_job(transaction, collection_id, file_id).await?;
        // Its attributes may be filtered by.
        collections::touch(transaction, collection_id).await
    } else {
        documents::enqueue(transaction, collection_id, file_id, attributes, None, is_local_only).await
    }
}

async fn find(client: &impl GenericClient, owner: &str, collection_id: &str, id: &str) -> Result<Batch> {
    let query = "SELECT batches.created, cancelled FROM batches JOIN collections ON collections.id = collection_id
         WHERE batches.id = $1 AND collection_id = $2 AND owner = $3";
    let rows = client.query_typed(query, values![TEXT id, TEXT collection_id, TEXT owner]).await?;
    let found = rows.first().ok_or_else(|| StoreError::NotFound { what: "file batch", id: id.to_owned() })?;
    let query = format!(
        "{} JOIN batch_documents ON batch_documents.collection_id = documents.collection_id AND
            batch_documents.file_id = documents.file_id
         WHERE batch_documents.batch_id = $1 ORDER BY documents.created DESC, documents.file_id DESC",
        documents::SELECT
    );
    let documents = client.query_typed(&query, values![TEXT id]).await?.iter().map(documents::read_row).collect();
    let (id, collection_id) = (id.to_owned(), collection_id.to_owned());
    Ok(Batch { id, collection_id, created_ms: found.get(0), cancelled: found.get(1), documents })
}

impl Batches for PostgresOwned<'_> {
    fn create_vector_store(&self, name: String, metadata: Attributes, files: Vec<String>) -> Result<Collection> {
        let (owner, quota, is_local_only) = (self.access.owner, self.access.quota, self.access.is_local_only);
        self.store.write(async |transaction| {
            let collection = collections::insert(transaction, owner, &name, &metadata).await?;
            for file_id in &files {
                let member = Member { file_id: file_id.clone(), attributes: Attributes::new() };
                attach(transaction, owner, &collection.id, &member, is_local_only).await?;
            }
            refuse_documents_over(quota, transaction, owner).await?;
            Ok(collection)
        })
    }

    fn update_vector_store(&self, id: &str, name: Option<String>, metadata: Option<Attributes>) -> Result<Collection> {
        self.store.write(async |transaction| {
            collections::update(transaction, self.access.owner, id, name.as_deref(), metadata.as_ref()).await
        })
    }

    fn attach_document(&self, collection_id: &str, member: Member) -> Result<Document> {
        let (owner, quota, is_local_only) = (self.access.owner, self.access.quota, self.access.is_local_only);
        self.store.write(async |transaction| {
            attach(transaction, owner, collection_id, &member, is_local_only).await?;
            refuse_documents_over(quota, transaction, owner).await?;
            documents::find(transaction, owner, collection_id, &member.file_id).await
        })
    }

    fn create_batch(&self, collection_id: &str, members: Vec<Member>) -> Result<Batch> {
        let (owner, quota, is_local_only) = (self.access.owner, self.access.quota, self.access.is_local_only);
        self.store.write(async |transaction| {
            collections::check_exists(transaction, owner, collection_id).await?;
            let id = new_id("vsfb_");
            let insert = "INSERT INTO batches (id, collection_id, created) VALUES ($1, $2, now_ms())";
            transaction.execute_typed(insert, values![TEXT id, TEXT collection_id]).await?;
            for member in &members {
                attach(transaction, owner, collection_id, member, is_local_only).await?;
                let insert = "INSERT INTO batch_documents (batch_id, collection_id, file_id) VALUES ($1, $2, $3)
                     ON CONFLICT DO NOTHING";
                transaction.execute_typed(insert, values![TEXT id, TEXT collection_id, TEXT member.file_id]).await?;
            }
            refuse_documents_over(quota, transaction, owner).await?;
            find(transaction, owner, collection_id, &id).await
        })
    }

    fn batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        self.store.read(async |client| find(client, self.access.owner, collection_id, id).await)
    }

    fn cancel_batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        self.store.write(async |transaction| {
            collections::check_exists(transaction, self.access.owner, collection_id).await.map_err(
                |error| match error {
                    StoreError::NotFound { .. } => StoreError::NotFound { what: "file batch", id: id.to_owned() },
                    error => error,
                },
            )?;
            let batch = find(transaction, self.access.owner, collection_id, id).await?;
            let unread = batch.documents.iter().filter(|document| document.status == DocumentStatus::Processing);
            for document in unread {
                // A document that becomes ready meanwhile stays ready, as one that was ready before.
                let cancel = "UPDATE documents SET status = 'cancelled', updated = now_ms()
                     WHERE collection_id = $1 AND file_id = $2 AND status = 'processing'";
                let parameters = values![TEXT collection_id, TEXT document.file_id];
                if transaction.execute_typed(cancel, parameters).await? > 0 {
                    cancel_ingest(transaction, Some(collection_id), Some(&document.file_id)).await?;
                    let mark = "UPDATE batches SET cancelled = true WHERE id = $1";
                    transaction.execute_typed(mark, values![TEXT id]).await?;
                }
            }
            find(transaction, self.access.owner, collection_id, id).await
        })
    }
}
