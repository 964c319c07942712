//! Operations on single rows: what a plan runs between its products.

use std::{ops::Range, sync::Arc};

use crate::{
    activation,
    attention::{KvStorePointers, Slot},
    cpu::quantize::{InputShape, Shared, SharedInput},
    embedding::Embedding,
    norm::RmsNorm,
    rope::{Angles, RopeLayout},
};

/// Rows of this many columns in the workspace, from this float on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) columns: usize,
}

impl Span {
    /// # Safety
    /// The rows lie within the workspace, and nothing writes to them meanwhile.
    unsafe fn read<'a>(self, floats: Shared<f32>, rows: &Range<usize>) -> &'a [f32] {
        // SAFETY: as the caller says.
        unsafe { floats.read(self.start + rows.start * self.columns, rows.len() * self.columns) }
    }

    /// # Safety
    /// The rows lie within the workspace, and nothing else touches them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that the rows are its own")]
    unsafe fn write<'a>(self, floats: &'a Shared<f32>, rows: &Range<usize>) -> &'a mut [f32] {
        // SAFETY: as the caller says.
        unsafe { floats.part(self.start + rows.start * self.columns, rows.len() * self.columns) }
    }
}

/// See [`Operations`](super::Operations) for what each computes.
#[derive(Debug)]
pub(super) enum RowOperation<'a> {
    Lookup {
        table: &'a Embedding,
        ids: &'a [u32],
        out: Span,
    },
    Select {
        x: Span,
        rows: &'a [u32],
        out: Span,
    },
    Scale {
        x: Span,
        factor: f32,
        out: Span,
    },
    ScaleRows {
        x: Span,
        factors: &'a [f32],
        out: Span,
    },
    RmsNorm {
        x: Span,
        norm: &'a RmsNorm,
        out: Span,
    },
    Add {
        residual: Span,
        x: Span,
        factor: f32,
        out: Span,
    },
    Rope {
        x: Span,
        head_dim: usize,
        angles: Arc<Angles>,
        layout: RopeLayout,
        out: Span,
    },
    SoftCap {
        x: Span,
        cap: f32,
        out: Span,
    },
    /// Writes keys and values into their KV blocks.
    Store {
        keys: Span,
        values: Span,
        to: KvStorePointers,
        slots: &'a [Slot],
    },
    /// Prepares the input of the product that follows.
    Prepare {
        x: Span,
        shape: InputShape,
    },
}

impl RowOperation<'_> {
    /// Runs it on some rows.
    ///
    /// # Safety
    /// The spans have the rows and lie within the workspace; nothing else touches these rows of what it writes, or writes to what it
    /// reads.
    pub(super) unsafe fn run(&self, rows: Range<usize>, floats: Shared<f32>, input: SharedInput) {
        // SAFETY: as the caller says.
        unsafe {
            match self {
                Self::Lookup { table, ids, out } => table.read(&ids[rows.clone()], out.write(&floats, &rows)),
                Self::Select { x, rows: chosen, out } => {
                    for (out, &row) in out.write(&floats, &rows).chunks_exact_mut(out.columns).zip(&chosen[rows]) {
                        let row = row as usize;
                        out.copy_from_slice(x.read(floats, &(row..row + 1)));
                    }
                }
                Self::Scale { x, factor, out } => {
                    let x = x.read(floats, &rows);
                    out.write(&floats, &rows).iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
                }
                Self::ScaleRows { x, factors, out } => {
                    let of_rows = x.read(floats, &rows).chunks_exact(x.columns);
                    let outputs = out.write(&floats, &rows).chunks_exact_mut(out.columns);
                    for ((out, x), factor) in outputs.zip(of_rows).zip(&factors[rows]) {
                        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
                    }
                }
                Self::RmsNorm { x, norm, out } => norm.apply(x.read(floats, &rows), out.write(&floats, &rows)),
                Self::Add { residual, x, factor, out } => {
                    let both = residual.read(floats, &rows).iter().zip(x.read(floats, &rows));
                    let outputs = out.write(&floats, &rows).iter_mut();
                    outputs.zip(both).for_each(|(out, (residual, x))| *out = residual + x * factor);
                }
                Self::Rope { x, head_dim, angles, layout, out } => {
                    let to = out.write(&floats, &rows);
                    to.copy_from_slice(x.read(floats, &rows));
                    angles.rotate(to, rows.start, out.columns, *head_dim, *layout);
                }
                Self::SoftCap { x, cap, out } => {
                    activation::write_soft_cap(x.read(floats, &rows), *cap, out.write(&floats, &rows));
                }
                Self::Store { keys, values, to, slots } => {
                    to.store(keys.read(floats, &rows), values.read(floats, &rows), &slots[rows]);
                }
                Self::Prepare { x, shape } => input.prepare(*shape, rows.clone(), x.read(floats, &rows)),
            }
        }
    }
}
