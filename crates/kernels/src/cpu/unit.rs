//! One unit of a matrix product: a weight's tiles times a chunk of activation rows.
//!
//! A unit walks its segments: it unpacks the tiles once, then runs the micro-kernel over the chunk's rows. Where the weights are tiles
//! and the rows are few, unpacking would take longer than multiplying, and a unit streams its tile instead (`gemv.rs`). Where its
//! products go is left to `destination.rs`.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    destination::Destination,
    gemv::{self, InputRows},
    lanes::{LANES, Lanes},
    matmul::{MAX_CHUNK_ROWS, Weight},
    microkernel::{self, Minimum, Segment, TileProduct},
    quantize::{BLOCK_SUMS, Input, SUPERBLOCK_SUMS},
    source::{Rows, Source},
    tile::{FLOAT_SEGMENT, FloatTile, INT_SEGMENT, IntTile},
    unpack_blocks, unpack_superblocks,
};
use crate::quant::GgmlType;

/// The three forms in which weights need their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Superblocks,
    Blocks,
    Floats,
}

pub const fn form(dtype: GgmlType) -> Form {
    match dtype.block_size() {
        256 => Form::Superblocks,
        32 => Form::Blocks,
        _ => Form::Floats,
    }
}

fn rows_for(input: Input<'_>, dtype: GgmlType) -> InputRows<'_> {
    match form(dtype) {
        Form::Superblocks => InputRows::Superblocks(input.superblocks),
        Form::Blocks => InputRows::Blocks(input.blocks),
        Form::Floats => InputRows::Floats(input.floats),
    }
}

/// Activation rows up to which tiles are streamed rather than unpacked.
pub const STREAMED_ROWS_MAX: usize = 8;

/// Room for a unit's products of one weight.
#[repr(C, align(64))]
pub struct Room([f32; MAX_CHUNK_ROWS * 2 * LANES]);

/// A unit's products, `[rows][tiles][16]`. `is_first`: no unit before it has fetched the weight's tiles.
#[inline(always)]
pub fn multiply<'r, L: Lanes>(
    lanes: L,
    destination: &Destination<'_>,
    input: Input<'_>,
    is_first: bool,
    room: &'r mut MaybeUninit<Room>,
) -> &'r [f32] {
    let Destination { weight, rows, columns, .. } = destination;
    let tiles = columns.len().div_ceil(LANES);
    let len = rows.len() * tiles * LANES;
    debug_assert!(len <= MAX_CHUNK_ROWS * 2 * LANES, "a unit of {} rows and {tiles} tiles", rows.len());
    // SAFETY: a chunk has at most that many rows, and a unit two tiles; what is used is set to zero first.
    let y = unsafe {
        let y: *mut f32 = room.as_mut_ptr().cast();
        y.write_bytes(0, len);
        std::slice::from_raw_parts_mut(y, len)
    };
    if let Some(stream) = weight.tiles
        && L::STREAMED_ROWS > 0
        && rows.len() <= STREAMED_ROWS_MAX
    {
        let first_tile = columns.start / LANES;
        if is_first {
            gemv::fetch_first(stream.row(first_tile));
        }
        streamed_unit(lanes, weight, input, first_tile..first_tile + tiles, rows, y);
    } else if form(weight.dtype) == Form::Floats {
        float_unit(lanes, destination, input, tiles, y);
    } else {
        int_unit(lanes, destination, input, tiles, y);
    }
    y
}

