//! A few activation rows times one tile row, in one pass over its bytes: what decoding does.
//!
//! A step of decoding reads every weight once, so it should take as long as the memory takes to deliver them. The quants
//! are therefore opened in registers on their way from the tile to the multiplication, and nothing is written in between. The
//! operations on floats, and their order, are those of `microkernel.rs`, and sums of integers are exact in any order: a row's bits
//! are the same here and there.
//!
//! Loops over constants are written so that they unroll; then all sums stay in registers.

use std::ops::Range;

use super::{
    lanes::{LANES, Lanes},
    microkernel::{self, Minimum},
    prefetch,
    quantize::{BLOCK_SUMS, ByteActivations, FloatActivations, SUPERBLOCK_SUMS, WIDE_SUMS},
    source::{Source, TileBlock},
    tile::{FLOAT_SEGMENT, INT_SEGMENT},
    tiles::TileRow,
    unpack_superblocks::{q3_scales, six_bits, two_minimums},
};
use crate::quant::GgmlType;

/// How far ahead of the words that are read the next ones are fetched, in bytes. They go to the L2 cache, some lines at a time and in
/// the order of their addresses: on a Zen 4 core, one line into the L1 cache with each word reaches half of the memory's speed
/// (`benches/runs/2026-12-01-zen4-2core`).
const AHEAD: usize = 6912;

/// The activations of `M` rows, from row `first` on.
#[derive(Clone, Copy)]
struct Activations<'a> {
    x: ByteActivations<'a>,
    first: usize,
    /// Scales of a row in one segment.
    scales: usize,
    /// Words of its sums.
    sums: usize,
}

impl Activations<'_> {
    #[inline(always)]
    fn segment(self, segment: usize) -> SegmentRows {
        let at = segment * self.x.rows + self.first;
        SegmentRows {
            quants: self.x.quants[at * INT_SEGMENT..].as_ptr(),
            scales: self.x.scales[at * self.scales..].as_ptr(),
            sums: self.x.sums[at * self.sums..].as_ptr(),
            scaled_sums: self.x.scaled_sums.as_ptr().wrapping_add(at * 8),
        }
    }
}

/// One segment of the rows; see [`ByteActivations`].
#[derive(Clone, Copy)]
struct SegmentRows {
    quants: *const i8,
    scales: *const f32,
    sums: *const i32,
    scaled_sums: *const f32,
}

impl SegmentRows {
    /// From the next block of 32 columns on.
    #[inline(always)]
    const fn after_block(self) -> Self {
        Self {
            quants: self.quants.wrapping_add(32),
            scales: self.scales.wrapping_add(1),
            sums: self.sums.wrapping_add(1),
            scaled_sums: self.scaled_sums.wrapping_add(1),
        }
    }

    /// Columns `4 * group..4 * group + 4` of row `m` in every lane.
    ///
    /// # Safety
    /// The segment has that row, and 64 groups.
    #[inline(always)]
    unsafe fn four<L: Lanes>(self, lanes: L, m: usize, group: usize) -> L::I {
        // SAFETY: as the caller says.
        lanes.splat_i(unsafe { self.quants.add(m * INT_SEGMENT + 4 * group).cast::<i32>().read_unaligned() })
    }
}

/// Fetches what lies [`AHEAD`] of these words of a block.
#[inline(always)]
fn fetch_ahead(block: TileBlock, words: Range<usize>) {
    const WORD: usize = 4 * LANES;
    prefetch::to_l2(block.words.wrapping_add(WORD * words.start + AHEAD), WORD * words.len());
}

/// Fetches the beginning of a tile row, for the first one that a thread takes.
#[inline(always)]
pub fn fetch_first(row: TileRow) {
    prefetch::to_l2(row.words, AHEAD);
}

/// The words of a block in one of its quarters.
#[inline(always)]
const fn quarter(words: usize, quarter: usize) -> Range<usize> {
    words * quarter / 4..words * (quarter + 1) / 4
}

/// Sums of `M` rows and their scales, at the end of a superblock.
struct Superblock<L: Lanes, const M: usize> {
    /// Quants times scales.
    total: [L::I; M],
    /// Integer minimums, or scales, times the sums of the activations.
    minimums: [L::I; M],
}

