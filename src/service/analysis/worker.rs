//! Runs one analysis: several searches, their passages packed into one prompt, and a written and rated summary.
//!
//! Everything it needs is in the job, so that an interrupted attempt is simply repeated. Its progress events are
//! stored; the summary's text is reported in pieces of about a second, not token by token.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
};
use hearth_domain::{
    FinishReason, GenerateEvent, Scope, Usage,
    documents::{Collection, Grounding},
    error::{Error, ErrorKind},
};
use serde_json::Value;

use super::{ANALYSIS, Payload};
use crate::{
    providers::GenerateStream,
    retrieval::{
        passages::Passage,
        search::{Retriever, SearchRequest},
    },
    service::{
        ask::{AskRequest, Asked, ask_over, source},
        chat::ended_early,
        documents::{Documents, lookup::lookup_in},
        findings::Confidence,
        jobs::{Failure, Progress, Worker},
        models::Models,
    },
    store::Job,
    wire::{
        Envelope, Parsed,
        analysis::{AnalysisBody, AnalysisEvent, AnalysisResult},
        lookup::Wait,
        receipt::Receipt,
    },
};

/// One attempt takes no longer, whatever the request's own `timeout`.
const ATTEMPT_MAX: Duration = Duration::from_secs(3600);
/// How long to wait for documents that are still being read, where the request does not say.
const DOCUMENTS_WAIT_MAX: Duration = Duration::from_secs(600);
/// Searches per analysis.
const QUERIES_MAX: usize = 6;
/// The interval at which the summary's new text is reported.
const TEXT_EVERY: Duration = Duration::from_secs(1);
/// Delays before retries: a full queue does not empty in seconds.
const RETRIES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// The worker of analyses.
#[derive(Debug)]
pub(super) struct Analyst {
    pub(super) documents: Arc<Documents>,
    pub(super) models: Arc<Models>,
}

impl Worker for Analyst {
    fn kind(&self) -> &'static str {
        ANALYSIS
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        async move {
            progress.report(&AnalysisEvent::Started { attempt: job.attempts }).await;
            let outcome = self.analyse(&job, &progress).await.map_err(|error| failure(&job, &error));
            if let Err(Failure::Passing(reason) | Failure::Lasting(reason)) = &outcome {
                progress.report(&AnalysisEvent::AttemptFailed { reason }).await;
            }
            outcome
        }
        .boxed()
    }

    fn retries(&self) -> &[Duration] {
        &RETRIES
    }
}

/// What an error means for the job.
fn failure(job: &Job, error: &Error) -> Failure {
    if let Some(cause) = error.internal_source() {
        tracing::warn!(job = job.id, %error, cause = format!("{cause:#}"), "an analysis failed");
    }
    let reason = error.to_string();
    match error.kind() {
        ErrorKind::Draining => Failure::Interrupted,
        // No embedding model is served; there will be none until the server is restarted.
        _ if error.is_lasting() => Failure::Lasting(reason),
        ErrorKind::Overloaded
        | ErrorKind::OutOfMemory
        | ErrorKind::Unavailable
        | ErrorKind::ModelLoading
        | ErrorKind::ModelFailed
        | ErrorKind::BreakerOpen
        | ErrorKind::RateLimited
        | ErrorKind::TokensLimited
        | ErrorKind::Internal => Failure::Passing(reason),
        // Documents are still being read.
        ErrorKind::Conflict if error.retry_after().is_some() => Failure::Passing(reason),
        _ => Failure::Lasting(reason),
    }
}

impl Analyst {
    async fn analyse(&self, job: &Job, progress: &Progress) -> Result<Value, Error> {
        let Payload { body, is_local_only } = serde_json::from_value(job.payload.clone()).map_err(Error::internal)?;
        let account = progress.account();
        let account = if is_local_only { account.kept_local() } else { account.clone() };
        let deadline = Some(Instant::now() + ATTEMPT_MAX);
        let envelope = Envelope { account: account.clone(), deadline, strict: false };
        let Parsed { request, .. } = AnalysisBody::read(body, &envelope)?;
        let caller = progress.account().caller();
        if !caller.scopes.contains(&Scope::Chat) {
            let message = "The keys of whoever asked for this do not allow it any more.";
            return Err(Error::new(ErrorKind::Forbidden, message));
        }
        let model = self.models.chat_or_first_for(caller, request.model.as_deref())?;
        let retriever = self.documents.retriever()?;
        let collections = self.searchable(&request, progress).await?;
        let asked = AskRequest {
            question: about(&request.company_name, &request.question),
            history: Vec::new(),
            lookup: lookup_in(&account, collections, &request.lookup),
            // A summary is written.
            grounding: Some(Grounding::Free),
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            confidence: true,
            deadline: request.deadline,
        };
        let queries = queries(&request.company_name, &request.question);
        let passages = search(retriever, &asked, &queries, progress).await?;
        if !passages.is_empty() {
            progress.report(&AnalysisEvent::Generating { model: &model.info().id }).await;
        }
        let Asked { sources, left_out, events, findings, .. } =
            ask_over(Some(&model), retriever, asked, passages).await?;
        let written = write(events, progress).await?;
        let unrated = Confidence { value: 0.0, is_rated: false };
        let confidence = findings.confidence.get().copied().unwrap_or(unrated);
        let result = AnalysisResult {
            summary: written.text,
            sources: sources.iter().map(source).collect(),
            sources_left_out: left_out,
            unsupported: findings.unsupported.get().cloned(),
            confidence: confidence.value,
            confidence_is_rated: confidence.is_rated,
            finish_reason: written.finish_reason.as_str(),
            model: model.info().id.clone(),
            tokens_used: written.usage.total_tokens(),
            usage: written.usage.into(),
            receipt: Receipt::of(progress.account()),
        };
        serde_json::to_value(result).map_err(Error::internal)
    }

