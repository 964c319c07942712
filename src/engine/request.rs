//! What goes into the engine and what comes out of it.
//!
//! An error before the stream is a [`SubmitError`]; an error within it ends it. A stream ends exactly once, with
//! [`TokenEvent::Done`] or with an error. Its buffer is bounded: when a reader falls behind, its sequences pause while
//! the others go on, and reading resumes them.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
        mpsc::SyncSender,
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::Stream;
use hearth_domain::{
    FinishReason, SamplingParams, Timings, TokenConstraint,
    error::{Error, ErrorKind, Result},
    usage::UsageRecord,
};
use parking_lot::Mutex;
use thiserror::Error as ThisError;
use tokio::sync::mpsc;

use super::{Command, EngineConfig, EngineState};

/// A prompt and how to continue it.
pub struct SequenceRequest {
    /// At least one token.
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
    /// Generated tokens per choice; `None` means "to the end of the context". 0 computes (and scores) the
    /// prompt only.
    pub max_new_tokens: Option<usize>,
    /// No end or stop token is sampled before this many tokens.
    pub min_new_tokens: usize,
    /// The model's end-of-generation tokens.
    pub end_tokens: Arc<[u32]>,
    /// Continue past `end_tokens`; `stop_tokens` still end a choice.
    pub ignore_eos: bool,
    /// The caller's own stop tokens.
    pub stop_tokens: Vec<u32>,
    /// `Some(k)`: report each token's log-probability and the `k` likeliest alternatives.
    pub logprobs: Option<usize>,
    /// Score the prompt's tokens too; they come with [`TokenEvent::Prefilled`].
    pub prompt_logprobs: bool,
    /// One for each choice, or none.
    pub constraints: Vec<Box<dyn TokenConstraint>>,
    /// The key of fair scheduling: the engine is shared between callers.
    pub caller: String,
    /// Requests of one scope share the KV blocks of common prefixes.
    pub prefix_scope: Arc<str>,
    /// Where the request's share of each step, and its tokens, are recorded.
    pub record: UsageRecord,
    /// The request ends with an error at this instant, whatever its state.
    pub deadline: Option<Instant>,
    /// Choices, at least 1. The prompt is computed once and its blocks are shared.
    pub n: usize,
}

impl SequenceRequest {
    /// One unconstrained choice with the default sampling parameters.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            max_new_tokens: None,
            min_new_tokens: 0,
            end_tokens: Arc::from([]),
            ignore_eos: false,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: false,
            constraints: Vec::new(),
            caller: String::new(),
            prefix_scope: Arc::from(""),
            record: UsageRecord::default(),
            deadline: None,
            n: 1,
        }
    }

    pub(super) fn validate(&self, config: &EngineConfig, vocab_size: usize) -> Result<(), SubmitError> {
        if self.prompt.is_empty() {
            return Err(SubmitError::Invalid("The prompt has no tokens; send at least one.".to_owned()));
        }
        if self.n == 0 {
            return Err(SubmitError::Invalid("n is 0; ask for at least one choice.".to_owned()));
        }
        if !self.constraints.is_empty() && self.constraints.len() != self.n {
            let (found, needed) = (self.constraints.len(), self.n);
            return Err(SubmitError::Invalid(format!("{found} constraints for {needed} choices; one each or none.")));
        }
        if let Some(token) = self.prompt.iter().find(|token| **token as usize >= vocab_size) {
            return Err(SubmitError::Invalid(format!(
                "Token id {token} of the prompt is outside the vocabulary of {vocab_size} tokens."
            )));
        }
        if let Some((token, _)) = self.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
            return Err(SubmitError::Invalid(format!(
                "Token id {token} of logit_bias is outside the vocabulary of {vocab_size} tokens."
            )));
        }
        self.validate_sampling()?;
        let prompt = self.prompt.len();
        let needed = prompt + usize::from(self.max_new_tokens != Some(0));
        if needed > config.context_length {
            return Err(SubmitError::ContextLengthExceeded { prompt, n_ctx: config.context_length });
        }
        // The last token of an answer is not computed, so a prompt that fills the cache can still get one token.
        if prompt > config.cache_tokens() {
            return Err(SubmitError::CacheTooSmall { prompt, cache_tokens: config.cache_tokens() });
        }
        Ok(())
    }

    /// Whatever the layers above have checked, a number that makes logits undefined is refused here.
    fn validate_sampling(&self) -> Result<(), SubmitError> {
        let params = &self.sampling;
        let ranges = [
            ("temperature", params.temperature, 0.0, f32::MAX),
            ("top_p", params.top_p, 0.0, 1.0),
            ("min_p", params.min_p, 0.0, 1.0),
            ("typical_p", params.typical_p, 0.0, 1.0),
            ("repetition_penalty", params.repetition_penalty, f32::MIN_POSITIVE, f32::MAX),
            ("frequency_penalty", params.frequency_penalty, f32::MIN, f32::MAX),
            ("presence_penalty", params.presence_penalty, f32::MIN, f32::MAX),
        ];
        let biases = params.logit_bias.iter().map(|(_, bias)| ("logit_bias", *bias, f32::MIN, f32::MAX));
        match ranges.into_iter().chain(biases).find(|(_, value, low, high)| !(*low..=*high).contains(value)) {
            Some((name, value, low, high)) => {
                Err(SubmitError::Invalid(format!("{name} is {value}; it must be a number from {low} to {high}.")))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Debug for SequenceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequenceRequest")
            .field("prompt_tokens", &self.prompt.len())
            .field("sampling", &self.sampling)
            .field("max_new_tokens", &self.max_new_tokens)
            .field("n", &self.n)
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// A stream's event. The order per choice is tokens, then `Finished`; `Prefilled` precedes them all and `Done` follows.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// The prompt has been computed, all but its first `cached_tokens` now.
    Prefilled {
        cached_tokens: usize,
        /// With `prompt_logprobs`: one for each prompt token, the first without a score.
        prompt_logprobs: Option<Vec<ScoredToken>>,
    },
    /// One more token of a choice. End and stop tokens are not among them.
    Token {
        choice: usize,
        id: u32,
        /// With `logprobs`: of the model's own distribution, before any bias, penalty or temperature.
        logprob: Option<f32>,
        /// With `logprobs`: the likeliest tokens, best first.
        top: Vec<(u32, f32)>,
    },
    Finished {
        choice: usize,
        reason: FinishReason,
        /// The end or stop token that was sampled, if one was.
        stop_token: Option<u32>,
    },
    /// Every choice has ended.
    Done { timings: Timings },
}

/// A prompt token under the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    pub id: u32,
    /// `None` for the first token, which nothing predicts.
    pub logprob: Option<f32>,
    /// The likeliest tokens at this position, best first; as many as `logprobs` asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a request was refused before any work.
#[derive(Clone, Debug, PartialEq, ThisError)]
pub enum SubmitError {
    #[error("the queue is full with {waiting} waiting requests; a place is expected in {retry_after:?}")]
    QueueFull { waiting: usize, retry_after: Duration },
    #[error("the prompt has {prompt} tokens, the context {n_ctx}, and at least one token must be left to generate")]
    ContextLengthExceeded { prompt: usize, n_ctx: usize },
    #[error("the prompt has {prompt} tokens and the KV cache holds {cache_tokens}")]
    CacheTooSmall { prompt: usize, cache_tokens: usize },
    #[error("the server is shutting down")]
    Draining,
    #[error("the engine has stopped")]
    Stopped,
    #[error("{0}")]
    Invalid(String),
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { retry_after, .. } => {
                Self::new(ErrorKind::Overloaded, "The queue is full; retry after the time in Retry-After.")
                    .with_retry_after(retry_after)
            }
            SubmitError::ContextLengthExceeded { prompt, n_ctx } => {
                Self::context_length_exceeded(prompt, n_ctx, "prompt")
            }
            SubmitError::CacheTooSmall { prompt, cache_tokens } => {
                Self::context_length_exceeded(prompt, cache_tokens, "prompt")
            }
            SubmitError::Draining => {
                Self::new(ErrorKind::Draining, "The server is shutting down; retry on another instance or later.")
            }
            SubmitError::Stopped => {
                Self::new(ErrorKind::Unavailable, "The engine has stopped; the server's log has the cause. Restart it.")
            }
            SubmitError::Invalid(message) => Self::new(ErrorKind::InvalidRequest, message),
        }
    }
}