impl<L: Lanes, const M: usize> Superblock<L, M> {
    #[inline(always)]
    fn zero(lanes: L) -> Self {
        Self { total: [lanes.splat_i(0); M], minimums: [lanes.splat_i(0); M] }
    }

    #[inline(always)]
    fn add(&mut self, lanes: L, products: [L::I; M], scale: L::I) {
        for m in 0..M {
            self.total[m] = lanes.add_scaled(self.total[m], products[m], scale);
        }
    }

    /// # Safety
    /// `x` has `M` rows.
    #[inline(always)]
    unsafe fn add_minimums(&mut self, lanes: L, x: SegmentRows, at: usize, factors: L::I) {
        for m in 0..M {
            // SAFETY: row `m` has twelve pairs of sums.
            let sums = lanes.splat_i(unsafe { *x.sums.add(SUPERBLOCK_SUMS * m + at) });
            self.minimums[m] = lanes.dot_halves(self.minimums[m], factors, sums);
        }
    }

    /// Adds the superblock to `out`. Where every quant carries an offset, `minimums` are the scales.
    ///
    /// # Safety
    /// `x` has `M` rows.
    #[inline(always)]
    unsafe fn finish(self, lanes: L, x: SegmentRows, (d, dmin): (L::F, L::F), minimum: Minimum, out: &mut [L::F; M]) {
        let factors = [d, lanes.sub(lanes.splat_f(0.0), dmin)];
        for m in 0..M {
            // SAFETY: row `m` has a scale.
            let scale = unsafe { *x.scales.add(m) };
            let sums = [self.total[m], self.minimums[m]];
            out[m] = microkernel::add_superblock(lanes, factors, scale, sums, minimum, out[m]);
        }
    }
}

/// `Q4_K`, and with `FIFTH` `Q5_K`: eight sub-blocks of 32 columns, two of them in each run of eight words.
///
/// # Safety
/// The row has `segments` blocks of the type, and `x` has `M` rows from `first` on.
#[inline(always)]
unsafe fn sub_blocks_of_32<L: Lanes, const M: usize, const FIFTH: bool>(
    lanes: L,
    row: TileRow,
    segments: usize,
    x: Activations<'_>,
) -> [L::F; M] {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let one_bit = lanes.splat_i(0x0101_0101);
    let first_quants = if FIFTH { 12 } else { 4 };
    let words = first_quants + 32;
    let most = L::most_products(if FIFTH { 31 } else { 15 }).min(8);
    let mut out = [lanes.splat_f(0.0); M];
    for segment in 0..segments {
        let x = x.segment(segment);
        // SAFETY: the blocks, their words, and the rows of `x` are there.
        unsafe {
            let block = row.block(segment);
            let halves = block.at(lanes, 0);
            let (low, middle, high) = (block.at(lanes, 1), block.at(lanes, 2), block.at(lanes, 3));
            let (scales, minimums) = six_bits(lanes, low, middle, high);
            let mut sums = Superblock::<L, M>::zero(lanes);
            let mut run = 0;
            while run < 4 {
                fetch_ahead(block, quarter(words, run));
                let (mut first, mut second) = ([lanes.splat_i(0); M], [lanes.splat_i(0); M]);
                let mut w = 0;
                while w < 8 {
                    let word = block.at(lanes, first_quants + 8 * run + w);
                    let mut low = lanes.and(word, nibbles);
                    let mut high = lanes.and(lanes.shift_right::<4>(word), nibbles);
                    if FIFTH {
                        let fifth = block.at(lanes, 4 + w);
                        let bit =
                            |n: usize| lanes.shift_left::<4>(lanes.and(lanes.shift_right_by(fifth, n as u32), one_bit));
                        low = lanes.or(low, bit(2 * run));
                        high = lanes.or(high, bit(2 * run + 1));
                    }
                    for m in 0..M {
                        first[m] = lanes.multiply_bytes(first[m], low, x.four(lanes, m, 16 * run + w));
                        second[m] = lanes.multiply_bytes(second[m], high, x.four(lanes, m, 16 * run + 8 + w));
                    }
                    w += 1;
                    if w % most == 0 {
                        let scale = |sub: usize| lanes.factor(scales[sub / 4], sub % 4);
                        sums.add(lanes, first, scale(2 * run));
                        sums.add(lanes, second, scale(2 * run + 1));
                        (first, second) = ([lanes.splat_i(0); M], [lanes.splat_i(0); M]);
                    }
                }
                run += 1;
            }
            let mut pair = 0;
            while pair < 4 {
                sums.add_minimums(lanes, x, WIDE_SUMS + pair, two_minimums(lanes, minimums, pair));
                pair += 1;
            }
            let floats = (lanes.low_half_as_float(halves), lanes.low_half_as_float(lanes.shift_right::<16>(halves)));
            sums.finish(lanes, x, floats, Minimum::Scaled, &mut out);
        }
    }
    out
}

