//! The stream that a caller reads: engine events in, the provider's events out.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, StreamExt};
use hearth_domain::{FinishReason, GenerateEvent, TokenLogprob, Usage, error::Result, usage::UsageRecord};
use hearth_text::tokenizer::Tokenizer;

use super::choice::{ChoiceDecoder, scored};
use crate::engine::{ScoredToken, TokenEvent, TokenStream};

/// Translates one request's tokens. Dropping it drops the engine's stream, which cancels the request.
pub(super) struct LocalAnswer {
    tokens: TokenStream,
    choices: Vec<ChoiceDecoder>,
    /// Translated events that have not been read.
    ready: VecDeque<GenerateEvent>,
    prompt: PromptFacts,
    cached_tokens: usize,
}

/// What the answer reports about the prompt.
pub(super) struct PromptFacts {
    pub(super) num_tokens: usize,
    pub(super) echo: Option<Echo>,
    pub(super) tokenizer: Tokenizer,
    /// Where the final counts are recorded.
    pub(super) record: UsageRecord,
}

/// The prompt, to be echoed before the answer.
pub(super) struct Echo {
    pub(super) text: String,
    pub(super) token_ids: Vec<u32>,
}

impl LocalAnswer {
    pub(super) fn new(tokens: TokenStream, choices: Vec<ChoiceDecoder>, prompt: PromptFacts) -> Self {
        Self { tokens, choices, ready: VecDeque::new(), prompt, cached_tokens: 0 }
    }

    fn translate(&mut self, event: TokenEvent) {
        match event {
            TokenEvent::Prefilled { cached_tokens, prompt_logprobs } => {
                self.cached_tokens = cached_tokens;
                self.ready.push_back(GenerateEvent::Prefilled { prompt_tokens: self.prompt.num_tokens, cached_tokens });
                self.echo(prompt_logprobs.unwrap_or_default());
            }
            TokenEvent::Token { choice, id, logprob, top } => {
                let Some(translated) = self.choices.get_mut(choice) else { return };
                if translated.push(id, logprob, &top, &mut self.ready) {
                    self.tokens.finish_choice(choice);
                }
            }
            TokenEvent::Finished { choice, reason, stop_token: _ } => {
                if let Some(translated) = self.choices.get_mut(choice) {
                    translated.finish(reason, &mut self.ready);
                }
            }
            TokenEvent::Done { timings } => {
                for choice in &mut self.choices {
                    choice.finish(FinishReason::Stop, &mut self.ready);
                }
                let usage = Usage {
                    prompt_tokens: self.prompt.num_tokens,
                    completion_tokens: self.choices.iter().map(|choice| choice.completion_tokens).sum(),
                    cached_tokens: self.cached_tokens,
                    reasoning_tokens: self.choices.iter().map(|choice| choice.reasoning_tokens).sum(),
                };
                self.prompt.record.set_usage(&usage);
                if let Some(meter) = self.prompt.record.meter() {
                    self.choices.iter().for_each(|choice| meter.add_violations(&choice.violations()));
                }
                self.ready.push_back(GenerateEvent::Done { usage, timings });
            }
        }
    }

    fn echo(&mut self, scores: Vec<ScoredToken>) {
        let Some(Echo { text, token_ids }) = self.prompt.echo.take() else { return };
        let logprobs: Vec<TokenLogprob> =
            scores.iter().map(|token| scored(&self.prompt.tokenizer, token.id, token.logprob, &token.top)).collect();
        for choice in 0..self.choices.len() {
            self.ready.push_back(GenerateEvent::Echo {
                choice,
                text: text.clone(),
                logprobs: logprobs.clone(),
                token_ids: token_ids.clone(),
            });
        }
    }
}

impl Stream for LocalAnswer {
    type Item = Result<GenerateEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(self.tokens.poll_next_unpin(context)) {
                Some(Ok(event)) => self.translate(event),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
