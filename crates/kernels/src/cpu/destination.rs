//! Where a unit's products go: some columns of some rows of an output, after the bias and the residual.

use std::ops::Range;

use super::{
    lanes::{LANES, Lanes},
    matmul::Weight,
    prefetch,
    quantize::Shared,
};

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

    /// Adds the bias to the products `[rows][tiles][16]`, and the residual, and puts them where they go.
    #[inline(always)]
    pub fn put<L: Lanes>(&self, lanes: L, y: &[f32]) {
        let Self { weight, output, rows, columns } = self;
        let whole = columns.len() / LANES * LANES;
        let bias = weight.bias.map(|bias| &bias[columns.clone()]);
        for (row, y) in rows.clone().zip(y.chunks_exact(columns.len().next_multiple_of(LANES))) {
            let at = row * weight.out + columns.start;
            // SAFETY: the residual has this row, and nothing writes to it.
            let residual = output.residual.map(|(of, factor)| unsafe { (of.read(at, columns.len()), factor) });
            // SAFETY: no other unit writes these columns of these rows.
            let to = unsafe { output.to.part(at, columns.len()) };
            for from in (0..whole).step_by(LANES) {
                // SAFETY: each of the slices has sixteen floats from there on.
                unsafe {
                    let mut sum = lanes.load_f(y[from..][..LANES].as_ptr());
                    if let Some(bias) = bias {
                        sum = lanes.add(sum, lanes.load_f(bias[from..][..LANES].as_ptr()));
                    }
                    if let Some((residual, factor)) = residual {
                        let product = lanes.mul(sum, lanes.splat_f(factor));
                        sum = lanes.add(lanes.load_f(residual[from..][..LANES].as_ptr()), product);
                    }
                    lanes.store_f(to[from..][..LANES].as_mut_ptr(), sum);
                }
            }
            for column in whole..columns.len() {
                let sum = bias.map_or(y[column], |bias| y[column] + bias[column]);
                to[column] = residual.map_or(sum, |(residual, factor)| residual[column] + sum * factor);
            }
        }
    }
}
