//! One event of an upstream's answer as JSON: everything optional, unknown fields ignored, since upstreams differ.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A chunk of `/chat/completions` or `/completions`, or an error in its place.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Chunk {
    pub choices: Option<Vec<ChunkChoice>>,
    /// Read by [`usage`], since a malformed one must not cost the text beside it.
    pub usage: Option<Value>,
    pub error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkChoice {
    /// Absent means the first.
    pub index: usize,
    /// In a chat.
    pub delta: Option<Delta>,
    /// In a completion.
    pub text: Option<String>,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<String>,
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delta {
    pub content: Option<String>,
    /// What a model says instead of an answer that it refuses to give.
    pub refusal: Option<String>,
    pub reasoning_content: Option<String>,
    /// An alias of the same field; an upstream that sends both repeats the same text.
    pub reasoning: Option<String>,
    pub tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CallDelta {
    pub index: Option<usize>,
    pub id: Option<String>,
    pub function: Option<FunctionDelta>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FunctionDelta {
    pub name: Option<String>,
    pub arguments: Option<String>,
}

/// Both shapes: a chat's list of objects, and a completion's parallel arrays.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Logprobs {
    pub content: Option<Vec<ChatLogprob>>,
    pub refusal: Option<Vec<ChatLogprob>>,
    pub tokens: Option<Vec<String>>,
    pub token_logprobs: Option<Vec<Option<f64>>>,
    pub top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChatLogprob {
    pub id: Option<u32>,
    pub token: String,
    pub logprob: Option<f64>,
    pub bytes: Option<Vec<u8>>,
    pub top_logprobs: Option<Vec<ChatLogprob>>,
}

/// The usage that an upstream reports; `None` where it gives no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReportedUsage {
    pub prompt_tokens: Option<usize>,
    pub completion_tokens: Option<usize>,
    pub cached_tokens: Option<usize>,
    pub reasoning_tokens: Option<usize>,
}

/// Reads as much of a usage object as is readable.
pub(super) fn usage(value: &Value) -> ReportedUsage {
    let count = |path: &str| value.pointer(path).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    ReportedUsage {
        prompt_tokens: count("/prompt_tokens"),
        completion_tokens: count("/completion_tokens"),
        cached_tokens: count("/prompt_tokens_details/cached_tokens"),
        reasoning_tokens: count("/completion_tokens_details/reasoning_tokens"),
    }
}
