//! What handlers share.

use std::sync::Arc;

use hearth_domain::{
    Caller, ModelKind,
    documents::Grounding,
    error::{Error, ErrorKind},
    usage::UsageSink,
};
use metrics_exporter_prometheus::PrometheusHandle;

use super::{error::ApiError, settings::HttpSettings};
use crate::{
    metering::ledger::Ledger,
    providers::{ChatModel, Embedder, Reranker},
    service::{
        analysis::Analyses,
        callers::Callers,
        documents::Documents,
        health::{Health, ServerStatus, refuse_unless_ready},
        models::Models,
    },
};

/// Cheap to clone: one per request.
#[derive(Clone)]
pub struct AppState {
    pub models: Arc<Models>,
    pub documents: Arc<Documents>,
    pub analyses: Arc<Analyses>,
    pub callers: Arc<Callers>,
    /// Records what requests use.
    pub usage_sink: Arc<dyn UsageSink>,
    pub ledger: Arc<Ledger>,
    pub health: Arc<dyn Health>,
    /// `None`: the Prometheus text of `/metrics` is empty.
    pub metrics: Option<PrometheusHandle>,
    pub settings: Arc<HttpSettings>,
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("models", &self.models).finish_non_exhaustive()
    }
}

impl AppState {
    /// Lets a request pass while the local models load, or after loading failed, if an upstream may serve it.
    fn refuse_unless_served(&self, kind: ModelKind, name: Option<&str>) -> Result<(), Error> {
        let status = self.health.status();
        if status != ServerStatus::Draining && self.models.has_hosted(kind, name) {
            return Ok(());
        }
        refuse_unless_ready(&status)
    }

    /// The chat model that a request names, if the server takes requests at all and the caller may use it.
    pub(super) fn chat(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<dyn ChatModel>, ApiError> {
        self.refuse_unless_served(ModelKind::Chat, name)?;
        let model = self.models.chat(name)?;
        self.models.refuse_unless_allowed(caller, &model.info().id)?;
        Ok(model)
    }

    /// The chat model for a route where naming one is optional.
    pub(super) fn chat_or_first(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<dyn ChatModel>, ApiError> {
        self.refuse_unless_served(ModelKind::Chat, name)?;
        Ok(self.models.chat_or_first_for(caller, name)?)
    }

    /// The chat model for an answer from documents; `None` if none is served and sentences can be quoted without one.
    pub(super) fn chat_to_answer(
        &self,
        caller: &Caller,
        name: Option<&str>,
        grounding: Option<Grounding>,
    ) -> Result<Option<Arc<dyn ChatModel>>, ApiError> {
        let extracts = name.is_none() && grounding == Some(Grounding::Extract);
        let may_extract = extracts || (name.is_none() && grounding.is_none());
        if extracts || (may_extract && self.models.first_chat().is_none()) {
            refuse_unless_ready(&self.health.status())?;
            return Ok(None);
        }
        match self.chat_or_first(caller, name) {
            // A caller without permission for a chat model gets quoted sentences.
            Err(ApiError(error)) if may_extract && error.kind() == ErrorKind::ModelForbidden => Ok(None),
            found => found.map(Some),
        }
    }

    pub(super) fn embedder(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<dyn Embedder>, ApiError> {
        self.refuse_unless_served(ModelKind::Embedding, name)?;
        let model = self.models.embedder(name)?;
        self.models.refuse_unless_allowed(caller, &model.info().id)?;
        Ok(model)
    }

    pub(super) fn reranker(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<dyn Reranker>, ApiError> {
        refuse_unless_ready(&self.health.status())?;
        let model = self.models.reranker(name)?;
        self.models.refuse_unless_allowed(caller, &model.info().id)?;
        Ok(model)
    }
}
