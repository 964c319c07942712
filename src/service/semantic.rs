//! The semantic cache of answers to questions with the same meaning. Off unless the server was started with a
//! similarity.
//!
//! Two questions are compared only if everything else is equal: the caller, the model and its parameters, the earlier
//! conversation, and, for an answer from documents, the searched collections and their contents. So the services do the
//! look-up (`chat.rs`, `ask/cached.rs`), and not the model's wrapper, which sees a question and its passages as one
//! prompt. Requests whose answer must match the exact question are not cached: tools, constraints, log-probabilities,
//! several choices, a rating of the passages.
//!
//! A look-up costs embedding the question, which the caller pays for; the cached answer itself is free. If the question
//! cannot be embedded, because it is too long or the embedding model is busy, the request proceeds without the cache.

use std::sync::Arc;

use hearth_domain::{Account, CacheUse, EmbedInput, EmbedInputType, EmbedRequest, GenerateEvent};

use super::{deadline, findings::Findings};
use crate::{
    providers::{
        Embedder, GenerateStream,
        cache::{
            CacheSettings,
            key::{Key, KeyWriter},
            recorded::{Progress, Recorded, Recorder, Watched},
            semantic::SemanticCache,
        },
    },
    retrieval::passages::Passage,
};

/// One answer takes at most one part in this many of the cache's room.
const LARGEST_PART: usize = 4;

/// The cached answers; see the module.
#[derive(Clone, Debug)]
pub struct Semantic {
    cache: Arc<SemanticCache<Kept>>,
    max_answer_bytes: usize,
}

/// An answer, and what it was made from.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) answer: Arc<Recorded>,
    pub(super) sources: Vec<Passage>,
    pub(super) left_out: usize,
    pub(super) findings: Arc<Findings>,
}

impl Kept {
    fn bytes(&self) -> usize {
        let sources: usize = self
            .sources
            .iter()
            .map(|passage| size_of_val(passage) + passage.text.len() + passage.filename.len() + passage.title().len())
            .sum();
        self.answer.bytes() + sources
    }
}

/// The place of a question's answer in the cache.
pub(super) struct SemanticSlot {
    semantic: Semantic,
    /// Of the request that asks.
    account: Arc<Account>,
    scope: Key,
    question: Vec<f32>,
}

impl Semantic {
    /// `None` if the settings disable it.
    pub fn new(settings: &CacheSettings) -> Option<Self> {
        let cache = SemanticCache::new(settings.semantic_similarity?, settings.semantic_bytes, settings.response_ttl);
        Some(Self { cache: Arc::new(cache), max_answer_bytes: settings.semantic_bytes / LARGEST_PART })
    }
}

impl SemanticSlot {
    /// `None` where the question cannot be embedded.
    pub(super) async fn find(
        (semantic, embedder): (&Semantic, Arc<dyn Embedder>),
        account: &Arc<Account>,
        deadline: Option<std::time::Instant>,
        mut scope: KeyWriter,
        question: &str,
    ) -> Option<Self> {
        let embedded = embedder.embed(EmbedRequest {
            account: account.clone(),
            inputs: vec![EmbedInput::Text(question.to_owned())],
            input_type: EmbedInputType::Query,
            dimensions: None,
            // Two questions with a common beginning are not the same.
            truncate: false,
            deadline,
        });
        let question = match deadline::within(deadline, embedded).await {
            Ok(embedded) => embedded.embeddings.into_iter().next()?,
            Err(error) => {
                tracing::debug!(%error, "no earlier answer was looked for");
                return None;
            }
        };
        scope.text(&embedder.identity().name);
        Some(Self { semantic: semantic.clone(), account: account.clone(), scope: scope.finish(), question })
    }

    /// The cached answer, if there is one and the request accepts it.
    pub(super) fn kept(&self) -> Option<Arc<Kept>> {
        match self.account.cache_use() {
            CacheUse::Full => self.semantic.cache.find(self.scope, &self.question),
            CacheUse::Refresh | CacheUse::Off => None,
        }
    }

    /// Records the events that pass, and keeps the answer once it is complete.
    pub(super) fn record(
        self,
        events: GenerateStream,
        sources: Vec<Passage>,
        left_out: usize,
        findings: Arc<Findings>,
    ) -> GenerateStream {
        let mut recorder = Recorder::new(self.account, self.semantic.max_answer_bytes);
        let mut sources = Some(sources);
        Watched::stream(events, move |event: &GenerateEvent| match recorder.push(event) {
            Progress::Going => true,
            Progress::TooLong => false,
            Progress::Whole(answer) => {
                let sources = sources.take().unwrap_or_default();
                // It was not checked against its sources, and a replay would not be either.
                if !sources.is_empty() && findings.unsupported.get().is_none() {
                    return false;
                }
                let kept = Kept { answer, sources, left_out, findings: findings.clone() };
                let bytes = kept.bytes();
                self.semantic.cache.keep(self.scope, &self.question, Arc::new(kept), bytes);
                false
            }
        })
    }
}

#[cfg(test)]
mod tests;
