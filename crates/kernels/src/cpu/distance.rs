//! Dot products of one vector with many: floats with floats, and bytes with bytes.
//!
//! Rows are listed by number or are consecutive. The next rows are prefetched while one is computed: a graph search
//! jumps around a matrix that is larger than any cache.

use super::{
    lanes::{Kernel, LANES, Lanes},
    prefetch,
};

/// A row's length in floats is a multiple of this.
pub const FLOATS: usize = LANES;
/// A row's length in bytes is a multiple of this.
pub const BYTES: usize = 4 * LANES;
/// How many rows ahead to prefetch.
const AHEAD: usize = 4;

/// Which rows of a matrix: consecutive rows from `first`, one per result, or the listed ones.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    From(usize),
    Listed(&'a [u32]),
}

impl Rows<'_> {
    #[inline(always)]
    fn get(&self, index: usize) -> usize {
        match self {
            Self::From(first) => first + index,
            Self::Listed(rows) => rows[index] as usize,
        }
    }

    /// Panics if a row lies outside a matrix of `elements` elements; the code below relies on this check.
    fn check(&self, count: usize, dim: usize, elements: usize) {
        match self {
            Self::From(first) => assert!((first + count) * dim <= elements, "rows beyond the matrix"),
            Self::Listed(rows) => {
                assert_eq!(rows.len(), count, "one result a row");
                assert!(rows.iter().all(|&row| (row as usize + 1) * dim <= elements), "a row beyond the matrix");
            }
        }
    }
}

pub struct DotFloats<'a> {
    pub query: &'a [f32],
    pub matrix: &'a [f32],
    pub rows: Rows<'a>,
    pub out: &'a mut [f32],
}

impl Kernel for DotFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { query, matrix, rows, out } = self;
        let dim = query.len();
        assert!(dim.is_multiple_of(FLOATS), "vectors are padded to whole registers");
        rows.check(out.len(), dim, matrix.len());
        let count = out.len();
        for index in 0..count {
            if index + AHEAD < count && matches!(rows, Rows::Listed(_)) {
                prefetch::to_l1(matrix[rows.get(index + AHEAD) * dim..].as_ptr().cast(), size_of_val(query));
            }
            let row = matrix[rows.get(index) * dim..][..dim].as_ptr();
            let mut sums = [lanes.splat_f(0.0); 4];
            // Four independent sums hide the latency of the additions.
            let mut at = 0;
            while at + 4 * FLOATS <= dim {
                for (part, sum) in sums.iter_mut().enumerate() {
                    let offset = at + part * FLOATS;
                    // SAFETY: `offset + FLOATS <= dim`, the length of both.
                    let (a, b) = unsafe { (lanes.load_f(query.as_ptr().add(offset)), lanes.load_f(row.add(offset))) };
                    *sum = lanes.fma(a, b, *sum);
                }
                at += 4 * FLOATS;
            }
            while at < dim {
                // SAFETY: `dim` is a multiple of FLOATS, so `at + FLOATS <= dim`.
                let (a, b) = unsafe { (lanes.load_f(query.as_ptr().add(at)), lanes.load_f(row.add(at))) };
                sums[0] = lanes.fma(a, b, sums[0]);
                at += FLOATS;
            }
            let [a, b, c, d] = sums;
            out[index] = lanes.total(lanes.add(lanes.add(a, b), lanes.add(c, d)));
        }
    }
}

/// Sums of products of unsigned row bytes and signed query bytes.
pub struct DotBytes<'a> {
    pub query: &'a [i8],
    pub matrix: &'a [u8],
    pub rows: Rows<'a>,
    pub out: &'a mut [f32],
}

impl Kernel for DotBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { query, matrix, rows, out } = self;
        let dim = query.len();
        assert!(dim.is_multiple_of(BYTES), "vectors are padded to whole registers");
        rows.check(out.len(), dim, matrix.len());
        let count = out.len();
        for index in 0..count {
            if index + AHEAD < count && matches!(rows, Rows::Listed(_)) {
                prefetch::to_l1(matrix[rows.get(index + AHEAD) * dim..].as_ptr(), dim);
            }
            let row = matrix[rows.get(index) * dim..][..dim].as_ptr();
            let mut sums = [lanes.splat_i(0); 2];
            for (part, at) in (0..dim).step_by(BYTES).enumerate() {
                // SAFETY: `dim` is a multiple of BYTES and the length of both, so 64 bytes can be read from `at`.
                let (a, b) = unsafe { (lanes.load_i(row.add(at)), lanes.load_i(query.as_ptr().add(at).cast())) };
                sums[part % 2] = lanes.dot_full_bytes(sums[part % 2], a, b);
            }
            // At most 255 * 127 * dim / 16 per lane, which a float represents exactly for any real dimension.
            out[index] = lanes.total(lanes.to_floats(lanes.add_i(sums[0], sums[1])));
        }
    }
}