/// Streams tile rows through the kernel for few rows.
#[inline(always)]
fn streamed_unit<L: Lanes>(
    lanes: L,
    weight: &Weight<'_>,
    input: Input<'_>,
    tile_rows: Range<usize>,
    rows: &Range<usize>,
    y: &mut [f32],
) {
    let Some(tiles) = weight.tiles else { return };
    let input = rows_for(input, weight.dtype);
    let most = gemv::most_rows(weight.dtype, L::STREAMED_ROWS);
    let num_tiles = tile_rows.len();
    for (tile, tile_row) in tile_rows.enumerate() {
        let row = tiles.row(tile_row);
        let mut products = [0.0f32; STREAMED_ROWS_MAX * LANES];
        let mut done = 0;
        while done < rows.len() {
            let first = rows.start + done;
            let to = products[done * LANES..].as_mut_ptr();
            let left = (rows.len() - done).min(most);
            // SAFETY: the tile row is the weight's, the rows are in the input, and `products` has room for all of them.
            unsafe {
                done += if L::STREAMED_ROWS >= 8 && left >= 8 {
                    gemv::tile_row::<L, 8>(lanes, weight.dtype, row, weight.inp, input, first, to);
                    8
                } else if L::STREAMED_ROWS >= 4 && left >= 4 {
                    gemv::tile_row::<L, 4>(lanes, weight.dtype, row, weight.inp, input, first, to);
                    4
                } else if left >= 2 {
                    gemv::tile_row::<L, 2>(lanes, weight.dtype, row, weight.inp, input, first, to);
                    2
                } else {
                    gemv::tile_row::<L, 1>(lanes, weight.dtype, row, weight.inp, input, first, to);
                    1
                };
            }
        }
        for (row, product) in products.chunks_exact(LANES).take(rows.len()).enumerate() {
            y[(row * num_tiles + tile) * LANES..][..LANES].copy_from_slice(product);
        }
    }
}

/// The sixteen rows of a tile at a segment; a tile that extends past the matrix repeats its last row.
#[inline(always)]
fn tile_rows(weight: &Weight<'_>, row_bytes: usize, first: usize, offset: usize) -> [*const u8; LANES] {
    let mut rows = [weight.data.as_ptr(); LANES];
    let mut r = 0;
    while r < LANES {
        let row = (first + r).min(weight.out - 1);
        rows[r] = weight.data[row * row_bytes + offset..].as_ptr();
        r += 1;
    }
    rows
}

/// Calls `$call` with the const `M` for every group of rows; the groups are as even as possible.
macro_rules! for_row_groups {
    ($lanes:ty, $rows:expr, |$first:ident, $m:ident| $call:expr) => {{
        let rows: usize = $rows;
        let groups = rows.div_ceil(<$lanes>::ROWS);
        for group in 0..groups {
            let $first = rows * group / groups;
            match rows * (group + 1) / groups - $first {
                1 => for_row_groups!(@one $m, 1, $call),
                2 => for_row_groups!(@one $m, 2, $call),
                3 => for_row_groups!(@one $m, 3, $call),
                4 if <$lanes>::ROWS >= 4 => for_row_groups!(@one $m, 4, $call),
                5 if <$lanes>::ROWS >= 5 => for_row_groups!(@one $m, 5, $call),
                6 if <$lanes>::ROWS >= 6 => for_row_groups!(@one $m, 6, $call),
                other => unreachable!("a group of {other} rows, where {} is the most", <$lanes>::ROWS),
            }
        }
    }};
    (@one $m:ident, $value:literal, $call:expr) => {{
        const $m: usize = $value;
        $call
    }};
}

