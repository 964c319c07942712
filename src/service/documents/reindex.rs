//! Re-embeds a collection with another embedding model.
//!
//! The new vectors are kept aside until all exist; then they replace the old ones in one transaction. Meanwhile the
//! collection can be searched only with the model that made the old ones. An interrupted attempt is resumed, as far as
//! its vectors are of the same model.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use hearth_domain::error::Error;
use serde_json::{Value, json};

use super::ingest::{embed_passages, embedded_text, not_found_or_passing};
use crate::{
    providers::Embedder,
    retrieval::indexes::Indexes,
    service::jobs::{Failure, Progress, Worker},
    store::{Job, Store, StoreError},
};

/// The kind of these jobs; their payload has `collection_id`.
pub const REINDEX: &str = "reindex";
/// Chunks that are embedded, and stored, at a time.
const CHUNKS_AT_A_TIME: usize = 256;

/// Re-embeds collections.
pub struct Reindex {
    pub store: Arc<Store>,
    pub indexes: Arc<Indexes>,
    pub embedder: Arc<dyn Embedder>,
}

impl std::fmt::Debug for Reindex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reindex").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Worker for Reindex {
    fn kind(&self) -> &'static str {
        REINDEX
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        async move {
            let id = job.payload["collection_id"].as_str().unwrap_or_default().to_owned();
            self.reindex(job.owner, id, &progress).await
        }
        .boxed()
    }
}

impl Reindex {
    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&*store)).await;
        done.map_err(|error| Failure::Passing(error.to_string()))?.map_err(not_found_or_passing)
    }

    async fn reindex(&self, owner: String, id: String, progress: &Progress) -> Result<Value, Failure> {
        let embedding = self.embedder.identity();
        loop {
            let (of_whom, collection_id, identity) = (owner.clone(), id.clone(), embedding.clone());
            let next = move |store: &Store| {
                let is_local_only = store.of(&of_whom).has_local_only(&collection_id, None)?;
                let (chunks, left) = store.chunks_to_reembed(&collection_id, &identity, CHUNKS_AT_A_TIME)?;
                Ok((is_local_only, chunks, left))
            };
            let (is_local_only, chunks, left) = self.store(next).await?;
            progress.report(&json!({"stage": "embedding", "left": left})).await;
            if chunks.is_empty() {
                // Chunks that were added meanwhile, which cannot be of this model, make the swap fail: they are
                // embedded next.
                let (collection_id, identity) = (id.clone(), embedding.clone());
                let swap = move |store: &Store| store.swap_vectors(&collection_id, &identity);
                if let Some(num_chunks) = self.store(swap).await? {
                    let (indexes, collection_id, identity) = (self.indexes.clone(), id.clone(), embedding.clone());
                    let opened = tokio::task::spawn_blocking(move || indexes.open(&collection_id, &identity));
                    let opened =
                        opened.await.map_err(Error::internal).and_then(|opened| opened.map_err(Error::internal));
                    opened.map_err(|error| Failure::Passing(format!("{error:?}")))?;
                    return Ok(json!({"chunks": num_chunks}));
                }
                continue;
            }
            let texts = chunks.iter().map(|chunk| embedded_text(&chunk.heading, &chunk.text)).collect();
            let account = if is_local_only { &progress.account().kept_local() } else { progress.account() };
            let vectors = embed_passages(&*self.embedder, texts, account).await?;
            let made = chunks.iter().map(|chunk| chunk.id).zip(vectors).collect();
            let identity = embedding.clone();
            self.store(move |store| store.keep_reembedded(&identity, made)).await?;
        }
    }
}
