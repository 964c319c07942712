//! Notifies the address that an analysis named of its end.
//!
//! The notification is a job that is enqueued in the transaction that ends the analysis: neither exists without the
//! other, whenever the process is killed. A receiver may get the same message twice, and recognizes it by its id. If
//! the texts of the analysis must stay on this machine, the message says only that it has ended.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use hearth_domain::{Account, RoutingPolicy, error::ErrorKind};
use serde_json::{Value, json};

use super::{ANALYSIS, Payload, WEBHOOK, state_of};
use crate::{
    retrieval::search::Lookup,
    service::{
        documents::Documents,
        jobs::{Failure, Progress, Worker},
        webhook::WebhookSettings,
    },
    store::Job,
    wire::{
        Envelope, Parsed,
        analysis::{AnalysisBody, AnalysisMessage, MessageData},
    },
};

/// Retries for a receiver that is down cover most of a day.
const RETRIES: [Duration; 8] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
];

/// Sends the notifications.
#[derive(Debug)]
pub(super) struct Notify {
    pub(super) documents: Arc<Documents>,
    pub(super) webhooks: Arc<WebhookSettings>,
}

impl Worker for Notify {
    fn kind(&self) -> &'static str {
        WEBHOOK
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        async move { self.deliver(&job, progress.account()).await }.boxed()
    }

    fn retries(&self) -> &[Duration] {
        &RETRIES
    }
}

impl Notify {
    async fn deliver(&self, job: &Job, account: &Arc<Account>) -> Result<Value, Failure> {
        let id = job.payload["job_id"].as_str().unwrap_or_default();
        let passing = |error: hearth_domain::error::Error| match error.kind() {
            // It ended so long ago that it has been deleted.
            ErrorKind::NotFound => Failure::Moot,
            _ => Failure::Passing(error.to_string()),
        };
        let jobs = self.documents.jobs().of(&job.owner);
        let analysis = jobs.find(ANALYSIS, id).await.map_err(passing)?;
        let Some(url) = analysis.payload["body"]["webhook_url"].as_str() else { return Err(Failure::Moot) };
        let data = state_of(jobs, id, 0).await.map_err(passing)?.job;
        let kind = match data.status {
            "done" => "analysis.completed",
            "failed" => "analysis.failed",
            _ => "analysis.cancelled",
        };
        let lasting = |error: &dyn std::fmt::Display| Failure::Lasting(error.to_string());
        let ended = jiff::Timestamp::from_millisecond(analysis.updated_ms).map_err(|error| lasting(&error))?;
        let data = if self.is_kept(&analysis, account).await { data.kept() } else { MessageData::Whole(data) };
        let message = AnalysisMessage { kind, timestamp: ended.to_string(), data };
        let body = serde_json::to_string(&message).map_err(|error| lasting(&error))?;
        self.webhooks.send(url, &job.id, jiff::Timestamp::now().as_second(), body).await?;
        tracing::info!(job = id, message = job.id, "told of an analysis that has ended");
        Ok(json!({}))
    }

    /// Whether the texts of an analysis must stay on this machine: because its request, its caller or one of its
    /// collections said so.
    async fn is_kept(&self, analysis: &Job, account: &Arc<Account>) -> bool {
        let Ok(Payload { body, is_local_only }) = serde_json::from_value(analysis.payload.clone()) else { return true };
        let envelope = Envelope { account: account.clone(), deadline: None, strict: false };
        let collections = match AnalysisBody::read(body, &envelope) {
            Ok(Parsed { request: AnalysisBody { lookup, .. }, .. }) => {
                self.documents.of(account).scope(&lookup.collections, &lookup.document_ids, None, None).await
            }
            Err(error) => Err(error),
        };
        // The payload records what a collection said that has been deleted since.
        let collections = collections.unwrap_or_default();
        is_local_only || Lookup::account_for(account, &collections).policy() == Some(RoutingPolicy::LocalOnly)
    }
}