#[inline(always)]
fn int_unit<L: Lanes>(lanes: L, destination: &Destination<'_>, input: Input<'_>, tiles: usize, y: &mut [f32]) {
    let Destination { weight, rows, columns, .. } = destination;
    let first_column = columns.start;
    let coarse = form(weight.dtype) == Form::Superblocks;
    let x = if coarse { input.superblocks } else { input.blocks };
    let mut scratch = [const { IntTile::zeroed() }; 2];
    let row_bytes = weight.data.len() / weight.out;
    let segment_bytes = INT_SEGMENT / weight.dtype.block_size() * weight.dtype.block_bytes();
    // Groups of four columns in a sub-block, and the largest quant.
    let (minimum, groups, largest) = match weight.dtype {
        GgmlType::Q2_K => (Minimum::Scaled, 4, 3),
        GgmlType::Q3_K => (Minimum::Offset(4), 4, 7),
        GgmlType::Q6_K => (Minimum::Offset(32), 4, 63),
        GgmlType::Q4_0 => (Minimum::Offset(8), 8, 15),
        GgmlType::Q5_0 => (Minimum::Offset(16), 8, 31),
        GgmlType::Q8_0 => (Minimum::Offset(L::OFFSET), 8, 255),
        GgmlType::Q4_1 | GgmlType::Q4_K => (Minimum::Scaled, 8, 15),
        _ => (Minimum::Scaled, 8, 31),
    };
    let full = weight.dtype == GgmlType::Q8_0;
    let run = L::most_products(largest).min(groups);
    let short_runs = L::most_products(63) < 4;
    let registers = lanes.tile_registers(rows.len(), coarse);
    let segments = weight.inp.div_ceil(INT_SEGMENT);
    for segment in 0..segments {
        destination.prefetch(segment, segments);
        let blocks = (weight.inp - segment * INT_SEGMENT).min(INT_SEGMENT) / 32;
        for (tile, scratch) in scratch[..tiles].iter_mut().enumerate() {
            let first = first_column + tile * LANES;
            // SAFETY: every row has this segment's blocks, in the file's layout as in the tiles.
            unsafe {
                if let Some(tiles) = weight.tiles {
                    let row = tiles.row(first / LANES);
                    let block = |block| row.block(segment * INT_SEGMENT / weight.dtype.block_size() + block);
                    unpack_segment(lanes, weight.dtype, blocks, block, scratch);
                } else {
                    let rows = tile_rows(weight, row_bytes, first, segment * segment_bytes);
                    let block = |block| Rows { rows: &rows, offset: block * weight.dtype.block_bytes() };
                    unpack_segment(lanes, weight.dtype, blocks, block, scratch);
                }
            }
        }
        if let Some(registers) = &registers {
            let tiles = &scratch[..tiles];
            let groups = coarse.then_some(groups);
            let product = TileProduct { tiles, groups, blocks, minimum, x, segment, rows, y: &mut *y };
            lanes.multiply_tiles(registers, product);
            continue;
        }
        for_row_groups!(L, rows.len(), |first, M| {
            let at = segment * x.rows + rows.start + first;
            let here = Segment {
                quants: x.quants[at * INT_SEGMENT..].as_ptr(),
                scales: x.scales[at * if coarse { 1 } else { 8 }..].as_ptr(),
                sums: x.sums[at * if coarse { SUPERBLOCK_SUMS } else { BLOCK_SUMS }..].as_ptr(),
                scaled_sums: x.scaled_sums.as_ptr().wrapping_add(at * 8),
            };
            let y = y[first * tiles * LANES..].as_mut_ptr();
            // SAFETY: rows `first..first + M` lie within the chunk, in the activations and in `y`.
            unsafe {
                match (coarse, tiles) {
                    (true, 1) => match run {
                        8 => microkernel::superblock::<L, M, 1, 8>(lanes, &scratch, groups, here, minimum, y),
                        2 if short_runs => {
                            microkernel::superblock::<L, M, 1, 2>(lanes, &scratch, groups, here, minimum, y);
                        }
                        _ => microkernel::superblock::<L, M, 1, 4>(lanes, &scratch, groups, here, minimum, y),
                    },
                    (true, _) if L::COLUMNS > 1 => match run {
                        8 => microkernel::superblock::<L, M, 2, 8>(lanes, &scratch, groups, here, minimum, y),
                        2 if short_runs => {
                            microkernel::superblock::<L, M, 2, 2>(lanes, &scratch, groups, here, minimum, y);
                        }
                        _ => microkernel::superblock::<L, M, 2, 4>(lanes, &scratch, groups, here, minimum, y),
                    },
                    (false, 1) if full => {
                        microkernel::blocks::<L, M, 1, true>(lanes, &scratch, blocks, here, minimum, y);
                    }
                    (false, 1) => microkernel::blocks::<L, M, 1, false>(lanes, &scratch, blocks, here, minimum, y),
                    (false, _) if L::COLUMNS > 1 && full => {
                        microkernel::blocks::<L, M, 2, true>(lanes, &scratch, blocks, here, minimum, y);
                    }
                    (false, _) if L::COLUMNS > 1 => {
                        microkernel::blocks::<L, M, 2, false>(lanes, &scratch, blocks, here, minimum, y);
                    }
                    _ => unreachable!("{tiles} tiles, where {} is the most", L::COLUMNS),
                }
            }
        });
    }
}

