//! A weight matrix as tiles: the words of sixteen rows' blocks side by side, as the kernels want them.
//!
//! Unpacking a tile from the file's rows is mostly transposing, which decoding would do again for every token. Here it is done
//! once. Word `w` of a block of sixteen rows is one vector `[w][row]`, so the bytes are those of the file in another order, and take
//! as much room: no more than 15 rows and, in each tile row, one line of 64 bytes more. A half float that is in no word (`d` of
//! `Q6_K`, for one) stands before the words of its tile row, so that these begin on cache lines. In `Q5_0` and `Q5_1` the fifth
//! bits of a block are in another order within their word: bit `4 g + j` is bit `g` of byte `j`, next to the quants that it belongs to.
//!
//! The results are those of the rows to the bit: the kernels' sums of integers are exact in any order, and their float operations
//! are the same.

use candle_core::Result;

use super::{
    features::cpu_features,
    lanes::{Kernel, LANES, Lanes, dispatch_to},
    quantize::Shared,
    source::{BlockLayout, Rows, Source, TileBlock, spread},
};
use crate::{
    arena::{Arena, ArenaBytes},
    pool,
    quant::GgmlType,
};

/// Bytes of a matrix that are there twice at a time, as they are and as tiles.
const BYTES_AT_ONCE: usize = 8 << 20;

/// Bytes of one vector.
const VECTOR: usize = 4 * LANES;

/// See the module.
#[derive(Debug)]
pub struct Tiles {
    /// Of a block; of the float types, a row is one block.
    layout: BlockLayout,
    /// Of one tile row.
    halves_bytes: usize,
    tile_bytes: usize,
    bytes: ArenaBytes,
}

/// Sixteen rows of a [`Tiles`].
#[derive(Clone, Copy)]
pub struct TileRow {
    /// `[blocks][16 rows]`
    pub halves: *const u16,
    /// `[blocks][words][16 rows]`
    pub words: *const u8,
    pub layout: BlockLayout,
}

impl TileRow {
    /// # Safety
    /// The row has that many blocks.
    #[inline(always)]
    pub unsafe fn block(self, block: usize) -> TileBlock {
        // SAFETY: as the caller says. Without lone halves the pointer is to the words, and is not read.
        let halves = unsafe { self.halves.add(if self.layout.lone_half.is_some() { LANES * block } else { 0 }) };
        // SAFETY: as the caller says.
        let words = unsafe { self.words.add(VECTOR * self.layout.words * block) };
        TileBlock { words, halves, first_word: self.layout.first_word }
    }
}

impl Tiles {
    /// Makes the tiles of a matrix `[out, inp]` on the compute pool, and calls `release` with part after part of the matrix as
    /// it is no longer read.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        dtype: GgmlType,
        data: &[u8],
        (inp, out): (usize, usize),
        arena: &Arena,
        release: impl Fn(&[u8]),
    ) -> Result<Self> {
        let row_bytes = data.len() / out.max(1);
        let (blocks, layout) = if dtype.block_size() == 1 {
            // Whole pieces of 16 bytes; the last one of a row is padded with zeros.
            (1, BlockLayout { lone_half: None, first_word: 0, words: row_bytes.div_ceil(16) * 4 })
        } else {
            (inp / dtype.block_size(), BlockLayout::of(dtype))
        };
        let halves_bytes = if layout.lone_half.is_some() { (2 * LANES * blocks).next_multiple_of(VECTOR) } else { 0 };
        let tile_bytes = halves_bytes + VECTOR * layout.words * blocks;
        let tiles = out.div_ceil(LANES);
        let mut bytes = arena.bytes(tiles * tile_bytes).map_err(candle_core::Error::wrap)?;
        let shared = Shared::new(&mut bytes[..]);
        let set = cpu_features().instruction_set;
        let at_once = (BYTES_AT_ONCE / tile_bytes).max(1);
        for first_tile in (0..tiles).step_by(at_once) {
            let count = at_once.min(tiles - first_tile);
            pool::run(count, |tile| {
                let tile = first_tile + tile;
                // SAFETY: no other chunk writes this tile row.
                let to = unsafe { shared.part(tile * tile_bytes, tile_bytes) };
                let (halves, words) = to.split_at_mut(halves_bytes);
                let rows = std::array::from_fn(|r| {
                    let row = (tile * LANES + r).min(out - 1);
                    &data[row * row_bytes..(row + 1) * row_bytes]
                });
                dispatch_to(set, Transposition { dtype, rows, blocks, layout, halves, words });
            })?;
            let rows = first_tile * LANES..out.min((first_tile + count) * LANES);
            release(&data[rows.start * row_bytes..rows.end * row_bytes]);
        }
        Ok(Self { layout, halves_bytes, tile_bytes, bytes })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// # Panics
    /// If the matrix has fewer rows.
    #[inline(always)]
    pub fn row(&self, tile: usize) -> TileRow {
        let bytes = &self.bytes[tile * self.tile_bytes..][..self.tile_bytes];
        TileRow { halves: bytes.as_ptr().cast(), words: bytes[self.halves_bytes..].as_ptr(), layout: self.layout }
    }
}

/// Writes one tile row.
struct Transposition<'a> {
    dtype: GgmlType,
    rows: [&'a [u8]; LANES],
    blocks: usize,
    layout: BlockLayout,
    halves: &'a mut [u8],
    words: &'a mut [u8],
}

