//! What `/v1/completions` answers. Whole answers and chunks have the same shape.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    chat_response::finite_logprob,
    receipt::Receipt,
    usage::{Timings, Usage},
};

#[derive(Debug, JsonSchema, Serialize)]
pub struct Completion {
    pub id: String,
    #[schemars(extend("const" = "text_completion"))]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<CompletionChoice>,
    /// Always present in a whole answer. In a stream with `include_usage`, `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Beside `timings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; `null` in all chunks but a choice's last.
    #[schemars(extend("enum" = ["stop", "length", "content_filter", null]))]
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The legacy shape: four arrays of the same length.
#[derive(Debug, Default, JsonSchema, Serialize)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// `null` for the first token of an echoed prompt, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens and the chosen one, by text.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `offset` is where the first token begins; it advances past the last.
    pub fn new(tokens: Vec<hearth_domain::TokenLogprob>, offset: &mut usize) -> Self {
        let mut out = Self::default();
        for token in tokens {
            out.text_offset.push(*offset);
            *offset += token.text.chars().count();
            out.token_logprobs.push(token.logprob.map(finite_logprob));
            out.top_logprobs.push(token.logprob.map(|logprob| {
                let mut top = Map::new();
                let taken = hearth_domain::TopLogprob {
                    token_id: token.token_id,
                    text: token.text.clone(),
                    bytes: Vec::new(),
                    logprob,
                };
                // Best first; two tokens with the same lossy text keep the likelier value.
                for candidate in token.top.iter().chain([&taken]) {
                    top.entry(candidate.text.as_str())
                        .or_insert_with(|| Value::from(f64::from(finite_logprob(candidate.logprob))));
                }
                top
            }));
            out.tokens.push(token.text);
        }
        out
    }
}
