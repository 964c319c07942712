//! Ingests one document: extracts its text, cuts it into chunks, embeds, stores and indexes them.
//!
//! Nothing of it is visible until the last step, which is one transaction, so that a search sees the document's old
//! version or its new one. All earlier steps may be repeated after a crash.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream,
};
use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest,
    documents::NewChunk,
    error::{Error, ErrorKind},
};
use hearth_text::{
    chunker::{Chunk, ChunkPlace, Chunker},
    extract::{ExtractError, Extracted, Limits, extract, sandbox::Sandbox},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{SERVER_ERROR, set_failed};
use crate::{
    providers::Embedder,
    retrieval::indexes::Indexes,
    service::jobs::{Failure, Progress, Worker},
    store::{INGEST, Job, Store, StoreError},
};

/// Documents that are read concurrently: one's text is extracted while another's is embedded.
pub const AT_A_TIME: usize = 2;
/// Chunks per request to the embedding model; progress is reported between requests.
const CHUNKS_AT_A_TIME: usize = 64;
/// How long to wait for room at a busy embedding model, or for servers that share its work, before the attempt fails.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);

/// Reads documents.
pub struct Ingest {
    pub store: Arc<Store>,
    pub indexes: Arc<Indexes>,
    /// The embedding model, at background priority.
    pub embedder: Arc<dyn Embedder>,
    /// How many requests to it one document may have in progress.
    pub requests_at_once: usize,
    pub chunker: Arc<Chunker>,
    pub sandbox: Sandbox,
    pub limits: Limits,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("store", &self.store).field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[derive(Clone, Deserialize)]
struct Payload {
    collection_id: String,
    file_id: String,
    supersedes: Vec<String>,
}

fn payload(job: &Job) -> Result<Payload, Failure> {
    serde_json::from_value(job.payload.clone())
        .map_err(|error| Failure::Lasting(format!("the job is damaged: {error}")))
}

impl Worker for Ingest {
    fn kind(&self) -> &'static str {
        INGEST
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        async move { self.read(&job.owner, payload(&job)?, &progress).await }.boxed()
    }

    fn given_up(&self, job: &Job, reason: &str) {
        if let Ok(Payload { collection_id, file_id, .. }) = payload(job) {
            // A fault of the document itself was recorded more precisely when it was found, and stays.
            set_failed(&*self.store.of(&job.owner), &collection_id, &file_id, SERVER_ERROR, reason);
        }
    }
}

impl Ingest {
    async fn read(&self, owner: &str, payload: Payload, progress: &Progress) -> Result<Value, Failure> {
        let Payload { collection_id, file_id, supersedes } = payload;
        let begun = Instant::now();
        progress.report(&json!({"stage": "extracting"})).await;
        let (extracted, chunks) = self.extract(owner, &collection_id, &file_id).await?;
        let (store, of_whom) = (self.store.clone(), owner.to_owned());
        let (collection, file) = (collection_id.clone(), file_id.clone());
        // Read as late as possible: extracting takes minutes, and the collection may have changed meanwhile.
        let is_local_only =
            tokio::task::spawn_blocking(move || store.of(&of_whom).has_local_only(&collection, Some(&file)));
        let is_local_only = is_local_only.await.map_err(|error| Failure::Passing(error.to_string()))?;
        let is_local_only = is_local_only.map_err(not_found_or_passing)?;
        let account = if is_local_only { &progress.account().kept_local() } else { progress.account() };
        let vectors = self.embed(&extracted, &chunks, account, progress).await?;
        progress.report(&json!({"stage": "indexing"})).await;
        let chunks: Vec<NewChunk> =
            chunks.into_iter().zip(vectors).map(|(chunk, vector)| stored(&extracted, chunk, vector)).collect();
        let num_chunks = chunks.len();
        let (store, indexes, embedding) = (self.store.clone(), self.indexes.clone(), self.embedder.identity());
        let (of_whom, collection, file) = (owner.to_owned(), collection_id, file_id.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let own = store.of(&of_whom);
            let replaced = own.replace_chunks(&collection, &file, &embedding, chunks, &supersedes);
            replaced.and_then(|replaced| indexes.apply(&collection, &embedding, &replaced)).map_err(|error| match error
            {
                StoreError::OtherEmbedding { .. } => {
                    let reason = error.to_string();
                    set_failed(&*own, &collection, &file, "other_embedding_model", &reason);
                    Failure::Lasting(reason)
                }
                error => not_found_or_passing(error),
            })
        });
        stored.await.map_err(|error| Failure::Passing(error.to_string()))??;
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(file_id, num_chunks, seconds, format = ?extracted.format, "document read");
        Ok(json!({"chunks": num_chunks, "skipped": extracted.skipped, "seconds": seconds}))
    }

    async fn extract(
        &self,
        owner: &str,
        collection_id: &str,
        file_id: &str,
    ) -> Result<(Extracted, Vec<Chunk>), Failure> {
        let store = self.store.clone();
        let (of_whom, collection, id) = (owner.to_owned(), collection_id.to_owned(), file_id.to_owned());
        let (sandbox, limits, chunker) = (self.sandbox.clone(), self.limits.clone(), self.chunker.clone());
        let extracted = tokio::task::spawn_blocking(move || {
            let own = store.of(&of_whom);
            own.collection(&collection).map_err(not_found_or_passing)?;
            let file = own.file(&id).map_err(not_found_or_passing)?;
            let local = store.open_file(&id).map_err(not_found_or_passing)?;
            let extracted = extract(local.path(), &file.filename, &limits, &sandbox);
            let read = extracted.and_then(|extracted| {
                let chunks = chunker.chunk(&extracted.blocks);
                // The tokenizer accepts every valid text.
                let chunks = chunks.map_err(|error| ExtractError::Crashed { how: error.to_string() })?;
                Ok((extracted, chunks))
            });
            read.map_err(|error| {
                let reason = error.to_string();
                match error {
                    ExtractError::Unreadable { .. } | ExtractError::NoReader { .. } => Failure::Passing(reason),
                    error => {
                        set_failed(&*own, &collection, &id, code(&error), &reason);
                        Failure::Lasting(reason)
                    }
                }
            })
        });
        extracted.await.map_err(|error| Failure::Passing(error.to_string()))?
    }

    async fn embed(
        &self,
        extracted: &Extracted,
        chunks: &[Chunk],
        account: &Arc<Account>,
        progress: &Progress,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let requests: Vec<BoxFuture<'_, _>> = chunks
            .chunks(CHUNKS_AT_A_TIME)
            .map(|some| {
                async move {
                    let text = |chunk: &Chunk| embedded_text(&heading(extracted, chunk), &chunk.text);
                    embed_passages(&*self.embedder, some.iter().map(text).collect(), account).await
                }
                .boxed()
            })
            .collect();
        let mut answers = stream::iter(requests).buffered(self.requests_at_once);
        let mut vectors = Vec::with_capacity(chunks.len());
        while vectors.len() < chunks.len() {
            progress.report(&json!({"stage": "embedding", "done": vectors.len(), "of": chunks.len()})).await;
            match answers.next().await {
                Some(some) => vectors.extend(some?),
                None => break,
            }
        }
        Ok(vectors)
    }
}

