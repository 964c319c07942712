//! Activations in the form the matrix kernels need: cut into segments and, for quantized weights, rounded to bytes.
//!
//! A segment's rows are contiguous, so that the kernels stream through them. The K types take one scale per 256
//! columns, the older types one per 32, matching their weights.

use super::{
    lanes::{Kernel, LANES, Lanes, dispatch},
    tile::{FLOAT_SEGMENT, INT_SEGMENT},
};
use crate::pool;

/// Elements above which preparing the input is worth a parallel region.
const PARALLEL_ELEMENTS: usize = 1 << 16;

/// `[segments][rows][256]` bytes with their scales and sums.
#[derive(Debug)]
pub struct ByteActivations {
    pub rows: usize,
    pub quants: Vec<i8>,
    /// `[segments][rows]` with one scale per 256, `[segments][rows][8]` with one per 32.
    pub scales: Vec<f32>,
    /// `[segments][rows][8]`: with one scale per 256, pairs of 16-bit sums over 16 columns each; with one per
    /// 32, the sum over those 32 columns.
    pub sums: Vec<i32>,
}

/// `[segments][rows][128]` floats.
#[derive(Debug)]
pub struct FloatActivations {
    pub rows: usize,
    pub values: Vec<f32>,
}

/// A pointer through which parallel chunks write disjoint parts.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T);

// SAFETY: users of the pointer guarantee that no two threads touch the same element.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// # Safety
    /// `start..start + len` lies within the slice this was made from, and no other thread touches it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that the parts are disjoint")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Calls `work` for ranges that cover `0..rows`, in parallel if there are enough elements.
fn by_row_ranges(rows: usize, columns: usize, work: impl Fn(usize, usize) + Sync) -> candle_core::Result<()> {
    if rows * columns < PARALLEL_ELEMENTS {
        work(0, rows);
        return Ok(());
    }
    let chunks = (4 * pool::threads()).min(rows);
    pool::run(chunks, |chunk| work(rows * chunk / chunks, rows * (chunk + 1) / chunks))
}

impl ByteActivations {
    /// `x` is `[rows, columns]`; one scale per 256 columns or, with `fine`, per 32.
    pub fn new(x: &[f32], columns: usize, fine: bool) -> candle_core::Result<Self> {
        let rows = x.len() / columns.max(1);
        let segments = columns.div_ceil(INT_SEGMENT);
        let scales_per_row = if fine { 8 } else { 1 };
        let mut this = Self {
            rows,
            quants: vec![0; segments * rows * INT_SEGMENT],
            scales: vec![0.0; segments * rows * scales_per_row],
            sums: vec![0; segments * rows * 8],
        };
        let (quants, scales, sums) =
            (Shared::new(&mut this.quants), Shared::new(&mut this.scales), Shared::new(&mut this.sums));
        by_row_ranges(rows, columns, |first, last| {
            for row in first..last {
                for segment in 0..segments {
                    let at = segment * rows + row;
                    let end = columns.min((segment + 1) * INT_SEGMENT);
                    let mut padded = [0.0; INT_SEGMENT];
                    let source = &x[row * columns + segment * INT_SEGMENT..row * columns + end];
                    padded[..source.len()].copy_from_slice(source);
                    // SAFETY: each segment of each row is written by exactly one chunk.
                    let (quants, scales, sums) = unsafe {
                        (
                            quants.part(at * INT_SEGMENT, INT_SEGMENT),
                            scales.part(at * scales_per_row, scales_per_row),
                            sums.part(at * 8, 8),
                        )
                    };
                    if fine {
                        for (block, scale) in scales.iter_mut().enumerate() {
                            let part = 32 * block..32 * (block + 1);
                            let mut halves = [0; 2];
                            let (from, to) = (&padded[part.clone()], &mut quants[part]);
                            *scale = dispatch(Round { from, to, sums: &mut halves });
                            sums[block] = halves[0] + halves[1];
                        }
                    } else {
                        let mut sixteens = [0; 16];
                        scales[0] = dispatch(Round { from: &padded, to: quants, sums: &mut sixteens });
                        for (pair, sums) in sums.iter_mut().zip(sixteens.chunks_exact(2)) {
                            *pair = (sums[0] & 0xffff) | (sums[1] << 16);
                        }
                    }
                }
            }
        })?;
        Ok(this)
    }
}

/// Rounds to bytes with one scale, which it returns; a non-finite value makes the scale NaN.
struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    /// One sum per sixteen bytes.
    sums: &'a mut [i32],
}

impl Kernel for Round<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let magnitude = lanes.splat_i(i32::MAX);
        let (mut largest, mut poison) = (lanes.splat_f(0.0), lanes.splat_f(0.0));
        for chunk in self.from.chunks_exact(LANES) {
            // SAFETY: the chunk has sixteen floats.
            let x = unsafe { lanes.load_f(chunk.as_ptr()) };
            largest = lanes.max(lanes.bits_as_floats(lanes.and(lanes.floats_as_bits(x), magnitude)), largest);
            poison = lanes.fma(x, lanes.splat_f(0.0), poison);
        }
        let largest = lanes.largest(largest);
        let finite = lanes.total(poison) == 0.0;
        // If the range is so small that its inverse overflows, it is treated as zero.
        let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
        let inverse = lanes.splat_f(if finite { inverse } else { 0.0 });
        let chunks = self.from.chunks_exact(LANES).zip(self.to.chunks_exact_mut(LANES)).zip(self.sums);
        for ((from, to), sum) in chunks {
            let mut rounded = [0i32; LANES];
            // SAFETY: the chunk has sixteen floats and the array sixteen words.
            unsafe {
                let x = lanes.load_f(from.as_ptr());
                lanes.store_i(rounded.as_mut_ptr().cast(), lanes.to_nearest(lanes.mul(x, inverse)));
            }
            let mut total = 0i32;
            for (to, rounded) in to.iter_mut().zip(rounded) {
                *to = rounded as i8;
                total += i32::from(rounded as i8);
            }
            *sum = total;
        }
        if finite { largest / 127.0 } else { f32::NAN }
    }
}

impl FloatActivations {
    /// `x` is `[rows, columns]`.
    pub fn new(x: &[f32], columns: usize) -> candle_core::Result<Self> {
        let rows = x.len() / columns.max(1);
        let segments = columns.div_ceil(FLOAT_SEGMENT);
        let mut values = vec![0.0; segments * rows * FLOAT_SEGMENT];
        let shared = Shared::new(&mut values);
        by_row_ranges(rows, columns, |first, last| {
            for segment in 0..segments {
                let end = columns.min((segment + 1) * FLOAT_SEGMENT);
                for row in first..last {
                    let source = &x[row * columns + segment * FLOAT_SEGMENT..row * columns + end];
                    // SAFETY: each segment of each row is written by exactly one chunk.
                    let to = unsafe { shared.part((segment * rows + row) * FLOAT_SEGMENT, FLOAT_SEGMENT) };
                    to[..source.len()].copy_from_slice(source);
                }
            }
        })?;
        Ok(Self { rows, values })
    }
}