/// A type of sixteen sub-blocks of 16 columns, of which a word has columns of four: eight sub-blocks in each half of a block.
trait SubBlocksOf16 {
    const MINIMUM: Minimum;
    /// The largest quant.
    const LARGEST: usize;
    /// Words of a block.
    const WORDS: usize;

    /// The quants of sub-blocks `8 half + piece`, `+ 2`, `+ 4` and `+ 6`, columns `4 j..4 j + 4` of each.
    ///
    /// # Safety
    /// The block is of this type.
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, half: usize, piece: usize, j: usize) -> [L::I; 4];

    /// The scales of half of the sub-blocks as signed bytes, four to a word, and what is multiplied with the sums of their columns:
    /// the minimums or, where the quants have an offset, the scales.
    ///
    /// # Safety
    /// As [`Self::quants`].
    unsafe fn scales<L: Lanes>(lanes: L, block: TileBlock, half: usize) -> ([L::I; 2], [L::I; 2]);

    /// The scales of the block's scales and minimums.
    ///
    /// # Safety
    /// As [`Self::quants`].
    unsafe fn floats<L: Lanes>(lanes: L, block: TileBlock) -> (L::F, L::F);
}

struct Q2K;
struct Q3K;
struct Q6K;

impl SubBlocksOf16 for Q2K {
    const MINIMUM: Minimum = Minimum::Scaled;
    const LARGEST: usize = 3;
    const WORDS: usize = 21;

    #[inline(always)]
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, half: usize, piece: usize, j: usize) -> [L::I; 4] {
        let two_bits = lanes.splat_i(0x0303_0303);
        // SAFETY: words 4..20.
        let word = unsafe { block.at(lanes, 4 + 8 * half + 4 * piece + j) };
        [
            lanes.and(word, two_bits),
            lanes.and(lanes.shift_right::<2>(word), two_bits),
            lanes.and(lanes.shift_right::<4>(word), two_bits),
            lanes.and(lanes.shift_right::<6>(word), two_bits),
        ]
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(lanes: L, block: TileBlock, half: usize) -> ([L::I; 2], [L::I; 2]) {
        let nibbles = lanes.splat_i(0x0f0f_0f0f);
        // Scales in the low nibbles, minimums in the high ones.
        // SAFETY: words 0..4.
        let both = unsafe { [block.at(lanes, 2 * half), block.at(lanes, 2 * half + 1)] };
        let high = |word| lanes.and(lanes.shift_right::<4>(word), nibbles);
        ([lanes.and(both[0], nibbles), lanes.and(both[1], nibbles)], [high(both[0]), high(both[1])])
    }

    #[inline(always)]
    unsafe fn floats<L: Lanes>(lanes: L, block: TileBlock) -> (L::F, L::F) {
        // SAFETY: word 20.
        let halves = unsafe { block.at(lanes, 20) };
        (lanes.low_half_as_float(halves), lanes.low_half_as_float(lanes.shift_right::<16>(halves)))
    }
}

impl SubBlocksOf16 for Q3K {
    const MINIMUM: Minimum = Minimum::Offset(4);
    const LARGEST: usize = 7;
    const WORDS: usize = 27;

