//! How many tokens a request may use, guessed before it runs: enough to keep callers to their tokens a minute, cheap
//! enough to be done for every request. What was really used is settled at the end.

use hearth_domain::{EmbedInput, EmbedRequest, GenerateRequest, ModelInfo, quote::estimated_tokens};

/// What one answer is taken to use where the request names no bound.
const ANSWER_TOKENS: u64 = 512;

/// Tokens of a generation, prompt and answers.
pub(super) fn tokens_of_generation(generation: &GenerateRequest, model: &ModelInfo) -> u64 {
    let prompt = estimated_tokens(generation.prompt.bytes()) as u64;
    let answer = generation.max_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as u64);
    // No answer is longer than what the context leaves for it.
    let answer = answer.min((model.context_length as u64).saturating_sub(prompt));
    prompt + answer.saturating_mul(generation.n as u64)
}

/// Tokens of the texts that are to be embedded.
pub(super) fn tokens_of_inputs(request: &EmbedRequest, model: &ModelInfo) -> u64 {
    let longest = if request.truncate { model.context_length as u64 } else { u64::MAX };
    let tokens = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => tokens_of_text(text),
        EmbedInput::Tokens(ids) => ids.len() as u64,
    };
    request.inputs.iter().map(|input| tokens(input).min(longest)).sum()
}

pub(super) fn tokens_of_text(text: &str) -> u64 {
    estimated_tokens(text.len()) as u64
}
