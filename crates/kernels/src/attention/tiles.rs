//! Cuts a step's queries into tiles, and the contexts of large tiles into parts, for the threads.
//!
//! The cut follows from the number of threads and from what else is in the step, and it may: a tile's kernels make the
//! same result of every cut.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::Result;

use crate::{
    cpu::{
        attend::{Element, Heads, Operands, PART, TILE_ROWS, Tile, attend, attend_part, merge},
        quantize::Shared,
    },
    pool,
};

/// Pieces of work per thread, below which no tile is cut into parts: enough that no thread waits long for the last one.
const PIECES_PER_THREAD: usize = 8;

/// Cuts one sequence's tokens into tiles, for all KV heads one after the other. `tile_at` describes the tile that begins at this offset
/// from the sequence's first token in the batch.
pub(super) fn cut<'a>(
    tiles: &mut Vec<Tile<'a>>,
    heads: Heads,
    first_token: usize,
    num_tokens: usize,
    tile_at: impl Fn(usize) -> Tile<'a>,
) {
    let tokens_per_tile = (TILE_ROWS / heads.group()).max(1);
    // The last tiles see the most tokens, so they come first: no thread is left running a long tile alone at the end.
    for first in (0..num_tokens).step_by(tokens_per_tile).rev() {
        for kv_head in 0..heads.n_kv_heads {
            tiles.push(Tile {
                first_token: first_token + first,
                num_tokens: tokens_per_tile.min(num_tokens - first),
                kv_head,
                ..tile_at(first)
            });
        }
    }
}

/// What a thread takes at once.
enum Piece {
    Tile(usize),
    /// One part of some tiles that are cut: neighbouring KV heads of the same tokens, which are neighbours in memory.
    Part {
        splits: Range<usize>,
        part: usize,
    },
}

/// A tile that is cut into parts.
struct Split {
    tile: usize,
    parts: Range<usize>,
    /// Where the states of its parts begin.
    first_state: usize,
    /// Parts that are not finished. The thread that finishes the last one merges them.
    unfinished: AtomicUsize,
}

/// All tiles of a step, in pieces that any thread can compute in any order.
pub(super) struct Pieces<'a> {
    heads: Heads,
    tiles: Vec<Tile<'a>>,
    pieces: Vec<Piece>,
    splits: Vec<Split>,
    state_floats: usize,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(heads: Heads, tiles: Vec<Tile<'a>>) -> Self {
        let wanted = match pool::threads() {
            1 => 1,
            threads => threads * PIECES_PER_THREAD,
        };
        Self::at_least(wanted, heads, tiles)
    }

    /// At least `wanted` pieces where the contexts have as many parts.
    pub(super) fn at_least(wanted: usize, heads: Heads, tiles: Vec<Tile<'a>>) -> Self {
        let (pieces, splits, state_floats) = pieces(heads, &tiles, wanted);
        Self { heads, tiles, pieces, splits, state_floats }
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Room for the states of parts.
    pub(super) const fn state_floats(&self) -> usize {
        self.state_floats
    }

    /// Computes one piece, once.
    ///
    /// # Safety
    /// `states` has room, and nothing but the other pieces touches it or the results.
    pub(super) unsafe fn run<E: Element>(&self, piece: usize, operands: Operands<'_, E>, states: Shared<f32>) {
        let heads = self.heads;
        let (range, part) = match &self.pieces[piece] {
            Piece::Tile(tile) => return attend(heads, &self.tiles[*tile], operands),
            Piece::Part { splits, part } => (splits.clone(), *part),
        };
        for index in range.clone() {
            let split = &self.splits[index];
            let tile = &self.tiles[split.tile];
            let floats = tile.state_floats(&heads);
            let before = part - split.parts.start;
            // SAFETY: `pieces` has counted the states, and each part is computed once.
            let state = unsafe { states.part(split.first_state + before * floats, floats) };
            let next_head = (index + 1 < range.end).then(|| tile.kv_head + 1);
            attend_part(heads, tile, operands, part, next_head, state);
            if split.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
                // SAFETY: as above, and all parts of the tile are finished.
                let states = unsafe { states.part(split.first_state, split.parts.len() * floats) };
                merge(heads, tile, states, operands.out);
            }
        }
    }

    /// Computes all pieces on the compute pool. `queries` is `[tokens, n_heads, head_dim]`, as is the result.
    pub(super) fn run_all<E: Element>(&self, queries: &[f32], keys: &[E], values: &[E]) -> Result<Vec<f32>> {
        let (mut out, mut states) = (vec![0.0; queries.len()], vec![0.0; self.state_floats]);
        let (shared, states) = (Shared::new(&mut out), Shared::new(&mut states));
        let operands = Operands { queries, keys, values, out: &shared };
        // SAFETY: there is room, and only this region has it.
        pool::run(self.len(), |piece| unsafe { self.run(piece, operands, states) })?;
        Ok(out)
    }
}

/// The pieces, the tiles that are cut, and the number of floats for the states of their parts.
///
/// A tile is cut if its context has several parts and it is more than its share of `wanted` pieces. A piece is as many
/// neighbouring heads as come to its share.
fn pieces(heads: Heads, tiles: &[Tile<'_>], wanted: usize) -> (Vec<Piece>, Vec<Split>, usize) {
    let cost = |tile: &Tile<'_>| tile.rows(&heads) * tile.context(&heads).len();
    let total: usize = tiles.iter().map(cost).sum();
    let (mut pieces, mut splits, mut state_floats) = (Vec::with_capacity(tiles.len()), Vec::new(), 0);
    for (index, of_all_heads) in tiles.chunks_exact(heads.n_kv_heads).enumerate() {
        let tile = &of_all_heads[0];
        let (parts, first) = (tile.parts(&heads), index * heads.n_kv_heads);
        if parts.len() < 2 || cost(tile).saturating_mul(wanted) <= total {
            pieces.extend((first..first + heads.n_kv_heads).map(Piece::Tile));
            continue;
        }
        let heads_of_piece = (total / wanted / (tile.rows(&heads) * PART)).clamp(1, heads.n_kv_heads);
        let new = splits.len()..splits.len() + heads.n_kv_heads;
        for part in parts.clone() {
            let starts = new.clone().step_by(heads_of_piece);
            pieces.extend(starts.map(|start| Piece::Part { splits: start..new.end.min(start + heads_of_piece), part }));
        }
        for tile in first..first + heads.n_kv_heads {
            let unfinished = AtomicUsize::new(parts.len());
            splits.push(Split { tile, first_state: state_floats, unfinished, parts: parts.clone() });
            state_floats += parts.len() * of_all_heads[0].state_floats(&heads);
        }
    }
    (pieces, splits, state_floats)
}
