//! Attention on the CPU: the queries of a tile against their sequence's KV blocks.
//!
//! A tile holds a few tokens' queries of all the heads that share one KV head, so that a key or value is loaded once
//! for all of them. The context is cut at fixed positions, twice. In a *chunk* of 256 tokens, all scores are computed
//! (`scores.rs`), then all weights (`softmax.rs`), then the weighted sums of the values (`values.rs`): each step is a
//! loop of independent operations that is long enough for the processor to stay busy, and its intermediate results stay
//! in the cache. A *part* of 1024 tokens is finished apart from the others and merged into them in ascending order
//! (`state.rs`), so that the parts of a long context may be computed by different threads.
//!
//! What a row adds up, and in which order, depends on its position alone: not on its tile, nor on how the prompt was
//! split, nor on the threads. Hidden tokens take no part in it: their scores are replaced before they are compared, and
//! their values are not multiplied, so NaN or infinity in a slot that a row does not see leaves the row as it is.
//!
//! `attention/tiles.rs` cuts a step into tiles and parts.

mod element;
mod scores;
mod scratch;
mod shape;
mod softmax;
mod state;
#[cfg(test)]
mod tests;
mod values;

use std::ops::Range;

pub use element::{Element, to_half};
use scores::Scores;
use scratch::{Scratch, with_scratch};
use shape::{Ahead, MAX_VECTORS, rows_of_call, run_shaped};
use state::{State, state_floats};
use values::Values;

use super::{
    features::{InstructionSet, cpu_features},
    lanes::{Kernel, LANES, Lanes, dispatch, dispatch_to},
    quantize::Shared,
};
use crate::kv::BLOCK_TOKENS;

/// Rows of a tile, unless one token has more: enough that widening the keys and values costs little, few enough for
/// the scores of a chunk to stay in the second-level cache. A multiple of the rows of every kernel.
pub const TILE_ROWS: usize = 96;

/// Tokens whose scores are computed before any weight.
const CHUNK: usize = 256;
const BLOCKS_PER_CHUNK: usize = CHUNK / BLOCK_TOKENS;

/// Tokens whose state is finished apart.
pub const PART: usize = 1024;

/// Blocks of values that are added to all sums before the next ones: few enough to stay in the first-level cache, where
/// each vector of dimensions finds them again.
const BLOCKS_PER_SUM: usize = 4;

/// What is the same for all tiles of a call.
#[derive(Clone, Copy, Debug)]
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

impl Heads {
    /// Query heads that share a KV head.
    #[inline(always)]
    pub const fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

impl Tile<'_> {
    /// Query rows, in order of token, then head.
    #[inline(always)]
    pub const fn rows(&self, heads: &Heads) -> usize {
        self.num_tokens * heads.group()
    }

    /// The tokens that a row sees. Neither end decreases from row to row.
    #[inline(always)]
    fn visible(&self, heads: &Heads, row: usize) -> Range<usize> {
        let end = self.sees.unwrap_or(self.position + row / heads.group() + 1);
        heads.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The tokens that some row sees.
    #[inline(always)]
    pub fn context(&self, heads: &Heads) -> Range<usize> {
        self.visible(heads, 0).start..self.visible(heads, self.rows(heads) - 1).end
    }

    /// The parts of the context.
    #[inline(always)]
    pub fn parts(&self, heads: &Heads) -> Range<usize> {
        let context = self.context(heads);
        context.start / PART..context.end.div_ceil(PART)
    }

    /// Number of floats in the state of one part.
    pub const fn state_floats(&self, heads: &Heads) -> usize {
        state_floats(self.rows(heads), heads.head_dim)
    }
}

/// Queries, keys, values and results of a call, packed.
#[derive(Clone, Copy)]
pub struct Operands<'a, E> {
    /// `[tokens, n_heads, head_dim]`, as is `out`.
    pub queries: &'a [f32],
    /// Blocks of `[kv_head][head_dim][BLOCK_TOKENS]`.
    pub keys: &'a [E],
    /// Blocks of `[kv_head][BLOCK_TOKENS][head_dim]`.
    pub values: &'a [E],
    pub out: &'a Shared<f32>,
}

/// Computes a tile.
pub fn attend<E: Element>(heads: Heads, tile: &Tile<'_>, operands: Operands<'_, E>) {
    attend_on(cpu_features().instruction_set, heads, tile, operands);
}

