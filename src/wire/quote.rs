//! `POST /v1/quote`: the body is that of the request to be priced.

use std::time::Duration;

use hearth_domain::{
    GenerateRequest,
    error::{Error, Result},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Envelope,
    body::{FieldSpec, RequestBody},
    chat_request::ChatCompletionRequest,
    completion_request::CompletionRequest,
};

/// The request to be priced: a chat completion if the body has `messages`, a completion if it has a `prompt`.
#[derive(Debug)]
pub struct QuoteRequest {
    pub model: Option<String>,
    pub generations: Vec<GenerateRequest>,
}

impl RequestBody for QuoteRequest {
    const NAME: &'static str = "QuoteRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[];
    const REQUIRED: &'static [&'static str] = &[];

    fn schema() -> Value {
        json!({"anyOf": [ChatCompletionRequest::schema(), CompletionRequest::schema()]})
    }
}

impl QuoteRequest {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Self> {
        if body.get("messages").is_some_and(|messages| !messages.is_null()) {
            let request = ChatCompletionRequest::read(body, envelope)?.request;
            return Ok(Self { model: request.model, generations: vec![request.generation] });
        }
        if body.get("prompt").is_some_and(|prompt| !prompt.is_null()) {
            let request = CompletionRequest::read(body, envelope)?.request;
            return Ok(Self { model: request.model, generations: request.generations });
        }
        let message = "A quote is of a body for /v1/chat/completions or /v1/completions: give `messages` or `prompt`.";
        Err(Error::invalid("messages", message).with_code("missing_required_parameter"))
    }
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Quote")]
pub struct QuoteAnswer {
    #[schemars(extend("const" = "quote"))]
    pub object: &'static str,
    pub model: String,
    /// Whether any side would serve it now.
    pub fits: bool,
    /// `local`, an upstream's name, or null.
    pub would_serve: Option<String>,
    /// In the order in which they would be tried.
    pub candidates: Vec<QuotedSide>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct QuotedSide {
    pub served_by: String,
    pub model: String,
    pub prompt_tokens: usize,
    /// Whether the model's own tokenizer counted the prompt.
    pub prompt_tokens_exact: bool,
    pub max_completion_tokens: usize,
    pub context_length: usize,
    pub expected_wait_ms: f64,
    pub compute_ms: QuotedRange,
    pub cost_usd: QuotedRange,
    /// Why it would not serve, such as `context_length`; null if it would.
    pub refusal: Option<&'static str>,
}

/// From the prompt alone to the longest answer.
#[derive(Debug, JsonSchema, Serialize)]
pub struct QuotedRange {
    pub at_least: f64,
    pub at_most: f64,
}

impl QuotedRange {
    pub fn milliseconds((least, most): (Duration, Duration)) -> Self {
        Self { at_least: least.as_secs_f64() * 1e3, at_most: most.as_secs_f64() * 1e3 }
    }

    #[expect(clippy::cast_precision_loss, reason = "no request costs 2^52 micro-dollars")]
    pub fn dollars((least, most): (u64, u64)) -> Self {
        Self { at_least: least as f64 / 1e6, at_most: most as f64 / 1e6 }
    }
}
