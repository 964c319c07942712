//! Attention on the CPU: one pass over a sequence's KV blocks for a tile of queries, softmax as it goes.
//!
//! A tile holds a few tokens' queries of all the heads that share one KV head, so that a key or value is loaded once
//! for all of them. The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867). Blocks are visited in
//! order of position, and a row's sums run over dimensions and tokens in one fixed order, so a row's result depends
//! neither on its tile nor on how the prompt was split.

use super::{
    elementary::{exponential, hyperbolic_tangent},
    lanes::{Kernel, LANES, Lanes, dispatch},
    quantize::Shared,
};
use crate::kv::BLOCK_TOKENS;

/// Maximum query rows per tile: enough to share loads, few enough for their sums to stay in cache.
pub const TILE_ROWS: usize = 32;

/// How keys and values are stored in memory.
pub trait Element: Copy + Sync {
    /// Loads sixteen elements as floats.
    ///
    /// # Safety
    /// Sixteen elements can be read.
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F;

    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F {
        // SAFETY: as the caller says.
        unsafe { lanes.load_f(from) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// Half floats as raw bits.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F {
        // SAFETY: as the caller says.
        unsafe { lanes.load_half(from) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        super::reference::half_to_float(self)
    }
}

/// What is the same for all tiles of a call.
#[derive(Clone, Copy)]
pub struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
}

/// A few tokens' queries of the heads that share a KV head.
pub struct Tile<'a> {
    /// Index of the tile's first token in the packed queries, and the number of tokens in the tile.
    pub first_token: usize,
    pub num_tokens: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
    pub kv_head: usize,
    pub block_table: &'a [u32],
    /// `None`: each token sees itself and the tokens before it. `Some(n)`: all see the first `n` tokens.
    pub sees: Option<usize>,
}

/// Keys of a block are `[kv_head][head_dim][BLOCK_TOKENS]`, values `[kv_head][BLOCK_TOKENS][head_dim]`.
pub fn attend<E: Element>(heads: Heads, tile: &Tile<'_>, queries: &[f32], keys: &[E], values: &[E], out: &Shared<f32>) {
    dispatch(Attend { heads, tile, queries, keys, values, out });
}

struct Attend<'a, E> {
    heads: Heads,
    tile: &'a Tile<'a>,
    /// `[tokens, n_heads, head_dim]`, as is `out`.
    queries: &'a [f32],
    keys: &'a [E],
    values: &'a [E],
    out: &'a Shared<f32>,
}

/// One query's running softmax.
#[derive(Clone, Copy)]
struct Row {
    /// Offset of its query and its result in the packed arrays.
    offset: usize,
    /// The tokens it sees, `begin..end`.
    begin: usize,
    end: usize,
    largest: f32,
    total: f32,
}

impl<E: Element> Kernel for Attend<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Heads { n_heads, n_kv_heads, head_dim, window, .. } = self.heads;
        let group = n_heads / n_kv_heads;
        let num_rows = self.tile.num_tokens * group;
        let empty = Row { offset: 0, begin: 0, end: 0, largest: f32::NEG_INFINITY, total: 0.0 };
        let mut rows = vec![empty; num_rows];
        for (index, row) in rows.iter_mut().enumerate() {
            let (token, head) = (index / group, self.tile.kv_head * group + index % group);
            row.offset = ((self.tile.first_token + token) * n_heads + head) * head_dim;
            row.end = self.tile.sees.unwrap_or(self.tile.position + token + 1);
            row.begin = window.map_or(0, |window| row.end.saturating_sub(window));
        }
        let begin = rows.iter().map(|row| row.begin).min().unwrap_or(0) / BLOCK_TOKENS;
        let end = rows.iter().map(|row| row.end).max().unwrap_or(0);
        let mut sums = vec![0.0_f32; num_rows * head_dim];
        for block in begin..end.div_ceil(BLOCK_TOKENS) {
            let first = block * BLOCK_TOKENS;
            let count = (end - first).min(BLOCK_TOKENS);
            let mut at = 0;
            while at < num_rows {
                let (rows, sums) = (&mut rows[at..], &mut sums[at * head_dim..]);
                at += match num_rows - at {
                    6.. => self.block::<L, 6>(lanes, block, count, rows, sums),
                    4..6 => self.block::<L, 4>(lanes, block, count, rows, sums),
                    2..4 => self.block::<L, 2>(lanes, block, count, rows, sums),
                    _ => self.block::<L, 1>(lanes, block, count, rows, sums),
                };
            }
        }
        for (row, sums) in rows.iter().zip(sums.chunks_exact(head_dim)) {
            // SAFETY: the row lies within `out`, which is as long as the queries, and belongs to no other tile.
            let out = unsafe { self.out.part(row.offset, head_dim) };
            let total = if row.total == 0.0 { 1.0 } else { row.total };
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum / total;
            }
        }
    }
}