fn attend_on<E: Element>(set: InstructionSet, heads: Heads, tile: &Tile<'_>, operands: Operands<'_, E>) {
    let parts = tile.parts(&heads);
    with_scratch(tile.rows(&heads), heads.head_dim, |scratch| {
        let attend = Attend { heads, tile, operands, parts, part_state: None, next_head: None, scratch };
        dispatch_to(set, attend);
    });
}

/// Computes the state of one part of a tile, for [`merge`]. `next_head` is the KV head that the thread turns to
/// afterwards, over the same tokens, if it does.
pub fn attend_part<E: Element>(
    heads: Heads,
    tile: &Tile<'_>,
    operands: Operands<'_, E>,
    part: usize,
    next_head: Option<usize>,
    state: &mut [f32],
) {
    with_scratch(tile.rows(&heads), heads.head_dim, |scratch| {
        dispatch(Attend { heads, tile, operands, parts: part..part + 1, part_state: Some(state), next_head, scratch });
    });
}

/// Makes the tile's result of the states of its parts, which lie one after the other in `states`.
pub fn merge(heads: Heads, tile: &Tile<'_>, states: &mut [f32], out: &Shared<f32>) {
    dispatch(Merge { heads, tile, states, out });
}

struct Attend<'a, E> {
    heads: Heads,
    tile: &'a Tile<'a>,
    operands: Operands<'a, E>,
    parts: Range<usize>,
    /// Where the state goes; without it the result is computed.
    part_state: Option<&'a mut [f32]>,
    /// The KV head that this thread turns to afterwards, over the same tokens.
    next_head: Option<usize>,
    scratch: Scratch<'a>,
}

impl<E: Element> Kernel for Attend<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { heads, tile, operands, parts, part_state, next_head, scratch } = self;
        let Scratch { queries, scores, keys, values, visible, part: room, merged } = scratch;
        let rows = tile.rows(&heads);
        pack_queries::<L>(&heads, tile, operands.queries, queries);
        for row in 0..rows {
            let seen = tile.visible(&heads, row);
            (visible[2 * row], visible[2 * row + 1]) = (seen.start as u32, seen.end as u32);
        }
        let mut pass = Pass { heads, tile, next_head, operands, rows, visible, queries, scores, keys, values };
        if let Some(state) = part_state {
            pass.part(lanes, parts.start, &mut State::of(state, rows, heads.head_dim));
            return;
        }
        let mut state = State::of(room, rows, heads.head_dim);
        if parts.len() == 1 {
            pass.part(lanes, parts.start, &mut state);
            finish(&heads, tile, &mut state, operands.out);
            return;
        }
        let mut merged = State::of(merged, rows, heads.head_dim);
        merged.clear();
        for part in parts {
            pass.part(lanes, part, &mut state);
            add_part(lanes, &heads, tile, part, &mut state, &mut merged);
        }
        finish(&heads, tile, &mut merged, operands.out);
    }
}

struct Merge<'a> {
    heads: Heads,
    tile: &'a Tile<'a>,
    states: &'a mut [f32],
    out: &'a Shared<f32>,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { heads, tile, states, out } = self;
        let rows = tile.rows(&heads);
        // The first part's state becomes that of all parts. A row that does not see it is copied from its own first.
        let (first, others) = states.split_at_mut(tile.state_floats(&heads));
        let mut merged = State::of(first, rows, heads.head_dim);
        for (part, state) in tile.parts(&heads).skip(1).zip(others.chunks_exact_mut(tile.state_floats(&heads))) {
            add_part(lanes, &heads, tile, part, &mut State::of(state, rows, heads.head_dim), &mut merged);
        }
        finish(&heads, tile, &mut merged, out);
    }
}

/// Adds the state of a part to what the parts before it have come to.
#[inline(always)]
fn add_part<L: Lanes>(
    lanes: L,
    heads: &Heads,
    tile: &Tile<'_>,
    part: usize,
    state: &mut State<'_>,
    merged: &mut State<'_>,
) {
    for row in 0..tile.rows(heads) {
        let visible = tile.visible(heads, row);
        if visible.start / PART == part {
            merged.row(row).copy_from(&state.row(row));
        } else if visible.start / PART < part && part * PART < visible.end {
            merged.row(row).merge(lanes, &state.row(row));
        }
    }
}

#[inline(always)]
fn finish(heads: &Heads, tile: &Tile<'_>, state: &mut State<'_>, out: &Shared<f32>) {
    for row in 0..tile.rows(heads) {
        // SAFETY: the row lies within `out`, which is as long as the queries, and belongs to no other tile.
        let out = unsafe { out.part(offset(heads, tile, row), heads.head_dim) };
        state.row(row).finish(out);
    }
}

