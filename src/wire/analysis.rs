//! `/analysis`: the question about a company, and how its job is reported.

use std::{collections::BTreeMap, time::Instant};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    Envelope, Parsed,
    ask::{QUESTION_CHARS_MAX, Source, TOKENS_MAX, read_text},
    body::{FieldSpec, RequestBody, RequestQuery, STRING, honoured},
    fields::Fields,
    generation::read_deadline,
    lists::{LIMIT, PAGE, take_limit},
    lookup::{self, LookupBody},
    receipt::Receipt,
    usage::Usage,
};
use hearth_domain::error::Result;

/// Further fields of `/analysis`.
const FIELDS: &[FieldSpec] = &[
    honoured(
        "company_name",
        r#"{"type":"string","pattern":"\\S","maxLength":200}"#,
        "The company that the question is about.",
    ),
    honoured("question", r#"{"type":"string","pattern":"\\S","maxLength":2000}"#, "What to find out."),
    honoured("model", STRING, "A served chat model. Default the first."),
    honoured("max_tokens", r#"{"type":"integer","minimum":1,"maximum":4096}"#, "Of the summary. Default 1024."),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "Default 0, the likeliest summary."),
    honoured(
        "webhook_url",
        r#"{"type":"string","format":"uri","maxLength":2048}"#,
        "Told when the job has ended, in a signed message.",
    ),
];

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
    pub lookup: LookupBody,
    pub deadline: Option<Instant>,
}

impl RequestBody for AnalysisBody {
    const NAME: &'static str = "AnalysisRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[lookup::FIELDS, FIELDS];
    const REQUIRED: &'static [&'static str] = &["company_name", "question"];
}

impl AnalysisBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let says_top_k = fields.peek("top_k").is_some();
        let mut lookup = LookupBody::read(&mut fields)?;
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
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request, ignored })
    }
}

/// What an analysis found.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AnalysisResult {
    pub summary: String,
    /// In the order of their numbers in the summary: `[1]` is the first.
    pub sources: Vec<Source>,
    /// Passages that were found but did not fit into the model's context.
    pub sources_left_out: usize,
    /// Sentences of the summary that no source supports; absent if that could not be checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<Vec<String>>,
    /// How fully the sources answer the question, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub confidence: f32,
    /// `false`: the model's rating could not be parsed, and the confidence means nothing.
    pub confidence_is_rated: bool,
    /// `stop`, or `length` where `max_tokens` or the context ended the summary.
    #[schemars(extend("enum" = ["stop", "length"]))]
    pub finish_reason: &'static str,
    pub model: String,
    pub tokens_used: usize,
    pub usage: Usage,
    /// For the attempt that succeeded.
    pub receipt: Receipt,
}

/// A job, as every route of `/analysis` and the webhook report it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AnalysisJob {
    pub job_id: String,
    #[schemars(extend("enum" = ["queued", "running", "done", "failed", "cancelled"]))]
    pub status: &'static str,
    pub company_name: String,
    pub question: String,
    /// How often it was started: again after a transient failure or a server restart.
    pub attempts: u32,
    /// Unix seconds.
    pub created_at: i64,
    pub updated_at: i64,
    /// The events so far; absent in a list of jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<NumberedEvent>>")]
    pub events: Option<Vec<Value>>,
    /// An [`AnalysisResult`], as it was stored.
    #[schemars(with = "Option<AnalysisResult>")]
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// What a job reports while it runs. Events are stored, and read back as JSON.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnalysisEvent<'e> {
    Started {
        attempt: u32,
    },
    /// Documents that it needs are still being read.
    WaitingForDocuments {
        seconds_at_most: u64,
    },
    Searching {
        query: &'e str,
    },
    /// The passages found, best first.
    Passages {
        found: usize,
        titles: Vec<&'e str>,
    },
    Generating {
        model: &'e str,
    },
    /// More of the summary.
    Text {
        text: &'e str,
    },
    AttemptFailed {
        reason: &'e str,
    },
}

/// An event as read back from the store.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct NumberedEvent<'e> {
    /// Its place among the job's events, from 0.
    pub number: u64,
    #[serde(flatten)]
    pub event: AnalysisEvent<'e>,
}

/// The query of `GET /analysis`.
#[derive(Debug)]
pub struct AnalysisListQuery {
    pub limit: usize,
}

impl RequestQuery for AnalysisListQuery {
    const PARAMETERS: &'static [FieldSpec] = &[LIMIT];
}

impl AnalysisListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        Ok(Self { limit: take_limit(&mut parameters, PAGE)? })
    }
}

/// `GET /analysis`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AnalysisList {
    /// Newest first.
    pub jobs: Vec<AnalysisJob>,
}

/// The body sent to `webhook_url`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AnalysisMessage {
    /// `analysis.completed`, `analysis.failed` or `analysis.cancelled`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["analysis.completed", "analysis.failed", "analysis.cancelled"]))]
    pub kind: &'static str,
    /// When the job ended, in RFC 3339.
    pub timestamp: String,
    pub data: MessageData,
}

/// What a message contains about a job.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum MessageData {
    Whole(AnalysisJob),
    /// For a job whose text must stay on this machine: where to ask for it.
    Kept {
        job_id: String,
        status: &'static str,
        created_at: i64,
        updated_at: i64,
        /// Always `true`.
        local_only: bool,
    },
}

impl AnalysisJob {
    /// The job without any text that was asked, found or generated.
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
