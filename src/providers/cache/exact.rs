//! The exact cache: the same request gets the same answer without running a model.
//!
//! It applies only where the answer is a function of the request: greedy decoding, or a seed given by the caller. An
//! answer is kept whole, event by event, and only if it completed. Only the same caller can find it: an instant answer
//! reveals that the question was asked before.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{Account, CacheUse, GenerateRequest, ModelInfo, error::Result, quote::Quote};

use super::{
    EXACT,
    bounded::BoundedMap,
    flight::{FlightOutcome, Flights, Lead},
    key::{Key, generation_key},
    metrics,
    recorded::{Progress, Recorded, Recorder, Watched},
};
use crate::providers::{ChatModel, GenerateStream, PromptTokenizer};

/// One answer takes at most one part in this many of the cache's room.
const LARGEST_PART: usize = 4;
/// How long a leader may make no progress before the waiting requests compute for themselves.
const FLIGHT_WAIT_MAX: Duration = Duration::from_secs(30);

/// Answers, keyed by everything that they depend on.
#[derive(Clone, Debug)]
pub struct ExactCache {
    answers: Arc<BoundedMap<Arc<Recorded>>>,
    flights: Arc<Flights>,
    max_answer_bytes: usize,
    patience: Duration,
}

impl ExactCache {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self {
            answers: Arc::new(BoundedMap::new(max_bytes, time_to_live)),
            flights: Arc::default(),
            max_answer_bytes: max_bytes / LARGEST_PART,
            patience: FLIGHT_WAIT_MAX,
        }
    }

    #[cfg(test)]
    fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    #[cfg(test)]
    fn flights_are_over(&self) -> bool {
        self.flights.is_empty()
    }

    fn keep(&self, key: Key, answer: Arc<Recorded>) {
        let bytes = answer.bytes();
        self.answers.insert(key, answer, bytes);
        metrics::holds(EXACT, self.answers.bytes());
    }

    /// Records the events that pass, keeps a complete answer, and hands it to the requests that wait for `lead`.
    fn record(&self, events: GenerateStream, account: Arc<Account>, key: Key, lead: Option<Lead>) -> GenerateStream {
        let (cache, mut lead, mut recorder) = (self.clone(), lead, Recorder::new(account, self.max_answer_bytes));
        Watched::stream(events, move |event| {
            let end = match recorder.push(event) {
                Progress::Going => {
                    if let Some(lead) = &lead {
                        lead.progressed();
                    }
                    return true;
                }
                Progress::Whole(answer) => {
                    cache.keep(key, answer.clone());
                    Some(answer)
                }
                Progress::TooLong => None,
            };
            if let Some(lead) = lead.take() {
                lead.land(end);
            }
            false
        })
    }
}

/// A chat model that answers repeated requests without asking `model`.
#[derive(Clone)]
pub struct CachedChat {
    model: Arc<dyn ChatModel>,
    cache: ExactCache,
}

impl std::fmt::Debug for CachedChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedChat").field("model", &self.model.info().id).field("cache", &self.cache).finish()
    }
}

impl CachedChat {
    pub fn new(model: Arc<dyn ChatModel>, cache: ExactCache) -> Self {
        Self { model, cache }
    }

    async fn answer(&self, request: GenerateRequest) -> Result<GenerateStream> {
        let cache_use = request.account.cache_use();
        if cache_use == CacheUse::Off || !is_deterministic(&request) {
            return self.model.generate(request).await;
        }
        let key = generation_key(self.model.info(), &request);
        let account = request.account.clone();
        if cache_use == CacheUse::Refresh {
            let events = self.model.generate(request).await?;
            return Ok(self.cache.record(events, account, key, None));
        }
        loop {
            if let Some(answer) = self.cache.answers.get(&key) {
                return Ok(self.replay(answer, &request));
            }
            match self.cache.flights.join(key, request.deadline, self.cache.patience).await? {
                FlightOutcome::Answered(answer) => return Ok(self.replay(answer, &request)),
                FlightOutcome::Again => {}
                FlightOutcome::Alone => {
                    metrics::looked_up(EXACT, 0, 1);
                    return self.model.generate(request).await;
                }
                FlightOutcome::Leads(lead) => {
                    // The previous leader may have ended between the look-up and the lead.
                    if let Some(answer) = self.cache.answers.get(&key) {
                        return Ok(self.replay(answer, &request));
                    }
                    metrics::looked_up(EXACT, 0, 1);
                    let events = self.model.generate(request).await?;
                    return Ok(self.cache.record(events, account, key, Some(lead)));
                }
            }
        }
    }

    fn replay(&self, answer: Arc<Recorded>, request: &GenerateRequest) -> GenerateStream {
        metrics::looked_up(EXACT, 1, 0);
        answer.replay(&request.account, &self.model.info().id, EXACT)
    }
}

/// Whether the same request gives the same text.
fn is_deterministic(request: &GenerateRequest) -> bool {
    request.sampling.temperature == 0.0 || request.sampling.seed.is_some()
}

impl ChatModel for CachedChat {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn parameters_for(&self, account: &Account) -> u64 {
        self.model.parameters_for(account)
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        self.answer(request).boxed()
    }

    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        self.model.quotes(request)
    }

    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        self.model.tokenizer()
    }
}

#[cfg(test)]
mod tests;
