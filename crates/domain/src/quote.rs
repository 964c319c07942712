//! What a request would come to, without running it.

use std::time::Duration;

use super::{ModelInfo, account::ServedBy};

/// What one side that could serve a request says of it.
#[derive(Clone, Debug)]
pub struct Quote {
    pub served_by: ServedBy,
    pub model: String,
    pub prompt_tokens: usize,
    /// Counted by the model's own tokenizer, rather than estimated from the text's length.
    pub is_exact: bool,
    /// Tokens, prompt and answer together.
    pub context_length: usize,
    /// Tokens that may be generated, of all choices together.
    pub max_completion_tokens: usize,
    /// Until the request would begin to run.
    pub wait: Duration,
    /// The device's time for the prompt alone, and with the longest answer; zero where nothing has been measured yet.
    pub compute: (Duration, Duration),
    /// Why this side would not serve it, such as `context_length`.
    pub refusal: Option<&'static str>,
}

/// Bytes of English text that a token stands for, about, where no tokenizer can be asked.
pub(super) const BYTES_PER_TOKEN: usize = 4;

/// Tokens of a text of so many bytes, roughly.
pub fn estimated_tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

impl Quote {
    /// A quote of a request of so many prompt tokens and choices that asks for at most so many tokens each.
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
