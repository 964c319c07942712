//! A chat model with several candidates: the first one that can serve does.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use hearth_domain::{Account, GenerateRequest, ModelInfo, error::Result, quote::Quote};

use super::{Candidate, ChatModel, Policies, Search, description::Description, give_up};
use crate::providers::{GenerateStream, PromptTokenizer};

/// See the module's documentation.
pub struct FallbackChat {
    candidates: Vec<Candidate<dyn ChatModel>>,
    policies: Policies,
    description: Description,
}

impl std::fmt::Debug for FallbackChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FallbackChat")
            .field("name", &self.description.name())
            .field("candidates", &self.candidates)
            .finish()
    }
}

impl FallbackChat {
    /// `name` is what callers use, whichever candidate serves.
    ///
    /// # Panics
    /// If there is neither a hosted candidate nor a loaded local one: the model could not be described.
    pub fn new(name: &str, candidates: Vec<Candidate<dyn ChatModel>>, policies: Policies) -> Self {
        let described = candidates.iter().find_map(Candidate::model).expect("a candidate that exists");
        let description = Description::new(name, described.info());
        Self { candidates, policies, description }
    }

    fn local(&self) -> Option<Arc<dyn ChatModel>> {
        self.candidates.iter().filter(|candidate| matches!(candidate, Candidate::Local(_))).find_map(Candidate::model)
    }
}

/// Asks one candidate after the other. A stream's first event is part of the asking: a request that fails before it has
/// not begun.
fn ask(mut search: Search<dyn ChatModel>, request: GenerateRequest) -> BoxFuture<'static, Result<GenerateStream>> {
    async move {
        while let Some((candidate, model)) = search.next() {
            match model.generate(request.clone()).await {
                Ok(events) => {
                    search.serves(&candidate, &request.account);
                    return Ok(if search.is_exhausted() { events } else { begun(events, candidate, search, request) });
                }
                Err(error) => search.refused(&candidate, error)?,
            }
        }
        Err(give_up(search.failures))
    }
    .boxed()
}

/// The candidate's events, or those of the next candidate if the first event is an error that another may avoid.
fn begun(
    mut events: GenerateStream,
    candidate: Candidate<dyn ChatModel>,
    mut search: Search<dyn ChatModel>,
    request: GenerateRequest,
) -> GenerateStream {
    let first = async move {
        match events.next().await {
            Some(Err(error)) => {
                drop(events);
                match search.refused(&candidate, error) {
                    Ok(()) => match ask(search, request).await {
                        Ok(events) => events,
                        Err(error) => stream::once(async { Err(error) }).boxed(),
                    },
                    Err(error) => stream::once(async { Err(error) }).boxed(),
                }
            }
            first => stream::iter(first).chain(events).boxed(),
        }
    };
    stream::once(first).flatten().boxed()
}

impl ChatModel for FallbackChat {
    fn info(&self) -> &ModelInfo {
        self.description.info(self.local().as_ref().map(|local| local.info()))
    }

    fn parameters_for(&self, account: &Account) -> u64 {
        let ordered = self.policies.order(&self.candidates, account).unwrap_or_default();
        ordered.iter().find_map(Candidate::model).map_or(0, |model| model.parameters_for(account))
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        match self.policies.order(&self.candidates, &request.account) {
            Ok(ordered) => ask(Search::new(ordered), request),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        let mut sides = Vec::new();
        for candidate in self.policies.order(&self.candidates, &request.account)? {
            // A model that is not loaded cannot give a quote.
            let Some(model) = candidate.model() else { continue };
            let obstacle = match &candidate {
                Candidate::Local(place) => place.obstacle(),
                Candidate::Hosted { .. } => None,
            };
            let mut quotes = model.quotes(request)?;
            for quote in &mut quotes {
                quote.refusal = quote.refusal.or(obstacle.as_ref().map(|obstacle| obstacle.reason.as_str()));
            }
            sides.extend(quotes);
        }
        Ok(sides)
    }

    /// The local model's, once it is loaded.
    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        self.candidates.iter().find_map(|candidate| match candidate {
            Candidate::Local(place) => place.model()?.tokenizer(),
            Candidate::Hosted { .. } => None,
        })
    }
}
