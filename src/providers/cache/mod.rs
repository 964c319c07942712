//! Caches of earlier answers.
//!
//! All of them are in memory, bounded in bytes and time, and never shared between callers. Nothing is cached unless the
//! operator enables it: the engine's prefix cache already makes prompts with a common prefix fast, and a benchmark of a
//! server that remembers its answers measures only its memory.

mod bounded;
pub mod embedding;
pub mod exact;
mod flight;
pub mod key;
pub mod metrics;
pub mod recorded;
pub mod semantic;

use std::{sync::Arc, time::Duration};

use self::{
    embedding::{CachedEmbedder, EmbeddingCache},
    exact::{CachedChat, ExactCache},
};
use super::{ChatModel, Embedder};

/// The caches' names in receipts and metrics.
pub const EXACT: &str = "exact";
pub const EMBEDDING: &str = "embedding";
pub const SEMANTIC: &str = "semantic";

/// Which caches are enabled, and how large they are.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Room for answers to repeated requests; 0 disables them.
    pub response_bytes: usize,
    pub response_ttl: Duration,
    /// The least cosine at which one question's answer serves another question; `None` disables that. Such answers live
    /// as long as the others.
    pub semantic_similarity: Option<f32>,
    pub semantic_bytes: usize,
    /// Room for vectors; 0 disables them.
    pub embedding_bytes: usize,
    pub embedding_ttl: Duration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            response_bytes: 0,
            response_ttl: Duration::from_secs(3600),
            semantic_similarity: None,
            semantic_bytes: 64 << 20,
            embedding_bytes: 0,
            embedding_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// The caches around models. A model is wrapped where it is registered; the services look up answers by a question's
/// meaning, because they know what the question is.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    exact: Option<ExactCache>,
    embeddings: Option<EmbeddingCache>,
}

impl Caches {
    pub fn new(settings: &CacheSettings) -> Self {
        let CacheSettings { response_bytes, response_ttl, embedding_bytes, embedding_ttl, .. } = *settings;
        Self {
            exact: (response_bytes > 0).then(|| ExactCache::new(response_bytes, response_ttl)),
            embeddings: (embedding_bytes > 0).then(|| EmbeddingCache::new(embedding_bytes, embedding_ttl)),
        }
    }

    pub fn chat(&self, model: Arc<dyn ChatModel>) -> Arc<dyn ChatModel> {
        match &self.exact {
            Some(cache) => Arc::new(CachedChat::new(model, cache.clone())),
            None => model,
        }
    }

    pub fn embedder(&self, model: Arc<dyn Embedder>) -> Arc<dyn Embedder> {
        match &self.embeddings {
            Some(cache) => Arc::new(CachedEmbedder::new(model, cache.clone())),
            None => model,
        }
    }
}