/// Offset of a row's query, and of its result, in the packed arrays.
#[inline(always)]
fn offset(heads: &Heads, tile: &Tile<'_>, row: usize) -> usize {
    let (token, head) = (row / heads.group(), tile.kv_head * heads.group() + row % heads.group());
    ((tile.first_token + token) * heads.n_heads + head) * heads.head_dim
}

/// The queries of the rows of one call of a kernel side by side, dimension after dimension.
#[inline(always)]
fn pack_queries<L: Lanes>(heads: &Heads, tile: &Tile<'_>, queries: &[f32], packed: &mut [f32]) {
    let (rows, dim) = (tile.rows(heads), heads.head_dim);
    let mut first = 0;
    while first < rows {
        let count = rows_of_call::<L>(rows - first);
        let packed = &mut packed[first * dim..(first + count) * dim];
        for r in 0..count {
            let at = offset(heads, tile, first + r);
            for (packed, query) in packed[r..].iter_mut().step_by(count).zip(&queries[at..at + dim]) {
                *packed = *query;
            }
        }
        first += count;
    }
}

/// A tile's way through its context.
struct Pass<'a, E> {
    heads: Heads,
    tile: &'a Tile<'a>,
    operands: Operands<'a, E>,
    next_head: Option<usize>,
    rows: usize,
    /// `[rows][2]`
    visible: &'a [u32],
    /// As [`pack_queries`] leaves them.
    queries: &'a [f32],
    /// `[rows][CHUNK]`
    scores: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

/// Values of a chunk's blocks, as they are stored or widened.
struct Source<'a, X> {
    values: &'a [*const X],
    /// Elements from one token's values to the next one's.
    stride: usize,
    ahead: Ahead<'a>,
}

/// The blocks of a chunk, of which some row of the tile sees some token.
struct Blocks<E> {
    /// Those of the chunk that are in use.
    used: Range<usize>,
    keys: [*const E; BLOCKS_PER_CHUNK],
    values: [*const E; BLOCKS_PER_CHUNK],
    /// The keys that are multiplied next, or the same ones where that is not known.
    next_keys: [*const E; BLOCKS_PER_CHUNK],
}

