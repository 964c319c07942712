//! From a row of logits to a token.
//!
//! The order is fixed and documented because it changes the text: logit bias, constraint mask, penalties,
//! temperature, then top-k, typical-p, top-p and min-p, each on what the one before left, with the semantics
//! of the `transformers` library's logits warpers. Temperature 0 takes the likeliest token, the lowest id
//! among equals. Log-probabilities are of the model's own distribution, before all of this.
//!
//! Each sequence draws from its own generator, seeded by the request's seed and the choice's number, and
//! exactly once per token; so the same seed gives the same text whatever else is in the batch.

use std::{cell::RefCell, cmp::Ordering, collections::BinaryHeap, sync::Arc};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{logits_processors::TokenCounts, request::SequenceRequest};
use crate::{
    domain::{SamplingParams, TokenConstraint},
    error::{Error, Result},
};

/// What all choices of a request have in common.
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

/// One choice's way of choosing, with everything that its past tokens have changed.
pub(super) struct SequenceSampler {
    rules: Arc<SamplingRules>,
    generator: ChaCha8Rng,
    counts: TokenCounts,
    constraint: Option<Box<dyn TokenConstraint>>,
    num_generated: usize,
}

thread_local! {
    /// Buffers that are as long as the vocabulary, one set for each thread that samples.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    /// The model's own logits, when log-probabilities are asked for.
    raw: Vec<f32>,
    mask: Vec<u32>,
    candidates: Vec<Candidate>,
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

    /// Chooses the next token. `logits` is the model's row, which is used up.
    ///
    /// # Errors
    /// Logits that are no distribution, or a constraint that allows nothing.
    pub(super) fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled> {
        check_logits(logits)?;
        SCRATCH.with_borrow_mut(|scratch| {
            let rules = self.rules.clone();
            if rules.logprobs.is_some() {
                scratch.raw.clear();
                scratch.raw.extend_from_slice(logits);
            }
            for &(token, bias) in &rules.params.logit_bias {
                logits[token as usize] += bias;
            }
            self.constrain(logits, &mut scratch.mask)?;
            self.mask_early_end(logits);
            self.counts.apply(&rules.params, logits);
            let uniform = self.generator.random::<f64>();
            let token = choose(logits, &rules.params, uniform, &mut scratch.candidates).ok_or_else(nothing_allowed)?;
            let (logprob, top) = match rules.logprobs {
                Some(num_top) => {
                    let (logprob, top) = log_softmax_of(&scratch.raw, token, num_top);
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

    /// Before `min_new_tokens` nothing ends, unless the constraint leaves nothing else.
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

    /// Takes note of a token that the text goes on with. True when the constraint is complete.
    fn accept(&mut self, token: u32) -> Result<bool> {
        self.num_generated += 1;
        self.counts.add(token);
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        constraint.accept(token).map_err(constraint_failed)?;
        Ok(constraint.is_finished())
    }
}

/// A model whose logits overflow or are undefined has no next token.
fn check_logits(logits: &[f32]) -> Result<()> {
    // One pass that vectorizes: a sum is NaN or infinite if a term is; minus infinity is a legal logit.
    let broken = logits.iter().fold(false, |broken, logit| broken | logit.is_nan() | (*logit == f32::INFINITY));
    if broken {
        return Err(Error::internal(anyhow::anyhow!("the model's logits are not finite")));
    }
    Ok(())
}

fn nothing_allowed() -> Error {
    Error::internal(anyhow::anyhow!("no token is allowed: the constraint, biases and the model exclude them all"))
}

fn constraint_failed(message: String) -> Error {
    Error::internal(anyhow::anyhow!("the output constraint failed: {message}"))
}

/// A token that may still be chosen, with its logit after temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl Candidate {
    /// Best first; the lower id first among equals.
    fn best_first(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// The token that `uniform`, from 0 up to but not 1, picks from the processed logits. `None` when all are
/// minus infinity.
fn choose(logits: &[f32], params: &SamplingParams, uniform: f64, candidates: &mut Vec<Candidate>) -> Option<u32> {
    if params.temperature <= 0.0 || params.top_k == 1 {
        return likeliest(logits);
    }
    top_k(logits, params.top_k, candidates);
    let highest = candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
    if highest == f32::NEG_INFINITY {
        return None;
    }
    // Shifted so that the likeliest is at 0, which neither softmax nor min-p notices.
    for candidate in candidates.iter_mut() {
        candidate.logit = (candidate.logit - highest) / params.temperature;
    }
    if params.typical_p < 1.0 {
        typical_p(candidates, params.typical_p);
    }
    if params.top_p < 1.0 {
        top_p(candidates, params.top_p);
    }
    if params.min_p > 0.0 {
        min_p(candidates, params.min_p);
    }
    draw(candidates, uniform)
}

/// The first of the highest.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best = Candidate { token: 0, logit: f32::NEG_INFINITY };
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.logit {
            best = Candidate { token, logit };
        }
    }
    (best.logit > f32::NEG_INFINITY).then_some(best.token)
}

/// Fills `candidates` with the tokens at or above the `k`-th highest logit, ties included, by id; with all
/// that are possible when `k` is 0.
fn top_k(logits: &[f32], k: usize, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    let threshold = if k == 0 || k >= logits.len() { f32::NEG_INFINITY } else { kth_highest(logits, k) };
    let possible = (0..).zip(logits).filter(|(_, logit)| **logit >= threshold && **logit > f32::NEG_INFINITY);
    candidates.extend(possible.map(|(token, &logit)| Candidate { token, logit }));
}

/// One pass with a heap of `k`; almost every logit fails the first comparison.
fn kth_highest(logits: &[f32], k: usize) -> f32 {
    let mut heap: BinaryHeap<std::cmp::Reverse<Ordered>> =
        logits[..k].iter().map(|logit| std::cmp::Reverse(Ordered(*logit))).collect();
    let mut threshold = heap.peek().map_or(f32::NEG_INFINITY, |lowest| lowest.0.0);
    for &logit in &logits[k..] {
        if logit > threshold {
            heap.pop();
            heap.push(std::cmp::Reverse(Ordered(logit)));
            threshold = heap.peek().map_or(f32::NEG_INFINITY, |lowest| lowest.0.0);
        }
    }
    threshold
}

/// A float with a total order.
#[derive(Clone, Copy)]
struct Ordered(f32);

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ordered {}

fn weight(candidate: &Candidate) -> f64 {
    f64::from(candidate.logit.exp())
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(weight).sum()
}

/// Keeps the tokens whose information is closest to the entropy, up to a mass of `p` (arXiv 2202.00666).
fn typical_p(candidates: &mut Vec<Candidate>, p: f32) {
    let total = total_weight(candidates);
    let log_total = total.ln();
    let entropy: f64 = candidates
        .iter()
        .map(|candidate| {
            let log_probability = f64::from(candidate.logit) - log_total;
            -log_probability * log_probability.exp()
        })
        .sum();
    let distance = |candidate: &Candidate| (log_total - f64::from(candidate.logit) - entropy).abs();
    candidates.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token)));
    let mut mass = 0.0;
    let last = candidates
        .iter()
        .position(|candidate| {
            mass += weight(candidate) / total;
            mass >= f64::from(p)
        })
        .unwrap_or(candidates.len() - 1);
    // Ties with the last one stay.
    let limit = distance(&candidates[last]);
    let kept = candidates.iter().position(|candidate| distance(candidate) > limit).unwrap_or(candidates.len());
    candidates.truncate(kept);
}

/// Keeps the likeliest tokens, as many as it takes to reach a mass of `p` (arXiv 1904.09751), best first.
fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    let target = f64::from(p) * total_weight(candidates);
    let mut sorted = 0;
    let mut mass = 0.0;
    // Sorts only as far as the mass reaches, a few hundred tokens as a rule.
    let mut next = 256;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let taken = next.min(rest.len());
        if taken < rest.len() {
            rest.select_nth_unstable_by(taken, Candidate::best_first);
        }
        rest[..taken].sort_unstable_by(Candidate::best_first);
        for index in sorted..sorted + taken {
            // A token stays when the mass before it is short of the target; the first always does.
            if index > 0 && mass >= target {
                candidates.truncate(index);
                return;
            }
            mass += weight(&candidates[index]);
        }
        sorted += taken;
        next *= 4;
    }
}

