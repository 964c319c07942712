//! The unfinished softmax of a tile's rows, and how parts of the context are put together.
//!
//! A row's context is cut into parts at fixed positions. Each part has a state of its own, and the states are merged in
//! ascending order, whether one thread has computed all parts or each came from another: so the cut among threads never
//! shows in a result.

use super::softmax::power;
use crate::cpu::lanes::Lanes;

/// For each row: the largest score, the sum of the weights relative to it, and the weighted sums of the values.
///
/// In memory: `[rows]`, `[rows]`, `[rows][head_dim]`.
pub(super) struct State<'a> {
    largest: &'a mut [f32],
    total: &'a mut [f32],
    sums: &'a mut [f32],
    head_dim: usize,
}

/// One row of a [`State`].
pub(super) struct RowState<'a> {
    pub largest: &'a mut f32,
    pub total: &'a mut f32,
    pub sums: &'a mut [f32],
}

/// Number of floats in the state of some rows.
pub(super) const fn state_floats(rows: usize, head_dim: usize) -> usize {
    rows * (head_dim + 2)
}

impl<'a> State<'a> {
    /// The state in these floats, [`state_floats`] of them, as they are.
    #[inline(always)]
    pub fn of(floats: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let (largest, rest) = floats.split_at_mut(rows);
        let (total, sums) = rest.split_at_mut(rows);
        Self { largest, total, sums, head_dim }
    }

    /// No token seen yet.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.sums.fill(0.0);
    }

    #[inline(always)]
    pub fn row(&mut self, row: usize) -> RowState<'_> {
        RowState {
            largest: &mut self.largest[row],
            total: &mut self.total[row],
            sums: &mut self.sums[row * self.head_dim..(row + 1) * self.head_dim],
        }
    }

    /// The sums of the rows from this one on.
    #[inline(always)]
    pub fn sums_from(&mut self, row: usize) -> &mut [f32] {
        &mut self.sums[row * self.head_dim..]
    }
}

impl RowState<'_> {
    /// Takes the place of this row: what the first part of a row's context does.
    #[inline(always)]
    pub fn copy_from(&mut self, part: &RowState<'_>) {
        (*self.largest, *self.total) = (*part.largest, *part.total);
        self.sums.copy_from_slice(part.sums);
    }

    /// Adds the part that follows.
    #[inline(always)]
    pub fn merge<L: Lanes>(&mut self, lanes: L, part: &RowState<'_>) {
        let largest = if *self.largest > *part.largest { *self.largest } else { *part.largest };
        let reference = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let (before, after) = (power(lanes, *self.largest - reference), power(lanes, *part.largest - reference));
        *self.largest = largest;
        *self.total = *self.total * before + *part.total * after;
        for (sum, part) in self.sums.iter_mut().zip(part.sums.iter()) {
            *sum = *sum * before + *part * after;
        }
    }

    /// The weighted mean; zeros if no token has any weight.
    #[inline(always)]
    pub fn finish(&self, out: &mut [f32]) {
        let total = if *self.total == 0.0 { 1.0 } else { *self.total };
        for (out, sum) in out.iter_mut().zip(self.sums.iter()) {
            *out = sum / total;
        }
    }
}