    #[inline(always)]
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, half: usize, piece: usize, j: usize) -> [L::I; 4] {
        let (two_bits, one_bit) = (lanes.splat_i(0x0303_0303), lanes.splat_i(0x0101_0101));
        // SAFETY: the high bits are words 0..8, the low two bits 8..24.
        let (high, low) = unsafe { (block.at(lanes, 4 * piece + j), block.at(lanes, 8 + 8 * half + 4 * piece + j)) };
        let high = lanes.shift_right_by(high, 4 * half as u32);
        let mut quants = [low; 4];
        let mut i = 0;
        while i < 4 {
            let two = lanes.and(lanes.shift_right_by(low, 2 * i as u32), two_bits);
            let top = lanes.and(lanes.shift_right_by(high, i as u32), one_bit);
            quants[i] = lanes.or(two, lanes.shift_left::<2>(top));
            i += 1;
        }
        quants
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(lanes: L, block: TileBlock, half: usize) -> ([L::I; 2], [L::I; 2]) {
        // SAFETY: words 24..27.
        let scales = unsafe { q3_scales(lanes, block.at(lanes, 24), block.at(lanes, 25), block.at(lanes, 26), half) };
        (scales, scales)
    }

    #[inline(always)]
    unsafe fn floats<L: Lanes>(lanes: L, block: TileBlock) -> (L::F, L::F) {
        // SAFETY: as the caller says.
        (unsafe { block.lone_half(lanes, 0) }, lanes.splat_f(0.0))
    }
}

impl SubBlocksOf16 for Q6K {
    const MINIMUM: Minimum = Minimum::Offset(32);
    const LARGEST: usize = 63;
    const WORDS: usize = 52;

    #[inline(always)]
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, half: usize, piece: usize, j: usize) -> [L::I; 4] {
        let (nibbles, top) = (lanes.splat_i(0x0f0f_0f0f), lanes.splat_i(0x3030_3030));
        // SAFETY: the low bits are words 0..32, the high bits 32..48.
        let (a, b, high) = unsafe {
            (
                block.at(lanes, 16 * half + 4 * piece + j),
                block.at(lanes, 16 * half + 8 + 4 * piece + j),
                block.at(lanes, 32 + 8 * half + 4 * piece + j),
            )
        };
        let joined = |low, high| lanes.or(lanes.and(low, nibbles), lanes.and(high, top));
        [
            joined(a, lanes.shift_left::<4>(high)),
            joined(b, lanes.shift_left::<2>(high)),
            joined(lanes.shift_right::<4>(a), high),
            joined(lanes.shift_right::<4>(b), lanes.shift_right::<2>(high)),
        ]
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(lanes: L, block: TileBlock, half: usize) -> ([L::I; 2], [L::I; 2]) {
        // SAFETY: words 48..52.
        let scales = unsafe { [block.at(lanes, 48 + 2 * half), block.at(lanes, 49 + 2 * half)] };
        (scales, scales)
    }

    #[inline(always)]
    unsafe fn floats<L: Lanes>(lanes: L, block: TileBlock) -> (L::F, L::F) {
        // SAFETY: as the caller says.
        (unsafe { block.lone_half(lanes, 0) }, lanes.splat_f(0.0))
    }
}

/// `Q2_K`, `Q3_K` and `Q6_K`. The halves of a block are a loop that stays one: unrolled, it would be more code than the
/// compiler optimizes in reasonable time.
///
/// # Safety
/// As [`sub_blocks_of_32`].
#[inline(always)]
unsafe fn sub_blocks_of_16<L: Lanes, T: SubBlocksOf16, const M: usize>(
    lanes: L,
    row: TileRow,
    segments: usize,
    x: Activations<'_>,
) -> [L::F; M] {
    let most = L::most_products(T::LARGEST).min(4);
    let mut out = [lanes.splat_f(0.0); M];
    for segment in 0..segments {
        let x = x.segment(segment);
        // SAFETY: the blocks, their words, and the rows of `x` are there.
        unsafe {
            let block = row.block(segment);
            let mut sums = Superblock::<L, M>::zero(lanes);
            for half in 0..2 {
                let (scales, minimums) = T::scales(lanes, block, half);
                let mut piece = 0;
                while piece < 2 {
                    fetch_ahead(block, quarter(T::WORDS, 2 * half + piece));
                    let mut products = [[lanes.splat_i(0); M]; 4];
                    let mut j = 0;
                    while j < 4 {
                        let quants = T::quants(lanes, block, half, piece, j);
                        let mut i = 0;
                        while i < 4 {
                            for m in 0..M {
                                let four = x.four(lanes, m, 32 * half + 8 * i + 4 * piece + j);
                                products[i][m] = lanes.multiply_bytes(products[i][m], quants[i], four);
                            }
                            i += 1;
                        }
                        j += 1;
                        if j % most == 0 {
                            let mut i = 0;
                            while i < 4 {
                                let sub = 2 * i + piece;
                                sums.add(lanes, products[i], lanes.factor(scales[sub / 4], sub % 4));
                                products[i] = [lanes.splat_i(0); M];
                                i += 1;
                            }
                        }
                    }
                    piece += 1;
                }
                let mut at = 0;
                while at < 4 {
                    let factors = lanes.bytes_as_halves(minimums[at / 2], 2 * at % 4, 2 * at % 4 + 1);
                    sums.add_minimums(lanes, x, 4 * half + at, factors);
                    at += 1;
                }
            }
            sums.finish(lanes, x, T::floats(lanes, block), T::MINIMUM, &mut out);
        }
    }
    out
}

