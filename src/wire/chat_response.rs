//! What `/v1/chat/completions` answers: the whole object, and the chunks of a stream.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    receipt::Receipt,
    usage::{Timings, Usage},
};

/// OpenAI's stand-in for "too unlikely to measure"; JSON has no minus infinity.
const LOGPROB_FLOOR: f32 = -9999.0;

/// A log-probability that JSON can carry.
pub(super) fn finite_logprob(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOGPROB_FLOOR) } else { LOGPROB_FLOOR }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ChatCompletion {
    pub id: String,
    #[schemars(extend("const" = "chat.completion"))]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub system_fingerprint: String,
    pub timings: Timings,
    pub receipt: Receipt,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    #[schemars(extend("enum" = ["stop", "length", "tool_calls", "content_filter"]))]
    pub finish_reason: &'static str,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// `null` when the answer is tool calls only.
    pub content: Option<String>,
    pub refusal: Option<String>,
    pub annotations: [(); 0],
    /// A reasoning model's thinking before its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub kind: &'static str,
    pub function: ToolCallFunction,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ToolCallFunction {
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatTokenLogprob {
    /// The token's id, with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatTopLogprob {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub fn new(tokens: Vec<hearth_domain::TokenLogprob>, with_ids: bool) -> Self {
        let content = tokens
            .into_iter()
            .map(|token| ChatTokenLogprob {
                id: with_ids.then_some(token.token_id),
                token: token.text,
                logprob: finite_logprob(token.logprob.unwrap_or(0.0)),
                bytes: token.bytes,
                top_logprobs: token
                    .top
                    .into_iter()
                    .map(|top| ChatTopLogprob {
                        id: with_ids.then_some(top.token_id),
                        token: top.text,
                        logprob: finite_logprob(top.logprob),
                        bytes: top.bytes,
                    })
                    .collect(),
            })
            .collect();
        Self { content, refusal: None }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ChatCompletionChunk {
    pub id: String,
    #[schemars(extend("const" = "chat.completion.chunk"))]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    /// Empty in the chunk that carries the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// With `include_usage`: `null` in all chunks but the last. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// In the last chunk that has a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Beside `timings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: ChatDelta,
    pub logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", "tool_calls", "content_filter", null]))]
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, JsonSchema, Serialize)]
pub struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("const" = "assistant"))]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// The opening of a call (`id`, `type` and `function.name` present), or more of its arguments.
#[derive(Debug, JsonSchema, Serialize)]
pub struct ToolCallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("const" = "function"))]
    pub kind: Option<&'static str>,
    pub function: ToolCallFunctionDelta,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ToolCallFunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}
