//! Weights times values: what the tokens of a chunk add to the sums of a few rows.
//!
//! A sum is one chain of multiply-adds over the tokens, in ascending order. It is kept in a register for all tokens of
//! a call, and continues in the next call where it was left.

use std::ops::Range;

use super::{
    CHUNK,
    element::Element,
    shape::{Ahead, ShapedKernel},
};
use crate::{
    cpu::lanes::{LANES, Lanes},
    kv::BLOCK_TOKENS,
};

/// Adds to the sums of `R` rows.
pub(super) struct Values<'a, E> {
    /// `[R][CHUNK]`
    pub weights: *const f32,
    /// The chunk's blocks; a token's values are `stride` elements after those of the token before it.
    pub values: &'a [*const E],
    pub stride: usize,
    /// As many blocks that will be read soon, and the first dimension at hand.
    pub ahead: Ahead<'a>,
    pub dimension: usize,
    /// The vectors of sixteen dimensions to compute.
    pub vectors: Range<usize>,
    /// The tokens of the chunk to add, which all `R` rows see.
    pub tokens: Range<usize>,
    /// `[R][head_dim]`, from the first dimension at hand.
    pub sums: *mut f32,
    pub head_dim: usize,
}

impl<E: Element> ShapedKernel for Values<'_, E> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const V: usize>(self, lanes: L) {
        let Self { weights, values, stride, ahead, dimension, vectors, tokens, sums, head_dim } = self;
        for first in vectors.clone().step_by(V) {
            // The last step repeats the last vector in place of those that there are not: it loads and stores the same.
            let mut at = [0; V];
            for v in 0..V {
                at[v] = (first + v).min(vectors.end - 1) * LANES;
            }
            let mut sum = [[lanes.splat_f(0.0); V]; R];
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: the vector lies within the row's `head_dim` sums.
                    sum[r][v] = unsafe { lanes.load_f(sums.add(r * head_dim + at[v])) };
                }
            }
            let mut token = tokens.start;
            while token < tokens.end {
                let block = token / BLOCK_TOKENS;
                let base = values[block];
                let end = tokens.end.min((block + 1) * BLOCK_TOKENS);
                for token in token..end {
                    let slot = token % BLOCK_TOKENS;
                    let mut vector = [lanes.splat_f(0.0); V];
                    for v in 0..V {
                        ahead.fetch(block, dimension + at[v] + slot);
                        // SAFETY: the block has the token's values, and the vector lies within them.
                        vector[v] = unsafe { E::load(lanes, base.add(slot * stride + at[v])) };
                    }
                    for r in 0..R {
                        // SAFETY: each row has `CHUNK` weights.
                        let weight = lanes.splat_f(unsafe { *weights.add(r * CHUNK + token) });
                        for v in 0..V {
                            sum[r][v] = lanes.fma(weight, vector[v], sum[r][v]);
                        }
                    }
                }
                token = end;
            }
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: as above.
                    unsafe { lanes.store_f(sums.add(r * head_dim + at[v]), sum[r][v]) };
                }
            }
        }
    }
}