/// How a type with blocks of 32 columns is stored.
trait BlockOf32 {
    /// Whether the quants use all eight bits.
    const IS_FULL: bool = false;
    /// Words of a block.
    const WORDS: usize;

    /// What every quant carries; `None` if a block has a minimum instead, beside `d` in its first word.
    fn offset<L: Lanes>() -> Option<i32>;

    /// The quants of columns `4 j..4 j + 4` and `16 + 4 j..16 + 4 j + 4`.
    ///
    /// # Safety
    /// The block is of this type.
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, j: usize) -> [L::I; 2];
}

/// `Q4_0`, `Q4_1`, `Q5_0` and `Q5_1`: their quants begin with this word, and follow the fifth bits if they have them.
struct Nibbles<const FIRST: usize, const FIFTH: bool, const OFFSET: i32>;

impl<const FIRST: usize, const FIFTH: bool, const OFFSET: i32> BlockOf32 for Nibbles<FIRST, FIFTH, OFFSET> {
    const WORDS: usize = FIRST + 4;

    #[inline(always)]
    fn offset<L: Lanes>() -> Option<i32> {
        if OFFSET == 0 { None } else { Some(OFFSET) }
    }

    #[inline(always)]
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, j: usize) -> [L::I; 2] {
        let nibbles = lanes.splat_i(0x0f0f_0f0f);
        // SAFETY: as the caller says.
        let word = unsafe { block.at(lanes, FIRST + j) };
        let (low, high) = (lanes.and(word, nibbles), lanes.and(lanes.shift_right::<4>(word), nibbles));
        if !FIFTH {
            return [low, high];
        }
        // SAFETY: the fifth bits are the word before.
        let fifth = unsafe { block.at(lanes, FIRST - 1) };
        let bits = |group| <TileBlock as Source<L>>::fifth_bits(lanes, fifth, group);
        [lanes.or(low, bits(j as u32)), lanes.or(high, bits(4 + j as u32))]
    }
}

struct Q80;

impl BlockOf32 for Q80 {
    const IS_FULL: bool = true;
    const WORDS: usize = 8;

    #[inline(always)]
    fn offset<L: Lanes>() -> Option<i32> {
        Some(L::OFFSET)
    }

    #[inline(always)]
    unsafe fn quants<L: Lanes>(lanes: L, block: TileBlock, j: usize) -> [L::I; 2] {
        // SAFETY: the block has eight words.
        unsafe { [lanes.add_offset(block.at(lanes, j)), lanes.add_offset(block.at(lanes, 4 + j))] }
    }
}

/// Adds products of a type's quants, as [`BlockOf32::quants`] gives them, to their sum.
#[inline(always)]
fn multiply<L: Lanes, T: BlockOf32>(lanes: L, sum: L::I, quants: L::I, x: L::I) -> L::I {
    if T::IS_FULL { lanes.dot_offset_bytes(sum, quants, x) } else { lanes.multiply_bytes(sum, quants, x) }
}

