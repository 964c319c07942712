//! Attention over the paged KV cache, and the encoder's attention over packed sequences.
//!
//! This file writes tokens into their KV blocks. `attention/tiles.rs` cuts the queries into tiles for the threads, and
//! `cpu/attend/` computes a tile.

use candle_core::{Result, Tensor};

use super::{
    cpu::attend::{Heads, Tile, to_half},
    from_floats, gpu,
    kv::{BLOCK_TOKENS, KvLayer, KvStore},
    with_floats,
};

mod tiles;

use tiles::{cut, run};

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
    pub spans: Vec<AttentionSpan<'a>>,
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
    let (n_kv, dim) = (layer.n_kv_heads, layer.head_dim);
    if k.dims() != [t, n_kv, dim] || v.dims() != k.dims() || head_dim != dim || !n_heads.is_multiple_of(n_kv) {
        candle_core::bail!(
            "attention of q {:?}, k {:?}, v {:?} does not fit a cache of {n_kv} heads of {dim}",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    if batch.spans.iter().map(|span| span.num_tokens).sum::<usize>() != t {
        candle_core::bail!("the spans do not add up to the {t} tokens of the batch");
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
    if let KvStore::Gpu(cache) = &layer.store {
        return cache.attention(q, k, v, batch, p);
    }
    with_floats(q, |q| with_floats(k, |k| with_floats(v, |v| on_cpu(q, k, v, n_heads, layer, batch, p))))
}

fn on_cpu(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    n_heads: usize,
    layer: &mut KvLayer,
    batch: &AttentionBatch<'_>,
    p: &AttentionParams,
) -> Result<Tensor> {
    let (n_kv, dim) = (layer.n_kv_heads, layer.head_dim);
    let mut first_token = 0;
    for span in &batch.spans {
        let row = n_kv * dim;
        let tokens = first_token * row..(first_token + span.num_tokens) * row;
        let (k, v) = (&k[tokens.clone()], &v[tokens]);
        match &mut layer.store {
            KvStore::CpuF32 { keys, values } => {
                write(k, v, (n_kv, dim), span.start, span.block_table, keys, values, |x, to| to.copy_from_slice(x));
            }
            KvStore::CpuF16 { keys, values } => {
                write(k, v, (n_kv, dim), span.start, span.block_table, keys, values, to_half);
            }
            KvStore::Gpu(_) => candle_core::bail!("a GPU cache was given to the CPU path"),
        }
        first_token += span.num_tokens;
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
    let out = match &layer.store {
        KvStore::CpuF32 { keys, values } => run(heads, &tiles, q, keys, values)?,
        KvStore::CpuF16 { keys, values } => run(heads, &tiles, q, keys, values)?,
        KvStore::Gpu(_) => candle_core::bail!("a GPU cache was given to the CPU path"),
    };
    from_floats(out, (first_token, n_heads * dim))
}

/// Writes one sequence's new keys and values, `[tokens, n_kv_heads, head_dim]`, into its blocks.
#[expect(clippy::too_many_arguments, reason = "two arrays in, two out, and where each token goes")]
fn write<E: Copy + Default>(
    k: &[f32],
    v: &[f32],
    (n_kv, dim): (usize, usize),
    start: usize,
    block_table: &[u32],
    keys: &mut [E],
    values: &mut [E],
    convert: impl Fn(&[f32], &mut [E]),
) {
    let mut converted = vec![E::default(); dim];
    for (token, (k, v)) in k.chunks_exact(n_kv * dim).zip(v.chunks_exact(n_kv * dim)).enumerate() {
        let (block, slot) = (block_table[(start + token) / BLOCK_TOKENS], (start + token) % BLOCK_TOKENS);
        for head in 0..n_kv {
            let of_head = head * dim..(head + 1) * dim;
            let at = (block as usize * n_kv + head) * dim * BLOCK_TOKENS;
            convert(&k[of_head.clone()], &mut converted);
            for (d, key) in converted.iter().enumerate() {
                keys[at + d * BLOCK_TOKENS + slot] = *key;
            }
            convert(&v[of_head], &mut values[at + slot * dim..at + (slot + 1) * dim]);
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
    let mut tiles = Vec::new();
    let (mut first_token, mut first_block) = (0, 0);
    for &length in lengths {
        let blocks = length.div_ceil(BLOCK_TOKENS);
        let block_table = &table[first_block..first_block + blocks];
        let tokens = first_token * row..(first_token + length) * row;
        let shape = (heads.n_heads, heads.head_dim);
        write(&k[tokens.clone()], &v[tokens], shape, 0, block_table, &mut keys, &mut values, |x, to| {
            to.copy_from_slice(x);
        });
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
mod tests;