/// Unpacks one superblock, or up to eight blocks of an older type.
///
/// # Safety
/// `block` gives whole blocks of `dtype`, which is not a float type: `blocks` of an older type, one of a K type.
#[inline(always)]
unsafe fn unpack_segment<L: Lanes, S: Source<L>>(
    lanes: L,
    dtype: GgmlType,
    blocks: usize,
    block: impl Fn(usize) -> S,
    tile: &mut IntTile,
) {
    // SAFETY: as the caller says.
    unsafe {
        if form(dtype) == Form::Superblocks {
            return unpack_superblocks::unpack(lanes, dtype, block(0), tile);
        }
        for number in 0..blocks.min(8) {
            unpack_blocks::unpack_block(lanes, dtype, block(number), number, tile);
        }
    }
}

#[inline(always)]
fn float_unit<L: Lanes>(lanes: L, destination: &Destination<'_>, input: Input<'_>, tiles: usize, y: &mut [f32]) {
    let Destination { weight, rows, columns, .. } = destination;
    let first_column = columns.start;
    let x = input.floats;
    let mut scratch = [const { FloatTile::zeroed() }; 2];
    let row_bytes = weight.data.len() / weight.out;
    let segments = weight.inp.div_ceil(FLOAT_SEGMENT);
    for segment in 0..segments {
        destination.prefetch(segment, segments);
        let columns = (weight.inp - segment * FLOAT_SEGMENT).min(FLOAT_SEGMENT);
        let offset = segment * FLOAT_SEGMENT * weight.dtype.block_bytes();
        let mut unpacked = [std::ptr::null(); 2];
        for (tile, scratch) in scratch[..tiles].iter_mut().enumerate() {
            let first = first_column + tile * LANES;
            unpacked[tile] = scratch.values.as_ptr();
            // SAFETY: every row has this segment's columns, in the file's layout as in the tiles, which pad a row to whole pieces.
            unsafe {
                if let Some(tiles) = weight.tiles {
                    let mut block = tiles.row(first / LANES).block(0);
                    // A word of a row is 64 bytes of the tile.
                    block.words = block.words.add(offset * LANES);
                    if weight.dtype == GgmlType::F32 {
                        // The words are the floats: there is nothing to unpack.
                        unpacked[tile] = block.words.cast();
                    } else {
                        unpack_blocks::unpack_floats(lanes, weight.dtype, block, columns, scratch);
                    }
                } else {
                    let rows = tile_rows(weight, row_bytes, first, offset);
                    unpack_blocks::unpack_float_rows(lanes, weight.dtype, &rows, columns, scratch);
                }
            }
        }
        for_row_groups!(L, rows.len(), |first, M| {
            let x = x.values[(segment * x.rows + rows.start + first) * FLOAT_SEGMENT..].as_ptr();
            let y = y[first * tiles * LANES..].as_mut_ptr();
            // SAFETY: rows `first..first + M` lie within the chunk, in the activations and in `y`.
            unsafe {
                match tiles {
                    1 => microkernel::floats::<L, M, 1>(lanes, &unpacked, columns, x, y),
                    _ if L::COLUMNS > 1 => microkernel::floats::<L, M, 2>(lanes, &unpacked, columns, x, y),
                    _ => unreachable!("{tiles} tiles, where {} is the most", L::COLUMNS),
                }
            }
        });
    }
}