impl<E: Element> Attend<'_, E> {
    /// Advances `R` rows through one block of tokens, the first `count` of which some row of the tile may see. Returns
    /// `R`.
    #[inline(always)]
    fn block<L: Lanes, const R: usize>(
        &self,
        lanes: L,
        block: usize,
        count: usize,
        rows: &mut [Row],
        sums: &mut [f32],
    ) -> usize {
        let Heads { n_kv_heads, head_dim, scale, softcap, .. } = self.heads;
        let per_head = head_dim * BLOCK_TOKENS;
        let at = (self.tile.block_table[block] as usize * n_kv_heads + self.tile.kv_head) * per_head;
        let (keys, values) = (&self.keys[at..at + per_head], &self.values[at..at + per_head]);
        let rows = &mut rows[..R];
        let queries: [&[f32]; R] = std::array::from_fn(|r| &self.queries[rows[r].offset..rows[r].offset + head_dim]);

        let mut scores = [lanes.splat_f(0.0); R];
        for d in 0..head_dim {
            // SAFETY: `d` is below `head_dim`, so sixteen keys can be read there.
            let key = unsafe { E::load(lanes, keys.as_ptr().add(d * BLOCK_TOKENS)) };
            for r in 0..R {
                scores[r] = lanes.fma(lanes.splat_f(queries[r][d]), key, scores[r]);
            }
        }

        let first = block * BLOCK_TOKENS;
        let mut weights = [[0.0_f32; LANES]; R];
        for r in 0..R {
            let row = &mut rows[r];
            let mut score = lanes.mul(scores[r], lanes.splat_f(scale));
            if let Some(cap) = softcap {
                let tanh = hyperbolic_tangent(lanes, lanes.mul(score, lanes.splat_f(1.0 / cap)));
                score = lanes.mul(tanh, lanes.splat_f(cap));
            }
            if first < row.begin || first + BLOCK_TOKENS > row.end {
                let bounds: [f32; LANES] = std::array::from_fn(|slot| {
                    if (row.begin..row.end).contains(&(first + slot)) { f32::INFINITY } else { f32::NEG_INFINITY }
                });
                // SAFETY: sixteen floats of a local array. Scores of slots outside the row's range, NaN included,
                // become minus infinity.
                score = lanes.min(score, unsafe { lanes.load_f(bounds.as_ptr()) });
            }
            let largest = lanes.largest(score);
            if largest == f32::NEG_INFINITY {
                continue;
            }
            let largest = if row.largest > largest { row.largest } else { largest };
            let weight = exponential(lanes, lanes.sub(score, lanes.splat_f(largest)));
            // SAFETY: sixteen floats of a local array.
            unsafe { lanes.store_f(weights[r].as_mut_ptr(), weight) };
            let mut total = row.total;
            if largest != row.largest {
                let correction = exponential(lanes, lanes.splat_f(row.largest - largest));
                let mut first_lane = [0.0_f32; LANES];
                // SAFETY: as above.
                unsafe { lanes.store_f(first_lane.as_mut_ptr(), correction) };
                total *= first_lane[0];
                for sum in &mut sums[r * head_dim..(r + 1) * head_dim] {
                    *sum *= first_lane[0];
                }
                row.largest = largest;
            }
            row.total = total + lanes.total(weight);
        }

        let whole = head_dim - head_dim % LANES;
        for d in (0..whole).step_by(LANES) {
            // SAFETY: each row has sixteen sums, and each token sixteen values, starting at `d`.
            let mut sum: [L::F; R] =
                std::array::from_fn(|r| unsafe { lanes.load_f(sums.as_ptr().add(r * head_dim + d)) });
            for t in 0..count {
                // SAFETY: as above.
                let value = unsafe { E::load(lanes, values.as_ptr().add(t * head_dim + d)) };
                for r in 0..R {
                    sum[r] = lanes.fma(lanes.splat_f(weights[r][t]), value, sum[r]);
                }
            }
            for r in 0..R {
                // SAFETY: as above.
                unsafe { lanes.store_f(sums.as_mut_ptr().add(r * head_dim + d), sum[r]) };
            }
        }
        for d in whole..head_dim {
            for r in 0..R {
                for t in 0..count {
                    sums[r * head_dim + d] += weights[r][t] * values[t * head_dim + d].to_f32();
                }
            }
        }
        R
    }
}

/// Converts to half floats sixteen at a time, the remainder one by one.
pub fn to_half(from: &[f32], to: &mut [u16]) {
    dispatch(ToHalf { from, to });
}

struct ToHalf<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
}

impl Kernel for ToHalf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let whole = self.from.len().min(self.to.len()) / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: both slices have sixteen elements from `at`.
            unsafe { lanes.store_half(self.to.as_mut_ptr().add(at), lanes.load_f(self.from.as_ptr().add(at))) };
        }
        for (to, from) in self.to[whole..].iter_mut().zip(&self.from[whole..]) {
            *to = half::f16::from_f32(*from).to_bits();
        }
    }
}
