//! `y = x W^T` over weights in the file's own quantization blocks, or in tiles of them.
//!
//! Work is cut into units: one or two tiles of weight rows by a chunk of activation rows. Of a gate and what it opens, a unit has the
//! same tiles of both, so that neither product is written out and read again. How a unit is computed is in `unit.rs`. Who runs the
//! units, and when the input is prepared (`quantize.rs`), is left to the caller.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    destination::{Destination, Gated, Output},
    features::InstructionSet,
    lanes::{Kernel, LANES, Lanes, dispatch_to},
    quantize::{Forms, Input, InputShape},
    tiles::Tiles,
    unit::{self, Form, Room, STREAMED_ROWS_MAX, form},
};
use crate::{activation::Activation, pool, quant::GgmlType};

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
pub const MAX_CHUNK_ROWS: usize = 256;

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

/// The products of one input and up to three weights, cut into chunks that can be computed in any order.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    set: InstructionSet,
    weights: [Option<Weight<'a>>; MAX_WEIGHTS],
    /// If there is one, the first weight is a gate and the second one what it opens: `activation(gate) * up` is the only output.
    gate: Option<Activation>,
    shape: InputShape,
    row_chunks: usize,
    /// Tiles of weight rows in a unit.
    width: usize,
    chunks: Chunks,
}

/// How units are dealt out: large chunks first, then small ones.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    units: usize,
    large: usize,
    units_per_large: usize,
    units_per_small: usize,
}

impl Chunks {
    /// Small ones only.
    fn even(units: usize, threads: usize) -> Self {
        Self { units, large: 0, units_per_large: 0, units_per_small: units.div_ceil(32 * threads).max(1) }
    }

    /// A large one for each thread, three quarters of the units together: what a thread reads is then contiguous for long enough
    /// that what it fetches ahead is its own. The small ones are for the threads that are done first. Where a large chunk would be a
    /// single unit, all are small.
    fn contiguous(units: usize, threads: usize) -> Self {
        let even = Self::even(units, threads);
        let units_per_large = units * 3 / (4 * threads);
        if units_per_large < 2 { even } else { Self { large: threads, units_per_large, ..even } }
    }

    fn count(self) -> usize {
        self.large + (self.units - self.large * self.units_per_large).div_ceil(self.units_per_small)
    }

    fn units(self, chunk: usize) -> Range<usize> {
        if let Some(small) = chunk.checked_sub(self.large) {
            let start = self.large * self.units_per_large + small * self.units_per_small;
            start..self.units.min(start + self.units_per_small)
        } else {
            chunk * self.units_per_large..(chunk + 1) * self.units_per_large
        }
    }
}

