//! Activations in the form the matrix kernels need: cut into segments and, for quantized weights, rounded to bytes.
//!
//! A segment's rows are contiguous, so that the kernels stream through them. The K types take one scale per 256
//! columns, the older types one per 32, matching their weights.

use std::ops::Range;

use super::{
    lanes::{Kernel, LANES, Lanes, dispatch},
    tile::{FLOAT_SEGMENT, INT_SEGMENT},
};

/// Digits of a superblock's sums.
pub const DIGITS: usize = 32;
/// Words of a row's sums in one segment, with one scale per 256 columns and with one per 32.
pub const SUPERBLOCK_SUMS: usize = 12;
pub const BLOCK_SUMS: usize = 8;
/// Where the pairs of sums over 32 columns begin, after those of sums over 16.
pub const WIDE_SUMS: usize = 8;

/// The forms in which a product's weights need its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// Bytes with one scale per 256 columns.
    pub superblocks: bool,
    /// Bytes with one scale per 32 columns.
    pub blocks: bool,
    pub floats: bool,
    /// With `superblocks`: their digits as well.
    pub digits: bool,
}

/// The input of one or more products.
#[derive(Clone, Copy, Debug)]
pub struct InputShape {
    pub rows: usize,
    pub columns: usize,
    pub forms: Forms,
}

/// `[segments][rows][256]` bytes with their scales and sums.
#[derive(Clone, Copy, Debug)]
pub struct ByteActivations<'a> {
    pub rows: usize,
    pub quants: &'a [i8],
    /// `[segments][rows]` with one scale per 256, `[segments][rows][8]` with one per 32.
    pub scales: &'a [f32],
    /// With one scale per 256, `[segments][rows][12]`: eight pairs of 16-bit sums over 16 columns each, and four pairs of sums over 32.
    /// With one per 32, `[segments][rows][8]`: the sum over those 32 columns.
    pub sums: &'a [i32],
    /// With one scale per 32, `[segments][rows][8]`: the scales times the sums.
    pub scaled_sums: &'a [f32],
    /// `[segments][rows][32]` bf16, if wanted: the sums over 16 columns each in digits, sixteen multiples of 64 and then sixteen
    /// remainders from 0 to 63.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AMX alone reads it"))]
    pub digits: &'a [u16],
}

/// `[segments][rows][128]` floats.
#[derive(Clone, Copy, Debug)]
pub struct FloatActivations<'a> {
    pub rows: usize,
    pub values: &'a [f32],
}

/// A product's input in the forms that were prepared; the others are empty.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub superblocks: ByteActivations<'a>,
    pub blocks: ByteActivations<'a>,
    pub floats: FloatActivations<'a>,
}

/// Room for one input, which is used again for the next.
#[derive(Debug, Default)]
pub struct InputBuffers {
    superblocks: ByteBuffers,
    blocks: ByteBuffers,
    floats: Vec<f32>,
}

#[derive(Debug, Default)]
struct ByteBuffers {
    quants: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    scaled_sums: Vec<f32>,
    digits: Vec<u16>,
}

/// [`InputBuffers`], as the threads that fill and read them see them.
#[derive(Clone, Copy)]
pub struct SharedInput {
    superblocks: SharedBytes,
    blocks: SharedBytes,
    floats: Shared<f32>,
}

#[derive(Clone, Copy)]
struct SharedBytes {
    quants: Shared<i8>,
    scales: Shared<f32>,
    sums: Shared<i32>,
    scaled_sums: Shared<f32>,
    digits: Shared<u16>,
}

/// The bytes that tile registers load at once, which are slow to load from two cache lines.
const LINE: usize = 64;

/// Words of a row's sums in a segment with this many scales.
const fn sums_of(scales: usize) -> usize {
    if scales == 1 { SUPERBLOCK_SUMS } else { BLOCK_SUMS }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) {
    // Room to begin on a cache line.
    let length = length + LINE / size_of::<T>();
    if buffer.len() < length {
        *buffer = vec![T::default(); length];
    }
}

/// The buffer from its first cache line on.
fn aligned<T>(buffer: &mut [T]) -> Shared<T> {
    let first = buffer.as_ptr().align_offset(LINE).min(buffer.len());
    Shared::new(&mut buffer[first..])
}

impl ByteBuffers {
    /// For `segments` segments of all rows, with this many scales each.
    fn reserve(&mut self, segments: usize, scales: usize, digits: bool) {
        grow(&mut self.quants, segments * INT_SEGMENT);
        grow(&mut self.scales, segments * scales);
        grow(&mut self.sums, segments * sums_of(scales));
        grow(&mut self.scaled_sums, if scales == 8 { segments * 8 } else { 0 });
        grow(&mut self.digits, if digits { segments * DIGITS } else { 0 });
    }

