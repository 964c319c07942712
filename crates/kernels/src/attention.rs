//! Attention over the paged KV cache, and the encoder's attention over packed sequences.
//!
//! This file writes tokens into their KV blocks and cuts queries into tiles for the threads; `cpu/attend.rs` computes a
//! tile.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{
    cpu::{
        attend::{Element, Heads, TILE_ROWS, Tile, attend, to_half},
        quantize::Shared,
    },
    from_floats, gpu,
    kv::{BLOCK_TOKENS, KvLayer, KvStore},
    pool, with_floats,
};

/// What varies between model families.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Multiplies the scores.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A token at position `p` sees positions above `p - window` only.
    pub window: Option<usize>,
}

/// The sequences of one step, in the order of their tokens.
#[derive(Clone, Debug)]
pub struct AttentionBatch<'a> {
    spans: Vec<AttentionSpan<'a>>,
    slots: Vec<Slot>,
}

/// One sequence's tokens in the step.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpan<'a> {
    /// Number of its tokens in this step.
    pub num_tokens: usize,
    /// Position of the first of them.
    pub start: usize,
    /// Its KV blocks in order of position, covering `start + num_tokens` tokens.
    pub block_table: &'a [u32],
}

/// Where a token's keys and values are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    block: u32,
    /// Within the block.
    slot: u32,
}

impl<'a> AttentionBatch<'a> {
    /// # Errors
    /// If a sequence has fewer blocks than its tokens need.
    pub fn new(spans: Vec<AttentionSpan<'a>>) -> Result<Self> {
        let mut slots = Vec::with_capacity(spans.iter().map(|span| span.num_tokens).sum());
        for span in &spans {
            for position in span.start..span.start + span.num_tokens {
                let Some(&block) = span.block_table.get(position / BLOCK_TOKENS) else {
                    candle_core::bail!("token {position} has no KV block: the sequence has {}", span.block_table.len());
                };
                slots.push(Slot { block, slot: (position % BLOCK_TOKENS) as u32 });
            }
        }
        Ok(Self { spans, slots })
    }

    pub(super) fn spans(&self) -> &[AttentionSpan<'a>] {
        &self.spans
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

/// Writes `k` and `v` into the layer's blocks; every token then attends to itself and to all earlier tokens of its
/// sequence.
///
/// `q` is `[t, n_heads, head_dim]`, `k` and `v` `[t, n_kv_heads, head_dim]`, the result `[t, n_heads * head_dim]`.
/// Query head `h` reads KV head `h / (n_heads / n_kv_heads)`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: &mut KvLayer,
    batch: &AttentionBatch<'_>,
    p: &AttentionParams,
) -> Result<Tensor> {
    let (t, n_heads, head_dim) = q.dims3()?;
    if let KvStore::Gpu(cache) = &layer.store {
        return cache.attention(q, k, v, batch, p);
    }
    let columns = n_heads * head_dim;
    let of_tokens = |x: &Tensor| x.elem_count() / t.max(1);
    let work = AttentionWork::new(columns, [of_tokens(k), of_tokens(v)], t, layer, batch, p)?;
    with_floats(q, |q| {
        // SAFETY: only this thread has the layer, and the slots were checked against its blocks.
        with_floats(k, |k| with_floats(v, |v| Ok(unsafe { work.store().store(k, v, batch.slots()) })))?;
        let mut out = vec![0.0; q.len()];
        let shared = Shared::new(&mut out);
        let chunks =
            (0..work.phases()).map(|phase| u32::try_from(work.chunks(phase)).map_err(candle_core::Error::wrap));
        let chunks = chunks.collect::<Result<Vec<u32>>>()?;
        // SAFETY: keys and values are stored; the phases run in order, and `out` is as long as the queries.
        pool::run_phases(&chunks, |phase, chunk| unsafe { work.run(phase, chunk, q, &shared) })?;
        from_floats(out, (t, columns))
    })
}

/// The attention of one step in one layer, in phases.
pub(super) struct AttentionWork<'a> {
    heads: Heads,
    tiles: Vec<Tile<'a>>,
    store: KvStorePointers,
    num_tokens: usize,
}

