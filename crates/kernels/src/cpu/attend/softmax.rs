//! Scores of one row in one chunk to weights: one maximum, one exponential pass and one sum for all its tokens.
//!
//! The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867): when a chunk raises the row's maximum,
//! what was added before is scaled down.

use std::ops::Range;

use super::state::RowState;
use crate::cpu::{
    elementary::{exponential, hyperbolic_tangent},
    lanes::{LANES, Lanes},
};

/// Sixteen lanes of it, from the right place, are an upper bound that hides some lanes at the start or at the end.
static BOUNDS: [f32; 3 * LANES] = {
    let mut bounds = [f32::NEG_INFINITY; 3 * LANES];
    let mut at = LANES;
    while at < 2 * LANES {
        bounds[at] = f32::INFINITY;
        at += 1;
    }
    bounds
};

/// Turns the scores of the tokens `visible` (not empty) into weights, in place, and adds them to the row's total.
///
/// Scores of hidden tokens, NaN included, change nothing. Of the weights, only those of visible tokens are defined.
///
/// # Safety
/// The vectors that hold the visible tokens' scores can be read and written.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes>(
    lanes: L,
    scores: *mut f32,
    visible: Range<usize>,
    softcap: Option<f32>,
    row: &mut RowState<'_>,
) {
    let vectors = visible.start / LANES..visible.end.div_ceil(LANES);
    if let Some(cap) = softcap {
        for vector in vectors.clone() {
            // SAFETY: as the caller says.
            unsafe {
                let score = lanes.load_f(scores.add(vector * LANES));
                let tanh = hyperbolic_tangent(lanes, lanes.mul(score, lanes.splat_f(1.0 / cap)));
                lanes.store_f(scores.add(vector * LANES), lanes.mul(tanh, lanes.splat_f(cap)));
            }
        }
    }
    let (hidden_before, seen_in_last) = (visible.start % LANES, visible.end % LANES);
    if hidden_before != 0 {
        // SAFETY: the row has this vector.
        unsafe { bound(lanes, scores.add(vectors.start * LANES), LANES - hidden_before) };
    }
    if seen_in_last != 0 {
        // SAFETY: as above.
        unsafe { bound(lanes, scores.add((vectors.end - 1) * LANES), 2 * LANES - seen_in_last) };
    }
    let mut largest = lanes.splat_f(f32::NEG_INFINITY);
    for vector in vectors.clone() {
        // SAFETY: as the caller says. This argument order passes over NaN, which the weights carry on.
        largest = lanes.max(unsafe { lanes.load_f(scores.add(vector * LANES)) }, largest);
    }
    let largest = lanes.largest(largest);
    let largest = if *row.largest > largest { *row.largest } else { largest };
    // Where all scores are minus infinity, their differences to it would be NaN.
    let reference = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    if largest != *row.largest {
        if *row.largest != f32::NEG_INFINITY {
            let correction = power(lanes, *row.largest - reference);
            *row.total *= correction;
            for sum in row.sums.iter_mut() {
                *sum *= correction;
            }
        }
        *row.largest = largest;
    }
    let mut total = lanes.splat_f(0.0);
    for vector in vectors {
        // SAFETY: as the caller says.
        let score = unsafe { lanes.load_f(scores.add(vector * LANES)) };
        let weight = exponential(lanes, lanes.sub(score, lanes.splat_f(reference)));
        // SAFETY: as above.
        unsafe { lanes.store_f(scores.add(vector * LANES), weight) };
        total = lanes.add(total, weight);
    }
    *row.total += lanes.total(total);
}

/// Makes minus infinity of the lanes for which `BOUNDS` has it, from this place on.
///
/// # Safety
/// Sixteen scores can be read and written; `from` is at most two vectors.
#[inline(always)]
unsafe fn bound<L: Lanes>(lanes: L, scores: *mut f32, from: usize) {
    // SAFETY: as the caller says. This argument order makes minus infinity of a hidden NaN.
    unsafe { lanes.store_f(scores, lanes.min(lanes.load_f(scores), lanes.load_f(BOUNDS.as_ptr().add(from)))) };
}

/// `e` to the power of a number that is at most 0.
#[inline(always)]
pub(super) fn power<L: Lanes>(lanes: L, exponent: f32) -> f32 {
    let mut all = [0.0_f32; LANES];
    // SAFETY: sixteen floats of a local array.
    unsafe { lanes.store_f(all.as_mut_ptr(), exponential(lanes, lanes.splat_f(exponent))) };
    all[0]
}