impl<E: Element> Pass<'_, E> {
    /// Computes the state of one part.
    #[inline(always)]
    fn part<L: Lanes>(&mut self, lanes: L, part: usize, state: &mut State<'_>) {
        state.clear();
        let context = self.tile.context(&self.heads);
        let (start, end) = (context.start.max(part * PART), context.end.min((part + 1) * PART));
        for chunk in start / CHUNK..end.div_ceil(CHUNK) {
            self.chunk(lanes, chunk, state);
        }
    }

    #[inline(always)]
    fn chunk<L: Lanes>(&mut self, lanes: L, chunk: usize, state: &mut State<'_>) {
        let blocks = self.blocks(chunk);
        // With few rows, keys and values are widened as they are multiplied, which is faster as long as memory is the
        // limit; with many, once for all of them.
        let is_widened = self.rows > 2 * L::QUERY_ROWS;
        if is_widened {
            self.scores_of_widened(lanes, &blocks);
        } else {
            self.scores(lanes, &blocks);
        }
        for row in 0..self.rows {
            let visible = self.visible(row, chunk);
            if !visible.is_empty() {
                let scores = self.scores[row * CHUNK..(row + 1) * CHUNK].as_mut_ptr();
                // SAFETY: a row has `CHUNK` scores.
                unsafe { softmax::weigh(lanes, scores, visible, self.heads.softcap, &mut state.row(row)) };
            }
        }
        if is_widened {
            self.sums_of_widened(lanes, chunk, &blocks, state);
        } else {
            self.sums(lanes, chunk, &blocks, state);
        }
        self.sums_of_last_dimensions(chunk, &blocks, state);
    }

    /// The tokens of the chunk that a row sees, counted from the chunk's first.
    #[inline(always)]
    fn visible(&self, row: usize, chunk: usize) -> Range<usize> {
        let within = |token: u32| (token as usize).saturating_sub(chunk * CHUNK).min(CHUNK);
        within(self.visible[2 * row])..within(self.visible[2 * row + 1])
    }

    #[inline(always)]
    fn blocks(&self, chunk: usize) -> Blocks<E> {
        let used =
            self.visible(0, chunk).start / BLOCK_TOKENS..self.visible(self.rows - 1, chunk).end.div_ceil(BLOCK_TOKENS);
        let per_head = self.heads.head_dim * BLOCK_TOKENS;
        let offset = |block: u32, head: usize| (block as usize * self.heads.n_kv_heads + head) * per_head;
        let table = &self.tile.block_table[chunk * BLOCKS_PER_CHUNK..];
        let context = self.tile.context(&self.heads);
        let part_end = (chunk * CHUNK / PART + 1) * PART;
        let (next_table, next_head) = match self.next_head {
            Some(head) if (chunk + 1) * CHUNK >= part_end.min(context.end) => {
                let start = context.start.max(part_end - PART) / CHUNK;
                (&self.tile.block_table[start * BLOCKS_PER_CHUNK..], head)
            }
            _ => (table.get(BLOCKS_PER_CHUNK..).unwrap_or(&[]), self.tile.kv_head),
        };
        let mut blocks = Blocks {
            keys: [std::ptr::null(); BLOCKS_PER_CHUNK],
            values: [std::ptr::null(); BLOCKS_PER_CHUNK],
            next_keys: [std::ptr::null(); BLOCKS_PER_CHUNK],
            used,
        };
        for block in blocks.used.clone() {
            let at = offset(table[block], self.tile.kv_head);
            blocks.keys[block] = self.operands.keys[at..at + per_head].as_ptr();
            blocks.values[block] = self.operands.values[at..at + per_head].as_ptr();
            let next = next_table.get(block).map_or(at, |next| offset(*next, next_head));
            blocks.next_keys[block] = self.operands.keys.as_ptr().wrapping_add(next);
        }
        blocks
    }

    /// Scores over keys as they are stored, a few blocks at a time, while their values are fetched.
    #[inline(always)]
    fn scores<L: Lanes>(&mut self, lanes: L, blocks: &Blocks<E>) {
        let mut block = blocks.used.start;
        while block < blocks.used.end {
            let end = (block + BLOCKS_PER_SUM).min(blocks.used.end);
            let ahead = Ahead::new(&blocks.values[block..end]);
            self.scores_of_all_rows(lanes, block, &blocks.keys[block..end], ahead);
            block = end;
        }
    }

    /// The same over keys that are widened first.
    #[inline(always)]
    fn scores_of_widened<L: Lanes>(&mut self, lanes: L, blocks: &Blocks<E>) {
        let per_head = self.heads.head_dim * BLOCK_TOKENS;
        let mut block = blocks.used.start;
        while block < blocks.used.end {
            let count = L::QUERY_VECTORS.min(blocks.used.end - block);
            let mut keys = [std::ptr::null(); MAX_VECTORS];
            for v in 0..count {
                let room = self.keys[v * per_head..(v + 1) * per_head].as_mut_ptr();
                // SAFETY: a block has `per_head` keys, and so has the room.
                keys[v] = unsafe { E::as_floats(lanes, blocks.keys[block + v], per_head, room) };
            }
            let ahead = Ahead::new(&blocks.values[block..block + count]);
            self.scores_of_all_rows(lanes, block, &keys[..count], ahead);
            block += count;
        }
    }

    #[inline(always)]
    fn scores_of_all_rows<L: Lanes, X: Element>(
        &mut self,
        lanes: L,
        block: usize,
        keys: &[*const X],
        ahead: Ahead<'_>,
    ) {
        let Heads { head_dim, scale, .. } = self.heads;
        let mut row = 0;
        while row < self.rows {
            let count = rows_of_call::<L>(self.rows - row);
            let queries = self.queries[row * head_dim..(row + count) * head_dim].as_ptr();
            let scores = self.scores[row * CHUNK + block * BLOCK_TOKENS..].as_mut_ptr();
            run_shaped(lanes, count, Scores { queries, keys, ahead, head_dim, scale, scores });
            row += count;
        }
    }

    /// Sums over values as they are stored, while the next chunk's keys are fetched.
    #[inline(always)]
    fn sums<L: Lanes>(&self, lanes: L, chunk: usize, blocks: &Blocks<E>, state: &mut State<'_>) {
        let vectors = self.heads.head_dim / LANES;
        let mut block = blocks.used.start;
        while block < blocks.used.end {
            let end = (block + BLOCKS_PER_SUM).min(blocks.used.end);
            let values =
                Source { values: &blocks.values, stride: self.heads.head_dim, ahead: Ahead::new(&blocks.next_keys) };
            self.sums_of_all_rows(
                lanes,
                chunk,
                block * BLOCK_TOKENS..end * BLOCK_TOKENS,
                &values,
                0..vectors,
                0,
                state,
            );
            block = end;
        }
    }

    /// The same over values that are first widened, a few vectors of dimensions at a time.
    #[inline(always)]
    fn sums_of_widened<L: Lanes>(&mut self, lanes: L, chunk: usize, blocks: &Blocks<E>, state: &mut State<'_>) {
        let head_dim = self.heads.head_dim;
        let stride = L::QUERY_VECTORS * LANES;
        let tokens = blocks.used.start * BLOCK_TOKENS..self.visible(self.rows - 1, chunk).end;
        for first in (0..head_dim / LANES).step_by(L::QUERY_VECTORS) {
            let count = L::QUERY_VECTORS.min(head_dim / LANES - first);
            let mut values = [std::ptr::null(); BLOCKS_PER_CHUNK];
            for block in blocks.used.clone() {
                values[block] = self.values[block * BLOCK_TOKENS * stride..].as_ptr();
            }
            for token in tokens.clone() {
                let (block, slot) = (token / BLOCK_TOKENS, token % BLOCK_TOKENS);
                for v in 0..count {
                    // SAFETY: the block has the token's values; the room has `stride` floats for every token.
                    unsafe {
                        let value = E::load(lanes, blocks.values[block].add(slot * head_dim + (first + v) * LANES));
                        lanes.store_f(self.values.as_mut_ptr().add(token * stride + v * LANES), value);
                    }
                }
            }
            let values = Source { values: &values, stride, ahead: Ahead::new(&blocks.next_keys) };
            self.sums_of_all_rows(lanes, chunk, 0..CHUNK, &values, 0..count, first * LANES, state);
        }
    }

    /// Adds some tokens of the chunk to the sums of all rows, from dimension `dimension` on.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "which tokens, of which values, to which sums")]
    fn sums_of_all_rows<L: Lanes, X: Element>(
        &self,
        lanes: L,
        chunk: usize,
        tokens: Range<usize>,
        source: &Source<'_, X>,
        vectors: Range<usize>,
        dimension: usize,
        state: &mut State<'_>,
    ) {
        let head_dim = self.heads.head_dim;
        let mut first = 0;
        while first < self.rows {
            let count = rows_of_call::<L>(self.rows - first);
            // What all rows of the call see is computed at once. What only some see, at the end of a causal prompt and
            // at the start of a window, is computed row by row, before and after it.
            let start = self.visible(first + count - 1, chunk).start.clamp(tokens.start, tokens.end);
            let end = self.visible(first, chunk).end.clamp(start, tokens.end);
            let mut add = |row: usize, count: usize, tokens: Range<usize>| {
                if !tokens.is_empty() {
                    let weights = self.scores[row * CHUNK..].as_ptr();
                    let sums = state.sums_from(row)[dimension..].as_mut_ptr();
                    let Source { values, ahead, stride } = *source;
                    let vectors = vectors.clone();
                    run_shaped(
                        lanes,
                        count,
                        Values { weights, values, stride, ahead, dimension, vectors, tokens, sums, head_dim },
                    );
                }
            };
            if self.visible(first, chunk).start < start {
                for row in first..first + count {
                    let visible = self.visible(row, chunk);
                    add(row, 1, visible.start.max(tokens.start)..visible.end.min(start));
                }
            }
            add(first, count, start..end);
            if end < self.visible(first + count - 1, chunk).end {
                for row in first..first + count {
                    let visible = self.visible(row, chunk);
                    add(row, 1, visible.start.max(end)..visible.end.min(tokens.end));
                }
            }
            first += count;
        }
    }

    /// The dimensions that do not fill a vector.
    #[inline(always)]
    fn sums_of_last_dimensions(&self, chunk: usize, blocks: &Blocks<E>, state: &mut State<'_>) {
        let head_dim = self.heads.head_dim;
        for d in head_dim - head_dim % LANES..head_dim {
            for row in 0..self.rows {
                let sum = &mut state.sums_from(row)[d];
                for token in self.visible(row, chunk) {
                    let (block, slot) = (token / BLOCK_TOKENS, token % BLOCK_TOKENS);
                    // SAFETY: a block that a row sees has sixteen tokens' values.
                    let value = unsafe { *blocks.values[block].add(slot * head_dim + d) };
                    *sum += self.scores[row * CHUNK + token] * value.to_f32();
                }
            }
        }
    }
}
