//! The plain vocabulary that every layer above the tensors speaks.
//!
//! These types carry no serde: JSON is the business of `wire/`, and the meaning of a request does not depend on the
//! contract it arrived under. Every backend, local or hosted, takes a [`GenerateRequest`] or an [`EmbedRequest`] and
//! answers in these types.

#![forbid(unsafe_code)]

mod account;
mod caller;
pub mod documents;
pub mod error;
pub mod part;
pub mod quote;
mod request_context;
pub mod usage;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

pub use self::{
    account::Account,
    caller::{Budget, Caller, CallerLimits, LOCAL, RoutingPolicy, Scope, Standing, StorageQuota},
    request_context::{CacheUse, RequestContext},
};

/// One generation, before any text is tokenized. Fields that may be large and are the same for all prompts and choices
/// of a request are shared between them.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The account of the request, which records what it uses.
    pub account: Arc<Account>,
    pub prompt: Prompt,
    pub sampling: SamplingParams,
    /// Upper bound on generated tokens; `None` means "to the end of the context".
    pub max_tokens: Option<usize>,
    /// No end-of-text or stop string ends the text before this many tokens.
    pub min_tokens: usize,
    /// End the text when one of these appears; the stop string itself is not part of the answer.
    pub stop: Arc<[String]>,
    /// Further token ids that end the text.
    pub stop_token_ids: Vec<u32>,
    /// Continue past end-of-text tokens, as load generators ask.
    pub ignore_eos: bool,
    /// How many independent choices to generate, at least 1.
    pub n: usize,
    /// `Some(k)`: report each token's log-probability and the `k` likeliest alternatives.
    pub logprobs: Option<usize>,
    /// Prepend the prompt to the answer; with `logprobs`, score the prompt's tokens too.
    pub echo: bool,
    /// Report token ids alongside text.
    pub return_token_ids: bool,
    /// What the text must conform to.
    pub constraint: Option<Arc<Constraint>>,
    /// The instant after which the server ends the request with a timeout.
    pub deadline: Option<Instant>,
    /// The conversation that the request belongs to, as its body names it; [`Account::session`] comes first.
    pub session: Option<String>,
}

impl GenerateRequest {
    /// One choice with the default sampling parameters, to the end of the context.
    pub fn new(account: Arc<Account>, prompt: Prompt) -> Self {
        Self {
            account,
            prompt,
            sampling: SamplingParams::default(),
            max_tokens: None,
            min_tokens: 0,
            stop: Arc::from([]),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            n: 1,
            logprobs: None,
            echo: false,
            return_token_ids: false,
            constraint: None,
            deadline: None,
            session: None,
        }
    }
}

/// What the model is asked to continue.
#[derive(Clone, Debug)]
pub enum Prompt {
    Chat(ChatPrompt),
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Approximate bytes of its text; for token ids, those of the text they stand for.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Chat(chat) => chat.bytes(),
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => ids.len() * quote::BYTES_PER_TOKEN,
        }
    }

    /// An estimate of its tokens, for when no tokenizer is available; exact for token ids.
    pub fn estimated_tokens(&self) -> usize {
        /// The markers around a message.
        const TOKENS_PER_MESSAGE: usize = 4;
        match self {
            Self::Chat(chat) => chat.messages.len() * TOKENS_PER_MESSAGE + quote::estimated_tokens(chat.bytes()),
            Self::Text(text) => quote::estimated_tokens(text.len()),
            Self::Tokens(ids) => ids.len(),
        }
    }
}

impl ChatPrompt {
    /// Approximate bytes of text in its messages and tools.
    pub fn bytes(&self) -> usize {
        self.messages.iter().chain(&self.tools).map(bytes_of_json).sum()
    }
}

/// Total bytes of the strings in a JSON value.
fn bytes_of_json(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(bytes_of_json).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes_of_json(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// A conversation, rendered by the model's own chat template.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    /// Messages as the template sees them: objects with `role`, `content`, and anything else the caller sent
    /// (`tool_calls`, `tool_call_id`, `name`, ...), validated at the boundary.
    pub messages: Vec<Value>,
    /// Tools as the template sees them: `{"type":"function","function":{...}}`.
    pub tools: Vec<Value>,
    pub tool_choice: ToolChoice,
    pub parallel_tool_calls: bool,
    /// End the prompt with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Extra template variables, such as `enable_thinking`.
    pub template_kwargs: serde_json::Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    #[default]
    Auto,
    None,
    /// At least one call, of any tool.
    Required,
    /// A call of this tool.
    Named(String),
}

/// A language that the generated text must belong to.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that satisfies this schema.
    JsonSchema(Value),
    Regex(String),
    /// llguidance's Lark dialect.
    Lark(String),
}

/// How the next token is chosen from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    /// 1 is off; divides positive and multiplies negative logits of tokens already seen (CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the generated text.
    pub frequency_penalty: f32,
    /// Subtracted once for any token that occurs in the generated text.
    pub presence_penalty: f32,
    /// Added to the logits of these token ids.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// The same seed gives the same text, regardless of what else is in the batch.
    pub seed: Option<i64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Arc::from([]),
            seed: None,
        }
    }
}

