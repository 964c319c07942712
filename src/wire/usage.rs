//! `usage` as OpenAI counts it and `timings` as llama-server names them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

/// Token counts of a generation.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    pub audio_tokens: usize,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
    pub audio_tokens: usize,
    pub accepted_prediction_tokens: usize,
    pub rejected_prediction_tokens: usize,
}

impl From<hearth_domain::Usage> for Usage {
    fn from(usage: hearth_domain::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens(),
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: usage.reasoning_tokens,
                audio_tokens: 0,
                accepted_prediction_tokens: 0,
                rejected_prediction_tokens: 0,
            },
        }
    }
}

/// Where the time went, in llama-server's names, with the wait in the queue and the compute beside them.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Timings {
    /// Prompt tokens from the prefix cache.
    pub cache_n: usize,
    /// Prompt tokens that were computed.
    pub prompt_n: usize,
    pub prompt_ms: f64,
    pub prompt_per_token_ms: f64,
    pub prompt_per_second: f64,
    /// Generated tokens.
    pub predicted_n: usize,
    pub predicted_ms: f64,
    pub predicted_per_token_ms: f64,
    pub predicted_per_second: f64,
    /// From arrival to admission to the batch.
    pub queue_ms: f64,
    /// This request's share of the steps it took part in.
    pub compute_ms: f64,
}

impl Timings {
    pub fn new(usage: &hearth_domain::Usage, timings: &hearth_domain::Timings) -> Self {
        let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let predicted_n = usage.completion_tokens;
        let (prompt_per_token_ms, prompt_per_second) = rates(prompt_n, timings.prefill);
        let (predicted_per_token_ms, predicted_per_second) = rates(predicted_n, timings.decode);
        Self {
            cache_n: usage.cached_tokens,
            prompt_n,
            prompt_ms: milliseconds(timings.prefill),
            prompt_per_token_ms,
            prompt_per_second,
            predicted_n,
            predicted_ms: milliseconds(timings.decode),
            predicted_per_token_ms,
            predicted_per_second,
            queue_ms: milliseconds(timings.queue),
            compute_ms: milliseconds(timings.compute),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    // A wall clock is not worth more than microseconds, and they print short.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Milliseconds per token and tokens per second; 0 if nothing was measured, since JSON has no infinity.
fn rates(tokens: usize, duration: Duration) -> (f64, f64) {
    #[expect(clippy::cast_precision_loss, reason = "token counts stay far below 2^52")]
    let tokens = tokens as f64;
    let seconds = duration.as_secs_f64();
    if tokens == 0.0 || seconds == 0.0 { (0.0, 0.0) } else { (seconds * 1e3 / tokens, tokens / seconds) }
}