impl fmt::Debug for AttentionWork<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttentionWork").field("tiles", &self.tiles.len()).finish_non_exhaustive()
    }
}

impl<'a> AttentionWork<'a> {
    /// Of queries, keys and values of this many columns each.
    ///
    /// # Errors
    /// If they do not fit the layer or the batch, or the layer is on a GPU.
    pub(super) fn new(
        columns: usize,
        kv_columns: [usize; 2],
        tokens: usize,
        layer: &'a mut KvLayer,
        batch: &AttentionBatch<'a>,
        p: &AttentionParams,
    ) -> Result<Self> {
        let (n_kv, dim) = (layer.n_kv_heads, layer.head_dim);
        let n_heads = columns / dim;
        if kv_columns != [n_kv * dim; 2] || n_heads * dim != columns || !n_heads.is_multiple_of(n_kv) {
            candle_core::bail!(
                "queries of {columns} columns, keys and values of {kv_columns:?}, do not fit a cache of {n_kv} heads of {dim}"
            );
        }
        if batch.slots.len() != tokens {
            candle_core::bail!("the spans have {} tokens, the batch {tokens}", batch.slots.len());
        }
        for span in &batch.spans {
            let blocks = (span.start + span.num_tokens).div_ceil(BLOCK_TOKENS);
            let Some(table) = span.block_table.get(..blocks) else {
                candle_core::bail!("a sequence needs {blocks} KV blocks and has {}", span.block_table.len());
            };
            if let Some(block) = table.iter().find(|&&block| block as usize >= layer.num_blocks) {
                candle_core::bail!("KV block {block} is outside the cache of {} blocks", layer.num_blocks);
            }
        }
        let heads =
            Heads { n_heads, n_kv_heads: n_kv, head_dim: dim, scale: p.scale, softcap: p.softcap, window: p.window };
        let mut tiles = Vec::new();
        let mut first_token = 0;
        for span in &batch.spans {
            cut(&mut tiles, heads, first_token, span.num_tokens, |first| Tile {
                first_token,
                num_tokens: 0,
                position: span.start + first,
                kv_head: 0,
                block_table: span.block_table,
                sees: None,
            });
            first_token += span.num_tokens;
        }
        Ok(Self { heads, tiles, store: KvStorePointers::new(layer)?, num_tokens: tokens })
    }

    /// Where the step's keys and values go before the first phase.
    pub(super) const fn store(&self) -> KvStorePointers {
        self.store
    }

    pub(super) const fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(super) const fn phases(&self) -> usize {
        1
    }

    /// The number of a phase's chunks.
    pub(super) fn chunks(&self, _phase: usize) -> usize {
        self.tiles.len()
    }

    /// Computes one chunk. `queries` and `out` are `[tokens, n_heads * head_dim]`.
    ///
    /// # Safety
    /// The step's keys and values are stored, and the phases before this one have finished; nothing else touches `out`, or
    /// writes to the layer.
    pub(super) unsafe fn run(&self, _phase: usize, chunk: usize, queries: &[f32], out: &Shared<f32>) {
        let tile = &self.tiles[chunk];
        // SAFETY: as the caller says.
        unsafe {
            match self.store.arrays {
                KvArrays::F32 { keys, values } => {
                    attend(self.heads, tile, queries, self.store.read(keys), self.store.read(values), out);
                }
                KvArrays::F16 { keys, values } => {
                    attend(self.heads, tile, queries, self.store.read(keys), self.store.read(values), out);
                }
            }
        }
    }
}

/// A layer's keys and values on the CPU, as the threads that write and read them see them.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvStorePointers {
    n_kv_heads: usize,
    head_dim: usize,
    /// Of the keys, and of the values.
    elements: usize,
    arrays: KvArrays,
}

#[derive(Clone, Copy, Debug)]
enum KvArrays {
    F32 { keys: Shared<f32>, values: Shared<f32> },
    F16 { keys: Shared<u16>, values: Shared<u16> },
}

