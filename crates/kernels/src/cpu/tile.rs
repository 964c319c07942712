//! A tile: sixteen weight rows by one segment of columns, unpacked so that each lane is a row.
//!
//! Weights stay in the file's own blocks; the matrix kernels unpack a tile into this scratch buffer, which stays in the
//! L1 cache, and reuse it for all activation rows of the chunk. Integer tiles hold 256 columns: one superblock of the K
//! types, or eight blocks of the older types. Float tiles hold 128.

use super::lanes::LANES;

/// Columns of an integer segment.
pub const INT_SEGMENT: usize = 256;
/// Columns of a float segment, which is also the length of a partial sum.
pub const FLOAT_SEGMENT: usize = 128;

/// An unpacked integer tile.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct IntTile {
    /// `[64][16 rows][4]`: unsigned quants of four adjacent columns.
    pub quants: [u8; INT_SEGMENT * LANES],
    /// K types: `[sub-blocks][16 rows]`, the integer scale of each sub-block.
    pub scales: [i32; 16 * LANES],
    /// K types: `[8][16 rows]`, pairs of signed 16-bit factors for the activation sums over 2 x 16 columns.
    pub minimums: [i32; 8 * LANES],
    /// `Q4_K` and `Q5_K`: `[4][16 rows]`, the same for the sums over 2 x 32 columns.
    pub wide_minimums: [i32; 4 * LANES],
    /// Older types: `[8 blocks][16 rows]`. K types: the superblock's scale, in the first sixteen.
    pub d: [f32; 8 * LANES],
    /// Older types with a minimum: `[8 blocks][16 rows]`. K types with one: its scale, in the first sixteen.
    pub m: [f32; 8 * LANES],
}

impl IntTile {
    pub const fn zeroed() -> Self {
        Self {
            quants: [0; INT_SEGMENT * LANES],
            scales: [0; 16 * LANES],
            minimums: [0; 8 * LANES],
            wide_minimums: [0; 4 * LANES],
            d: [0.0; 8 * LANES],
            m: [0.0; 8 * LANES],
        }
    }
}

/// An unpacked float tile: `[128 columns][16 rows]`.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FloatTile {
    pub values: [f32; FLOAT_SEGMENT * LANES],
}

impl FloatTile {
    pub const fn zeroed() -> Self {
        Self { values: [0.0; FLOAT_SEGMENT * LANES] }
    }
}
