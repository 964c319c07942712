//! A rerank model that upstreams may serve: the first candidate that can serve does.
//!
//! Unlike vectors, relevances of one answer are never compared with those of another, so candidates need not be the
//! same model.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{ModelInfo, RerankRequest, RerankResponse, error::Result};

use super::{Candidate, Policies, Reranker, Search, description::Description, give_up};

/// See the module's documentation.
pub struct FallbackReranker {
    candidates: Vec<Candidate<dyn Reranker>>,
    policies: Policies,
    description: Description,
}

impl std::fmt::Debug for FallbackReranker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FallbackReranker")
            .field("name", &self.description.name())
            .field("candidates", &self.candidates)
            .finish()
    }
}

impl FallbackReranker {
    /// `name` is what callers use, whichever candidate serves.
    ///
    /// # Panics
    /// If there is neither a hosted candidate nor a loaded local one: the model could not be described.
    pub fn new(name: &str, candidates: Vec<Candidate<dyn Reranker>>, policies: Policies) -> Self {
        let described = candidates.iter().find_map(Candidate::model).expect("a candidate that exists");
        let description = Description::new(name, described.info());
        Self { candidates, policies, description }
    }

    fn local(&self) -> Option<Arc<dyn Reranker>> {
        self.candidates.iter().filter(|candidate| matches!(candidate, Candidate::Local(_))).find_map(Candidate::model)
    }
}

impl Reranker for FallbackReranker {
    fn info(&self) -> &ModelInfo {
        self.description.info(self.local().as_ref().map(|local| local.info()))
    }

    fn rerank(&self, request: RerankRequest) -> BoxFuture<'_, Result<RerankResponse>> {
        async move {
            let mut search = Search::new(self.policies.order(&self.candidates, &request.account)?);
            while let Some((candidate, model)) = search.next() {
                match model.rerank(request.clone()).await {
                    Ok(answer) => {
                        search.serves(&candidate, &request.account);
                        return Ok(answer);
                    }
                    Err(error) => search.refused(&candidate, error)?,
                }
            }
            Err(give_up(search.failures))
        }
        .boxed()
    }
}
