//! Attention over the paged KV cache, and the encoder's attention over packed sequences.

use candle_core::{Result, Tensor};
use half::f16;

use super::{
    cpu::reference::{attend, half_to_float},
    from_floats, gpu,
    kv::{BLOCK_TOKENS, KvLayer, KvStore},
    with_floats,
};

/// What a model family varies.
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

/// One sequence's part of the step.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpan<'a> {
    /// Its tokens in this step.
    pub num_tokens: usize,
    /// Position of the first of them.
    pub start: usize,
    /// Its KV blocks by position, covering `start + num_tokens` tokens.
    pub block_table: &'a [u32],
}

/// Writes `k` and `v` into the layer's blocks; then every token attends to itself and all earlier ones of its
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
    let per_block = layer.elements_per_block();
    let key_at = move |block: u32, head: usize, slot: usize, d: usize| {
        block as usize * per_block + head * dim * BLOCK_TOKENS + d * BLOCK_TOKENS + slot
    };
    let value_at = move |block: u32, head: usize, slot: usize, d: usize| {
        block as usize * per_block + head * dim * BLOCK_TOKENS + slot * dim + d
    };
    let mut token = 0;
    for span in &batch.spans {
        for position in span.start..span.start + span.num_tokens {
            let (block, slot) = (span.block_table[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            for head in 0..n_kv {
                for d in 0..dim {
                    let source = (token * n_kv + head) * dim + d;
                    let (key, value) = (key_at(block, head, slot, d), value_at(block, head, slot, d));
                    match &mut layer.store {
                        KvStore::CpuF32 { keys, values } => (keys[key], values[value]) = (k[source], v[source]),
                        KvStore::CpuF16 { keys, values } => {
                            keys[key] = f16::from_f32(k[source]).to_bits();
                            values[value] = f16::from_f32(v[source]).to_bits();
                        }
                        KvStore::Gpu(_) => candle_core::bail!("a GPU cache was given to the CPU path"),
                    }
                }
            }
            token += 1;
        }
    }
    let group = n_heads / n_kv;
    let mut out = Vec::with_capacity(q.len());
    let mut queries = q.chunks_exact(dim);
    let read = |keys: bool, index: usize| match (&layer.store, keys) {
        (KvStore::CpuF32 { keys, .. }, true) => keys[index],
        (KvStore::CpuF32 { values, .. }, false) => values[index],
        (KvStore::CpuF16 { keys, .. }, true) => half_to_float(keys[index]),
        (KvStore::CpuF16 { values, .. }, false) => half_to_float(values[index]),
        (KvStore::Gpu(_), _) => f32::NAN,
    };
    for span in &batch.spans {
        for position in span.start..span.start + span.num_tokens {
            for head in 0..n_heads {
                let Some(query) = queries.next() else { candle_core::bail!("fewer queries than tokens") };
                let block = |t: usize| span.block_table[t / BLOCK_TOKENS];
                let score_of = |score: f32, _| {
                    let score = score * p.scale;
                    p.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                };
                out.extend(attend(
                    query,
                    position + 1,
                    |t| p.window.is_none_or(|window| t + window > position),
                    score_of,
                    |t, d| read(true, key_at(block(t), head / group, t % BLOCK_TOKENS, d)),
                    |t, d| read(false, value_at(block(t), head / group, t % BLOCK_TOKENS, d)),
                ));
            }
        }
    }
    from_floats(out, (token, n_heads * dim))
}

/// Bidirectional attention within each of the packed sequences.
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
    let mut outputs = Vec::with_capacity(lengths.len());
    let mut first = 0;
    for &length in lengths {
        let part = |x: &Tensor| x.narrow(0, first, length);
        let bias = bias.map(|bias| bias.narrow(1, 0, length)?.narrow(2, 0, length)).transpose()?;
        outputs.push(gpu::attend(&part(q)?, &part(k)?, &part(v)?, scale, None, bias.as_ref())?);
        first += length;
    }
    Tensor::cat(&outputs, 0)?.reshape((t, heads * dim))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::kv::KvType;

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
                    // Another sequence stands before this one in the same batch.
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
}
