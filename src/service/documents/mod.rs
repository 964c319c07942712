//! What documents there are: files, the collections that they are members of, and what of it can be searched.
//!
//! The store is the truth; the vector indexes follow it, and a job reads each new document (`ingest.rs`). A change is
//! durable when its call returns: what was uploaded will be read though the process is killed, and what was deleted is
//! found no more.

pub mod ingest;
pub mod reindex;
pub mod vector_stores;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use super::{
    callers::Callers,
    jobs::{Jobs, blocking, told},
};
use crate::{
    domain::{
        LOCAL,
        account::Books,
        documents::{AttributeValue, Collection, Document, DocumentStatus, StoredFile},
    },
    error::{Error, ErrorKind, Result},
    retrieval::{indexes::Indexes, search::Retriever},
    store::{Incoming, Job, Store, StoreError, Upload},
};

/// The collection of whoever names none.
pub const DEFAULT_COLLECTION: &str = "default";

/// When an asker whose documents are still being read should come back.
const RETRY_INDEXING: Duration = Duration::from_secs(2);

pub type Attributes = BTreeMap<String, AttributeValue>;

/// See the module's documentation. One for the server; handles are clones of its `Arc`.
#[derive(Debug)]
pub struct Documents {
    store: Arc<Store>,
    indexes: Arc<Indexes>,
    jobs: Arc<Jobs>,
    retriever: OnceLock<Retriever>,
}

impl Documents {
    pub fn new(store: Arc<Store>, callers: Arc<Callers>, books: Arc<dyn Books>) -> Arc<Self> {
        let (indexes, jobs) = (Arc::new(Indexes::new(store.clone())), Jobs::new(store.clone(), callers, books));
        Arc::new(Self { store, indexes, jobs, retriever: OnceLock::new() })
    }

    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn indexes(&self) -> &Arc<Indexes> {
        &self.indexes
    }

    /// An embedding model is there: from now on documents are read, by [`ingest::Ingest`] and [`reindex::Reindex`],
    /// and searched. Said once.
    pub fn begin(&self, retriever: Retriever, ingest: ingest::Ingest, reindex: reindex::Reindex) {
        if self.retriever.set(retriever).is_ok() {
            self.jobs.start(Arc::new(ingest), ingest::AT_A_TIME);
            self.jobs.start(Arc::new(reindex), 1);
        }
    }

