//! Plain definitions that the fast kernels are tested against: one loop per sum, no optimizations.

use half::f16;

#[cfg(test)]
use crate::quant::{GgmlType, dequantize};

#[cfg(test)]
/// `y[r, o] = x[r, :] . w[o, :]` with the weight's rows dequantized one by one.
///
/// `x` is `[rows, inp]`, `weight` the raw blocks of `[out, inp]`, the result `[rows, out]`.
pub fn linear(dtype: GgmlType, weight: &[u8], inp: usize, x: &[f32]) -> Vec<f32> {
    let row_bytes = dtype.row_bytes(inp).expect("the caller has checked that a row is whole blocks");
    let (out, rows) = (weight.len() / row_bytes, x.len() / inp);
    let mut y = vec![0.0; rows * out];
    let mut weight_row = vec![0.0; inp];
    for (o, raw) in weight.chunks_exact(row_bytes).enumerate() {
        dequantize(dtype, raw, &mut weight_row);
        for (r, x_row) in x.chunks_exact(inp).enumerate() {
            y[r * out + o] = weight_row.iter().zip(x_row).map(|(w, x)| w * x).sum();
        }
    }
    y
}

#[cfg(test)]
/// Attention of one query over `tokens` keys and values; `visible` says which tokens it sees.
///
/// `key(t, d)` and `value(t, d)` read the cache. Returns `head_dim` floats.
pub fn attend(
    query: &[f32],
    tokens: usize,
    visible: impl Fn(usize) -> bool,
    score_of: impl Fn(f32, usize) -> f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let scores: Vec<(usize, f32)> = (0..tokens)
        .filter(|&t| visible(t))
        .map(|t| (t, score_of(query.iter().enumerate().map(|(d, q)| q * key(t, d)).sum(), t)))
        .collect();
    let largest = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(s.1));
    let mut out = vec![0.0; query.len()];
    let mut total = 0.0;
    for (t, score) in scores {
        let weight = (score - largest).exp();
        total += weight;
        for (d, o) in out.iter_mut().enumerate() {
            *o += weight * value(t, d);
        }
    }
    if total > 0.0 {
        out.iter_mut().for_each(|o| *o /= total);
    }
    out
}

/// Converts half-float bits to a float.
pub fn half_to_float(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}