    /// The searched collections, once their documents are searchable.
    async fn searchable(&self, request: &AnalysisBody, progress: &Progress) -> Result<Vec<Collection>, Error> {
        let lookup = &request.lookup;
        let documents = self.documents.of(progress.account());
        let within = |patience| documents.scope(&lookup.collections, &lookup.document_ids, patience, request.deadline);
        let patience = match lookup.wait {
            Wait::Never => return within(None).await,
            Wait::Refuse => DOCUMENTS_WAIT_MAX,
            Wait::For(patience) => patience,
        };
        match within(Some(Duration::ZERO)).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                progress.report(&AnalysisEvent::WaitingForDocuments { seconds_at_most: patience.as_secs() }).await;
                within(Some(patience)).await
            }
            searchable => searchable,
        }
    }
}

/// A question that names the company.
fn about(company: &str, question: &str) -> String {
    if question.to_lowercase().contains(&company.to_lowercase()) {
        question.to_owned()
    } else {
        format!("About {company}: {question}")
    }
}

/// The queries: the question about the company, each sentence of it, the question as it stands, because passages of a
/// company's own documents seldom name it, and the company.
fn queries(company: &str, question: &str) -> Vec<String> {
    let sentences = question.split_inclusive(['?', '.', ';', '\n']).map(str::trim);
    let sentences: Vec<&str> =
        sentences.filter(|sentence| sentence.chars().filter(|c| c.is_alphanumeric()).count() > 2).collect();
    let first = format!("{company} {question}");
    let parts = sentences.iter().filter(|_| sentences.len() > 1).map(|sentence| format!("{company} {sentence}"));
    let whole = [question.to_owned(), company.to_owned()];
    let parts = parts.take(QUERIES_MAX - 1 - whole.len());
    let mut seen = HashSet::new();
    let queries = std::iter::once(first).chain(parts).chain(whole);
    queries.filter(|query| seen.insert(query.to_lowercase())).collect()
}

async fn search(
    retriever: &Retriever,
    asked: &AskRequest,
    queries: &[String],
    progress: &Progress,
) -> Result<Vec<Passage>, Error> {
    let request = SearchRequest { query: asked.question.clone(), lookup: asked.lookup.clone() };
    let mut searches = Vec::with_capacity(queries.len());
    for query in queries {
        progress.report(&AnalysisEvent::Searching { query }).await;
        searches.push(retriever.find(SearchRequest { query: query.clone(), ..request.clone() }).await?);
    }
    let passages = retriever.best(searches, &request).await?;
    let titles: Vec<&str> = passages.iter().map(Passage::title).collect();
    progress.report(&AnalysisEvent::Passages { found: passages.len(), titles }).await;
    Ok(passages)
}

struct Written {
    text: String,
    finish_reason: FinishReason,
    usage: Usage,
}

/// Collects the summary, and reports its text in pieces on the way.
async fn write(mut events: GenerateStream, progress: &Progress) -> Result<Written, Error> {
    let mut written = Written { text: String::new(), finish_reason: FinishReason::Stop, usage: Usage::default() };
    let (mut said, mut last_said) = (0, Instant::now());
    while let Some(event) = events.next().await {
        match event? {
            GenerateEvent::Delta { text, .. } => {
                written.text.push_str(&text);
                if last_said.elapsed() >= TEXT_EVERY && written.text.len() > said {
                    progress.report(&AnalysisEvent::Text { text: &written.text[said..] }).await;
                    (said, last_said) = (written.text.len(), Instant::now());
                }
            }
            GenerateEvent::Finished { reason, .. } => written.finish_reason = reason,
            GenerateEvent::Done { usage, .. } => {
                if written.text.len() > said {
                    progress.report(&AnalysisEvent::Text { text: &written.text[said..] }).await;
                }
                written.usage = usage;
                return Ok(written);
            }
            GenerateEvent::Prefilled { .. }
            | GenerateEvent::Echo { .. }
            | GenerateEvent::Reasoning { .. }
            | GenerateEvent::ToolCall { .. } => {}
        }
    }
    Err(ended_early())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_looked_for_in_several_ways() {
        assert_eq!(queries("Acme", "Who runs it?"), ["Acme Who runs it?", "Who runs it?", "Acme"]);
        assert_eq!(queries("Acme", "acme"), ["Acme acme", "acme"]);
        assert_eq!(
            queries("Acme", "Who runs it? What does it sell?"),
            [
                "Acme Who runs it? What does it sell?",
                "Acme Who runs it?",
                "Acme What does it sell?",
                "Who runs it? What does it sell?",
                "Acme",
            ]
        );
        assert_eq!(queries("Acme", &"What? ".repeat(50)).len(), 4, "the same is asked once");
        let many: String = (0..50).map(|n| format!("What about {n}? ")).collect();
        assert_eq!(queries("Acme", &many).len(), QUERIES_MAX);
    }

    #[test]
    fn a_question_says_whom_it_is_about_once() {
        assert_eq!(about("Acme", "Who runs it?"), "About Acme: Who runs it?");
        assert_eq!(about("Acme", "Who runs ACME?"), "Who runs ACME?");
    }
}
