//! Answers that were given before.
//!
//! All of it is in memory, bounded in bytes and time, and none of it is shared between callers. Nothing is cached
//! unless the server was told to: prompts that begin alike are fast already, by the engine's prefix cache, and a
//! measurement of a server that remembers its answers measures its memory.

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

/// As receipts and metrics name the caches.
pub const EXACT: &str = "exact";
pub const EMBEDDING: &str = "embedding";
pub const SEMANTIC: &str = "semantic";

/// Which caches there are, and how large.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Of answers to requests that are repeated; 0 is none.
    pub response_bytes: usize,
    pub response_ttl: Duration,
    /// The least cosine at which one question's answer is another's; `None` is none. Such answers live as long as others.
    pub semantic_similarity: Option<f32>,
    pub semantic_bytes: usize,
    /// Of vectors; 0 is none.
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

/// The caches around models. A model is wrapped where it is registered; answers by what questions mean are looked up
/// by the services, which know what the question is.
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
