//! Analyses: questions about a company that are answered in the background.
//!
//! Each is a job (`worker.rs` does it), so that it outlives the request and the process; what it has said is kept for
//! whoever comes late. When it has ended, in whatever way, another job tells the address that was named
//! (`notify.rs`).

mod notify;
mod worker;

use std::{sync::Arc, time::Duration};

use hearth_domain::{
    Account, Policy,
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

/// The kind of job that an analysis is.
const ANALYSIS: &str = "analysis";
/// The kind of job that tells of one.
const WEBHOOK: &str = "webhook";
/// Analyses that are worked at together; each generates twice at a time, and leaves room for who waits for an answer.
const AT_A_TIME: usize = 2;
const WEBHOOKS_AT_A_TIME: usize = 4;
/// Analyses that may wait or run; one more is refused with 503.
const UNENDED_MAX: usize = 1000;
/// Of one caller's, so that it leaves places for others.
const UNENDED_OWN_MAX: usize = 250;
const RETRY_FULL: Duration = Duration::from_secs(30);

/// See the module's documentation. One for the server.
#[derive(Debug)]
pub struct Analyses {
    documents: Arc<Documents>,
    models: Arc<Models>,
    webhooks: Arc<WebhookSettings>,
}

/// What a job's payload holds: the request as it came, which was read once to check it and is read again to be worked
/// at.
#[derive(Debug, Deserialize, Serialize)]
struct Payload {
    body: Value,
    /// Its texts are to stay on this machine, also when the request and what it said of that are over.
    #[serde(default)]
    is_local_only: bool,
}

/// An analysis as it is now.
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

    /// The models are loaded, or there are none: from now on analyses are worked at.
    pub fn begin(&self) {
        let analyst = Analyst { documents: self.documents.clone(), models: self.models.clone() };
        self.jobs().start(Arc::new(analyst), AT_A_TIME);
        let notify = Notify { documents: self.documents.clone(), webhooks: self.webhooks.clone() };
        self.jobs().start(Arc::new(notify), WEBHOOKS_AT_A_TIME);
    }

    /// Takes an analysis on. `body` is what `request` was read from.
    ///
    /// # Errors
    /// If it could not be worked at as things are now: no embedding model, no such collection, an address that is not
    /// told; and 503 if too many are waiting.
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
        let is_local_only = Lookup::account_for(account, &collections).policy() == Some(Policy::LocalOnly);
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
        Ok(told(self.jobs().of(&account.caller().id).enqueue_job(job).await?, Some(Vec::new())))
    }

    /// The caller's own, the newest first, without what they have said.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, owner: &str, limit: usize) -> Result<Vec<AnalysisJob>> {
        let jobs = self.jobs().of(owner).list(ANALYSIS, limit).await?;
        Ok(jobs.into_iter().map(|job| told(job, None)).collect())
    }

    /// An analysis of the caller's own, and what it has said from event `first` on. If it has ended, that is all it will say.
    ///
    /// # Errors
    /// 404
    pub async fn state(&self, owner: &str, id: &str, first: u64) -> Result<State> {
        state_of(self.jobs().of(owner), id, first).await
    }

    /// Ends an analysis of the caller's own; one that has ended stays as it is.
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
    // In this order: what has ended says nothing further, so that its events are all there.
    let job = jobs.find(ANALYSIS, id).await?;
    let events = jobs.events(id, first).await?;
    let events = events.into_iter().map(|(number, event)| numbered(number, event)).collect();
    Ok(State { has_ended: has_ended(&job), job: told(job, Some(events)) })
}

/// An event with its number, which goes first.
fn numbered(number: u64, event: Value) -> Value {
    let mut numbered = serde_json::Map::from_iter([("number".to_owned(), Value::from(number))]);
    if let Value::Object(event) = event {
        numbered.extend(event);
    }
    Value::Object(numbered)
}

fn told(job: Job, events: Option<Vec<Value>>) -> AnalysisJob {
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