    fn shared(&mut self) -> SharedBytes {
        SharedBytes {
            quants: aligned(&mut self.quants),
            scales: aligned(&mut self.scales),
            sums: aligned(&mut self.sums),
            scaled_sums: aligned(&mut self.scaled_sums),
            digits: aligned(&mut self.digits),
        }
    }
}

impl InputBuffers {
    /// Makes room for an input of this shape. What is in the buffers is lost.
    pub fn reserve(&mut self, shape: InputShape) {
        let segments = shape.rows * shape.columns.div_ceil(INT_SEGMENT);
        if shape.forms.superblocks {
            self.superblocks.reserve(segments, 1, shape.forms.digits);
        }
        if shape.forms.blocks {
            self.blocks.reserve(segments, 8, false);
        }
        if shape.forms.floats {
            grow(&mut self.floats, shape.rows * shape.columns.div_ceil(FLOAT_SEGMENT) * FLOAT_SEGMENT);
        }
    }

    pub fn shared(&mut self) -> SharedInput {
        SharedInput {
            superblocks: self.superblocks.shared(),
            blocks: self.blocks.shared(),
            floats: aligned(&mut self.floats),
        }
    }
}

impl SharedBytes {
    /// # Safety
    /// There is room for `rows` rows of as many segments, with this many scales each, and nothing writes them meanwhile.
    unsafe fn view<'a>(self, rows: usize, segments: usize, scales: usize, digits: bool) -> ByteActivations<'a> {
        // SAFETY: as the caller says.
        unsafe {
            ByteActivations {
                rows,
                quants: self.quants.read(0, rows * segments * INT_SEGMENT),
                scales: self.scales.read(0, rows * segments * scales),
                sums: self.sums.read(0, rows * segments * sums_of(scales)),
                scaled_sums: self.scaled_sums.read(0, if scales == 8 { rows * segments * 8 } else { 0 }),
                digits: self.digits.read(0, if digits { rows * segments * DIGITS } else { 0 }),
            }
        }
    }
}

impl SharedInput {
    /// The input after it has been prepared.
    ///
    /// # Safety
    /// There is room for the shape, and nothing writes to the buffers while the result is used.
    pub unsafe fn view<'a>(self, shape: InputShape) -> Input<'a> {
        let segments = |wanted: bool, columns: usize| if wanted { shape.columns.div_ceil(columns) } else { 0 };
        let (rows, forms) = (shape.rows, shape.forms);
        // SAFETY: as the caller says; forms that are not there have no segments.
        unsafe {
            Input {
                superblocks: self.superblocks.view(rows, segments(forms.superblocks, INT_SEGMENT), 1, forms.digits),
                blocks: self.blocks.view(rows, segments(forms.blocks, INT_SEGMENT), 8, false),
                floats: FloatActivations {
                    rows,
                    values: self.floats.read(0, rows * segments(forms.floats, FLOAT_SEGMENT) * FLOAT_SEGMENT),
                },
            }
        }
    }

    /// Prepares some rows; `x` is those rows, `[range.len(), columns]`.
    ///
    /// # Safety
    /// There is room for the shape, which has the rows, and no other thread touches them meanwhile.
    pub unsafe fn prepare(self, shape: InputShape, range: Range<usize>, x: &[f32]) {
        for (row, x) in range.zip(x.chunks_exact(shape.columns)) {
            // SAFETY: as the caller says.
            unsafe {
                if shape.forms.superblocks {
                    self.superblocks.round::<false>(shape.rows, row, x, shape.forms.digits);
                }
                if shape.forms.blocks {
                    self.blocks.round::<true>(shape.rows, row, x, false);
                }
                if shape.forms.floats {
                    for (segment, x) in x.chunks(FLOAT_SEGMENT).enumerate() {
                        let to = self.floats.part((segment * shape.rows + row) * FLOAT_SEGMENT, FLOAT_SEGMENT);
                        to[..x.len()].copy_from_slice(x);
                        to[x.len()..].fill(0.0);
                    }
                }
            }
        }
    }
}

