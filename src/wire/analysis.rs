//! `/analysis`: what is asked about a company, and how the job that finds it out is told.

use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::{
    Envelope, Parsed,
    ask::{QUESTION_CHARS_MAX, Source, TOKENS_MAX, read_text},
    fields::Fields,
    generation::read_deadline,
    lookup::Lookup,
    policy,
    receipt::Receipt,
    usage::Usage,
};
use hearth_domain::error::Result;

const COMPANY_CHARS_MAX: usize = 200;
const TOKENS_DEFAULT: usize = 1024;
/// More than for a single question: several searches find more.
const TOP_K_DEFAULT: usize = 10;

/// `POST /analysis`.
#[derive(Debug)]
pub struct AnalysisBody {
    pub company_name: String,
    pub question: String,
    pub model: Option<String>,
    pub max_tokens: usize,
    pub temperature: f32,
    pub webhook_url: Option<String>,
    pub lookup: Lookup,
    pub deadline: Option<Instant>,
}

impl AnalysisBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let says_top_k = fields.peek("top_k").is_some();
        let mut lookup = Lookup::read(&mut fields)?;
        if !says_top_k {
            lookup.top_k = TOP_K_DEFAULT;
        }
        let request = Self {
            company_name: read_text(&mut fields, "company_name", COMPANY_CHARS_MAX)?,
            question: read_text(&mut fields, "question", QUESTION_CHARS_MAX)?,
            model: fields.string("model")?,
            max_tokens: fields.integer("max_tokens", 1, TOKENS_MAX)?.map_or(TOKENS_DEFAULT, |n| n as usize),
            temperature: fields.float("temperature", 0.0, 2.0)?.unwrap_or(0.0),
            webhook_url: fields.string("webhook_url")?,
            lookup,
            deadline: read_deadline(&mut fields, envelope)?,
        };
        let ignored = policy::apply(fields.rest(), &[policy::LOOKUP, policy::ANALYSIS], envelope.strict)?;
        Ok(Parsed { request, ignored })
    }
}

/// What an analysis found out.
#[derive(Clone, Debug, Serialize)]
pub struct AnalysisResult {
    pub summary: String,
    /// In the order of their numbers in the summary: `[1]` is the first.
    pub sources: Vec<Source>,
    /// Passages that were found and did not fit into the model's context.
    pub sources_left_out: usize,
    /// Sentences of the summary that no source supports; not there where that could not be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<Vec<String>>,
    /// How fully the sources answer the question, 0 to 1.
    pub confidence: f32,
    /// `false`: the model's rating could not be understood, and the confidence says nothing.
    pub confidence_is_rated: bool,
    /// `stop`, or `length` where `max_tokens` or the context ended the summary.
    pub finish_reason: &'static str,
    pub model: String,
    pub tokens_used: usize,
    pub usage: Usage,
    /// Of the attempt that succeeded.
    pub receipt: Receipt,
}

/// A job, as every route of `/analysis` and the webhook tell it.
#[derive(Clone, Debug, Serialize)]
pub struct AnalysisJob {
    pub job_id: String,
    pub status: &'static str,
    pub company_name: String,
    pub question: String,
    /// How often it was begun: again after a failure that may pass, or a restart of the server.
    pub attempts: u32,
    /// Unix seconds.
    pub created_at: i64,
    pub updated_at: i64,
    /// What it has said so far; a list of jobs goes without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Value>>,
    /// An [`AnalysisResult`], as it was stored.
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// `GET /analysis`.
#[derive(Clone, Debug, Serialize)]
pub struct AnalysisList {
    /// The newest first.
    pub jobs: Vec<AnalysisJob>,
}

/// What is sent to `webhook_url`.
#[derive(Clone, Debug, Serialize)]
pub struct AnalysisMessage {
    /// `analysis.completed`, `analysis.failed` or `analysis.cancelled`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When it ended, as RFC 3339 writes it.
    pub timestamp: String,
    pub data: MessageData,
}

/// What a message says of a job.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum MessageData {
    Whole(AnalysisJob),
    /// Of a job whose texts are to stay on this machine: where to ask for them.
    Kept {
        job_id: String,
        status: &'static str,
        created_at: i64,
        updated_at: i64,
        /// `true`
        local_only: bool,
    },
}

impl AnalysisJob {
    /// The job without a word of what was asked, found or said.
    pub fn kept(self) -> MessageData {
        let Self { job_id, status, created_at, updated_at, .. } = self;
        MessageData::Kept { job_id, status, created_at, updated_at, local_only: true }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_questions_have_their_bounds_and_the_rest_its_defaults() {
        let envelope = Envelope { account: hearth_domain::Account::unrecorded(), deadline: None, strict: true };
        let read = |body: Value| AnalysisBody::read(body, &envelope);
        let request = read(json!({"company_name": "ä".repeat(200), "question": "a".repeat(2000)})).unwrap().request;
        assert_eq!((request.max_tokens, request.lookup.top_k, request.webhook_url), (1024, 10, None));
        for (body, param) in [
            (json!({"question": "?"}), "company_name"),
            (json!({"company_name": "A"}), "question"),
            (json!({"company_name": " ", "question": "?"}), "company_name"),
            (json!({"company_name": "A".repeat(201), "question": "?"}), "company_name"),
            (json!({"company_name": "A", "question": "a".repeat(2001)}), "question"),
            (json!({"company_name": "A", "question": "?", "max_tokens": 4097}), "max_tokens"),
            (json!({"company_name": "A", "question": "?", "webhook_url": 1}), "webhook_url"),
            (json!({"company_name": "A", "question": "?", "new": 1}), "new"),
        ] {
            assert_eq!(read(body).unwrap_err().param(), Some(param));
        }
    }
}