/// The types with blocks of 32 columns.
///
/// # Safety
/// The row has `blocks` blocks of the type, and `x` has `M` rows from `first` on.
#[inline(always)]
unsafe fn blocks_of_32<L: Lanes, T: BlockOf32, const M: usize>(
    lanes: L,
    row: TileRow,
    blocks: usize,
    x: Activations<'_>,
) -> [L::F; M] {
    // The quants' offset is then taken away at the beginning, which needs no operation of its own.
    let is_plain = T::IS_FULL || L::most_products(31) == usize::MAX;
    // Many rows are chains enough for the multipliers, and one sum for each needs no adding up.
    let is_one_sum = is_plain && M > 4;
    let mut out = [lanes.splat_f(0.0); M];
    for segment in 0..blocks.div_ceil(8) {
        let mut x = x.segment(segment);
        for block in 8 * segment..blocks.min(8 * segment + 8) {
            // SAFETY: the blocks, their words, and the rows of `x` are there.
            unsafe {
                let block = row.block(block);
                fetch_ahead(block, 0..T::WORDS);
                let (d, minimum) = if T::offset::<L>().is_none() {
                    let head = block.at(lanes, 0);
                    (lanes.low_half_as_float(head), lanes.low_half_as_float(lanes.shift_right::<16>(head)))
                } else {
                    (block.lone_half(lanes, 0), lanes.splat_f(0.0))
                };
                let mut first = [lanes.splat_i(0); M];
                if is_plain && let Some(offset) = T::offset::<L>() {
                    for m in 0..M {
                        // At most 32 * 128, times at most 128.
                        first[m] = lanes.splat_i(-offset * *x.sums.add(BLOCK_SUMS * m));
                    }
                }
                // Four products of five bits each: no set must end the sums before.
                let mut second = [lanes.splat_i(0); M];
                let mut j = 0;
                while j < 4 {
                    let [low, high] = T::quants(lanes, block, j);
                    for m in 0..M {
                        let (a, b) = (x.four(lanes, m, j), x.four(lanes, m, 4 + j));
                        first[m] = multiply::<L, T>(lanes, first[m], low, a);
                        if is_one_sum {
                            first[m] = multiply::<L, T>(lanes, first[m], high, b);
                        } else {
                            second[m] = multiply::<L, T>(lanes, second[m], high, b);
                        }
                    }
                    j += 1;
                }
                for m in 0..M {
                    let scale = *x.scales.add(8 * m);
                    let mut total = if is_one_sum {
                        first[m]
                    } else if is_plain {
                        lanes.add_i(first[m], second[m])
                    } else {
                        lanes.add_products(lanes.add_products(lanes.splat_i(0), first[m]), second[m])
                    };
                    if !is_plain && let Some(offset) = T::offset::<L>() {
                        total = lanes.sub_i(total, lanes.splat_i(offset * *x.sums.add(BLOCK_SUMS * m)));
                    }
                    out[m] = lanes.fma(lanes.to_floats(total), lanes.mul(d, lanes.splat_f(scale)), out[m]);
                    if T::offset::<L>().is_none() {
                        out[m] = lanes.fma(minimum, lanes.splat_f(*x.scaled_sums.add(8 * m)), out[m]);
                    }
                }
                x = x.after_block();
            }
        }
    }
    out
}

/// `F32`, `F16` and `BF16`. `COLUMNS` is the number of columns in a word.
///
/// # Safety
/// The row has `columns` elements of the type, and `x` has `M` rows from `first` on.
#[inline(always)]
unsafe fn floats<L: Lanes, const M: usize>(
    lanes: L,
    dtype: GgmlType,
    row: TileRow,
    columns: usize,
    x: FloatActivations<'_>,
    first: usize,
) -> [L::F; M] {
    let mut out = [lanes.splat_f(0.0); M];
    let per_word = 4 / dtype.block_bytes();
    for segment in 0..columns.div_ceil(FLOAT_SEGMENT) {
        let here = (columns - segment * FLOAT_SEGMENT).min(FLOAT_SEGMENT);
        let x = x.values[(segment * x.rows + first) * FLOAT_SEGMENT..].as_ptr();
        let mut sum = [lanes.splat_f(0.0); M];
        // SAFETY: the words of the columns, and the rows of `x`, are there. Past the last column, in its word, both are zero.
        unsafe {
            let block = row.block(0);
            let mut add = |column: usize, weights: L::F| {
                for m in 0..M {
                    let value = lanes.splat_f(*x.add(m * FLOAT_SEGMENT + column));
                    sum[m] = lanes.fma(weights, value, sum[m]);
                }
            };
            for word in 0..here.div_ceil(per_word) {
                let at = segment * FLOAT_SEGMENT / per_word + word;
                fetch_ahead(block, at..at + 1);
                let bits = block.at(lanes, at);
                match dtype {
                    GgmlType::F32 => add(word, lanes.bits_as_floats(bits)),
                    GgmlType::F16 => {
                        add(2 * word, lanes.low_half_as_float(bits));
                        if 2 * word + 1 < here {
                            add(2 * word + 1, lanes.low_half_as_float(lanes.shift_right::<16>(bits)));
                        }
                    }
                    _ => {
                        add(2 * word, lanes.bits_as_floats(lanes.shift_left::<16>(bits)));
                        if 2 * word + 1 < here {
                            let high = lanes.and(bits, lanes.splat_i(0xffff_0000_u32 as i32));
                            add(2 * word + 1, lanes.bits_as_floats(high));
                        }
                    }
                }
            }
        }
        for m in 0..M {
            out[m] = lanes.add(out[m], sum[m]);
        }
    }
    out
}

