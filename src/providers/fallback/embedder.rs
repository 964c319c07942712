//! An embedding model that is served both locally and by upstreams.
//!
//! Vectors of two models must not be compared, so an embedding falls back only to the same model. A route claims that
//! an upstream serves the same model, and the claim is verified before the upstream stands in for the local model
//! ([`comparison`](crate::providers)). The local vectors are computed when the local model has been loaded, so that
//! they are available when it is not. The verdict is remembered.

use std::sync::{Arc, OnceLock};

use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest, EmbedResponse, ModelInfo,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind, Result},
};
use tokio::sync::Mutex;

use super::{Candidate, Embedder, LocalSlot, Policies, Search, Side, description::Description, give_up};
use crate::providers::comparison::{INPUT_TYPES, PROBE, Verdict, compare, position_of};

/// See the module's documentation.
pub struct FallbackEmbedder {
    candidates: Vec<Candidate<dyn Embedder>>,
    policies: Policies,
    description: Description,
    /// The local model's vectors of the probe, by input type.
    probes: OnceLock<[Vec<f32>; 3]>,
    /// Keyed by the hosted candidate's name.
    verdicts: Mutex<std::collections::HashMap<(String, usize), Verdict>>,
}

impl std::fmt::Debug for FallbackEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FallbackEmbedder")
            .field("name", &self.description.name())
            .field("candidates", &self.candidates)
            .finish()
    }
}

impl FallbackEmbedder {
    /// `name` is what callers use, whichever candidate serves.
    ///
    /// # Panics
    /// If there is neither a hosted candidate nor a loaded local one: the model could not be described.
    pub fn new(name: &str, candidates: Vec<Candidate<dyn Embedder>>, policies: Policies) -> Self {
        let described = candidates.iter().find_map(Candidate::model).expect("a candidate that exists");
        let description = Description::new(name, described.info());
        Self { candidates, policies, description, probes: OnceLock::new(), verdicts: Mutex::default() }
    }

    fn place(&self) -> Option<&Arc<LocalSlot<dyn Embedder>>> {
        self.candidates.iter().find_map(|candidate| match candidate {
            Candidate::Local(place) => Some(place),
            Candidate::Hosted { .. } => None,
        })
    }

    fn local(&self) -> Option<&Arc<dyn Embedder>> {
        self.place()?.model()
    }

    /// Embeds the probe with the local model, for later comparisons. Call it once the model has been loaded.
    ///
    /// # Errors
    /// If the model cannot.
    pub async fn learn(&self) -> Result<()> {
        let Some(local) = self.local() else { return Ok(()) };
        let account = Account::unrecorded();
        let mut probes: [Vec<f32>; 3] = Default::default();
        for (probe, input_type) in probes.iter_mut().zip(INPUT_TYPES) {
            *probe = embed_probe(local, input_type, &account).await?;
        }
        let _learnt_before = self.probes.set(probes);
        Ok(())
    }

    /// Verifies that the hosted model's vectors may stand in for the local ones.
    async fn verify(
        &self,
        name: &str,
        hosted: &Arc<dyn Embedder>,
        input_type: EmbedInputType,
        account: &Arc<Account>,
    ) -> Result<()> {
        let Some(place) = self.place().filter(|place| !place.is_absent()) else {
            // It is the only candidate and stands in for no other.
            return Ok(());
        };
        let Some(probes) = self.probes.get() else {
            let state = if place.model().is_some() { "could not be asked" } else { "is not there yet" };
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "Embeddings of `{name}` may stand in for this machine's only when both are known to be of the same \
                     model, and the local one {state} to compare them; try again."
                ),
            )
            .with_code("embedding_not_verified"));
        };
        let kind = position_of(input_type);
        let key = (name.to_owned(), kind);
        // Held during the comparison, so that concurrent requests ask once.
        let mut verdicts = self.verdicts.lock().await;
        let verdict = match verdicts.get(&key) {
            Some(verdict) => verdict.clone(),
            None => {
                let theirs = embed_probe(hosted, input_type, account).await?;
                let verdict = compare(&probes[kind], &theirs);
                match &verdict {
                    Verdict::Same => tracing::info!(upstream = name, ?input_type, "embeds as the local model does"),
                    Verdict::Other(why) => {
                        tracing::error!(upstream = name, ?input_type, "is another embedding model: {why}");
                    }
                }
                verdicts.insert(key, verdict.clone());
                verdict
            }
        };
        match verdict {
            Verdict::Same => Ok(()),
            Verdict::Other(why) => Err(Error::new(
                ErrorKind::UpstreamFailed,
                format!(
                    "`{name}` cannot stand in for this machine's embedding model, it is another one: {why}. Vectors of \
                     two models must not be compared. Name an upstream with the same model in the route, or none."
                ),
            )
            .with_code("embedding_model_differs")),
        }
    }
}

async fn embed_probe(
    model: &Arc<dyn Embedder>,
    input_type: EmbedInputType,
    account: &Arc<Account>,
) -> Result<Vec<f32>> {
    let request = EmbedRequest {
        account: account.clone(),
        inputs: vec![EmbedInput::Text(PROBE.to_owned())],
        input_type,
        dimensions: None,
        truncate: false,
        deadline: None,
    };
    let answer = model.embed(request).await?;
    answer.embeddings.into_iter().next().ok_or_else(|| Error::internal(anyhow::anyhow!("no vector of the probe")))
}

impl Embedder for FallbackEmbedder {
    fn info(&self) -> &ModelInfo {
        self.description.info(self.local().map(|local| local.info()))
    }

    /// The local model's identity, or a hosted one's if there is no local model.
    fn identity(&self) -> EmbeddingIdentity {
        let model = self.local().cloned().or_else(|| self.candidates.iter().find_map(Candidate::model));
        model.map_or_else(|| EmbeddingIdentity { name: String::new(), dimensions: 0 }, |model| model.identity())
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        async move {
            let mut ordered = self.policies.order(&self.candidates, &request.account)?;
            if self.place().is_none_or(|place| place.is_absent()) {
                // Without local vectors to compare with, only one upstream serves: otherwise vectors of two models
                // would mix.
                let mut has_hosted = false;
                ordered
                    .retain(|candidate| candidate.side() == Side::Local || !std::mem::replace(&mut has_hosted, true));
            }
            let mut search = Search::new(ordered);
            while let Some((candidate, model)) = search.next() {
                let answer = async {
                    if let Candidate::Hosted { name, model } = &candidate {
                        self.verify(name, model, request.input_type, &request.account).await?;
                    }
                    model.embed(request.clone()).await
                };
                match answer.await {
                    Ok(answer) => {
                        search.serves(&candidate, &request.account);
                        return Ok(answer);
                    }
                    // The same model has the same limit on every candidate.
                    Err(error) if error.kind() == ErrorKind::ContextLengthExceeded => return Err(error),
                    Err(error) => search.refused(&candidate, error)?,
                }
            }
            Err(give_up(search.failures))
        }
        .boxed()
    }
}