impl KvStorePointers {
    fn new(layer: &mut KvLayer) -> Result<Self> {
        let elements = layer.num_blocks * layer.elements_per_block();
        let arrays = match &mut layer.store {
            KvStore::CpuF32 { keys, values } => KvArrays::F32 { keys: Shared::new(keys), values: Shared::new(values) },
            KvStore::CpuF16 { keys, values } => KvArrays::F16 { keys: Shared::new(keys), values: Shared::new(values) },
            KvStore::Gpu(_) => candle_core::bail!("a cache on a GPU was given to the CPU's attention"),
        };
        Ok(Self { n_kv_heads: layer.n_kv_heads, head_dim: layer.head_dim, elements, arrays })
    }

    /// # Safety
    /// It is one of the layer's arrays, and nothing writes to it meanwhile.
    unsafe fn read<'a, E>(&self, array: Shared<E>) -> &'a [E] {
        // SAFETY: as the caller says.
        unsafe { array.read(0, self.elements) }
    }

    /// Writes the keys and values of some tokens, `[tokens, n_kv_heads, head_dim]`, to their slots.
    ///
    /// # Safety
    /// The slots are in the layer's blocks, and nothing else touches them meanwhile.
    pub(super) unsafe fn store(&self, keys: &[f32], values: &[f32], slots: &[Slot]) {
        // SAFETY: as the caller says.
        unsafe {
            match self.arrays {
                KvArrays::F32 { keys: to_keys, values: to_values } => {
                    self.write(keys, values, slots, to_keys, to_values, |x, to| to.copy_from_slice(x));
                }
                KvArrays::F16 { keys: to_keys, values: to_values } => {
                    self.write(keys, values, slots, to_keys, to_values, to_half);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::store`].
    unsafe fn write<E: Copy + Default>(
        &self,
        k: &[f32],
        v: &[f32],
        slots: &[Slot],
        keys: Shared<E>,
        values: Shared<E>,
        convert: impl Fn(&[f32], &mut [E]),
    ) {
        /// Elements that are converted at once.
        const PIECE: usize = 256;
        let (n_kv, dim) = (self.n_kv_heads, self.head_dim);
        let mut converted = [E::default(); PIECE];
        let tokens = k.chunks_exact(n_kv * dim).zip(v.chunks_exact(n_kv * dim)).zip(slots);
        for ((k, v), Slot { block, slot }) in tokens {
            let slot = *slot as usize;
            for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                let at = (*block as usize * n_kv + head) * dim * BLOCK_TOKENS;
                for (piece, k) in k.chunks(PIECE).enumerate() {
                    convert(k, &mut converted[..k.len()]);
                    for (d, key) in converted[..k.len()].iter().enumerate() {
                        // SAFETY: the element is in the token's block, and of its slot.
                        unsafe { keys.part(at + (piece * PIECE + d) * BLOCK_TOKENS + slot, 1)[0] = *key };
                    }
                }
                // SAFETY: as above.
                convert(v, unsafe { values.part(at + slot * dim, dim) });
            }
        }
    }
}

/// Cuts one sequence's tokens into tiles, for each KV head. `tile_at` describes the tile that begins at this offset
/// from the sequence's first token in the batch.
fn cut<'a>(
    tiles: &mut Vec<Tile<'a>>,
    heads: Heads,
    first_token: usize,
    num_tokens: usize,
    tile_at: impl Fn(usize) -> Tile<'a>,
) {
    let tokens_per_tile = (TILE_ROWS / (heads.n_heads / heads.n_kv_heads)).max(1);
    // The last tiles see the most tokens, so they come first: no thread is left running a long tile alone at the end.
    for first in (0..num_tokens).step_by(tokens_per_tile).rev() {
        for kv_head in 0..heads.n_kv_heads {
            tiles.push(Tile {
                first_token: first_token + first,
                num_tokens: tokens_per_tile.min(num_tokens - first),
                kv_head,
                ..tile_at(first)
            });
        }
    }
}

fn run<E: Element>(heads: Heads, tiles: &[Tile<'_>], q: &[f32], keys: &[E], values: &[E]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; q.len()];
    let shared = Shared::new(&mut out);
    pool::run(tiles.len(), |tile| attend(heads, &tiles[tile], q, keys, values, &shared))?;
    Ok(out)
}

/// Bidirectional attention within each packed sequence.
///
/// `q`, `k` and `v` are `[t, heads, head_dim]`, `lengths` add up to `t`; `bias`, if any, is
/// `[heads, longest, longest]` and is added to the scaled scores. The result is `[t, heads * head_dim]`.
pub fn attention_encoder(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
    scale: f32,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (t, heads, dim) = q.dims3()?;
    if k.dims() != q.dims() || v.dims() != q.dims() || lengths.iter().sum::<usize>() != t {
        candle_core::bail!("q {:?}, k {:?}, v {:?} and lengths {lengths:?} disagree", q.shape(), k.shape(), v.shape());
    }
    if bias.is_some() || !q.device().is_cpu() {
        let mut outputs = Vec::with_capacity(lengths.len());
        let mut first = 0;
        for &length in lengths {
            let part = |x: &Tensor| x.narrow(0, first, length);
            let bias = bias.map(|bias| bias.narrow(1, 0, length)?.narrow(2, 0, length)).transpose()?;
            outputs.push(gpu::attend(&part(q)?, &part(k)?, &part(v)?, scale, None, bias.as_ref())?);
            first += length;
        }
        return Tensor::cat(&outputs, 0)?.reshape((t, heads * dim));
    }
    let heads = Heads { n_heads: heads, n_kv_heads: heads, head_dim: dim, scale, softcap: None, window: None };
    with_floats(q, |q| with_floats(k, |k| with_floats(v, |v| encoder_on_cpu(q, k, v, lengths, heads))))
}

/// The same kernel as for the decoder, over blocks that live for the duration of the call.
fn encoder_on_cpu(q: &[f32], k: &[f32], v: &[f32], lengths: &[usize], heads: Heads) -> Result<Tensor> {
    let row = heads.n_heads * heads.head_dim;
    let num_blocks: usize = lengths.iter().map(|length| length.div_ceil(BLOCK_TOKENS)).sum();
    let table: Vec<u32> = (0..num_blocks).map(|block| u32::try_from(block).unwrap_or(u32::MAX)).collect();
    let mut keys = vec![0.0; num_blocks * BLOCK_TOKENS * row];
    let mut values = keys.clone();
    let store = KvStorePointers {
        n_kv_heads: heads.n_heads,
        head_dim: heads.head_dim,
        elements: keys.len(),
        arrays: KvArrays::F32 { keys: Shared::new(&mut keys), values: Shared::new(&mut values) },
    };
    let mut tiles = Vec::new();
    let (mut first_token, mut first_block) = (0, 0);
    for &length in lengths {
        let blocks = length.div_ceil(BLOCK_TOKENS);
        let block_table = &table[first_block..first_block + blocks];
        let tokens = first_token * row..(first_token + length) * row;
        let slots: Vec<Slot> = (0..length)
            .map(|token| Slot { block: block_table[token / BLOCK_TOKENS], slot: (token % BLOCK_TOKENS) as u32 })
            .collect();
        // SAFETY: the blocks were made for these tokens, and only this thread has them.
        unsafe { store.store(&k[tokens.clone()], &v[tokens], &slots) };
        cut(&mut tiles, heads, first_token, length, |position| Tile {
            first_token,
            num_tokens: 0,
            position,
            kv_head: 0,
            block_table,
            sees: Some(length),
        });
        first_token += length;
        first_block += blocks;
    }
    from_floats(run(heads, &tiles, q, &keys, &values)?, (first_token, row))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{
        cpu::reference::{self, half_to_float},
        kv::KvType,
    };

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    const PARAMS: AttentionParams = AttentionParams { scale: 0.3, softcap: None, window: None };

    fn run(
        layer: &mut KvLayer,
        spans: &[(usize, usize, &[u32])],
        data: [&[f32]; 3],
        heads: (usize, usize),
        p: &AttentionParams,
    ) -> Result<Vec<f32>> {
        let (t, dim) = (spans.iter().map(|s| s.1).sum::<usize>(), layer.head_dim);
        let tensor = |data: &[f32], heads| Tensor::from_slice(data, (t, heads, dim), &Device::Cpu);
        let spans =
            spans.iter().map(|&(start, num_tokens, block_table)| AttentionSpan { num_tokens, start, block_table });
        let batch = AttentionBatch::new(spans.collect())?;
        let [q, k, v] = data;
        attention(&tensor(q, heads.0)?, &tensor(k, heads.1)?, &tensor(v, heads.1)?, layer, &batch, p)?
            .flatten_all()?
            .to_vec1()
    }

    #[test]
    fn a_prompt_in_one_piece_in_chunks_and_beside_another_gives_the_same_bits() -> Result<()> {
        let (heads, n_kv, dim, t) = (4, 2, 24, 45);
        let (q, k, v) = (noise(t * heads * dim, 1), noise(t * n_kv * dim, 2), noise(t * n_kv * dim, 3));
        for kv_type in [KvType::F32, KvType::F16] {
            for window in [None, Some(7)] {
                let p = AttentionParams { window, softcap: window.map(|_| 2.0), ..PARAMS };
                let mut layer = KvLayer::new(8, n_kv, dim, kv_type, &Device::Cpu)?;
                let whole = run(&mut layer, &[(0, t, &[5, 0, 3])], [&q, &k, &v], (heads, n_kv), &p)?;
                let mut pieces = Vec::new();
                let mut layer = KvLayer::new(8, n_kv, dim, kv_type, &Device::Cpu)?;
                for (start, len) in [(0, 1), (1, 18), (19, 1), (20, 25)] {
                    let (a, b) = (start * dim, (start + len) * dim);
                    // Another sequence precedes this one in the same batch.
                    let double = |x: &[f32], h: usize| [&noise(3 * h * dim, 9)[..], &x[a * h..b * h]].concat();
                    let data = [double(&q, heads), double(&k, n_kv), double(&v, n_kv)];
                    let spans: [(usize, usize, &[u32]); 2] = [(0, 3, &[7]), (start, len, &[1, 2, 4])];
                    let both = run(&mut layer, &spans, [&data[0], &data[1], &data[2]], (heads, n_kv), &p)?;
                    pieces.extend_from_slice(&both[3 * heads * dim..]);
                }
                assert_eq!(whole, pieces, "{kv_type:?} window {window:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_short_block_table_is_an_error() -> Result<()> {
        let mut layer = KvLayer::new(2, 1, 8, KvType::F16, &Device::Cpu)?;
        let x = noise(17 * 8, 1);
        assert!(run(&mut layer, &[(0, 17, &[0])], [&x, &x, &x], (1, 1), &PARAMS).is_err());
        assert!(run(&mut layer, &[(0, 17, &[0, 2])], [&x, &x, &x], (1, 1), &PARAMS).is_err());
        Ok(())
    }

    #[test]
    fn packed_encoder_sequences_do_not_see_each_other() -> Result<()> {
        let (heads, dim, lengths) = (3, 16, [5, 1, 20]);
        let t: usize = lengths.iter().sum();
        let tensor = |seed| Tensor::from_vec(noise(t * heads * dim, seed), (t, heads, dim), &Device::Cpu);
        let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
        let packed = attention_encoder(&q, &k, &v, &lengths, 0.25, None)?;
        let part = |x: &Tensor| x.narrow(0, 6, 20);
        let alone = attention_encoder(&part(&q)?, &part(&k)?, &part(&v)?, &[20], 0.25, None)?;
        let difference = (packed.narrow(0, 6, 20)? - alone)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-6, "{difference}");
        Ok(())
    }

    /// Several sequences in different phases, in one batch, against the definition.
    #[test]
    fn every_shape_equals_the_definition() -> Result<()> {
        let shapes = [(1, 1, 16), (4, 2, 24), (6, 2, 80), (8, 1, 64), (12, 4, 128), (40, 1, 8), (3, 3, 5)];
        let varied = [
            AttentionParams { scale: 0.25, softcap: None, window: None },
            AttentionParams { scale: 1.0, softcap: Some(3.0), window: None },
            AttentionParams { scale: 0.5, softcap: Some(30.0), window: Some(7) },
            AttentionParams { scale: 0.5, softcap: None, window: Some(20) },
        ];
        for (case, ((heads, n_kv, dim), p)) in shapes.into_iter().flat_map(|s| varied.map(|p| (s, p))).enumerate() {
            for (kv_type, tolerance) in [(KvType::F32, 1e-5), (KvType::F16, 4e-3)] {
                let seed = u32::try_from(case).unwrap_or(0) * 7;
                let mut layer = KvLayer::new(12, n_kv, dim, kv_type, &Device::Cpu)?;
                let tables: [&[u32]; 2] = [&[7, 2, 11, 5], &[0, 9, 3]];
                // (tokens before, tokens now) of both sequences, in two steps: prompts, then a chunk and a token.
                for (step, parts) in [[(0, 37), (0, 21)], [(37, 18), (21, 1)]].into_iter().enumerate() {
                    let seed = seed + 3 * u32::try_from(step).unwrap_or(0);
                    let t = parts[0].1 + parts[1].1;
                    let (q, k, v) = (
                        noise(t * heads * dim, seed),
                        noise(t * n_kv * dim, seed + 1),
                        noise(t * n_kv * dim, seed + 2),
                    );
                    let spans = [(parts[0].0, parts[0].1, tables[0]), (parts[1].0, parts[1].1, tables[1])];
                    let got = run(&mut layer, &spans, [&q, &k, &v], (heads, n_kv), &p)?;
                    let expected = definition(&layer, &spans, &q, heads, &p);
                    for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        assert!((got - expected).abs() <= tolerance, "case {case} at {at}: {got} and {expected}");
                    }
                }
            }
        }
        Ok(())
    }

    fn definition(
        layer: &KvLayer,
        spans: &[(usize, usize, &[u32])],
        q: &[f32],
        heads: usize,
        p: &AttentionParams,
    ) -> Vec<f32> {
        let (n_kv, dim) = (layer.n_kv_heads, layer.head_dim);
        let read = |keys: bool, index: usize| match (&layer.store, keys) {
            (KvStore::CpuF32 { keys, .. }, true) => keys[index],
            (KvStore::CpuF32 { values, .. }, false) => values[index],
            (KvStore::CpuF16 { keys, .. }, true) => half_to_float(keys[index]),
            (KvStore::CpuF16 { values, .. }, false) => half_to_float(values[index]),
            (KvStore::Gpu(_), _) => f32::NAN,
        };
        let mut queries = q.chunks_exact(dim);
        let mut out = Vec::new();
        for &(start, num_tokens, table) in spans {
            for position in start..start + num_tokens {
                for head in 0..heads {
                    let kv_head = head / (heads / n_kv);
                    let at = |t: usize| {
                        ((table[t / BLOCK_TOKENS] as usize * n_kv + kv_head) * dim * BLOCK_TOKENS, t % BLOCK_TOKENS)
                    };
                    out.extend(reference::attend(
                        queries.next().expect("a query for each token and head"),
                        position + 1,
                        |t| p.window.is_none_or(|window| t + window > position),
                        |score, _| p.softcap.map_or(score * p.scale, |cap| cap * (score * p.scale / cap).tanh()),
                        |t, d| read(true, at(t).0 + d * BLOCK_TOKENS + at(t).1),
                        |t, d| read(false, at(t).0 + at(t).1 * dim + d),
                    ));
                }
            }
        }
        out
    }

    #[test]
    fn packed_texts_attend_within_themselves() -> Result<()> {
        let (heads, dim, lengths) = (3, 20, [5, 33, 16, 1]);
        let t: usize = lengths.iter().sum();
        let data = [1, 2, 3].map(|seed| noise(t * heads * dim, seed));
        let [q, k, v] = data.each_ref().map(|x| Tensor::from_slice(x, (t, heads, dim), &Device::Cpu));
        let (q, k, v) = (q?, k?, v?);
        let fast = attention_encoder(&q, &k, &v, &lengths, 0.4, None)?.flatten_all()?.to_vec1::<f32>()?;
        let no_bias = Tensor::zeros((heads, 33, 33), candle_core::DType::F32, &Device::Cpu)?;
        let plain = attention_encoder(&q, &k, &v, &lengths, 0.4, Some(&no_bias))?.flatten_all()?.to_vec1::<f32>()?;
        for (fast, plain) in fast.iter().zip(&plain) {
            assert!((fast - plain).abs() < 1e-5, "{fast} and {plain}");
        }
        Ok(())
    }
}
