//! Attention over the paged KV cache, and the encoder's attention over packed sequences.
//!
//! This file writes tokens into their KV blocks and cuts queries into tiles for the threads; `cpu/attend.rs` computes a
//! tile.

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
        let batch = AttentionBatch { spans: spans.collect() };
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
