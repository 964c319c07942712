//! Where a kernel reads the words of sixteen rows' blocks: from the rows as they are in the file, or from a tile of them.
//!
//! The unpacking functions are written once over [`Source`], with the byte offsets of ggml's layouts, and compiled for both.

use super::lanes::{LANES, Lanes};
use crate::quant::GgmlType;

/// The same block of sixteen rows; a lane of a result is a row.
pub trait Source<L: Lanes>: Copy {
    /// Words `0..4` of the 16 bytes at this offset of the blocks.
    ///
    /// # Safety
    /// The 16 bytes belong to the block or, in the last of a row of floats, to its padding.
    unsafe fn words(self, lanes: L, offset: usize) -> [L::I; 4];

    /// The word at this offset.
    ///
    /// # Safety
    /// The 4 bytes belong to the block.
    unsafe fn word(self, lanes: L, offset: usize) -> L::I;

    /// The half float at this offset that is in no whole word of the block's others.
    ///
    /// # Safety
    /// It is where [`BlockLayout::lone_half`] says.
    unsafe fn lone_half(self, lanes: L, offset: usize) -> L::F;

    /// Of the word with the fifth bits of `Q5_0` and `Q5_1`, those of columns `4 * group..4 * group + 4`, each as bit 4 of its byte.
    fn fifth_bits(lanes: L, word: L::I, group: u32) -> L::I;
}

/// Sixteen rows in the file's layout, from a byte offset on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub rows: &'a [*const u8; LANES],
    pub offset: usize,
}

impl<L: Lanes> Source<L> for Rows<'_> {
    #[inline(always)]
    unsafe fn words(self, lanes: L, offset: usize) -> [L::I; 4] {
        // SAFETY: as the caller says.
        unsafe { lanes.transpose_words(self.rows, self.offset + offset) }
    }

    #[inline(always)]
    unsafe fn word(self, lanes: L, offset: usize) -> L::I {
        // SAFETY: as the caller says.
        unsafe { lanes.gather(self.rows, self.offset + offset) }
    }

    #[inline(always)]
    unsafe fn lone_half(self, lanes: L, offset: usize) -> L::F {
        // SAFETY: the half is at the start of a block or at its end, and no block has fewer than 4 bytes: the word lies within.
        unsafe {
            if offset < 2 {
                return lanes.low_half_as_float(lanes.gather(self.rows, self.offset + offset));
            }
            lanes.low_half_as_float(lanes.shift_right::<16>(lanes.gather(self.rows, self.offset + offset - 2)))
        }
    }

    #[inline(always)]
    fn fifth_bits(lanes: L, word: L::I, group: u32) -> L::I {
        lanes.shift_left::<4>(spread(lanes, word, group))
    }
}

/// Bits `4 * group..4 * group + 4` of every lane, each as bit 0 of one of its four bytes.
#[inline(always)]
pub fn spread<L: Lanes>(lanes: L, word: L::I, group: u32) -> L::I {
    let four = lanes.and(lanes.shift_right_by(word, 4 * group), lanes.splat_i(0xf));
    // The multiplication moves bit i to bit 8 i (the other copies are masked away, and nothing carries).
    lanes.and(lanes.mul_i(four, lanes.splat_i(0x0020_4081)), lanes.splat_i(0x0101_0101))
}

/// Which bytes of a block are words, and which half float stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// Offset of a half float that is in none of the words.
    pub lone_half: Option<usize>,
    /// Offset of the first word.
    pub first_word: usize,
    pub words: usize,
}

impl BlockLayout {
    /// The layout of a block of a quantized type.
    pub const fn of(dtype: GgmlType) -> Self {
        let (lone_half, first_word) = match dtype {
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => (Some(0), 2),
            GgmlType::Q3_K => (Some(108), 0),
            GgmlType::Q6_K => (Some(208), 0),
            _ => (None, 0),
        };
        Self { lone_half, first_word, words: dtype.block_bytes() / 4 }
    }
}

/// One block of a tile: see [`Tiles`](super::tiles::Tiles).
#[derive(Clone, Copy)]
pub struct TileBlock {
    /// `[words][16 rows]`
    pub words: *const u8,
    /// `[16 rows]`, of the types with a lone half.
    pub halves: *const u16,
    /// Offset of the first word in the file's layout.
    pub first_word: usize,
}

impl TileBlock {
    /// A word by its number.
    ///
    /// # Safety
    /// The block has that many words.
    #[inline(always)]
    pub unsafe fn at<L: Lanes>(self, lanes: L, word: usize) -> L::I {
        // SAFETY: as the caller says.
        unsafe { lanes.load_i(self.words.add(4 * LANES * word)) }
    }
}

impl<L: Lanes> Source<L> for TileBlock {
    #[inline(always)]
    unsafe fn words(self, lanes: L, offset: usize) -> [L::I; 4] {
        let first = (offset - self.first_word) / 4;
        // SAFETY: as the caller says.
        unsafe {
            [self.at(lanes, first), self.at(lanes, first + 1), self.at(lanes, first + 2), self.at(lanes, first + 3)]
        }
    }

    #[inline(always)]
    unsafe fn word(self, lanes: L, offset: usize) -> L::I {
        // SAFETY: as the caller says.
        unsafe { self.at(lanes, (offset - self.first_word) / 4) }
    }

    #[inline(always)]
    unsafe fn lone_half(self, lanes: L, _offset: usize) -> L::F {
        // SAFETY: the type has a lone half, so the tile has sixteen of them for every block.
        unsafe { lanes.load_half(self.halves) }
    }

    #[inline(always)]
    fn fifth_bits(lanes: L, word: L::I, group: u32) -> L::I {
        lanes.shift_left::<4>(lanes.and(lanes.shift_right_by(word, group), lanes.splat_i(0x0101_0101)))
    }
}
