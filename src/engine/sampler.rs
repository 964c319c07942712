//! From a row of logits to a token.
//!
//! The order is fixed and documented because it changes the text: logit bias, constraint mask, penalties, temperature,
//! then top-k, typical-p, top-p and min-p, each on the result of the one before, with the semantics of the
//! `transformers` library's logits warpers. Temperature 0 takes the likeliest token, the lowest id among equals.
//! Log-probabilities are of the model's own distribution, before all of this.
//!
//! Each sequence draws from its own generator, seeded by the request's seed and the choice's number, and exactly once
//! per token; so the same seed gives the same text whatever else is in the batch.

use std::{cell::RefCell, sync::Arc};

use hearth_domain::{
    SamplingParams, TokenConstraint,
    error::{Error, ErrorKind, Result},
};
use hearth_kernels::softmax::{NotFinite, maximum};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    logits_processors::TokenCounts,
    request::SequenceRequest,
    warpers::{Buffers, choose, log_softmax_of},
};

/// What all choices of a request share.
#[derive(Debug)]
pub(super) struct SamplingRules {
    params: SamplingParams,
    min_new_tokens: usize,
    /// All tokens that end a choice, sorted.
    ending: Vec<u32>,
    logprobs: Option<usize>,
    seed: [u8; 8],
}

impl SamplingRules {
    pub(super) fn new(request: &SequenceRequest) -> Self {
        let mut ending = request.stop_tokens.clone();
        if !request.ignore_eos {
            ending.extend_from_slice(&request.end_tokens);
        }
        ending.sort_unstable();
        ending.dedup();
        Self {
            params: request.sampling.clone(),
            min_new_tokens: request.min_new_tokens,
            ending,
            logprobs: request.logprobs,
            seed: request.sampling.seed.map_or_else(rand::random, i64::to_le_bytes),
        }
    }
}

/// What was sampled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sampled {
    pub(super) token: u32,
    pub(super) logprob: Option<f32>,
    pub(super) top: Vec<(u32, f32)>,
    /// It is an end or stop token.
    pub(super) ends: bool,
    /// Nothing can follow it under the sequence's constraint.
    pub(super) completes: bool,
}

/// One choice's sampling state, including the effect of its past tokens.
pub(super) struct SequenceSampler {
    rules: Arc<SamplingRules>,
    generator: ChaCha8Rng,
    counts: TokenCounts,
    constraint: Option<Box<dyn TokenConstraint>>,
    num_generated: usize,
}

thread_local! {
    /// Buffers of vocabulary length, one set per sampling thread.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    /// The model's own logits, when log-probabilities are asked for.
    raw: Vec<f32>,
    mask: Vec<u32>,
    buffers: Buffers,
}

impl SequenceSampler {
    pub(super) fn new(
        rules: Arc<SamplingRules>,
        prompt: &[u32],
        choice: usize,
        constraint: Option<Box<dyn TokenConstraint>>,
    ) -> Self {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&rules.seed);
        seed[8..16].copy_from_slice(&(choice as u64).to_le_bytes());
        let counts = TokenCounts::new(&rules.params, prompt);
        Self { rules, generator: ChaCha8Rng::from_seed(seed), counts, constraint, num_generated: 0 }
    }

    /// Chooses the next token. `logits` is the model's row, which is overwritten.
    ///
    /// # Errors
    /// Logits that are not a distribution, or a constraint that allows nothing.
    pub(super) fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled> {
        maximum(logits).map_err(not_finite)?;
        SCRATCH.with_borrow_mut(|scratch| {
            let rules = self.rules.clone();
            if rules.logprobs.is_some() {
                scratch.raw.clear();
                scratch.raw.extend_from_slice(logits);
            }
            for &(token, bias) in rules.params.logit_bias.iter() {
                logits[token as usize] += bias;
            }
            self.constrain(logits, &mut scratch.mask)?;
            self.mask_early_end(logits);
            self.counts.apply(&rules.params, logits);
            let uniform = self.generator.random::<f64>();
            let token = choose(logits, &rules.params, uniform, &mut scratch.buffers).map_err(not_finite)?;
            let token = token.ok_or_else(|| nothing_allowed(self.constraint.is_some()))?;
            let (logprob, top) = match rules.logprobs {
                Some(num_top) => {
                    let (logprob, top) = log_softmax_of(&scratch.raw, token, num_top, scratch.buffers.weights());
                    (Some(logprob), top)
                }
                None => (None, Vec::new()),
            };
            let ends = rules.ending.binary_search(&token).is_ok();
            let completes = !ends && self.accept(token)?;
            Ok(Sampled { token, logprob, top, ends, completes })
        })
    }

    fn constrain(&mut self, logits: &mut [f32], mask: &mut Vec<u32>) -> Result<()> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        mask.clear();
        mask.resize(logits.len().div_ceil(32), 0);
        constraint.allowed(mask).map_err(constraint_failed)?;
        for (word, logits) in mask.iter().zip(logits.chunks_mut(32)) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Before `min_new_tokens` no token may end the text, unless the constraint leaves nothing else.
    fn mask_early_end(&self, logits: &mut [f32]) {
        if self.num_generated >= self.rules.min_new_tokens {
            return;
        }
        let is_ending = |token: usize| self.rules.ending.binary_search(&(token as u32)).is_ok();
        let others = logits.iter().enumerate().any(|(token, logit)| *logit > f32::NEG_INFINITY && !is_ending(token));
        if others {
            for &token in &self.rules.ending {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Records a token that the text continues with. True when the constraint is complete.
    fn accept(&mut self, token: u32) -> Result<bool> {
        self.num_generated += 1;
        self.counts.add(token);
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        constraint.accept(token).map_err(constraint_failed)?;
        Ok(constraint.is_finished())
    }
}

/// A model whose logits overflow or are undefined has no next token.
fn not_finite(_: NotFinite) -> Error {
    Error::internal(anyhow::anyhow!("the model's logits are not finite"))
}

fn nothing_allowed(is_constrained: bool) -> Error {
    if is_constrained {
        return constraint_failed("it allows none of the model's tokens here".to_owned());
    }
    Error::internal(anyhow::anyhow!("no token is allowed: biases and the model exclude them all"))
}

/// The caller wrote the constraint, so exceeding a step's limits with it is not the server's fault.
fn constraint_failed(message: String) -> Error {
    tracing::warn!(message, "an output constraint failed");
    let message = format!(
        "The output constraint cannot be followed to its end: {message}. Simplify the schema, expression or grammar."
    );
    Error::new(ErrorKind::InvalidRequest, message)
}

#[cfg(test)]
mod tests;