impl SharedBytes {
    /// Rounds one row; with `FINE`, one scale per 32 columns.
    ///
    /// # Safety
    /// There is room for `rows` rows of as many columns, and no other thread touches this one.
    unsafe fn round<const FINE: bool>(self, rows: usize, row: usize, x: &[f32], digits: bool) {
        let scales_per_segment = if FINE { 8 } else { 1 };
        for (segment, x) in x.chunks(INT_SEGMENT).enumerate() {
            let at = segment * rows + row;
            // SAFETY: as the caller says.
            let (quants, scales, sums) = unsafe {
                (
                    self.quants.part(at * INT_SEGMENT, INT_SEGMENT),
                    self.scales.part(at * scales_per_segment, scales_per_segment),
                    self.sums.part(at * sums_of(scales_per_segment), sums_of(scales_per_segment)),
                )
            };
            let mut padded = [0.0; INT_SEGMENT];
            let x = if x.len() == INT_SEGMENT {
                x
            } else {
                padded[..x.len()].copy_from_slice(x);
                &padded[..]
            };
            let mut sixteens = [0; 16];
            dispatch(Round::<FINE> { from: x, to: quants, scales, sums: &mut sixteens });
            let wide: [i32; 8] = std::array::from_fn(|sum| sixteens[2 * sum] + sixteens[2 * sum + 1]);
            if FINE {
                sums.copy_from_slice(&wide);
            } else {
                for (sum, pair) in sums.iter_mut().zip(sixteens.chunks_exact(2).chain(wide.chunks_exact(2))) {
                    *sum = (pair[0] & 0xffff) | (pair[1] << 16);
                }
            }
            if FINE {
                // SAFETY: as the caller says.
                let scaled = unsafe { self.scaled_sums.part(at * 8, 8) };
                for ((scaled, scale), sum) in scaled.iter_mut().zip(&*scales).zip(&*sums) {
                    *scaled = scale * *sum as f32;
                }
            }
            if digits {
                // SAFETY: as the caller says.
                let digits = unsafe { self.digits.part(at * DIGITS, DIGITS) };
                // Both have at most six significant bits, so the lower half of the float is zero.
                let bf16 = |digit: i32| ((digit as f32).to_bits() >> 16) as u16;
                let (multiples, remainders) = digits.split_at_mut(16);
                for ((sum, multiple), remainder) in sixteens.iter().zip(multiples).zip(remainders) {
                    (*multiple, *remainder) = (bf16(sum & !63), bf16(sum & 63));
                }
            }
        }
    }
}

/// A pointer through which parallel chunks write disjoint parts.
#[derive(Debug)]
pub struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: users of the pointer guarantee that no two threads touch the same element.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// Where an element is, to be prefetched.
    pub fn address(self, element: usize) -> *const T {
        self.0.wrapping_add(element)
    }

    /// # Safety
    /// `start..start + len` lies within the slice this was made from, and no other thread touches it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that the parts are disjoint")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// From an element on.
    ///
    /// # Safety
    /// The element is in the slice this was made from, or is the one past it.
    pub unsafe fn at(self, start: usize) -> Self {
        // SAFETY: as the caller says.
        Self(unsafe { self.0.add(start) })
    }

    /// # Safety
    /// `start..start + len` lies within the slice this was made from, which lives as long as the result, and no thread writes
    /// there meanwhile.
    pub unsafe fn read<'a>(self, start: usize, len: usize) -> &'a [T] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts(self.0.add(start), len) }
    }
}

/// Rounds 256 columns to bytes, with one scale or, if `FINE`, eight; a non-finite value makes its scale NaN.
struct Round<'a, const FINE: bool> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    /// One sum per sixteen bytes.
    sums: &'a mut [i32],
}

impl<const FINE: bool> Kernel for Round<'_, FINE> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { from, to, scales, sums } = self;
        let block = if FINE { 32 } else { INT_SEGMENT };
        let blocks = from.chunks_exact(block).zip(to.chunks_exact_mut(block)).zip(sums.chunks_exact_mut(block / LANES));
        for (((from, to), sums), scale) in blocks.zip(scales) {
            let magnitude = lanes.splat_i(i32::MAX);
            let (mut largest, mut poison) = (lanes.splat_f(0.0), lanes.splat_f(0.0));
            for chunk in from.chunks_exact(LANES) {
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
            let chunks = from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)).zip(sums);
            for ((from, to), sum) in chunks {
                // SAFETY: the chunks have sixteen elements.
                unsafe {
                    // What is no number becomes one of the bytes; the scale tells.
                    let scaled = lanes.max(lanes.mul(lanes.load_f(from.as_ptr()), inverse), lanes.splat_f(-127.0));
                    let rounded = lanes.to_nearest(scaled);
                    lanes.store_bytes(to.as_mut_ptr(), rounded);
                    // At most 16 * 127: floats add them exactly.
                    *sum = lanes.total(lanes.to_floats(rounded)) as i32;
                }
            }
            *scale = if finite { largest / 127.0 } else { f32::NAN };
        }
    }
}
