//! Where a unit's products go: some columns of some rows of an output, after the bias, the gate and the residual.

use std::ops::Range;

use super::{
    lanes::{LANES, Lanes},
    matmul::Weight,
    prefetch,
    quantize::Shared,
};
use crate::activation::{Activation, activated};

/// Where a weight's product goes.
#[derive(Clone, Copy)]
pub struct Output {
    /// `[rows, out]`
    pub to: Shared<f32>,
    /// What the product, times a factor, is added to: `[rows, out]`.
    pub residual: Option<(Shared<f32>, f32)>,
}

/// Where a unit's products go.
pub struct Destination<'a> {
    pub weight: &'a Weight<'a>,
    pub output: Output,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Destination<'_> {
    /// Fetches one of `parts` parts of the rows into the cache. Rows are far apart and a unit has little of each, so that without it
    /// every one would be waited for in the end.
    #[inline(always)]
    pub fn prefetch(&self, part: usize, parts: usize) {
        let rows = self.rows.len();
        let bytes = size_of::<f32>() * self.columns.len();
        for row in rows * part / parts..rows * (part + 1) / parts {
            let at = (self.rows.start + row) * self.weight.out + self.columns.start;
            prefetch::to_l2(self.output.to.address(at).cast(), bytes);
            if let Some((residual, _)) = self.output.residual {
                prefetch::to_l2(residual.address(at).cast(), bytes);
            }
        }
    }

    /// Adds the bias to the products `[rows][tiles][16]`, multiplies them if they are gated, adds the residual, and puts them where
    /// they go.
    #[inline(always)]
    pub fn put<L: Lanes>(&self, lanes: L, y: &[f32], gated: Option<Gated<'_>>) {
        let Self { weight, output, rows, columns } = self;
        let width = columns.len().next_multiple_of(LANES);
        let bias = weight.bias.map(|bias| &bias[columns.clone()]);
        let up_bias = gated.and_then(|gated| gated.up.bias).map(|bias| &bias[columns.clone()]);
        for (number, (row, y)) in rows.clone().zip(y.chunks_exact(width)).enumerate() {
            let at = row * weight.out + columns.start;
            // SAFETY: the residual has this row, and nothing writes to it.
            let residual = output.residual.map(|(of, factor)| unsafe { (of.read(at, columns.len()), factor) });
            // SAFETY: no other unit writes these columns of these rows.
            let to = unsafe { output.to.part(at, columns.len()) };
            for from in (0..width).step_by(LANES) {
                let mut sum = with_bias(lanes, &y[from..], bias, from);
                if let Some(Gated { activation, factors, .. }) = gated {
                    let factor = with_bias(lanes, &factors[number * width + from..], up_bias, from);
                    sum = lanes.mul(activated(lanes, sum, activation), factor);
                }
                if let Some((residual, factor)) = residual {
                    sum = lanes.add(load(lanes, &residual[from..]), lanes.mul(sum, lanes.splat_f(factor)));
                }
                store(lanes, sum, &mut to[from..]);
            }
        }
    }
}

/// What the products of a gate are multiplied with once they are activated.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    pub activation: Activation,
    pub up: &'a Weight<'a>,
    /// The products of `up`, of the same rows and columns as the gate's.
    pub factors: &'a [f32],
}

#[inline(always)]
fn with_bias<L: Lanes>(lanes: L, y: &[f32], bias: Option<&[f32]>, from: usize) -> L::F {
    let y = load(lanes, y);
    match bias {
        Some(bias) => lanes.add(y, load(lanes, &bias[from..])),
        None => y,
    }
}

/// The first sixteen floats; what the slice lacks is zero.
#[inline(always)]
fn load<L: Lanes>(lanes: L, from: &[f32]) -> L::F {
    if from.len() >= LANES {
        // SAFETY: there are sixteen.
        return unsafe { lanes.load_f(from.as_ptr()) };
    }
    let mut padded = [0.0; LANES];
    padded[..from.len()].copy_from_slice(from);
    // SAFETY: there are sixteen.
    unsafe { lanes.load_f(padded.as_ptr()) }
}

/// As many of the floats as the slice takes.
#[inline(always)]
fn store<L: Lanes>(lanes: L, value: L::F, to: &mut [f32]) {
    if to.len() >= LANES {
        // SAFETY: there is room for sixteen.
        return unsafe { lanes.store_f(to.as_mut_ptr(), value) };
    }
    let mut padded = [0.0; LANES];
    // SAFETY: there is room for sixteen.
    unsafe { lanes.store_f(padded.as_mut_ptr(), value) };
    to.copy_from_slice(&padded[..to.len()]);
}