/// Keeps the tokens at least `p` times as likely as the likeliest.
fn min_p(candidates: &mut Vec<Candidate>, p: f32) {
    let highest = candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
    candidates.retain(|candidate| candidate.logit == highest || (candidate.logit - highest).exp() >= p);
}

/// Inverts the cumulative distribution.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let target = uniform * total_weight(candidates);
    let mut mass = 0.0;
    for candidate in candidates {
        mass += weight(candidate);
        if mass > target {
            return Some(candidate.token);
        }
    }
    // Rounding left the target at the very end.
    candidates.last().map(|candidate| candidate.token)
}

/// The log-probability of `token` and the `num_top` likeliest tokens under the softmax of `logits`.
pub(super) fn log_softmax_of(logits: &[f32], token: u32, num_top: usize) -> (f32, Vec<(u32, f32)>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from((logit - highest).exp())).sum();
    let log_total = f64::from(highest) + total.ln();
    let log_probability = |logit: f32| (f64::from(logit) - log_total) as f32;
    let mut top = Vec::new();
    if num_top > 0 {
        let num_top = num_top.min(logits.len());
        let threshold = kth_highest(logits, num_top);
        let likely = (0..).zip(logits).filter(|(_, logit)| **logit >= threshold);
        top.extend(likely.map(|(token, &logit)| Candidate { token, logit }));
        top.sort_unstable_by(Candidate::best_first);
        top.truncate(num_top);
    }
    let top = top.into_iter().map(|candidate| (candidate.token, log_probability(candidate.logit))).collect();
    (log_probability(logits[token as usize]), top)
}
