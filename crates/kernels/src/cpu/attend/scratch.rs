//! A thread's room for intermediate results, kept from one tile to the next.

use std::cell::Cell;

use bytemuck::{Pod, Zeroable};

use super::{CHUNK, shape::MAX_VECTORS, state::state_floats};
use crate::cpu::lanes::LANES;

/// One cache line, so that no vector lies across two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

thread_local! {
    static KEPT: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Arrays of a tile. What they hold at first is undefined.
pub(super) struct Scratch<'a> {
    /// `[head_dim][R]` for the rows of each call of a kernel.
    pub queries: &'a mut [f32],
    /// `[rows][CHUNK]`
    pub scores: &'a mut [f32],
    /// A few blocks of keys as floats.
    pub keys: &'a mut [f32],
    /// A few vectors of a chunk's values as floats.
    pub values: &'a mut [f32],
    /// `[rows][2]`: the first token that a row sees, and the one after the last.
    pub visible: &'a mut [u32],
    /// The state of the part at hand.
    pub part: &'a mut [f32],
    /// The state of the parts before it.
    pub merged: &'a mut [f32],
}

/// Calls `work` with this thread's arrays, for tiles of `rows` rows.
///
/// It is not part of what is compiled for each instruction set: a closure would not have its instructions.
pub(super) fn with_scratch(rows: usize, head_dim: usize, work: impl FnOnce(Scratch<'_>)) {
    let state = state_floats(rows, head_dim);
    let sizes = [
        rows * head_dim,
        rows * CHUNK,
        MAX_VECTORS * head_dim * LANES,
        MAX_VECTORS * LANES * CHUNK,
        2 * rows,
        state,
        state,
    ];
    let mut lines = KEPT.take();
    let needed = sizes.iter().map(|size| size.div_ceil(LANES)).sum();
    if lines.len() < needed {
        lines.resize(needed, Line([0.0; LANES]));
    }
    let mut rest = &mut lines[..];
    let arrays = sizes.map(|size| {
        let (array, after) = std::mem::take(&mut rest).split_at_mut(size.div_ceil(LANES));
        rest = after;
        &mut bytemuck::cast_slice_mut::<_, f32>(array)[..size]
    });
    let [queries, scores, keys, values, visible, part, merged] = arrays;
    let visible = bytemuck::cast_slice_mut(visible);
    work(Scratch { queries, scores, keys, values, visible, part, merged });
    KEPT.set(lines);
}
