//! The embedding cache: vectors of texts that were embedded before, without running the model.
//!
//! A request is split into its texts. Cached texts are answered from here, the others go to the model in one request,
//! and the answer keeps the caller's order. Each text's token count is kept beside its vector, so that the reported
//! usage is the same. Background work has its own handle on the model and bypasses this cache.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{
    CacheUse, EmbedInput, EmbedRequest, EmbedResponse, ModelInfo, Timings,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind, Result},
    usage::ServedBy,
};

use super::{
    EMBEDDING,
    bounded::BoundedMap,
    key::{EmbeddingScope, Key, embedding_key},
    metrics,
};
use crate::providers::Embedder;

/// Vectors, keyed by everything that they depend on.
#[derive(Clone, Debug)]
pub struct EmbeddingCache {
    vectors: Arc<BoundedMap<Arc<KeptVector>>>,
}

#[derive(Debug)]
struct KeptVector {
    vector: Box<[f32]>,
    tokens: usize,
}

impl EmbeddingCache {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { vectors: Arc::new(BoundedMap::new(max_bytes, time_to_live)) }
    }

    fn keep(&self, keys: &[Key], response: &EmbedResponse, token_counts: &[usize]) {
        for ((key, vector), &tokens) in keys.iter().zip(&response.embeddings).zip(token_counts) {
            let kept = KeptVector { vector: vector.as_slice().into(), tokens };
            let bytes = size_of::<KeptVector>() + size_of_val(&*kept.vector);
            self.vectors.insert(*key, Arc::new(kept), bytes);
        }
        metrics::holds(EMBEDDING, self.vectors.bytes());
    }
}

/// An embedding model that is asked only for texts that are not cached.
#[derive(Clone)]
pub struct CachedEmbedder {
    model: Arc<dyn Embedder>,
    cache: EmbeddingCache,
}

impl std::fmt::Debug for CachedEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedEmbedder").field("model", &self.model.info().id).field("cache", &self.cache).finish()
    }
}

impl CachedEmbedder {
    pub fn new(model: Arc<dyn Embedder>, cache: EmbeddingCache) -> Self {
        Self { model, cache }
    }

    async fn answer(&self, request: EmbedRequest) -> Result<EmbedResponse> {
        let cache_use = request.account.cache_use();
        if cache_use == CacheUse::Off || request.inputs.is_empty() {
            return self.model.embed(request).await;
        }
        let keys = self.keys(&request);
        let known: Vec<Option<Arc<KeptVector>>> = match cache_use {
            CacheUse::Full => keys.iter().map(|key| self.cache.vectors.get(key)).collect(),
            CacheUse::Refresh | CacheUse::Off => vec![None; keys.len()],
        };
        let missing: Vec<usize> = (0..known.len()).filter(|&place| known[place].is_none()).collect();
        if cache_use == CacheUse::Full {
            metrics::looked_up(EMBEDDING, known.len() - missing.len(), missing.len());
        }
        let computed = if missing.is_empty() {
            EmbedResponse {
                embeddings: Vec::new(),
                prompt_tokens: 0,
                token_counts: Vec::new(),
                timings: Timings::default(),
            }
        } else {
            self.compute(&request, &keys, &missing).await?
        };
        if missing.len() == known.len() {
            return Ok(computed);
        }
        let hit_tokens: usize = known.iter().flatten().map(|kept| kept.tokens).sum();
        let record = request.account.begin_record(&self.model.info().id, ServedBy::Cache(EMBEDDING));
        record.set_prompt_tokens(hit_tokens, 0);
        if missing.is_empty() {
            request.account.set_cache(EMBEDDING);
        }
        let EmbedResponse { embeddings, prompt_tokens, token_counts, timings } = computed;
        let (mut computed, mut counts) = (embeddings.into_iter(), token_counts.into_iter());
        let mut response = EmbedResponse {
            embeddings: Vec::with_capacity(known.len()),
            prompt_tokens: prompt_tokens + hit_tokens,
            token_counts: Vec::with_capacity(known.len()),
            timings,
        };
        for kept in known {
            let (vector, tokens) = match kept {
                Some(kept) => (Some(kept.vector.to_vec()), Some(kept.tokens)),
                None => (computed.next(), counts.next()),
            };
            response.embeddings.push(vector.ok_or_else(lost)?);
            response.token_counts.push(tokens.ok_or_else(lost)?);
        }
        Ok(response)
    }

    fn keys(&self, request: &EmbedRequest) -> Vec<Key> {
        // The name is resolved already, and the deadline changes no vector.
        let EmbedRequest { account, inputs, input_type, dimensions, truncate, deadline: _ } = request;
        let (identity, model) = (self.model.identity(), self.model.info());
        let scope = EmbeddingScope {
            account,
            model,
            identity: &identity,
            input_type: *input_type,
            dimensions: *dimensions,
            truncate: *truncate,
        };
        inputs.iter().map(|input| embedding_key(scope, input)).collect()
    }

    /// The texts at these positions, computed by the model. The answer counts each one's tokens.
    async fn compute(&self, request: &EmbedRequest, keys: &[Key], missing: &[usize]) -> Result<EmbedResponse> {
        let inputs: Vec<EmbedInput> = missing.iter().map(|&place| request.inputs[place].clone()).collect();
        let lengths: Vec<usize> = inputs.iter().map(length).collect();
        let asked = self.model.embed(EmbedRequest { inputs, ..request.clone() }).await;
        let mut response = match asked {
            // Such an error names a text by its index, which differs in the caller's own request.
            Err(error) if missing.len() < keys.len() && names_a_place(&error) => {
                return self.model.embed(request.clone()).await.and_then(|_| Err(error));
            }
            asked => asked?,
        };
        if response.embeddings.len() != missing.len() {
            return Err(lost());
        }
        if response.token_counts.len() != missing.len() {
            response.token_counts = shares(response.prompt_tokens, &lengths);
        }
        let keys: Vec<Key> = missing.iter().map(|&place| keys[place]).collect();
        self.cache.keep(&keys, &response, &response.token_counts);
        Ok(response)
    }
}

fn names_a_place(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidRequest | ErrorKind::ContextLengthExceeded) && error.param().is_some()
}

fn lost() -> Error {
    Error::internal(anyhow::anyhow!("the embedding model answered with another number of vectors than texts"))
}

fn length(input: &EmbedInput) -> usize {
    match input {
        EmbedInput::Text(text) => text.len(),
        EmbedInput::Tokens(ids) => ids.len(),
    }
}

/// A total of tokens, where only that is known, split in proportion to the texts' lengths. The shares add up to the
/// total.
fn shares(total: usize, lengths: &[usize]) -> Vec<usize> {
    let all = lengths.iter().sum::<usize>().max(1);
    let (mut so_far, mut given) = (0, 0);
    lengths
        .iter()
        .map(|length| {
            so_far += length;
            let until = (total as u128 * so_far as u128 / all as u128) as usize;
            let share = until - given;
            given = until;
            share
        })
        .collect()
}

impl Embedder for CachedEmbedder {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn identity(&self) -> EmbeddingIdentity {
        self.model.identity()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        self.answer(request).boxed()
    }
}

#[cfg(test)]
mod tests;
