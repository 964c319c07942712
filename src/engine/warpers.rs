//! Narrows a distribution and draws from it.
//!
//! Top-k, typical-p, top-p and min-p, in that order, with the semantics of the `transformers` library's logits warpers;
//! a committed fixture of its results checks them. Nothing here sorts a whole vocabulary where a part will do, no scalar exponential is
//! taken of one, and nothing allocates once its buffers have grown.

use std::{cmp::Ordering, collections::BinaryHeap};

use hearth_domain::SamplingParams;
use hearth_kernels::softmax::{NotFinite, Weights, maximum};

/// A token that may still be chosen, with its logit after temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
}

impl Candidate {
    /// Best first; the lower id first among equals.
    fn best_first(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Buffers that grow to the length of the vocabulary.
#[derive(Default)]
pub(super) struct Buffers {
    candidates: Vec<Candidate>,
    weights: Weights,
}

impl Buffers {
    pub(super) fn weights(&mut self) -> &mut Weights {
        &mut self.weights
    }
}

/// The token that `uniform`, from 0 inclusive to 1 exclusive, picks from the processed logits. `None` when all are
/// minus infinity.
///
/// # Errors
/// If a logit is NaN or plus infinity.
pub(super) fn choose(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    buffers: &mut Buffers,
) -> Result<Option<u32>, NotFinite> {
    let Some(kept) = narrow(logits, params, buffers)? else { return Ok(None) };
    Ok(match kept {
        Kept::Likeliest(token) => Some(token),
        Kept::All => buffers.weights.find(uniform * buffers.weights.total()).map(|token| token as u32),
        Kept::Candidates => draw(&buffers.candidates, uniform),
    })
}

/// What may be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// This token alone.
    Likeliest(u32),
    /// Every token, by [`Buffers::weights`].
    All,
    /// [`Buffers::candidates`], whose logits are after temperature and shifted so that the highest is 0.
    Candidates,
}

/// Narrows the distribution. `None` when all logits are minus infinity.
fn narrow(
    logits: &[f32],
    params: &SamplingParams,
    Buffers { candidates, weights }: &mut Buffers,
) -> Result<Option<Kept>, NotFinite> {
    let Some(highest) = maximum(logits)? else { return Ok(None) };
    if params.temperature <= 0.0 {
        return Ok(Some(Kept::Likeliest(highest.index as u32)));
    }
    // The sum over all tokens, where top-p needs it of more tokens than the candidates.
    let mut total = None;
    if params.top_k != 0 || params.typical_p < 1.0 {
        top_k(logits, params.top_k, candidates);
    } else {
        weights.fill(logits, highest.value, params.temperature);
        total = Some(weights.total());
        let Some(least) = least_weight(params, weights.total(), logits.len()) else { return Ok(Some(Kept::All)) };
        candidates.clear();
        let likely = (0..).zip(logits).zip(weights.as_slice()).filter(|(_, weight)| **weight >= least);
        candidates.extend(likely.map(|((token, &logit), _)| Candidate { token, logit }));
    }
    // The likeliest is at 0 from here on, which changes neither softmax nor min-p.
    for candidate in candidates.iter_mut() {
        candidate.logit = (candidate.logit - highest.value) / params.temperature;
    }
    if params.typical_p < 1.0 {
        typical_p(candidates, params.typical_p);
    }
    if params.top_p < 1.0 {
        let total = total.unwrap_or_else(|| total_weight(candidates));
        top_p(candidates, f64::from(params.top_p) * total);
    }
    if params.min_p > 0.0 {
        min_p(candidates, params.min_p);
    }
    Ok(Some(Kept::Candidates))
}

/// The weight below which neither top-p nor min-p keeps a token; `None` if they keep all. The likeliest token's weight is 1.
fn least_weight(params: &SamplingParams, total: f64, vocab_size: usize) -> Option<f32> {
    // A little less than the formulas say, because they are computed in another way here.
    const MARGIN: f64 = 0.999;
    // All tokens below this weight together have less than the mass that top-p leaves out.
    let by_top_p = (params.top_p < 1.0).then(|| (1.0 - f64::from(params.top_p)) * total / vocab_size as f64);
    let by_min_p = (params.min_p > 0.0).then(|| f64::from(params.min_p));
    let least = by_top_p.into_iter().chain(by_min_p).reduce(f64::max)?;
    Some(((least * MARGIN) as f32).clamp(f32::MIN_POSITIVE, 1.0))
}

/// Fills `candidates` with the tokens at or above the `k`-th highest logit, ties included, by id; with all possible
/// tokens when `k` is 0.
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
        .unwrap_or(candidates.len().saturating_sub(1));
    // Ties with the last one stay.
    let Some(limit) = candidates.get(last).map(distance) else { return };
    let kept = candidates.iter().position(|candidate| distance(candidate) > limit).unwrap_or(candidates.len());
    candidates.truncate(kept);
}

/// Keeps the likeliest tokens, as many as it takes to reach this mass (arXiv 1904.09751), best first.
fn top_p(candidates: &mut Vec<Candidate>, target: f64) {
    let mut sorted = 0;
    let mut mass = 0.0;
    // Sorts only as far as the mass reaches, usually a few hundred tokens.
    let mut next = 256;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let taken = next.min(rest.len());
        if taken < rest.len() {
            rest.select_nth_unstable_by(taken, Candidate::best_first);
        }
        rest[..taken].sort_unstable_by(Candidate::best_first);
        for index in sorted..sorted + taken {
            // A token stays if the mass before it is below the target; the first always does.
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
pub(super) fn log_softmax_of(
    logits: &[f32],
    token: u32,
    num_top: usize,
    weights: &mut Weights,
) -> (f32, Vec<(u32, f32)>) {
    // Undefined logits have undefined log-probabilities.
    let highest =
        maximum(logits).map_or(f32::NAN, |highest| highest.map_or(f32::NEG_INFINITY, |highest| highest.value));
    weights.fill(logits, highest, 1.0);
    let log_total = f64::from(highest) + weights.total().ln();
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

#[cfg(test)]
mod tests;