/// A document that is not found was deleted or cancelled meanwhile. Nothing else makes the work moot: a store that
/// cannot be read now may be readable later.
pub(super) fn not_found_or_passing(error: StoreError) -> Failure {
    match error {
        StoreError::NotFound { .. } => Failure::Moot,
        error @ (StoreError::Full { .. } | StoreError::DatabaseFull(_)) => Failure::NoRoom(error.to_string()),
        error @ StoreError::Unavailable(_) => Failure::Away(error.to_string()),
        error => Failure::Passing(error.to_string()),
    }
}

/// A chunk as the embedding model reads it, its heading first.
pub(super) fn embedded_text(heading: &str, text: &str) -> String {
    if heading.is_empty() { text.to_owned() } else { format!("{heading}\n{text}") }
}

/// The vectors of passages. Waits for room while interactive work takes it all, and for servers that share the work and
/// fail.
pub(super) async fn embed_passages(
    embedder: &dyn Embedder,
    texts: Vec<String>,
    account: &Arc<Account>,
) -> Result<Vec<Vec<f32>>, Failure> {
    let begun = Instant::now();
    loop {
        let request = EmbedRequest {
            account: account.clone(),
            inputs: texts.iter().cloned().map(EmbedInput::Text).collect(),
            input_type: EmbedInputType::Passage,
            dimensions: None,
            // A chunk's heading and text together may be slightly too long; the next chunk repeats its end.
            truncate: true,
            deadline: None,
        };
        match embedder.embed(request).await {
            Ok(answer) => return Ok(answer.embeddings),
            Err(error) => match error.kind() {
                ErrorKind::Overloaded
                | ErrorKind::UpstreamFailed
                | ErrorKind::UpstreamTimeout
                | ErrorKind::BreakerOpen
                    if begun.elapsed() < BUSY_PATIENCE =>
                {
                    tokio::time::sleep(error.retry_after().unwrap_or(Duration::from_secs(1))).await;
                }
                ErrorKind::Draining => return Err(Failure::Interrupted),
                _ => return Err(Failure::Passing(reason(&error))),
            },
        }
    }
}

fn reason(error: &Error) -> String {
    error.internal_source().map_or_else(|| error.to_string(), |source| format!("{error} {source:#}"))
}

/// The headings above a chunk, or the document's own title.
fn heading(extracted: &Extracted, chunk: &Chunk) -> String {
    if chunk.headings.is_empty() { extracted.title.clone().unwrap_or_default() } else { chunk.headings.join(" > ") }
}

fn stored(extracted: &Extracted, chunk: Chunk, vector: Vec<f32>) -> NewChunk {
    let heading = heading(extracted, &chunk);
    NewChunk { heading, place: first_place(&chunk.place), text: chunk.text, tokens: chunk.tokens, vector }
}

/// The page or line where it begins.
fn first_place(place: &ChunkPlace) -> Option<u32> {
    place.pages.map(|(first, _)| first).or(place.lines.map(|lines| lines.first))
}

/// The error's code, with OpenAI's name where there is one.
fn code(error: &ExtractError) -> &'static str {
    match error {
        ExtractError::Unsupported { .. } => "unsupported_file",
        ExtractError::Unreadable { .. } | ExtractError::NoReader { .. } => SERVER_ERROR,
        ExtractError::Empty
        | ExtractError::NoText { .. }
        | ExtractError::Encrypted { .. }
        | ExtractError::Damaged { .. }
        | ExtractError::OverLimit { .. }
        | ExtractError::Crashed { .. } => "invalid_file",
    }
}
