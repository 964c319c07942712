//! What a request would cost, without running it.

use std::time::Duration;

use super::{ModelInfo, usage::ServedBy};

/// The quote of one backend that could serve a request.
#[derive(Clone, Debug)]
pub struct Quote {
    pub served_by: ServedBy,
    pub model: String,
    pub prompt_tokens: usize,
    /// Counted by the model's own tokenizer rather than estimated from the text's length.
    pub is_exact: bool,
    /// In tokens, prompt and answer together.
    pub context_length: usize,
    /// Tokens that may be generated, all choices together.
    pub max_completion_tokens: usize,
    /// Time until the request would start running.
    pub wait: Duration,
    /// Device time for the prompt alone, and with the longest answer; zero where nothing has been measured yet.
    pub compute: (Duration, Duration),
    /// Why this backend would not serve the request, such as `context_length`.
    pub refusal: Option<&'static str>,
}

/// Average bytes of English text per token, for when no tokenizer is available.
pub(super) const BYTES_PER_TOKEN: usize = 4;

/// An estimate of the tokens in a text of `bytes` bytes.
pub fn estimated_tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

impl Quote {
    /// A quote for a request with `prompt_tokens` prompt tokens and `choices` choices of at most `max_tokens` tokens
    /// each.
    pub fn new(
        served_by: ServedBy,
        info: &ModelInfo,
        prompt_tokens: usize,
        choices: usize,
        max_tokens: Option<usize>,
    ) -> Self {
        let room = info.context_length.saturating_sub(prompt_tokens);
        let fits = room > 0 || max_tokens == Some(0);
        Self {
            served_by,
            model: info.id.clone(),
            prompt_tokens,
            is_exact: true,
            context_length: info.context_length,
            max_completion_tokens: max_tokens.unwrap_or(room).min(room) * choices,
            wait: Duration::ZERO,
            compute: (Duration::ZERO, Duration::ZERO),
            refusal: (!fits).then_some("context_length"),
        }
    }
}