    /// Stops reading; what is half read is read again by the next process. Indexes that are being built are waited for.
    pub async fn stop(self: &Arc<Self>) {
        self.jobs.stop();
        let this = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || this.indexes.close()).await {
            tracing::error!(%error, "closing the indexes failed");
        }
    }

    /// # Errors
    /// If there is no embedding model, so that nothing can be searched.
    pub fn retriever(&self) -> Result<&Retriever> {
        self.retriever.get().ok_or_else(|| {
            let message = "There is no embedding model to search documents with: name one with --embedding-model, or \
                           fetch one with `hearth pull`.";
            Error::new(ErrorKind::Unavailable, message).with_code("no_embedding_model")
        })
    }

    // --- collections ---

    /// # Errors
    /// 400 if the name is taken.
    pub async fn create_collection(self: &Arc<Self>, name: &str, metadata: Attributes) -> Result<Collection> {
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || this.store.create_collection(&name, metadata)).await
    }

    /// All collections, the oldest first.
    pub async fn collections(self: &Arc<Self>) -> Result<Vec<Collection>> {
        let this = self.clone();
        blocking(move || this.store.collections()).await
    }

    /// By id or name. The default one is made when it is first asked for.
    ///
    /// # Errors
    /// 404
    pub async fn collection(self: &Arc<Self>, id_or_name: &str) -> Result<Collection> {
        let (this, id_or_name) = (self.clone(), id_or_name.to_owned());
        blocking(move || match this.store.collection(&id_or_name) {
            Err(StoreError::NotFound { .. }) if id_or_name == DEFAULT_COLLECTION => {
                match this.store.create_collection(DEFAULT_COLLECTION, Attributes::new()) {
                    // Somebody else was first.
                    Err(StoreError::NameTaken(name)) => this.store.collection(&name),
                    made => made,
                }
            }
            found => found,
        })
        .await
    }

    /// These collections, or the default one if none is named.
    ///
    /// # Errors
    /// 404 for the first that is not there.
    pub async fn collections_named(self: &Arc<Self>, names: &[String]) -> Result<Vec<Collection>> {
        if names.is_empty() {
            return Ok(vec![self.collection(DEFAULT_COLLECTION).await?]);
        }
        let mut found: Vec<Collection> = Vec::with_capacity(names.len());
        for name in names {
            let collection = self.collection(name).await?;
            if found.iter().all(|other| other.id != collection.id) {
                found.push(collection);
            }
        }
        Ok(found)
    }

    /// The collections that a question is about, once what is in them can be searched: those that are named, or else
    /// those that the documents are in, or else the default one.
    ///
    /// # Errors
    /// 404 for what is not there, and 409 `indexing` as [`Self::settled`].
    pub async fn scope(
        self: &Arc<Self>,
        collections: &[String],
        document_ids: &[String],
        patience: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Collection>> {
        let mut names = collections.to_vec();
        for id in document_ids {
            let found = self.documents_of_file(id).await?;
            if collections.is_empty() {
                names.extend(found.into_iter().map(|document| document.collection_id));
            }
        }
        let found = self.collections_named(&names).await?;
        if let Some(patience) = patience {
            self.settled(&found, patience, deadline).await?;
        }
        // The first vectors bind a collection: what was read while this waited counts.
        self.collections_named(&found.into_iter().map(|collection| collection.id).collect::<Vec<_>>()).await
    }

    /// # Errors
    /// 404, and 400 if the name is taken.
    pub async fn update_collection(
        self: &Arc<Self>,
        id: &str,
        name: Option<String>,
        metadata: Option<Attributes>,
    ) -> Result<Collection> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || this.store.update_collection(&id, name, metadata)).await
    }

    /// Deletes a collection with the documents that are in it; their files stay.
    ///
    /// # Errors
    /// 404
    pub async fn delete_collection(self: &Arc<Self>, id_or_name: &str) -> Result<Collection> {
        let (this, id_or_name) = (self.clone(), id_or_name.to_owned());
        let deleted = blocking(move || {
            let collection = this.store.collection(&id_or_name)?;
            this.store.delete_collection(&collection.id)?;
            this.indexes.forget(&collection.id);
            Ok(collection)
        })
        .await?;
        self.jobs.look();
        Ok(deleted)
    }

    /// Begins to make a collection's vectors anew with the embedding model that is served now.
    ///
    /// # Errors
    /// 404, and 503 without an embedding model.
    pub async fn reindex(self: &Arc<Self>, id_or_name: &str) -> Result<Job> {
        self.retriever()?;
        let collection = self.collection(id_or_name).await?;
        let payload = serde_json::json!({"collection_id": collection.id});
        self.jobs.enqueue(reindex::REINDEX, payload, LOCAL).await
    }

    // --- files ---

    /// Begins to receive a file.
    ///
    /// # Errors
    /// If the data directory cannot be written.
    pub async fn receive(self: &Arc<Self>) -> Result<Incoming> {
        let this = self.clone();
        blocking(move || this.store.receive_file()).await
    }

    /// Writes more of a file, and hands it back.
    ///
    /// # Errors
    /// If the disk does not take the bytes.
    pub async fn receive_more(&self, mut incoming: Incoming, bytes: bytes::Bytes) -> Result<Incoming> {
        blocking(move || incoming.write(&bytes).map(|()| incoming)).await
    }

    /// Keeps a file that has been received whole.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub async fn keep(self: &Arc<Self>, incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile> {
        let (this, filename, purpose) = (self.clone(), filename.to_owned(), purpose.to_owned());
        blocking(move || this.store.keep_file(incoming, &filename, &purpose)).await
    }

    /// All files, the newest first.
    pub async fn files(self: &Arc<Self>) -> Result<Vec<StoredFile>> {
        let this = self.clone();
        blocking(move || this.store.files()).await
    }

    /// # Errors
    /// 404
    pub async fn file(self: &Arc<Self>, id: &str) -> Result<StoredFile> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || this.store.file(&id)).await
    }

    /// Deletes a file and the documents that were made of it.
    ///
    /// # Errors
    /// 404
    pub async fn delete_file(self: &Arc<Self>, id: &str) -> Result<()> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let Some(chunks) = this.store.delete_file(&id)? else {
                return Err(StoreError::NotFound { what: "file", id });
            };
            let mut by_collection: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (collection_id, chunk) in chunks {
                by_collection.entry(collection_id).or_default().push(chunk);
            }
            for (collection_id, chunks) in by_collection {
                this.indexes.remove(&collection_id, &chunks);
            }
            Ok(())
        })
        .await?;
        self.jobs.look();
        Ok(())
    }

    // --- documents ---

    /// Makes a file a member of a collection; a job will read it. When it has been read, it takes the place of the
    /// document `supersedes`.
    ///
    /// # Errors
    /// 404 for the collection or the file.
    pub async fn add(
        self: &Arc<Self>,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
        supersedes: Option<String>,
    ) -> Result<Upload> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        let added = blocking(move || {
            if let Some(old) = &supersedes {
                this.store.document(&collection_id, old)?;
            }
            this.store.add_document(&collection_id, &file_id, attributes, supersedes.as_deref())
        })
        .await?;
        self.jobs.look();
        Ok(added)
    }

    /// [`Self::add`] for a file that was uploaded to be just this document: if its bytes are in the collection
    /// already, the file is not kept and the document that is there is the answer.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub async fn add_uploaded(
        self: &Arc<Self>,
        collection: &Collection,
        file: &StoredFile,
        attributes: Attributes,
        supersedes: Option<String>,
    ) -> Result<Document> {
        match self.add(&collection.id, &file.id, attributes, supersedes).await {
            Ok(Upload::New(document)) => Ok(document),
            Ok(Upload::Known(document)) => {
                if document.file_id != file.id {
                    self.delete_file(&file.id).await?;
                }
                Ok(document)
            }
            Err(error) => {
                self.delete_file(&file.id).await?;
                Err(error)
            }
        }
    }

    /// # Errors
    /// 404
    pub async fn document(self: &Arc<Self>, collection_id: &str, file_id: &str) -> Result<Document> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        blocking(move || this.store.document(&collection_id, &file_id)).await
    }

    /// How far the reading of a document is, while it is being read.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn progress(self: &Arc<Self>, document: &Document) -> Result<Option<serde_json::Value>> {
        if document.status != DocumentStatus::Processing {
            return Ok(None);
        }
        let (this, collection_id, file_id) = (self.clone(), document.collection_id.clone(), document.file_id.clone());
        blocking(move || this.store.ingest_progress(&collection_id, &file_id)).await
    }

    /// The documents that a file is, in any collection.
    ///
    /// # Errors
    /// 404 if there is none.
    pub async fn documents_of_file(self: &Arc<Self>, file_id: &str) -> Result<Vec<Document>> {
        let (this, file_id) = (self.clone(), file_id.to_owned());
        blocking(move || {
            let found = this.store.documents_of_file(&file_id)?;
            if found.is_empty() { Err(StoreError::NotFound { what: "document", id: file_id }) } else { Ok(found) }
        })
        .await
    }

    /// The documents of a collection, the newest first.
    ///
    /// # Errors
    /// 404 if there is no such collection.
    pub async fn documents(self: &Arc<Self>, collection_id: &str) -> Result<Vec<Document>> {
        let (this, collection_id) = (self.clone(), collection_id.to_owned());
        blocking(move || {
            this.store.collection(&collection_id)?;
            this.store.documents(&collection_id)
        })
        .await
    }

    /// # Errors
    /// 404
    pub async fn set_attributes(
        self: &Arc<Self>,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
    ) -> Result<Document> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        blocking(move || this.store.set_document_attributes(&collection_id, &file_id, attributes)).await
    }

    /// Ends the reading of a document that is not searchable yet; it stays, as cancelled.
    ///
    /// # Errors
    /// 404
    pub async fn cancel(self: &Arc<Self>, collection_id: &str, file_id: &str) -> Result<Document> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        let document = blocking(move || {
            let found = this.store.document(&collection_id, &file_id)?;
            if found.status != DocumentStatus::Processing {
                return Ok(found);
            }
            this.store.set_document_status(&collection_id, &file_id, DocumentStatus::Cancelled)
        })
        .await?;
        self.jobs.look();
        Ok(document)
    }

    /// Takes a document out of a collection; its file stays.
    ///
    /// # Errors
    /// 404
    pub async fn remove(self: &Arc<Self>, collection_id: &str, file_id: &str) -> Result<()> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        blocking(move || {
            let chunks = this.store.delete_document(&collection_id, &file_id)?;
            this.indexes.remove(&collection_id, &chunks);
            Ok(())
        })
        .await?;
        self.jobs.look();
        Ok(())
    }

    /// Resolves when every document of these collections can be searched or has failed. With `patience` of zero it
    /// does not wait.
    ///
    /// # Errors
    /// 409 `indexing` when that takes longer than `patience`, or than until the deadline.
    pub async fn settled(
        self: &Arc<Self>,
        collections: &[Collection],
        patience: Duration,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        let mut changes = self.jobs.changes();
        loop {
            changes.mark_unchanged();
            let (this, ids) = (self.clone(), collections.iter().map(|found| found.id.clone()).collect::<Vec<_>>());
            let left = blocking(move || ids.iter().map(|id| this.store.num_unsearchable(id)).sum::<Result<usize, _>>());
            let left = left.await?;
            if left == 0 {
                return Ok(());
            }
            if tokio::time::timeout_at(until.into(), changes.changed()).await.is_err() {
                let message = format!(
                    "{left} of the documents are still being read. Ask again, send `wait` with the seconds to wait for \
                     them, or `\"wait\": false` to ask what can be searched now."
                );
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_code("indexing")
                    .with_retry_after(RETRY_INDEXING));
            }
        }
    }
}

/// What a document's failure is called when nothing more precise is known.
const SERVER_ERROR: &str = "server_error";

fn set_failed(store: &Store, collection_id: &str, file_id: &str, code: &str, reason: &str) {
    let status = DocumentStatus::Failed { code: code.to_owned(), reason: reason.to_owned() };
    match store.set_document_status(collection_id, file_id, status) {
        Ok(_) | Err(StoreError::NotFound { .. }) => {}
        Err(error) => tracing::error!(file_id, error = %told(error), "a document's failure could not be stored"),
    }
}
