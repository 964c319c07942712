//! The contract's error body: four keys, all always present.

use schemars::JsonSchema;
use serde::Serialize;

/// `{"error": {...}}`, as a response's body and as the last frame of a failed stream.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ErrorDetail {
    /// What was wrong, where, and what to do next.
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The path of the offending field, such as `messages[2].role`.
    pub param: Option<String>,
    /// For programs: never a number.
    pub code: Option<&'static str>,
    /// Both token counts of a prompt that did not fit, under llama-server's names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ctx: Option<usize>,
}
