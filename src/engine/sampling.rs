//! From a step's logits to its sequences' next tokens and prompt scores, in parallel over sequences, on the threads
//! that computed the logits: a pool that other work can occupy would block the engine.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hearth_domain::error::Error;
use hearth_kernels::{pool, softmax::Weights};
use hearth_models::batch::LogitsWanted;
use parking_lot::Mutex;

use super::{
    open_request::SampleResult,
    request::ScoredToken,
    sampler::SequenceSampler,
    scheduler::{ScheduledSequence, ScheduledStep},
    sequence::SequenceId,
    warpers::log_softmax_of,
};

/// Fewer logits than this are not worth waking other threads for.
const PARALLEL_MIN_LOGITS: usize = 1 << 15;

/// A step's outcome for one sequence.
#[derive(Default)]
pub(super) struct StepOutcome {
    pub(super) sampler: Option<Box<SequenceSampler>>,
    /// Scores of the prompt's tokens from `first_score` on.
    pub(super) prompt_scores: Vec<ScoredToken>,
    pub(super) first_score: usize,
    /// The next token, if the step reached the sequence's end.
    pub(super) sampled: Option<SampleResult>,
}

struct Task<'a> {
    scheduled: &'a ScheduledSequence,
    rows: &'a mut [f32],
    sampler: Option<Box<SequenceSampler>>,
    prompt: Arc<[u32]>,
    prompt_logprobs: Option<usize>,
    outcome: StepOutcome,
}

/// One outcome for each of the step's sequences. `state_of` lends a sequence's sampler, which its outcome returns, its
/// prompt, and the number of alternatives per prompt score.
pub(super) fn sample(
    step: &ScheduledStep,
    mut logits: Vec<f32>,
    vocab_size: usize,
    mut state_of: impl FnMut(SequenceId) -> (Option<Box<SequenceSampler>>, Arc<[u32]>, Option<usize>),
) -> Vec<StepOutcome> {
    let total = logits.len();
    let mut rest = &mut logits[..];
    let mut tasks = Vec::with_capacity(step.sequences.len());
    for scheduled in &step.sequences {
        let num_rows = match scheduled.logits {
            LogitsWanted::None => 0,
            LogitsWanted::Last => 1,
            LogitsWanted::All => scheduled.num_tokens,
        };
        let (rows, after) = rest.split_at_mut(num_rows * vocab_size);
        rest = after;
        let (sampler, prompt, prompt_logprobs) = state_of(scheduled.id);
        tasks.push(Task { scheduled, rows, sampler, prompt, prompt_logprobs, outcome: StepOutcome::default() });
    }
    if step.sequences.len() > 1 && total >= PARALLEL_MIN_LOGITS {
        let shared: Vec<Mutex<&mut Task<'_>>> = tasks.iter_mut().map(Mutex::new).collect();
        let ran = pool::run(shared.len(), |index| shared[index].lock().run(vocab_size));
        drop(shared);
        // A task catches its sampler's panic; any other failure fails the step.
        if let Err(error) = ran {
            for task in &mut tasks {
                task.outcome.sampled = Some(Err(Error::internal(anyhow::anyhow!("sampling failed: {error}"))));
            }
        }
    } else {
        tasks.iter_mut().for_each(|task| task.run(vocab_size));
    }
    tasks.into_iter().map(|task| task.outcome).collect()
}

impl Task<'_> {
    fn run(&mut self, vocab_size: usize) {
        // A constraint is foreign code; its panic must not reach the other sequences.
        if catch_unwind(AssertUnwindSafe(|| self.choose(vocab_size))).is_err() {
            self.outcome.sampled = Some(Err(Error::internal(anyhow::anyhow!("the sampler panicked"))));
        }
        self.outcome.sampler = self.sampler.take();
    }

    fn choose(&mut self, vocab_size: usize) {
        if self.scheduled.logits == LogitsWanted::All {
            self.score_prompt(vocab_size);
        }
        let end = self.scheduled.start + self.scheduled.num_tokens;
        let reaches_end = match self.scheduled.logits {
            LogitsWanted::None => false,
            LogitsWanted::Last => true,
            LogitsWanted::All => end >= self.prompt.len(),
        };
        if let Some(sampler) = &mut self.sampler
            && reaches_end
            && self.outcome.sampled.is_none()
        {
            let last_row = self.rows.len() - vocab_size;
            self.outcome.sampled = Some(sampler.sample(&mut self.rows[last_row..]));
        }
    }

    /// The row of a prompt token scores the token after it.
    fn score_prompt(&mut self, vocab_size: usize) {
        let num_top = self.prompt_logprobs.unwrap_or(0);
        let mut weights = Weights::default();
        self.outcome.first_score = self.scheduled.start + 1;
        if self.scheduled.start == 0 {
            self.outcome.first_score = 0;
            self.outcome.prompt_scores.push(ScoredToken { id: self.prompt[0], logprob: None, top: Vec::new() });
        }
        for (row, next) in self.rows.chunks_exact(vocab_size).zip(self.scheduled.start + 1..) {
            let Some(&id) = self.prompt.get(next) else { break };
            let (logprob, top) = log_softmax_of(row, id, num_top, &mut weights);
            if logprob.is_nan() {
                let error = anyhow::anyhow!("the model's logits for prompt token {next} are undefined");
                self.outcome.sampled = Some(Err(Error::internal(error)));
                return;
            }
            self.outcome.prompt_scores.push(ScoredToken { id, logprob: Some(logprob), top });
        }
    }
}
