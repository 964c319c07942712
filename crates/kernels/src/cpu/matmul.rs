//! `y = x W^T` over weights in the file's own quantization blocks, or in tiles of them.
//!
//! Work is cut into units: one or two tiles of weight rows by a chunk of activation rows. A unit walks its segments: it
//! unpacks the tiles once, then runs the micro-kernel over the chunk's rows. Where the weights are tiles and the rows are few,
//! unpacking would take longer than multiplying, and a unit streams its tile instead (`gemv.rs`). Who runs the units, and
//! when the input is prepared (`quantize.rs`), is left to the caller.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    destination::{Destination, Output},
    features::InstructionSet,
    gemv::{self, InputRows},
    lanes::{Kernel, LANES, Lanes, dispatch_to},
    microkernel::{self, Minimum, Segment, TileProduct},
    quantize::{BLOCK_SUMS, Forms, Input, InputShape, SUPERBLOCK_SUMS},
    source::{Rows, Source},
    tile::{FLOAT_SEGMENT, FloatTile, INT_SEGMENT, IntTile},
    tiles::Tiles,
    unpack_blocks, unpack_superblocks,
};
use crate::{pool, quant::GgmlType};

/// The activations that are multiplied with a tile once it is unpacked.
#[derive(Clone, Copy)]
struct ChunkSize {
    /// Columns times rows, which should stay in the L2 cache.
    elements: usize,
    rows: usize,
}

/// For processors with AVX-512, whose L2 caches have 1 MiB or more, and matrices of many columns. Prompts of narrower ones were up to
/// a tenth slower by it, those of wider ones as much faster (`benches/runs/2026-12-01-zen4-2core`).
const LARGE_CHUNK: ChunkSize = ChunkSize { elements: 1 << 20, rows: MAX_CHUNK_ROWS };
const LARGE_COLUMNS: usize = 2048;
/// For others, and for matrices that have few tiles for each thread.
const SMALL_CHUNK: ChunkSize = ChunkSize { elements: 384 << 10, rows: 128 };
const MAX_CHUNK_ROWS: usize = 256;

/// Activation rows up to which tiles are streamed rather than unpacked.
const STREAMED_ROWS_MAX: usize = 8;

/// Weights that can share an input.
pub const MAX_WEIGHTS: usize = 3;

/// One weight matrix `[out, inp]` and its bias; `data` is exactly the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub dtype: GgmlType,
    pub data: &'a [u8],
    /// The same matrix as tiles, if they are made.
    pub tiles: Option<&'a Tiles>,
    pub inp: usize,
    pub out: usize,
    pub bias: Option<&'a [f32]>,
}

/// The three forms in which weights need their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Superblocks,
    Blocks,
    Floats,
}

