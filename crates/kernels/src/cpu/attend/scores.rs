//! Queries times keys: the scores of a few rows over a few blocks of tokens.
//!
//! A score is one chain of multiply-adds over the dimensions, from the first, and is then scaled.

use super::{
    CHUNK,
    element::Element,
    shape::{Ahead, ShapedKernel},
};
use crate::{
    cpu::lanes::{LANES, Lanes},
    kv::BLOCK_TOKENS,
};

/// The scores of `R` rows over all tokens of `keys`.
pub(super) struct Scores<'a, E> {
    /// `[head_dim][R]`
    pub queries: *const f32,
    /// Blocks, `[head_dim][BLOCK_TOKENS]` each.
    pub keys: &'a [*const E],
    /// As many blocks that will be read soon.
    pub ahead: Ahead<'a>,
    pub head_dim: usize,
    pub scale: f32,
    /// Where the first block's scores go: `[R][CHUNK]`.
    pub scores: *mut f32,
}

impl<E: Element> ShapedKernel for Scores<'_, E> {
    #[inline(always)]
    fn run<L: Lanes, const R: usize, const V: usize>(self, lanes: L) {
        let Self { queries, keys, ahead, head_dim, scale, scores } = self;
        let scale = lanes.splat_f(scale);
        for first in (0..keys.len()).step_by(V) {
            // The last call repeats the last block in place of those that there are not.
            let mut block = [0; V];
            let mut key = [keys[0]; V];
            for v in 0..V {
                block[v] = (first + v).min(keys.len() - 1);
                key[v] = keys[block[v]];
            }
            let mut sums = [[lanes.splat_f(0.0); V]; R];
            for d in 0..head_dim {
                let mut vectors = [lanes.splat_f(0.0); V];
                for v in 0..V {
                    ahead.fetch(block[v], d);
                    // SAFETY: a block has `head_dim` times sixteen keys.
                    vectors[v] = unsafe { E::load(lanes, key[v].add(d * BLOCK_TOKENS)) };
                }
                for r in 0..R {
                    // SAFETY: there are `head_dim` times `R` floats of queries.
                    let query = lanes.splat_f(unsafe { *queries.add(d * R + r) });
                    for v in 0..V {
                        sums[r][v] = lanes.fma(query, vectors[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: each row has room for `CHUNK` scores, and the blocks are within one chunk.
                    unsafe { lanes.store_f(scores.add(r * CHUNK + block[v] * LANES), lanes.mul(sums[r][v], scale)) };
                }
            }
        }
    }
}
