//! Documents: files, the collections that they are members of, and which of them can be searched.
//!
//! The store is the source of truth; the vector indexes follow it, and a job reads each new document (`ingest.rs`). A
//! change is durable when its call returns: an uploaded document will be read even if the process is killed, and a
//! deleted one is not found again.

pub mod ingest;
pub mod lookup;
mod owned;
pub mod reindex;
pub mod vector_stores;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hearth_domain::{
    Account, StorageQuota,
    documents::AttributeValue,
    error::{Error, ErrorKind, Result},
    usage::UsageSink,
};
use hearth_kernels::index::GraphParameters;

use super::{
    callers::Callers,
    jobs::{Jobs, blocking},
};
use crate::{
    retrieval::{indexes::Indexes, search::Retriever},
    store::{Incoming, Owned, Store},
};

/// The collection of requests that name none.
pub const DEFAULT_COLLECTION: &str = "default";

/// When to retry while documents are still being read.
const RETRY_INDEXING: Duration = Duration::from_secs(2);

pub use self::owned::OwnedDocuments;

pub type Attributes = BTreeMap<String, AttributeValue>;

/// See the module's documentation. One per server; handles are clones of its `Arc`.
#[derive(Debug)]
pub struct Documents {
    store: Arc<Store>,
    indexes: Arc<Indexes>,
    jobs: Arc<Jobs>,
    /// For each caller that has no quota of its own.
    quota: StorageQuota,
    retriever: OnceLock<Retriever>,
}

impl Documents {
    /// Callers may store as much as their own quota allows, or `quota` if they have none.
    pub fn new(
        store: Arc<Store>,
        graphs: GraphParameters,
        callers: Arc<Callers>,
        usage_sink: Arc<dyn UsageSink>,
        quota: StorageQuota,
    ) -> Arc<Self> {
        let indexes = Arc::new(Indexes::new(store.clone(), graphs));
        let jobs = Jobs::new(store.clone(), callers, usage_sink);
        Arc::new(Self { store, indexes, jobs, quota, retriever: OnceLock::new() })
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

    /// An embedding model is loaded: from now on documents are read, by [`ingest::Ingest`] and [`reindex::Reindex`],
    /// and searched. Call it once.
    pub fn begin(&self, retriever: Retriever, ingest: ingest::Ingest, reindex: reindex::Reindex) {
        if self.retriever.set(retriever).is_ok() {
            self.jobs.start(Arc::new(ingest), ingest::AT_A_TIME);
            self.jobs.start(Arc::new(reindex), 1);
        }
    }

    /// Stops reading; the next process restarts interrupted documents. Waits for indexes that are being built.
    pub async fn stop(self: &Arc<Self>) {
        self.jobs.stop_and_wait().await;
        let this = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || this.indexes.close()).await {
            tracing::error!(%error, "closing the indexes failed");
        }
    }

    /// The documents of this account's caller. What must stay on this machine is decided by each `Lookup`.
    pub fn of(self: &Arc<Self>, account: &Arc<Account>) -> OwnedDocuments {
        OwnedDocuments { documents: self.clone(), account: account.clone() }
    }

    /// Starts to receive a file of about `bytes` bytes; 0 if the sender has not said how many.
    ///
    /// # Errors
    /// If the data directory cannot be written, or its disk has no room.
    pub async fn receive(self: &Arc<Self>, bytes: u64) -> Result<Incoming> {
        let this = self.clone();
        blocking(move || this.store.receive_file(bytes)).await
    }

    /// Writes more of a file, and returns it.
    ///
    /// # Errors
    /// If the disk rejects the bytes.
    pub async fn receive_more(&self, mut incoming: Incoming, bytes: bytes::Bytes) -> Result<Incoming> {
        blocking(move || incoming.write(&bytes).map(|()| incoming)).await
    }

    /// # Errors
    /// If there is no embedding model, so that nothing can be searched.
    pub fn retriever(&self) -> Result<&Retriever> {
        self.retriever.get().ok_or_else(|| {
            let message = "There is no embedding model to search documents with: name one with --embedding-model, or \
                           fetch one with `hearth pull`.";
            Error::new(ErrorKind::Unavailable, message).with_code("no_embedding_model").lasting()
        })
    }
}

/// A document's error code when nothing more precise is known.
const SERVER_ERROR: &str = "server_error";

/// Marks a document that is being read as failed.
fn set_failed(store: &dyn Owned, collection_id: &str, file_id: &str, code: &str, reason: &str) {
    if let Err(error) = store.fail_document(collection_id, file_id, code, reason) {
        tracing::error!(file_id, %error, "a document's failure could not be stored");
    }
}