impl<'a> Product<'a> {
    /// Of an input with this many rows. All weights have the same number of columns, and the processor has the instruction set.
    pub fn new(set: InstructionSet, weights: [Option<Weight<'a>>; MAX_WEIGHTS], rows: usize) -> Self {
        Self::cut(set, weights, None, rows)
    }

    /// Of a gate and of what it opens, which have the same shape.
    pub fn gated(set: InstructionSet, [gate, up]: [Weight<'a>; 2], activation: Activation, rows: usize) -> Self {
        debug_assert_eq!((gate.inp, gate.out), (up.inp, up.out), "a gate and what it opens");
        Self::cut(set, [Some(gate), Some(up), None], Some(activation), rows)
    }

    fn cut(
        set: InstructionSet,
        weights: [Option<Weight<'a>>; MAX_WEIGHTS],
        gate: Option<Activation>,
        rows: usize,
    ) -> Self {
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
        let outputs = weights.iter().flatten().take(if gate.is_some() { 1 } else { MAX_WEIGHTS });
        let per_row_chunk: usize = outputs.map(|weight| weight.out.div_ceil(LANES * width)).sum();
        let units = row_chunks * per_row_chunk;
        let is_streamed = rows <= STREAMED_ROWS_MAX && weights.iter().flatten().all(|weight| weight.tiles.is_some());
        let chunks = if is_streamed { Chunks::contiguous(units, threads) } else { Chunks::even(units, threads) };
        Self { set, weights, gate, shape: InputShape { rows, columns, forms }, row_chunks, width, chunks }
    }

    /// What its input must be prepared as.
    pub const fn input_shape(&self) -> InputShape {
        self.shape
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.count()
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// `input` is of [`Self::input_shape`]. There is an output of this product's rows for each weight, and nothing else touches
    /// them meanwhile but other chunks.
    pub unsafe fn run(&self, chunk: usize, input: Input<'_>, outputs: &[Output]) {
        dispatch_to(self.set, Units { product: self, input, units: self.chunks.units(chunk), outputs });
    }

    /// The weight's number, the weight, its first tile, and the rows of a unit.
    fn unit(&self, unit: usize) -> Option<(usize, &Weight<'a>, usize, Range<usize>)> {
        let per_row_chunk = self.chunks.units / self.row_chunks;
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
        let mut rooms = [const { MaybeUninit::<Room>::uninit() }; 2];
        let first = self.units.start;
        for unit in self.units {
            let Some((index, weight, first_tile, rows)) = self.product.unit(unit) else { return };
            let columns = first_tile * LANES..weight.out.min((first_tile + self.product.width) * LANES);
            let mut destination = Destination { weight, output: self.outputs[index], rows, columns };
            let gate = self.product.gate.zip(self.product.weights[1].as_ref());
            let weights = [Some(weight), gate.map(|(_, up)| up)];
            let mut of_weights: [&[f32]; 2] = [&[]; 2];
            for ((weight, room), products) in weights.into_iter().flatten().zip(&mut rooms).zip(&mut of_weights) {
                destination.weight = weight;
                *products = unit::multiply(lanes, &destination, self.input, unit == first, room);
            }
            destination.weight = weight;
            let [products, factors] = of_weights;
            let gated = gate.map(|(activation, up)| Gated { activation, up, factors });
            destination.put(lanes, products, gated);
        }
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

    fn matmul(set: InstructionSet, weight: Weight<'_>, x: &[f32]) -> Vec<f32> {
        compute(&Product::new(set, [Some(weight), None, None], x.len() / weight.inp), weight.out, x)
    }

    /// All chunks one after the other, last to first.
    fn compute(product: &Product<'_>, out: usize, x: &[f32]) -> Vec<f32> {
        let rows = product.input_shape().rows;
        let mut buffers = InputBuffers::default();
        buffers.reserve(product.input_shape());
        let input = buffers.shared();
        let mut y = vec![0.0; rows * out];
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
        fn every_unit_is_in_one_chunk(units in 0usize..3000, threads in 1usize..70) {
            for chunks in [Chunks::even(units, threads), Chunks::contiguous(units, threads)] {
                let in_order: Vec<usize> = (0..chunks.count()).flat_map(|chunk| chunks.units(chunk)).collect();
                prop_assert_eq!(in_order, (0..units).collect::<Vec<_>>(), "{:?}", chunks);
                prop_assert!((0..chunks.count()).all(|chunk| !chunks.units(chunk).is_empty()), "{chunks:?}");
            }
        }

        #[test]
        fn a_gate_opens_what_it_would_if_both_products_were_computed_first(
            types in [0..TYPES.len(), 0..TYPES.len()], out in 1usize..70, rows in prop_oneof![1usize..18, 1usize..70], seed: u64,
        ) {
            let inp = 256;
            let [gate, up] = types.map(|index| TYPES[index]);
            let (gate_data, up_data) = (weights(gate, out, inp, seed), weights(up, out, inp, seed ^ 3));
            let x = noise(rows * inp, seed ^ 5);
            let bias = noise(out, seed ^ 6);
            let gate_tiles = Tiles::new(gate, &gate_data, (inp, out), &Arena::default(), |_| {}).expect("there is memory");
            let gate = Weight { dtype: gate, data: &gate_data, tiles: Some(&gate_tiles), inp, out, bias: Some(&bias) };
            let up = Weight { dtype: up, data: &up_data, tiles: None, inp, out, bias: None };
            for set in InstructionSet::supported() {
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    let gated = compute(&Product::gated(set, [gate, up], activation, rows), out, &x);
                    let (gates, ups) = (matmul(set, gate, &x), matmul(set, up, &x));
                    for (i, y) in gated.iter().enumerate() {
                        let exact = match activation {
                            Activation::Silu => gates[i] / (1.0 + (-gates[i]).exp()),
                            _ => {
                                let inner = (2.0 / std::f32::consts::PI).sqrt() * (gates[i] + 0.044_715 * gates[i].powi(3));
                                0.5 * gates[i] * (1.0 + inner.tanh())
                            }
                        } * ups[i];
                        let difference = (y - exact).abs();
                        prop_assert!(difference <= 1e-5 * gates[i].abs().max(1.0) * ups[i].abs().max(1.0), "{set:?} {y} for {exact}");
                    }
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
