//! Attention over the paged KV cache, and the encoder's attention over packed sequences.
//!
//! This file writes tokens into their KV blocks. `attention/tiles.rs` cuts the queries into tiles for the threads, and
//! `cpu/attend/` computes a tile.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{
    candle,
    cpu::{
        attend::{Heads, Operands, Tile, to_half},
        quantize::Shared,
    },
    from_floats,
    kv::{BLOCK_TOKENS, KvLayer, KvStore},
    pool, with_floats,
};

mod tiles;

use tiles::{Pieces, cut};

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
    if let KvStore::Candle(cache) = &layer.store {
        return cache.attention(q, k, v, batch, p);
    }
    let columns = n_heads * head_dim;
    let of_tokens = |x: &Tensor| x.elem_count() / t.max(1);
    let work = AttentionWork::new(columns, [of_tokens(k), of_tokens(v)], t, layer, batch, p)?;
    with_floats(q, |q| {
        with_floats(k, |k| {
            with_floats(v, |v| {
                // SAFETY: only this thread has the layer, and the slots were checked against its blocks.
                unsafe { work.store().store(k, v, batch.slots()) };
                Ok(())
            })
        })?;
        let (mut out, mut states) = (vec![0.0; q.len()], vec![0.0; work.state_floats()]);
        let (shared, states) = (Shared::new(&mut out), Shared::new(&mut states));
        // SAFETY: keys and values are stored; `out` is as long as the queries, and there is room for the states.
        pool::run(work.chunks(), |chunk| unsafe { work.run(chunk, q, &shared, states) })?;
        from_floats(out, (t, columns))
    })
}

/// The attention of one step in one layer, in chunks.
pub(super) struct AttentionWork<'a> {
    pieces: Pieces<'a>,
    store: KvStorePointers,
    num_tokens: usize,
}

impl fmt::Debug for AttentionWork<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttentionWork").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl<'a> AttentionWork<'a> {
    /// Of queries, keys and values of this many columns each.
    ///
    /// # Errors
    /// If they do not fit the layer or the batch, or the layer is candle's.
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
        Ok(Self { pieces: Pieces::new(heads, tiles), store: KvStorePointers::new(layer)?, num_tokens: tokens })
    }

    /// Where the step's keys and values go before the first phase.
    pub(super) const fn store(&self) -> KvStorePointers {
        self.store
    }

    pub(super) const fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(super) fn chunks(&self) -> usize {
        self.pieces.len()
    }

    /// Room that the chunks need for what they leave to one another, in floats.
    pub(super) const fn state_floats(&self) -> usize {
        self.pieces.state_floats()
    }

    /// Computes one chunk, once. `queries` and `out` are `[tokens, n_heads * head_dim]`.
    ///
    /// # Safety
    /// The step's keys and values are stored, and there is room for the states; nothing but other chunks touches those or `out`, or
    /// writes to the layer.
    pub(super) unsafe fn run(&self, chunk: usize, queries: &[f32], out: &Shared<f32>, states: Shared<f32>) {
        // SAFETY: as the caller says.
        unsafe {
            match self.store.arrays {
                KvArrays::F32 { keys, values } => {
                    let (keys, values) = (self.store.read(keys), self.store.read(values));
                    self.pieces.run(chunk, Operands { queries, keys, values, out }, states);
                }
                KvArrays::F16 { keys, values } => {
                    let (keys, values) = (self.store.read(keys), self.store.read(values));
                    self.pieces.run(chunk, Operands { queries, keys, values, out }, states);
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
            KvStore::Candle(_) => candle_core::bail!("a cache of candle's tensors was given to the CPU's kernels"),
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
            outputs.push(candle::attend(&part(q)?, &part(k)?, &part(v)?, scale, None, bias.as_ref())?);
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
    from_floats(Pieces::new(heads, tiles).run_all(q, &keys, &values)?, (first_token, row))
}

#[cfg(test)]
mod tests;
