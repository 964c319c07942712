//! Unpacks the older types (blocks of 32) into integer tiles, and the float types into float tiles.

use super::{
    lanes::{LANES, Lanes},
    tile::{FLOAT_SEGMENT, FloatTile, IntTile},
};
use crate::quant::GgmlType;

const VECTOR: usize = 4 * LANES;

/// Unpacks `blocks` (at most eight) blocks of sixteen rows. Signed types keep their offset, as with the K types.
///
/// # Safety
/// Every row points to `blocks` whole blocks of `dtype`, which is one of the types with blocks of 32.
#[inline(always)]
pub unsafe fn unpack_blocks<L: Lanes>(
    lanes: L,
    dtype: GgmlType,
    rows: &[*const u8; LANES],
    blocks: usize,
    tile: &mut IntTile,
) {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    for block in 0..blocks.min(8) {
        let at = block * dtype.block_bytes();
        let quants = &mut tile.quants[block * 8 * VECTOR..][..8 * VECTOR];
        let put = |quants: &mut [u8], group: usize, value| {
            // SAFETY: the slot has 64 bytes.
            unsafe { lanes.store_i(quants[group * VECTOR..][..VECTOR].as_mut_ptr(), value) }
        };
        let (d, m) = (&mut tile.d[block * LANES..][..LANES], &mut tile.m[block * LANES..][..LANES]);
        // SAFETY: the block starts with `d`, and every block has at least 18 bytes.
        let head = unsafe { lanes.gather(rows, at) };
        // SAFETY: the slices have sixteen floats.
        unsafe {
            lanes.store_f(d.as_mut_ptr(), lanes.low_half_as_float(head));
            if matches!(dtype, GgmlType::Q4_1 | GgmlType::Q5_1) {
                lanes.store_f(m.as_mut_ptr(), lanes.low_half_as_float(lanes.shift_right::<16>(head)));
            }
        }
        if dtype == GgmlType::Q8_0 {
            let sign = lanes.splat_i(0x8080_8080_u32 as i32);
            for piece in 0..2 {
                // SAFETY: the quants are bytes 2..34 of the block.
                let words = unsafe { lanes.transpose_words(rows, at + 2 + 16 * piece) };
                let mut j = 0;
                while j < 4 {
                    // Adding 128 to a signed byte flips its top bit.
                    put(quants, 4 * piece + j, lanes.xor(words[j], sign));
                    j += 1;
                }
            }
            continue;
        }
        let (fifth, data) = match dtype {
            GgmlType::Q4_0 => (None, at + 2),
            GgmlType::Q4_1 => (None, at + 4),
            GgmlType::Q5_0 => (Some(at + 2), at + 6),
            _ => (Some(at + 4), at + 8),
        };
        // SAFETY: the last sixteen bytes of the block are quants.
        let words = unsafe { lanes.transpose_words(rows, data) };
        // SAFETY: the four bytes of fifth bits precede the quants.
        let bits = fifth.map(|fifth| unsafe { lanes.gather(rows, fifth) });
        let mut j = 0;
        while j < 4 {
            let mut low = lanes.and(words[j], nibbles);
            let mut high = lanes.and(lanes.shift_right::<4>(words[j]), nibbles);
            if let Some(bits) = bits {
                low = lanes.or(low, fifth_bits(lanes, bits, 4 * j as u32));
                high = lanes.or(high, fifth_bits(lanes, bits, 16 + 4 * j as u32));
            }
            put(quants, j, low);
            put(quants, 4 + j, high);
            j += 1;
        }
    }
}

/// Bits `first..first + 4` of every lane, each as bit 4 of one of its four bytes.
#[inline(always)]
fn fifth_bits<L: Lanes>(lanes: L, bits: L::I, first: u32) -> L::I {
    let four = lanes.and(lanes.shift_right_by(bits, first), lanes.splat_i(0xf));
    // The multiplication moves bit i to bit 8 i (the other copies are masked away, and nothing carries).
    let spread = lanes.and(lanes.mul_i(four, lanes.splat_i(0x0020_4081)), lanes.splat_i(0x0101_0101));
    lanes.shift_left::<4>(spread)
}

/// Unpacks `columns` (at most 128) of sixteen rows of `F32`, `F16` or `BF16`.
///
/// # Safety
/// Every row points to `columns` elements of `dtype`, which is one of the three.
#[inline(always)]
pub unsafe fn unpack_floats<L: Lanes>(
    lanes: L,
    dtype: GgmlType,
    rows: &[*const u8; LANES],
    columns: usize,
    tile: &mut FloatTile,
) {
    let columns = columns.min(FLOAT_SEGMENT);
    let per_piece = 16 / dtype.block_bytes();
    for piece in 0..columns / per_piece {
        // SAFETY: the piece is whole, so its 16 bytes belong to the row.
        unsafe { put_floats(lanes, dtype, rows, 16 * piece, &mut tile.values[piece * per_piece * LANES..]) };
    }
    let rest = columns % per_piece;
    if rest > 0 {
        // The tensor may end with a row's last piece, so it is read through a padded copy.
        let whole = columns - rest;
        let mut copies = [[0u8; 16]; LANES];
        for (copy, row) in copies.iter_mut().zip(rows) {
            let bytes = rest * dtype.block_bytes();
            // SAFETY: the row has `rest` more elements after the whole pieces.
            let source = unsafe { std::slice::from_raw_parts(row.add(whole * dtype.block_bytes()), bytes) };
            copy[..bytes].copy_from_slice(source);
        }
        let mut padded = *rows;
        for (pointer, copy) in padded.iter_mut().zip(&copies) {
            *pointer = copy.as_ptr();
        }
        let mut floats = [0.0; 8 * LANES];
        // SAFETY: every copy has 16 bytes.
        unsafe { put_floats(lanes, dtype, &padded, 0, &mut floats) };
        tile.values[whole * LANES..][..rest * LANES].copy_from_slice(&floats[..rest * LANES]);
    }
}

/// The columns in 16 bytes of every row, each column as sixteen floats.
///
/// # Safety
/// 16 bytes at `offset` can be read from every row.
#[inline(always)]
unsafe fn put_floats<L: Lanes>(lanes: L, dtype: GgmlType, rows: &[*const u8; LANES], offset: usize, to: &mut [f32]) {
    // SAFETY: as the caller says.
    let words = unsafe { lanes.transpose_words(rows, offset) };
    let put = |to: &mut [f32], column: usize, value| {
        // SAFETY: the slot has sixteen floats.
        unsafe { lanes.store_f(to[column * LANES..][..LANES].as_mut_ptr(), value) }
    };
    let mut j = 0;
    while j < 4 {
        match dtype {
            GgmlType::F32 => put(to, j, lanes.bits_as_floats(words[j])),
            GgmlType::F16 => {
                put(to, 2 * j, lanes.low_half_as_float(words[j]));
                put(to, 2 * j + 1, lanes.low_half_as_float(lanes.shift_right::<16>(words[j])));
            }
            _ => {
                put(to, 2 * j, lanes.bits_as_floats(lanes.shift_left::<16>(words[j])));
                let high = lanes.and(words[j], lanes.splat_i(0xffff_0000_u32 as i32));
                put(to, 2 * j + 1, lanes.bits_as_floats(high));
            }
        }
        j += 1;
    }
}