/// The state of a stream that the reader and the engine's thread share.
#[derive(Default)]
pub(super) struct StreamSide {
    /// The engine waits for the reader; the next read must wake it.
    pub(super) paused: AtomicBool,
    /// Choices whose remaining tokens the reader does not want.
    pub(super) unwanted: Mutex<Vec<usize>>,
}

/// A request's events. Dropping it cancels the request.
pub struct TokenStream {
    receiver: mpsc::Receiver<Result<TokenEvent>>,
    side: Arc<StreamSide>,
    commands: SyncSender<Command>,
    shared: Arc<EngineState>,
    ended: bool,
}

impl fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl TokenStream {
    pub(super) fn new(
        receiver: mpsc::Receiver<Result<TokenEvent>>,
        side: Arc<StreamSide>,
        commands: SyncSender<Command>,
        shared: Arc<EngineState>,
    ) -> Self {
        Self { receiver, side, commands, shared, ended: false }
    }

    /// The next event, for callers outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Result<TokenEvent>> {
        if self.ended {
            return None;
        }
        let event = self.receiver.blocking_recv();
        self.received(event)
    }

    /// Ends one choice, of which the reader has seen enough: a stop string is found in text, which the engine does not
    /// know. Tokens of the choice may still arrive; `Finished` follows them.
    pub fn finish_choice(&self, choice: usize) {
        self.side.unwanted.lock().push(choice);
        self.wake();
    }

    fn received(&mut self, event: Option<Result<TokenEvent>>) -> Option<Result<TokenEvent>> {
        fence(Ordering::SeqCst);
        if self.side.paused.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        match event {
            Some(event) => {
                self.ended = matches!(event, Ok(TokenEvent::Done { .. }) | Err(_));
                Some(event)
            }
            // The engine's thread is gone: an end without `Done` must not look like a finished answer.
            None => {
                self.ended = true;
                Some(Err(if self.shared.draining.load(Ordering::Acquire) {
                    // It was on its way into the queue when the thread ended.
                    SubmitError::Draining.into()
                } else {
                    Error::internal(anyhow::anyhow!("the engine's thread ended with requests open"))
                }))
            }
        }
    }

    fn wake(&self) {
        self.shared.wake(&self.commands);
    }
}

impl Stream for TokenStream {
    type Item = Result<TokenEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.receiver.poll_recv(context).map(|event| self.received(event))
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.receiver.close();
        if !self.ended {
            self.wake();
        }
    }
}
