//! `POST /v1/rerank`: the body and the answer, in the shape that Jina, Cohere and vLLM share.

use hearth_domain::{RerankRequest, RerankResponse, error::Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    Envelope, Parsed,
    body::{BOOLEAN, FieldSpec, RequestBody, STRING, TIMEOUT, honoured, ignored},
    fields::{Fields, bad_value, wrong_type},
    generation,
    receipt::Receipt,
};

/// Fields of `/v1/rerank` and `/rerank`.
const FIELDS: &[FieldSpec] = &[
    honoured("model", STRING, "A served rerank model or one of its aliases. Default the first."),
    honoured("query", r#"{"type":"string","minLength":1}"#, "What the documents are to answer."),
    honoured(
        "documents",
        r#"{"type":"array","minItems":1,"maxItems":1000,"items":{"anyOf":[{"type":"string"},{"type":"object","required":["text"],"properties":{"text":{"type":"string"}}}]}}"#,
        "Texts, or objects with a `text`; what does not fit the model is cut off.",
    ),
    honoured("top_n", r#"{"type":"integer","minimum":1,"maximum":2147483647}"#, "Results at most. Default all."),
    honoured("return_documents", BOOLEAN, "Repeat each document's text in its result. Default false."),
    TIMEOUT,
    ignored("user", "No account is kept per end user."),
    ignored("priority", "Callers share the engine evenly."),
];

/// Cohere's own bound.
pub const DOCUMENTS_MAX: usize = 1000;

/// What one rerank request asks for.
#[derive(Debug)]
pub struct RerankBody {
    pub model: Option<String>,
    /// Most results to return; `None` means all.
    pub top_n: Option<usize>,
    pub return_documents: bool,
    pub request: RerankRequest,
}

impl RequestBody for RerankBody {
    const NAME: &'static str = "RerankRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[FIELDS];
    const REQUIRED: &'static [&'static str] = &["query", "documents"];
}

impl RerankBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let query = fields.required_string("query")?;
        if query.trim().is_empty() {
            return Err(bad_value("query", "`query` must not be an empty string."));
        }
        let body = Self {
            model: fields.string("model")?,
            top_n: fields.count("top_n", 1)?,
            return_documents: fields.boolean("return_documents")?.unwrap_or(false),
            request: RerankRequest {
                query,
                documents: read_documents(fields.required("documents")?)?,
                account: envelope.account.clone(),
                deadline: generation::read_deadline(&mut fields, envelope)?,
            },
        };
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request: body, ignored })
    }
}

fn read_documents(documents: Value) -> Result<Vec<String>> {
    let Value::Array(items) = documents else {
        return Err(wrong_type("documents", "an array of strings", &documents));
    };
    if items.is_empty() || items.len() > DOCUMENTS_MAX {
        let message = format!("`documents` must have 1 to {DOCUMENTS_MAX} entries, but has {}.", items.len());
        return Err(bad_value("documents", message));
    }
    let items = items.into_iter().enumerate().map(|(index, item)| match item {
        Value::String(text) => Ok(text),
        Value::Object(_) => Fields::object(item, &format!("documents[{index}]"))?.required_string("text"),
        other => Err(wrong_type(&format!("documents[{index}]"), "a string or an object with a `text`", &other)),
    });
    items.collect()
}

/// The answer: the documents' positions, most relevant first.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Ranking {
    pub model: String,
    pub results: Vec<RankedDocument>,
    pub usage: RankingUsage,
    pub receipt: Receipt,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct RankedDocument {
    /// Position in the request's `documents`.
    pub index: usize,
    /// 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct DocumentText {
    pub text: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct RankingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

impl Ranking {
    /// `documents` are the texts to return, if requested. Ties keep the request's order.
    pub fn new(
        model: String,
        answer: &RerankResponse,
        top_n: Option<usize>,
        documents: Option<&[String]>,
        receipt: Receipt,
    ) -> Self {
        let mut order: Vec<(usize, f32)> = answer.scores.iter().copied().enumerate().collect();
        order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        order.truncate(top_n.unwrap_or(usize::MAX));
        let text = |index: usize| Some(DocumentText { text: documents?.get(index)?.clone() });
        let results = order.into_iter().map(|(index, relevance_score)| RankedDocument {
            index,
            relevance_score,
            document: text(index),
        });
        let (prompt_tokens, total_tokens) = (answer.prompt_tokens, answer.prompt_tokens);
        Self { model, results: results.collect(), usage: RankingUsage { prompt_tokens, total_tokens }, receipt }
    }
}
