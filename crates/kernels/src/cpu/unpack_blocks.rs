//! Unpacks the older types (blocks of 32) into integer tiles, and the float types into float tiles.

use super::{
    lanes::{LANES, Lanes},
    source::{Rows, Source},
    tile::{FLOAT_SEGMENT, FloatTile, IntTile},
};
use crate::quant::GgmlType;

const VECTOR: usize = 4 * LANES;

/// Unpacks block `block` (below eight) of a segment of sixteen rows. Signed types keep their offset, as with the K types.
///
/// # Safety
/// The source is whole blocks of `dtype`, which is one of the types with blocks of 32.
#[inline(always)]
pub unsafe fn unpack_block<L: Lanes, S: Source<L>>(
    lanes: L,
    dtype: GgmlType,
    source: S,
    block: usize,
    tile: &mut IntTile,
) {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let quants = &mut tile.quants[block * 8 * VECTOR..][..8 * VECTOR];
    let put = |quants: &mut [u8], group: usize, value| {
        // SAFETY: the slot has 64 bytes.
        unsafe { lanes.store_i(quants[group * VECTOR..][..VECTOR].as_mut_ptr(), value) }
    };
    let (d, m) = (&mut tile.d[block * LANES..][..LANES], &mut tile.m[block * LANES..][..LANES]);
    // SAFETY: the slices have sixteen floats; a block starts with `d` and, in two of the types, `m`.
    unsafe {
        if matches!(dtype, GgmlType::Q4_1 | GgmlType::Q5_1) {
            let head = source.word(lanes, 0);
            lanes.store_f(d.as_mut_ptr(), lanes.low_half_as_float(head));
            lanes.store_f(m.as_mut_ptr(), lanes.low_half_as_float(lanes.shift_right::<16>(head)));
        } else {
            lanes.store_f(d.as_mut_ptr(), source.lone_half(lanes, 0));
        }
    }
    if dtype == GgmlType::Q8_0 {
        for piece in 0..2 {
            // SAFETY: the quants are bytes 2..34 of the block.
            let words = unsafe { source.words(lanes, 2 + 16 * piece) };
            let mut j = 0;
            while j < 4 {
                put(quants, 4 * piece + j, lanes.add_offset(words[j]));
                j += 1;
            }
        }
        return;
    }
    let (fifth, data) = match dtype {
        GgmlType::Q4_0 => (None, 2),
        GgmlType::Q4_1 => (None, 4),
        GgmlType::Q5_0 => (Some(2), 6),
        _ => (Some(4), 8),
    };
    // SAFETY: the last sixteen bytes of the block are quants.
    let words = unsafe { source.words(lanes, data) };
    // SAFETY: the four bytes of fifth bits precede the quants.
    let bits = fifth.map(|fifth| unsafe { source.word(lanes, fifth) });
    let mut j = 0;
    while j < 4 {
        let mut low = lanes.and(words[j], nibbles);
        let mut high = lanes.and(lanes.shift_right::<4>(words[j]), nibbles);
        if let Some(bits) = bits {
            low = lanes.or(low, S::fifth_bits(lanes, bits, j as u32));
            high = lanes.or(high, S::fifth_bits(lanes, bits, 4 + j as u32));
        }
        put(quants, j, low);
        put(quants, 4 + j, high);
        j += 1;
    }
}

/// Unpacks `columns` (at most 128) of sixteen rows of `F32`, `F16` or `BF16`.
///
/// # Safety
/// The source is `columns` elements of `dtype`, which is one of the three, in whole pieces of 16 bytes.
#[inline(always)]
pub unsafe fn unpack_floats<L: Lanes, S: Source<L>>(
    lanes: L,
    dtype: GgmlType,
    source: S,
    columns: usize,
    tile: &mut FloatTile,
) {
    let per_piece = 16 / dtype.block_bytes();
    for piece in 0..columns.min(FLOAT_SEGMENT).div_ceil(per_piece) {
        // SAFETY: as the caller says. A segment is whole pieces, so the last one fits the tile.
        unsafe { put_floats(lanes, dtype, source, 16 * piece, &mut tile.values[piece * per_piece * LANES..]) };
    }
}

/// The same from the file's rows, which may end with a piece that is not whole.
///
/// # Safety
/// Every row points to `columns` elements of `dtype`.
#[inline(always)]
pub unsafe fn unpack_float_rows<L: Lanes>(
    lanes: L,
    dtype: GgmlType,
    rows: &[*const u8; LANES],
    columns: usize,
    tile: &mut FloatTile,
) {
    let columns = columns.min(FLOAT_SEGMENT);
    let per_piece = 16 / dtype.block_bytes();
    let rest = columns % per_piece;
    let whole = columns - rest;
    // SAFETY: these columns are whole pieces, so their bytes belong to the rows.
    unsafe { unpack_floats(lanes, dtype, Rows { rows, offset: 0 }, whole, tile) };
    if rest > 0 {
        // The tensor may end with a row's last piece, so it is read through a padded copy.
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
        let source = Rows { rows: &padded, offset: 0 };
        // SAFETY: every copy has 16 bytes. A segment is whole pieces, so this one fits the tile.
        unsafe { put_floats(lanes, dtype, source, 0, &mut tile.values[whole * LANES..]) };
    }
}

/// The columns in 16 bytes of every row, each column as sixteen floats.
///
/// # Safety
/// The source has 16 bytes at `offset`.
#[inline(always)]
unsafe fn put_floats<L: Lanes, S: Source<L>>(lanes: L, dtype: GgmlType, source: S, offset: usize, to: &mut [f32]) {
    // SAFETY: as the caller says.
    let words = unsafe { source.words(lanes, offset) };
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