/// The events of a running generation. A stream of these ends with [`GenerateEvent::Done`] or an error.
#[derive(Clone, Debug)]
pub enum GenerateEvent {
    /// Prefill is done; the first token follows. Sent once.
    Prefilled { prompt_tokens: usize, cached_tokens: usize },
    /// The prompt's own text and scores, when `echo` was asked for. Sent once, before any delta.
    Echo { choice: usize, text: String, logprobs: Vec<TokenLogprob>, token_ids: Vec<u32> },
    /// More of a choice's text. `text` may be empty when only log-probabilities are new.
    Delta { choice: usize, text: String, logprobs: Vec<TokenLogprob>, token_ids: Vec<u32> },
    /// More of a reasoning model's thinking before the answer.
    Reasoning { choice: usize, text: String },
    /// The opening of a tool call (`id` and `name` present), or more of its arguments.
    ToolCall { choice: usize, call: usize, id: Option<String>, name: Option<String>, arguments: String },
    /// A choice has ended.
    Finished { choice: usize, reason: FinishReason },
    /// Every choice has ended.
    Done { usage: Usage, timings: Timings },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-text token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    ToolCalls,
    /// A hosted model's provider withheld the rest.
    ContentFilter,
}

impl FinishReason {
    /// The word that the OpenAI contract uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// A token with its log-probability under the model's own distribution, before temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token_id: u32,
    /// Lossy text of the token; `bytes` is exact.
    pub text: String,
    pub bytes: Vec<u8>,
    /// `None` for the first token of an echoed prompt, which nothing predicts.
    pub logprob: Option<f32>,
    /// The likeliest alternatives, best first.
    pub top: Vec<TopLogprob>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    pub token_id: u32,
    pub text: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// How many of the prompt tokens came from the prefix cache.
    pub cached_tokens: usize,
    /// How many of the completion tokens were thinking.
    pub reasoning_tokens: usize,
}

impl Usage {
    pub fn total_tokens(&self) -> usize {
        self.prompt_tokens + self.completion_tokens
    }
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Waiting for admission to the batch.
    pub queue: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// The request's share of the steps it took part in.
    pub compute: Duration,
}

/// Texts to embed; the answer keeps their order.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    pub account: Arc<Account>,
    pub inputs: Vec<EmbedInput>,
    /// What the texts are, for models that prefix queries or passages.
    pub input_type: EmbedInputType,
    /// Keep this many leading dimensions, renormalized.
    pub dimensions: Option<usize>,
    /// Truncate texts that are too long instead of refusing them.
    pub truncate: bool,
    pub deadline: Option<Instant>,
}

#[derive(Clone, Debug)]
pub enum EmbedInput {
    Text(String),
    /// Token ids, complete with the model's own special tokens.
    Tokens(Vec<u32>),
}

impl EmbedInput {
    /// An estimate of its tokens; exact for token ids.
    pub fn estimated_tokens(&self) -> usize {
        match self {
            Self::Text(text) => quote::estimated_tokens(text.len()),
            Self::Tokens(ids) => ids.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmbedInputType {
    /// No prefix: the text as it is.
    #[default]
    Plain,
    Query,
    Passage,
}

/// One vector per input, in the order of the inputs.
#[derive(Clone, Debug)]
pub struct EmbedResponse {
    pub embeddings: Vec<Vec<f32>>,
    pub prompt_tokens: usize,
    /// The tokens of each input; empty where only their sum is known.
    pub token_counts: Vec<usize>,
    pub timings: Timings,
}

/// Texts to score by how well they answer a query.
#[derive(Clone, Debug)]
pub struct RerankRequest {
    pub account: Arc<Account>,
    pub query: String,
    pub documents: Vec<String>,
    pub deadline: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct RerankResponse {
    /// Relevance, 0 to 1, in the order of the documents.
    pub scores: Vec<f32>,
    /// Of all pairs, with the query counted in each.
    pub prompt_tokens: usize,
}

/// What `/v1/models` reports about a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub id: String,
    pub kind: ModelKind,
    /// `llama`, `qwen2`, `bert`, ...
    pub architecture: String,
    /// In tokens, prompt and answer together.
    pub context_length: usize,
    pub vocab_size: usize,
    /// Length of an embedding, for embedding models.
    pub embedding_length: Option<usize>,
    /// Number of parameters, and their storage type, such as `Q4_K`.
    pub parameters: u64,
    pub quantization: String,
    pub size_bytes: u64,
    /// Chat models: whether the template handles tools and thinking.
    pub supports_tools: bool,
    pub supports_reasoning: bool,
    /// Unix seconds at which the file was last modified.
    pub created: u64,
    /// A hash of what the model computes with, the same for every copy of its files. Empty where only an upstream has
    /// them, and for rerank models, whose answers are not kept.
    pub fingerprint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    Chat,
    Embedding,
    Rerank,
}

/// Decides which tokens may come next. Each constrained sequence has one; the engine asks it for a mask before sampling
/// and tells it which token was sampled.
pub trait TokenConstraint: Send {
    /// Sets a bit for each token that may come next. `mask` has one bit per token id, all zero on entry,
    /// bit `i % 32` of word `i / 32`.
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String>;

    /// Records the sampled token, which the last mask allowed.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// Whether the text so far is complete and nothing can follow it: the sequence ends with [`FinishReason::Stop`].
    fn is_finished(&mut self) -> bool;
}