const fn form(dtype: GgmlType) -> Form {
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

/// The products of one input and up to three weights, cut into chunks that can be computed in any order.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    set: InstructionSet,
    weights: [Option<Weight<'a>>; MAX_WEIGHTS],
    shape: InputShape,
    row_chunks: usize,
    /// Tiles of weight rows in a unit.
    width: usize,
    units: usize,
    units_per_chunk: usize,
}

impl<'a> Product<'a> {
    /// Of an input with this many rows. All weights have the same number of columns, and the processor has the instruction set.
    pub fn new(set: InstructionSet, weights: [Option<Weight<'a>>; MAX_WEIGHTS], rows: usize) -> Self {
        debug_assert!(set.is_supported(), "{set:?} on this processor");
        let mut forms = Forms::default();
        let mut columns = 0;
        for weight in weights.iter().flatten() {
            columns = weight.inp;
            match form(weight.dtype) {
                Form::Superblocks => forms.superblocks = true,
                Form::Blocks => forms.blocks = true,
                Form::Floats => forms.floats = true,
            }
        }
        forms.digits = set == InstructionSet::Amx && forms.superblocks && rows >= LANES;
        let threads = pool::threads();
        let all_tiles: usize = weights.iter().flatten().map(|weight| weight.out.div_ceil(LANES)).sum();
        let chunks_of = |size: ChunkSize| rows.div_ceil((size.elements / columns.max(1)).clamp(24, size.rows));
        let large = chunks_of(LARGE_CHUNK);
        let is_large =
            set >= InstructionSet::Avx512Vnni && columns >= LARGE_COLUMNS && all_tiles * large >= 32 * threads;
        let row_chunks = if is_large { large } else { chunks_of(SMALL_CHUNK) };
        // Wide units do less work per weight; narrow units spread small matrices over the threads.
        let wide = set >= InstructionSet::Avx512Vnni && all_tiles * row_chunks >= 8 * threads;
        let width = if wide { 2 } else { 1 };
        let per_row_chunk: usize = weights.iter().flatten().map(|weight| weight.out.div_ceil(LANES * width)).sum();
        let units = row_chunks * per_row_chunk;
        Self {
            set,
            weights,
            shape: InputShape { rows, columns, forms },
            row_chunks,
            width,
            units,
            units_per_chunk: units.div_ceil(32 * threads).max(1),
        }
    }

    /// What its input must be prepared as.
    pub const fn input_shape(&self) -> InputShape {
        self.shape
    }

    /// The number of chunks.
    pub const fn chunks(&self) -> usize {
        self.units.div_ceil(self.units_per_chunk)
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// `input` is of [`Self::input_shape`]. There is an output of this product's rows for each weight, and nothing else touches
    /// them meanwhile but other chunks.
    pub unsafe fn run(&self, chunk: usize, input: Input<'_>, outputs: &[Output]) {
        let units = chunk * self.units_per_chunk..self.units.min((chunk + 1) * self.units_per_chunk);
        dispatch_to(self.set, Units { product: self, input, units, outputs });
    }

    /// The weight's number, the weight, its first tile, and the rows of a unit.
    fn unit(&self, unit: usize) -> Option<(usize, &Weight<'a>, usize, Range<usize>)> {
        let per_row_chunk = self.units / self.row_chunks;
        let (row_chunk, mut rest) = (unit / per_row_chunk, unit % per_row_chunk);
        // Even chunks rather than full chunks and a remainder.
        let rows = self.shape.rows * row_chunk / self.row_chunks..self.shape.rows * (row_chunk + 1) / self.row_chunks;
        for (index, weight) in self.weights.iter().flatten().enumerate() {
            let units = weight.out.div_ceil(LANES * self.width);
            if rest < units {
                return Some((index, weight, rest * self.width, rows));
            }
            rest -= units;
        }
        None
    }
}

/// Some units of a product.
struct Units<'a> {
    product: &'a Product<'a>,
    input: Input<'a>,
    units: Range<usize>,
    outputs: &'a [Output],
}

impl Kernel for Units<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut room = MaybeUninit::<Room>::uninit();
        let first = self.units.start;
        for unit in self.units {
            let Some((index, weight, first_tile, rows)) = self.product.unit(unit) else { return };
            let columns = first_tile * LANES..weight.out.min((first_tile + self.product.width) * LANES);
            let tiles = columns.len().div_ceil(LANES);
            let len = rows.len() * tiles * LANES;
            debug_assert!(len <= MAX_CHUNK_ROWS * 2 * LANES, "a unit of {} rows and {tiles} tiles", rows.len());
            // SAFETY: a chunk has at most that many rows, and a unit two tiles; what is used is set to zero first.
            let y = unsafe {
                let y: *mut f32 = room.as_mut_ptr().cast();
                y.write_bytes(0, len);
                std::slice::from_raw_parts_mut(y, len)
            };
            let destination = Destination { weight, output: self.outputs[index], rows, columns };
            if let Some(stream) = weight.tiles
                && L::STREAMED_ROWS > 0
                && destination.rows.len() <= STREAMED_ROWS_MAX
            {
                if unit == first {
                    gemv::fetch_first(stream.row(first_tile));
                }
                streamed_unit(lanes, weight, self.input, first_tile..first_tile + tiles, &destination.rows, y);
            } else if form(weight.dtype) == Form::Floats {
                float_unit(lanes, &destination, self.input, tiles, y);
            } else {
                int_unit(lanes, &destination, self.input, tiles, y);
            }
            destination.put(lanes, y);
        }
    }
}