/// How many of `rows` are multiplied at a time: types with sixteen sub-blocks have four sums for each.
pub const fn most_rows(dtype: GgmlType, rows: usize) -> usize {
    match dtype {
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q6_K if rows > 4 => 4,
        _ => rows,
    }
}

/// The rows of the input that a product takes, in the form that its weights need.
#[derive(Clone, Copy)]
pub enum InputRows<'a> {
    /// With one scale for each superblock.
    Superblocks(ByteActivations<'a>),
    /// With one scale for each block of 32.
    Blocks(ByteActivations<'a>),
    Floats(FloatActivations<'a>),
}

/// Writes the product of a tile row and rows `first..first + M` of the input to `y`, `[M][16]`.
///
/// # Safety
/// The tile row is of `dtype` and `inp` columns; the input has as many columns, those rows, and the form that `dtype` needs; `y` has
/// room for `M` vectors.
#[inline(always)]
pub unsafe fn tile_row<L: Lanes, const M: usize>(
    lanes: L,
    dtype: GgmlType,
    row: TileRow,
    inp: usize,
    input: InputRows<'_>,
    first: usize,
    y: *mut f32,
) {
    // SAFETY: as the caller says; `div_ceil` of whole blocks is exact.
    unsafe {
        let out: [L::F; M] = match input {
            InputRows::Superblocks(x) => {
                let (x, segments) = (Activations { x, first, scales: 1, sums: SUPERBLOCK_SUMS }, inp / INT_SEGMENT);
                match dtype {
                    GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q6_K if M > most_rows(dtype, M) => {
                        unreachable!("{M} rows of {dtype}, whose sums do not fit the registers")
                    }
                    GgmlType::Q2_K => sub_blocks_of_16::<L, Q2K, M>(lanes, row, segments, x),
                    GgmlType::Q3_K => sub_blocks_of_16::<L, Q3K, M>(lanes, row, segments, x),
                    GgmlType::Q4_K => sub_blocks_of_32::<L, M, false>(lanes, row, segments, x),
                    GgmlType::Q5_K => sub_blocks_of_32::<L, M, true>(lanes, row, segments, x),
                    _ => sub_blocks_of_16::<L, Q6K, M>(lanes, row, segments, x),
                }
            }
            InputRows::Blocks(x) => {
                let (x, blocks) = (Activations { x, first, scales: 8, sums: BLOCK_SUMS }, inp / 32);
                match dtype {
                    GgmlType::Q4_0 => blocks_of_32::<L, Nibbles<0, false, 8>, M>(lanes, row, blocks, x),
                    GgmlType::Q4_1 => blocks_of_32::<L, Nibbles<1, false, 0>, M>(lanes, row, blocks, x),
                    GgmlType::Q5_0 => blocks_of_32::<L, Nibbles<1, true, 16>, M>(lanes, row, blocks, x),
                    GgmlType::Q5_1 => blocks_of_32::<L, Nibbles<2, true, 0>, M>(lanes, row, blocks, x),
                    _ => blocks_of_32::<L, Q80, M>(lanes, row, blocks, x),
                }
            }
            InputRows::Floats(x) => floats(lanes, dtype, row, inp, x, first),
        };
        for m in 0..M {
            lanes.store_f(y.add(m * LANES), out[m]);
        }
    }
}