impl Kernel for Transposition<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { dtype, rows, blocks, layout, halves, words } = self;
        let row_bytes = rows[0].len();
        let block_bytes = row_bytes / blocks;
        let pointers = rows.map(<[u8]>::as_ptr);
        for block in 0..blocks {
            let at = block * block_bytes;
            if let Some(offset) = layout.lone_half {
                for (row, half) in rows.iter().zip(halves[2 * LANES * block..].chunks_exact_mut(2)) {
                    half.copy_from_slice(&row[at + offset..at + offset + 2]);
                }
            }
            let words = &mut words[VECTOR * layout.words * block..][..VECTOR * layout.words];
            for (four, to) in words.chunks_mut(4 * VECTOR).enumerate() {
                let offset = at + layout.first_word + 16 * four;
                let is_whole = to.len() == 4 * VECTOR && offset + 16 <= row_bytes;
                let transposed = if is_whole {
                    // SAFETY: the 16 bytes are within the rows.
                    unsafe { Rows { rows: &pointers, offset }.words(lanes, 0) }
                } else {
                    // The last words of a block, or of a row, through a padded copy.
                    let mut copies = [[0u8; 16]; LANES];
                    for (copy, row) in copies.iter_mut().zip(rows) {
                        let rest = &row[offset..row_bytes.min(offset + 16)];
                        copy[..rest.len()].copy_from_slice(rest);
                    }
                    let copies: [*const u8; LANES] = std::array::from_fn(|r| copies[r].as_ptr());
                    // SAFETY: every copy has 16 bytes.
                    unsafe { Rows { rows: &copies, offset: 0 }.words(lanes, 0) }
                };
                for (to, word) in to.chunks_exact_mut(VECTOR).zip(transposed) {
                    // SAFETY: the slot has 64 bytes.
                    unsafe { lanes.store_i(to.as_mut_ptr(), word) };
                }
            }
            let fifth = match dtype {
                GgmlType::Q5_0 => 0,
                GgmlType::Q5_1 => 1,
                _ => continue,
            };
            let fifth = &mut words[VECTOR * fifth..][..VECTOR];
            // SAFETY: the slot has 64 bytes.
            let bits = unsafe { lanes.load_i(fifth.as_ptr()) };
            let mut ordered = lanes.splat_i(0);
            for group in 0..8 {
                let four = spread(lanes, bits, group);
                // Shifting left by `group`: the bits of a byte stay within it.
                ordered = lanes.or(ordered, lanes.mul_i(four, lanes.splat_i(1 << group)));
            }
            // SAFETY: the slot has 64 bytes.
            unsafe { lanes.store_i(fifth.as_mut_ptr(), ordered) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_released_part_by_part_and_no_part_before_it_is_read() {
        let (dtype, inp, out) = (GgmlType::F32, 1024, 5000);
        let parts = std::cell::RefCell::new(Vec::new());
        let data: Vec<u8> = (0..4 * inp * out).map(|i| (i / 4096) as u8).collect();
        let tiles = Tiles::new(dtype, &data, (inp, out), &Arena::default(), |part| {
            let start = part.as_ptr().addr() - data.as_ptr().addr();
            parts.borrow_mut().push(start..start + part.len());
        });
        let parts = parts.into_inner();
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= BYTES_AT_ONCE), "{parts:?}");
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:?}");
        assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, data.len()));
        let tiles = tiles.expect("there is memory");
        for row in (0..out).step_by(777) {
            // SAFETY: the row is in that tile.
            let word = unsafe { *tiles.row(row / LANES).words.add(4 * (row % LANES)) };
            assert_eq!(word, row as u8, "row {row}");
        }
    }

    #[test]
    fn every_word_of_the_file_has_its_place() {
        for dtype in GgmlType::ALL {
            let inp = if dtype.block_size() == 1 { 37 } else { 2 * dtype.block_size() };
            let (out, row_bytes) = (21, dtype.row_bytes(inp).expect("whole blocks"));
            let data: Vec<u8> = (0..out * row_bytes).map(|i| (i * 7 + i / 251) as u8).collect();
            let tiles = Tiles::new(dtype, &data, (inp, out), &Arena::default(), |_| {}).expect("there is memory");
            assert!(tiles.bytes() <= 32 * (row_bytes + 16) + 2 * VECTOR, "{dtype}: {} bytes", tiles.bytes());
            let blocks = if dtype.block_size() == 1 { 1 } else { 2 };
            let block_bytes = row_bytes / blocks;
            for row in 0..out {
                let tile = tiles.row(row / LANES);
                for block in 0..blocks {
                    let raw = &data[row * row_bytes + block * block_bytes..][..block_bytes];
                    // SAFETY: the block, its words and its halves are there.
                    let (words, half) = unsafe {
                        let block = tile.block(block);
                        let word = |w| *block.words.add(VECTOR * w + 4 * (row % LANES)).cast::<[u8; 4]>();
                        ((0..tiles.layout.words).map(word).collect::<Vec<_>>(), *block.halves.add(row % LANES))
                    };
                    if let Some(offset) = tiles.layout.lone_half {
                        assert_eq!(half.to_le_bytes(), raw[offset..offset + 2], "{dtype}");
                    }
                    for (w, word) in words.into_iter().enumerate() {
                        let at = tiles.layout.first_word + 4 * w;
                        let mut expected = [0; 4];
                        let there = &raw[at.min(raw.len())..raw.len().min(at + 4)];
                        expected[..there.len()].copy_from_slice(there);
                        let fifth = match dtype {
                            GgmlType::Q5_0 => w == 0,
                            GgmlType::Q5_1 => w == 1,
                            _ => false,
                        };
                        if fifth {
                            let bits = u32::from_le_bytes(expected);
                            let moved = (0..32).map(|i| (bits >> i & 1) << (8 * (i % 4) + i / 4)).sum::<u32>();
                            expected = moved.to_le_bytes();
                        }
                        assert_eq!(word, expected, "{dtype} row {row} block {block} word {w}");
                    }
                }
            }
        }
    }
}