/// Room for a unit's products.
#[repr(C, align(64))]
struct Room([f32; MAX_CHUNK_ROWS * 2 * LANES]);

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        arena::Arena,
        cpu::{
            quantize::{InputBuffers, Shared},
            reference,
        },
    };

    /// All chunks one after the other, last to first.
    fn matmul(set: InstructionSet, weight: Weight<'_>, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / weight.inp;
        let product = Product::new(set, [Some(weight), None, None], rows);
        let mut buffers = InputBuffers::default();
        buffers.reserve(product.input_shape());
        let input = buffers.shared();
        let mut y = vec![0.0; rows * weight.out];
        let output = Output { to: Shared::new(&mut y), residual: None };
        // SAFETY: there is room for the input, which is prepared before it is read, and for the output.
        unsafe {
            input.prepare(product.input_shape(), 0..rows, x);
            let input = input.view(product.input_shape());
            (0..product.chunks()).rev().for_each(|chunk| product.run(chunk, input, &[output]));
        }
        y
    }

    const TYPES: [GgmlType; 13] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2_K,
        GgmlType::Q3_K,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    fn bytes(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        bytes(2 * len, seed).chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0).collect()
    }

    /// Offsets of a block's half-float scales.
    fn scale_offsets(dtype: GgmlType) -> &'static [usize] {
        match dtype {
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
            GgmlType::Q2_K => &[80, 82],
            GgmlType::Q3_K => &[108],
            GgmlType::Q6_K => &[208],
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => &[],
        }
    }

    /// Random blocks with scales of ordinary magnitude.
    fn weights(dtype: GgmlType, out: usize, inp: usize, seed: u64) -> Vec<u8> {
        match dtype {
            GgmlType::F32 => return noise(out * inp, seed).iter().flat_map(|x| x.to_le_bytes()).collect(),
            GgmlType::F16 => {
                let halves = noise(out * inp, seed).into_iter().map(half::f16::from_f32);
                return halves.flat_map(half::f16::to_le_bytes).collect();
            }
            GgmlType::BF16 => {
                let halves = noise(out * inp, seed).into_iter().map(half::bf16::from_f32);
                return halves.flat_map(half::bf16::to_le_bytes).collect();
            }
            _ => {}
        }
        let mut data = bytes(out * dtype.row_bytes(inp).expect("whole blocks"), seed);
        for (block, scale) in data.chunks_exact_mut(dtype.block_bytes()).zip(noise(out * inp, seed ^ 77)) {
            for &offset in scale_offsets(dtype) {
                block[offset..offset + 2].copy_from_slice(&half::f16::from_f32(0.01 + 0.01 * scale).to_le_bytes());
            }
        }
        data
    }

    fn columns(dtype: GgmlType, units: usize) -> usize {
        match dtype.block_size() {
            1 => 37 * units + units % 5,
            32 => 96 * units,
            _ => 256 * units,
        }
    }

    /// What rounding the activations to bytes may cost: half a step each, all in the worst direction.
    fn tolerance(dtype: GgmlType, weight: &[u8], inp: usize, x: &[f32]) -> Vec<f32> {
        let row_bytes = dtype.row_bytes(inp).expect("whole blocks");
        let mut row = vec![0.0; inp];
        let largest: Vec<f32> =
            x.chunks_exact(inp).map(|x| x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()))).collect();
        let mut bounds = vec![0.0; largest.len() * (weight.len() / row_bytes)];
        let out = weight.len() / row_bytes;
        for (o, raw) in weight.chunks_exact(row_bytes).enumerate() {
            crate::quant::dequantize(dtype, raw, &mut row);
            let sum: f32 = row.iter().map(|w| w.abs()).sum();
            let step = if dtype.block_size() == 1 { 1e-6 } else { 0.51 / 127.0 };
            for (r, largest) in largest.iter().enumerate() {
                bounds[r * out + o] = sum * largest * step + 1e-4;
            }
        }
        bounds
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn every_type_and_instruction_set_agrees_with_the_reference(
            type_index in 0..TYPES.len(), units in 1usize..4, out in 1usize..70, rows in prop_oneof![1usize..18, 1usize..70], seed: u64,
        ) {
            let dtype = TYPES[type_index];
            let inp = columns(dtype, units);
            let data = weights(dtype, out, inp, seed);
            let x = noise(rows * inp, seed ^ 5);
            let bias = noise(out, seed ^ 6);
            let weight = Weight { dtype, data: &data, tiles: None, inp, out, bias: Some(&bias) };
            let tiles = Tiles::new(dtype, &data, (inp, out), &Arena::default(), |_| {}).expect("there is memory");
            let expected = reference::linear(dtype, &data, inp, &x);
            let bounds = tolerance(dtype, &data, inp, &x);
            let mut fused: Option<Vec<f32>> = None;
            for set in InstructionSet::supported() {
                let outputs = matmul(set, weight, &x);
                let tiled = matmul(set, Weight { tiles: Some(&tiles), ..weight }, &x);
                prop_assert_eq!(&outputs, &tiled, "{:?} {:?} as tiles", dtype, set);
                for (i, (y, expected)) in outputs.iter().zip(&expected).enumerate() {
                    let difference = (y - expected - bias[i % out]).abs();
                    prop_assert!(difference <= bounds[i], "{dtype:?} {set:?} at {i}: {y} for {expected}");
                }
                if set != InstructionSet::Portable {
                    let bits_of_another_set = fused.get_or_insert_with(|| outputs.clone());
                    prop_assert_eq!(&*bits_of_another_set, &outputs, "{:?} {:?}", dtype, set);
                }
            }
        }

        #[test]
        fn a_row_has_the_same_bits_alone_and_among_others(
            type_index in 0..TYPES.len(), units in 1usize..4, out in 1usize..50, rows in 2usize..200, seed: u64,
        ) {
            let dtype = TYPES[type_index];
            let inp = columns(dtype, units);
            let data = weights(dtype, out, inp, seed);
            let x = noise(rows * inp, seed ^ 5);
            let weight = Weight { dtype, data: &data, tiles: None, inp, out, bias: None };
            for set in InstructionSet::supported() {
                let all = matmul(set, weight, &x);
                let row = seed as usize % rows;
                let alone = matmul(set, weight, &x[row * inp..(row + 1) * inp]);
                prop_assert_eq!(&all[row * out..(row + 1) * out], &alone[..]);
            }
        }

        #[test]
        fn hostile_blocks_and_activations_are_no_panic(type_index in 0..TYPES.len(), out in 1usize..20, seed: u64) {
            let dtype = TYPES[type_index];
            let inp = columns(dtype, 2);
            let data = bytes(out * dtype.row_bytes(inp).expect("whole blocks"), seed);
            let mut x = noise(3 * inp, seed);
            x[0] = f32::NAN;
            x[inp] = f32::INFINITY;
            let weight = Weight { dtype, data: &data, tiles: None, inp, out, bias: None };
            for set in InstructionSet::supported() {
                let y = matmul(set, weight, &x);
                prop_assert!(y[..out].iter().all(|y| y.is_nan()), "a row with NaN in it stays NaN");
            }
        }
    }
}
