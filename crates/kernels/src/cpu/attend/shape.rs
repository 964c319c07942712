//! How many query rows and vectors a kernel keeps in registers, and the one place that chooses among the shapes.
//!
//! A kernel is compiled for a few shapes per instruction set. Each shape is a function of its own rather than a part of
//! one large function: the compiler assigns registers to each alone, and compiles a shape once for all its callers.
//! Which shape computes a row never shows in its result, because every sum of a row is one chain in a fixed order.

use crate::cpu::{
    lanes::{Kernel, LANES, Lanes},
    prefetch,
};

/// The most vectors that a kernel takes beside as many rows as it can.
pub(super) const MAX_VECTORS: usize = 2;

/// A kernel over `R` query rows and `V` vectors, compiled for each shape. `run` must be `#[inline(always)]`.
pub(super) trait ShapedKernel {
    fn run<L: Lanes, const R: usize, const V: usize>(self, lanes: L);
}

struct Shaped<K, const R: usize, const V: usize>(K);

impl<K: ShapedKernel, const R: usize, const V: usize> Kernel for Shaped<K, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.0.run::<L, R, V>(lanes);
    }
}

/// The number of rows, at most `left`, that one call of a kernel takes.
#[inline(always)]
pub(super) fn rows_of_call<L: Lanes>(left: usize) -> usize {
    if left >= L::QUERY_ROWS {
        return L::QUERY_ROWS;
    }
    match left {
        6.. => 6,
        4.. => 4,
        2.. if L::QUERY_ROWS > 4 => 2,
        _ => 1,
    }
}

/// Runs the kernel for a number of rows that [`rows_of_call`] returned.
///
/// Fewer rows take more vectors, so that there are always enough independent sums to hide the latency of a
/// multiply-add.
#[inline(always)]
pub(super) fn run_shaped<L: Lanes, K: ShapedKernel>(lanes: L, rows: usize, kernel: K) {
    // Constants, so that each instruction set has its own shapes only.
    if L::QUERY_ROWS == 12 {
        match rows {
            12 => lanes.run(Shaped::<K, 12, 2>(kernel)),
            6 => lanes.run(Shaped::<K, 6, 4>(kernel)),
            4 => lanes.run(Shaped::<K, 4, 4>(kernel)),
            2 => lanes.run(Shaped::<K, 2, 4>(kernel)),
            _ => lanes.run(Shaped::<K, 1, 4>(kernel)),
        }
    } else if L::QUERY_ROWS == 6 {
        match rows {
            6 => lanes.run(Shaped::<K, 6, 1>(kernel)),
            4 => lanes.run(Shaped::<K, 4, 1>(kernel)),
            2 => lanes.run(Shaped::<K, 2, 2>(kernel)),
            _ => lanes.run(Shaped::<K, 1, 4>(kernel)),
        }
    } else {
        match rows {
            4 => lanes.run(Shaped::<K, 4, 1>(kernel)),
            _ => lanes.run(Shaped::<K, 1, 1>(kernel)),
        }
    }
}

/// What will be read soon: blocks, of which as much is fetched while a kernel multiplies as it multiplies.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    blocks: &'a [*const u8],
    /// Bytes of sixteen elements.
    step: usize,
}

impl<'a> Ahead<'a> {
    pub fn new<E>(blocks: &'a [*const E]) -> Self {
        // SAFETY: pointers to any type have one size.
        let blocks = unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len()) };
        Self { blocks, step: LANES * size_of::<E>() }
    }

    /// Fetches the block's elements from `16 * index` on, sixteen of them.
    #[inline(always)]
    pub fn fetch(&self, block: usize, index: usize) {
        prefetch::to_l2(self.blocks[block].wrapping_add(index * self.step), 1);
    }
}
