//! A request from its arrival at the engine's thread to its end: its choices, its timings and its reader.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_domain::{
    FinishReason, Timings,
    error::{Error, Result},
    usage::UsageRecord,
};

use super::{
    Submission, metrics,
    output::Output,
    request::{ScoredToken, TokenEvent},
    sampler::{Sampled, SamplingRules, SequenceSampler},
    sequence::SequenceId,
};

/// One answer of the request. The scheduler has its tokens; this is how they are chosen.
pub(super) struct OpenChoice {
    /// Absent while a step is sampling with it, and after the end.
    pub(super) sampler: Option<Box<SequenceSampler>>,
    num_generated: usize,
    finished: bool,
}

pub(super) struct OpenRequest {
    pub(super) caller: String,
    pub(super) prefix_scope: Arc<str>,
    pub(super) prompt: Arc<[u32]>,
    pub(super) choices: Vec<OpenChoice>,
    pub(super) deadline: Option<Instant>,
    /// `Some(k)`: prompt tokens are scored, with `k` alternatives.
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) prompt_scores: Vec<ScoredToken>,
    max_new_tokens: usize,
    output: Output,
    submitted: Instant,
    admitted: Option<Instant>,
    cached_tokens: usize,
    prefilled: bool,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    compute: Duration,
    record: UsageRecord,
}

impl OpenRequest {
    pub(super) fn new(submission: Submission, context_length: usize) -> Self {
        let Submission { request, output, submitted } = submission;
        let room = context_length - request.prompt.len();
        let rules = Arc::new(SamplingRules::new(&request));
        let prompt: Arc<[u32]> = request.prompt.into();
        let mut constraints = request.constraints.into_iter();
        let choices = (0..request.n)
            .map(|choice| OpenChoice {
                sampler: Some(Box::new(SequenceSampler::new(rules.clone(), &prompt, choice, constraints.next()))),
                num_generated: 0,
                finished: false,
            })
            .collect();
        Self {
            caller: request.caller,
            prefix_scope: request.prefix_scope,
            prompt_logprobs: request.prompt_logprobs.then(|| request.logprobs.unwrap_or(0)),
            prompt_scores: Vec::new(),
            max_new_tokens: request.max_new_tokens.unwrap_or(room).min(room),
            prompt,
            choices,
            deadline: request.deadline,
            output,
            submitted,
            admitted: None,
            cached_tokens: 0,
            prefilled: false,
            first_token: None,
            last_token: None,
            compute: Duration::ZERO,
            record: request.record,
        }
    }

    pub(super) fn generates(&self) -> bool {
        self.max_new_tokens > 0
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.output.is_cancelled()
    }

    /// Choices that have not ended and whose remaining tokens the reader does not want. They go on until the prompt is
    /// computed: the first choice computes it for the others.
    pub(super) fn take_unwanted(&self) -> Vec<usize> {
        if !self.prefilled {
            return Vec::new();
        }
        let mut unwanted = self.output.take_unwanted();
        unwanted.retain(|&choice| self.choices.get(choice).is_some_and(|choice| !choice.finished));
        unwanted
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.admitted.is_none()
    }

    /// Whether its sequences may take part in the next step.
    pub(super) fn has_room(&self) -> bool {
        self.output.has_room()
    }

    /// The first admission starts the prefill clock; later ones follow a preemption.
    pub(super) fn admitted(&mut self, now: Instant, cached_tokens: usize) -> bool {
        if self.admitted.is_some() {
            return false;
        }
        self.admitted = Some(now);
        self.cached_tokens = cached_tokens;
        self.record.set_prompt_tokens(self.prompt.len(), cached_tokens);
        metrics::queued(now.duration_since(self.submitted));
        true
    }

    pub(super) fn took_part(&mut self, share: Duration) {
        self.compute += share;
        self.record.record_compute(share);
    }

    /// The whole prompt has been computed. True the first time, which is when the other choices may start.
    pub(super) fn prompt_is_computed(&mut self) -> bool {
        if mem::replace(&mut self.prefilled, true) {
            return false;
        }
        let prompt_logprobs = self.prompt_logprobs.map(|_| mem::take(&mut self.prompt_scores));
        self.output.send(TokenEvent::Prefilled { cached_tokens: self.cached_tokens, prompt_logprobs });
        true
    }

    /// Delivers a sampled token to the reader. Returns the token if the choice continues after it.
    pub(super) fn sampled(&mut self, choice: usize, sampled: Sampled, now: Instant) -> Option<u32> {
        if sampled.ends {
            self.finish(choice, FinishReason::Stop, Some(sampled.token));
            return None;
        }
        match self.last_token.replace(now) {
            None => {
                self.first_token = Some(now);
                let admitted = self.admitted.unwrap_or(self.submitted);
                metrics::first_token(now.duration_since(self.submitted), now.duration_since(admitted));
            }
            Some(last) => metrics::next_token(now.duration_since(last)),
        }
        self.output.send(TokenEvent::Token { choice, id: sampled.token, logprob: sampled.logprob, top: sampled.top });
        let state = &mut self.choices[choice];
        state.num_generated += 1;
        self.record.count_token();
        if sampled.completes {
            self.finish(choice, FinishReason::Stop, None);
            None
        } else if state.num_generated >= self.max_new_tokens {
            self.finish(choice, FinishReason::Length, None);
            None
        } else {
            Some(sampled.token)
        }
    }

    pub(super) fn finish(&mut self, choice: usize, reason: FinishReason, stop_token: Option<u32>) {
        let state = &mut self.choices[choice];
        if !mem::replace(&mut state.finished, true) {
            state.sampler = None;
            self.output.send(TokenEvent::Finished { choice, reason, stop_token });
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished)
    }

    /// Sends the last event. Returns how long the request held the engine.
    pub(super) fn done(self, now: Instant) -> Duration {
        let timings = self.timings(now);
        self.record.set_timings(&timings);
        metrics::finished(timings.decode);
        self.output.send(TokenEvent::Done { timings });
        timings.prefill + timings.decode
    }

    pub(super) fn fail(self, error: Error) {
        self.output.fail(error);
    }

    fn timings(&self, now: Instant) -> Timings {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        let last_token = self.last_token.unwrap_or(first_token);
        Timings {
            queue: admitted.duration_since(self.submitted),
            prefill: first_token.duration_since(admitted),
            decode: last_token.duration_since(first_token),
            compute: self.compute,
        }
    }
}

/// Maps a scheduler sequence to its request's choice: a request's ids are consecutive, and the first is the request's
/// key.
pub(super) fn choice_of(request: SequenceId, sequence: SequenceId) -> usize {
    usize::try_from(sequence.0 - request.0).expect("a request has fewer choices than memory has bytes")
}

/// A sampled token, or why the sequence cannot go on.
pub(super) type SampleResult = Result<Sampled>;
