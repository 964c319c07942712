//! Analyses: questions about a company that are answered in the background.
//!
//! Each analysis is a job (run by `worker.rs`), so that it outlives the request and the process; its events are kept
//! for clients that connect late. When it has ended, however it ended, another job notifies the webhook address that
//! the request named (`notify.rs`).

mod notify;
mod worker;

use std::{sync::Arc, time::Duration};

use hearth_domain::{
    Account, RoutingPolicy,
    error::{Error, ErrorKind, Result},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use self::{notify::Notify, worker::Analyst};
use super::{
    documents::Documents,
    jobs::{Jobs, OwnedJobs, has_ended},
    models::Models,
    webhook::WebhookSettings,
};
use crate::{
    retrieval::search::Lookup,
    store::{Job, JobState, NewJob},
    wire::analysis::{AnalysisBody, AnalysisJob},
};

/// The job kind of an analysis.
const ANALYSIS: &str = "analysis";
/// The job kind of its notification.
const WEBHOOK: &str = "webhook";
/// Concurrent analyses; each runs up to two generations at a time, and leaves room for callers that wait for an answer.
const AT_A_TIME: usize = 2;
const WEBHOOKS_AT_A_TIME: usize = 4;
/// Analyses that may wait or run; one more is refused with 503.
const UNENDED_MAX: usize = 1000;
/// The same per caller, so that others have room.
const UNENDED_OWN_MAX: usize = 250;
const RETRY_FULL: Duration = Duration::from_secs(30);

/// See the module's documentation. One per server.
#[derive(Debug)]
pub struct Analyses {
    documents: Arc<Documents>,
    models: Arc<Models>,
    webhooks: Arc<WebhookSettings>,
}

/// A job's payload: the request as received; submission reads it once to check it, the worker again to run it.
#[derive(Debug, Deserialize, Serialize)]
struct Payload {
    body: Value,
    /// Its texts must stay on this machine, even after the request that said so is over.
    #[serde(default)]
    is_local_only: bool,
}

/// An analysis and its current state.
#[derive(Debug)]
pub struct State {
    pub job: AnalysisJob,
    pub has_ended: bool,
}

impl Analyses {
    pub fn new(documents: Arc<Documents>, models: Arc<Models>, webhooks: WebhookSettings) -> Arc<Self> {
        Arc::new(Self { documents, models, webhooks: Arc::new(webhooks) })
    }

    fn jobs(&self) -> &Arc<Jobs> {
        self.documents.jobs()
    }

    /// The models are loaded, or there are none: from now on analyses are run.
    pub fn begin(&self) {
        let analyst = Analyst { documents: self.documents.clone(), models: self.models.clone() };
        self.jobs().start(Arc::new(analyst), AT_A_TIME);
        let notify = Notify { documents: self.documents.clone(), webhooks: self.webhooks.clone() };
        self.jobs().start(Arc::new(notify), WEBHOOKS_AT_A_TIME);
    }

    /// Accepts an analysis. `body` is the JSON that `request` was read from.
    ///
    /// # Errors
    /// If it could not run as things are now: no embedding model, no such collection, a webhook address that is
    /// refused; and 503 if too many are waiting.
    pub async fn submit(&self, request: &AnalysisBody, body: Value, account: &Arc<Account>) -> Result<AnalysisJob> {
        if let Some(url) = &request.webhook_url {
            self.webhooks.check(url).map_err(|reason| {
                Error::invalid("webhook_url", format!("`webhook_url` cannot be used. {reason}"))
                    .with_code("invalid_value")
            })?;
        }
        self.documents.retriever()?;
        let documents = self.documents.of(account);
        let lookup = &request.lookup;
        let collections = documents.scope(&lookup.collections, &lookup.document_ids, None, None).await?;
        let is_local_only = Lookup::account_for(account, &collections).policy() == Some(RoutingPolicy::LocalOnly);
        let (all, own) = self.jobs().num_unended(ANALYSIS, &account.caller().id).await?;
        if all >= UNENDED_MAX || own >= UNENDED_OWN_MAX {
            let whose = if own >= UNENDED_OWN_MAX { format!("{own} of your") } else { format!("{all}") };
            let message = format!("{whose} analyses wait already. Come back later, or cancel some.");
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry_after(RETRY_FULL));
        }
        let payload = Payload { body, is_local_only };
        let job = NewJob {
            kind: ANALYSIS.to_owned(),
            payload: serde_json::to_value(payload).map_err(Error::internal)?,
            followed_by: request.webhook_url.is_some().then(|| WEBHOOK.to_owned()),
        };
        Ok(as_analysis(self.jobs().of(&account.caller().id).enqueue_job(job).await?, Some(Vec::new())))
    }

    /// The caller's own, the newest first, without their events.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, owner: &str, limit: usize) -> Result<Vec<AnalysisJob>> {
        let jobs = self.jobs().of(owner).list(ANALYSIS, limit).await?;
        Ok(jobs.into_iter().map(|job| as_analysis(job, None)).collect())
    }

    /// One of the caller's analyses, and its events from number `first` on. If it has ended, there will be no more.
    ///
    /// # Errors
    /// 404
    pub async fn state(&self, owner: &str, id: &str, first: u64) -> Result<State> {
        state_of(self.jobs().of(owner), id, first).await
    }

    /// Cancels one of the caller's analyses; one that has ended stays as it is.
    ///
    /// # Errors
    /// 404
    pub async fn cancel(&self, owner: &str, id: &str) -> Result<AnalysisJob> {
        self.jobs().of(owner).cancel(ANALYSIS, id).await?;
        Ok(self.state(owner, id, 0).await?.job)
    }

    /// Changes whenever an analysis may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.jobs().changes()
    }

    /// Becomes true when the server stops.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.jobs().stopping()
    }
}

async fn state_of(jobs: OwnedJobs<'_>, id: &str, first: u64) -> Result<State> {
    // In this order: a finished job adds no events, so none is missed.
    let job = jobs.find(ANALYSIS, id).await?;
    let events = jobs.events(id, first).await?;
    let events = events.into_iter().map(|(number, event)| numbered(number, event)).collect();
    Ok(State { has_ended: has_ended(&job), job: as_analysis(job, Some(events)) })
}

/// An event with its number, which comes first.
fn numbered(number: u64, event: Value) -> Value {
    let mut numbered = serde_json::Map::from_iter([("number".to_owned(), Value::from(number))]);
    if let Value::Object(event) = event {
        numbered.extend(event);
    }
    Value::Object(numbered)
}

fn as_analysis(job: Job, events: Option<Vec<Value>>) -> AnalysisJob {
    let field = |name: &str| job.payload["body"][name].as_str().unwrap_or_default().to_owned();
    let (company_name, question) = (field("company_name"), field("question"));
    let (status, result, error) = match job.state {
        JobState::Queued => ("queued", None, None),
        JobState::Running => ("running", None, None),
        JobState::Done { result } => ("done", Some(result), None),
        JobState::Failed { error } => ("failed", None, Some(error)),
        JobState::Cancelled => ("cancelled", None, None),
    };
    AnalysisJob {
        job_id: job.id,
        status,
        company_name,
        question,
        attempts: job.attempts,
        created_at: job.created_ms / 1000,
        updated_at: job.updated_ms / 1000,
        events,
        result,
        error,
    }
}
