//! Attention against its definition, and row against row where results must be the same bits.

use candle_core::Device;
use proptest::prelude::*;

use super::*;
use crate::{
    cpu::{
        attend::Element,
        reference::{self, half_to_float},
    },
    device::Backend,
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
    let spans = spans.iter().map(|&(start, num_tokens, block_table)| AttentionSpan { num_tokens, start, block_table });
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
            let mut layer = KvLayer::new(8, n_kv, dim, kv_type, &Backend::Cpu)?;
            let whole = run(&mut layer, &[(0, t, &[5, 0, 3])], [&q, &k, &v], (heads, n_kv), &p)?;
            let mut pieces = Vec::new();
            let mut layer = KvLayer::new(8, n_kv, dim, kv_type, &Backend::Cpu)?;
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
    let mut layer = KvLayer::new(2, 1, 8, KvType::F16, &Backend::Cpu)?;
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
            let mut layer = KvLayer::new(12, n_kv, dim, kv_type, &Backend::Cpu)?;
            let tables: [&[u32]; 2] = [&[7, 2, 11, 5], &[0, 9, 3]];
            // (tokens before, tokens now) of both sequences, in two steps: prompts, then a chunk and a token.
            for (step, parts) in [[(0, 37), (0, 21)], [(37, 18), (21, 1)]].into_iter().enumerate() {
                let seed = seed + 3 * u32::try_from(step).unwrap_or(0);
                let t = parts[0].1 + parts[1].1;
                let (q, k, v) =
                    (noise(t * heads * dim, seed), noise(t * n_kv * dim, seed + 1), noise(t * n_kv * dim, seed + 2));
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
        (KvStore::Candle(_), _) => f32::NAN,
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

/// A sequence's KV blocks, and the queries of all its tokens.
struct Sequence<E> {
    heads: Heads,
    table: Vec<u32>,
    queries: Vec<f32>,
    keys: Vec<E>,
    values: Vec<E>,
}

impl<E: Element> Sequence<E> {
    /// `tokens` tokens of noise, in blocks that are not in order; the last one is unused.
    fn noise(heads: Heads, tokens: usize, seed: u32, of: impl Fn(f32) -> E) -> Self {
        let blocks = tokens.div_ceil(BLOCK_TOKENS) + 1;
        let per_block = heads.n_kv_heads * heads.head_dim * BLOCK_TOKENS;
        let elements = |seed| noise(blocks * per_block, seed).into_iter().map(&of).collect();
        Self {
            heads,
            table: (0..blocks).rev().map(|block| (block ^ 1).min(blocks - 1) as u32).collect(),
            queries: noise(tokens * heads.n_heads * heads.head_dim, seed),
            keys: elements(seed + 1),
            values: elements(seed + 2),
        }
    }

    /// Replaces what a token has in the cache.
    fn put(&mut self, token: usize, element: E) {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        for head in 0..n_kv_heads {
            let (block, slot) = (self.table[token / BLOCK_TOKENS] as usize, token % BLOCK_TOKENS);
            let at = (block * n_kv_heads + head) * head_dim * BLOCK_TOKENS;
            for d in 0..head_dim {
                self.keys[at + d * BLOCK_TOKENS + slot] = element;
                self.values[at + slot * head_dim + d] = element;
            }
        }
    }

    /// The results of these tokens as one step computes them, in at least this many pieces of work.
    fn attend(&self, tokens: std::ops::Range<usize>, pieces: usize) -> Vec<f32> {
        let row = self.heads.n_heads * self.heads.head_dim;
        let mut tiles = Vec::new();
        // Another sequence precedes this one in the batch: the same blocks, from the first token on.
        for (first_token, span) in [(0, 0..7.min(tokens.start)), (7.min(tokens.start), tokens.clone())] {
            cut(&mut tiles, self.heads, first_token, span.len(), |first| Tile {
                first_token,
                num_tokens: 0,
                position: span.start + first,
                kv_head: 0,
                block_table: &self.table,
                sees: None,
            });
        }
        let company = 7.min(tokens.start) * row;
        let queries = [&self.queries[..company], &self.queries[tokens.start * row..tokens.end * row]].concat();
        let pieces = Pieces::at_least(pieces, self.heads, tiles);
        let out = pieces.run_all(&queries, &self.keys, &self.values);
        out.expect("nothing panics")[company..].to_vec()
    }

    fn definition(&self, position: usize) -> Vec<f32> {
        let Heads { n_heads, n_kv_heads, head_dim, scale, softcap, window } = self.heads;
        let mut out = Vec::new();
        for head in 0..n_heads {
            let at = |t: usize| {
                let block = self.table[t / BLOCK_TOKENS] as usize;
                ((block * n_kv_heads + head / self.heads.group()) * head_dim * BLOCK_TOKENS, t % BLOCK_TOKENS)
            };
            out.extend(reference::attend(
                &self.queries[(position * n_heads + head) * head_dim..][..head_dim],
                position + 1,
                |t| window.is_none_or(|window| t + window > position),
                |score, _| softcap.map_or(score * scale, |cap| cap * (score * scale / cap).tanh()),
                |t, d| self.keys[at(t).0 + d * BLOCK_TOKENS + at(t).1].to_f32(),
                |t, d| self.values[at(t).0 + at(t).1 * head_dim + d].to_f32(),
            ));
        }
        out
    }
}

fn half(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

/// Contexts of several chunks and parts, whole and cut into parts, in tiles of many rows and of one token.
fn long_contexts_equal_the_definition<E: Element>(of: impl Fn(f32) -> E) {
    for (case, dim) in [64, 20, 80, 128, 256, 64, 128, 40].into_iter().enumerate() {
        let (group, n_kv_heads) = (case + 1, 1 + case % 2);
        for (softcap, window) in [(None, None), (Some(4.0), Some(1500)), (None, Some(300))] {
            let heads = Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim: dim, scale: 0.4, softcap, window };
            let sequence = Sequence::noise(heads, 2200, case as u32, &of);
            for (tokens, pieces) in [(0..75, 1), (1000..1050, 1), (2040..2080, 500), (2199..2200, 1), (1025..1026, 500)]
            {
                let got = sequence.attend(tokens.clone(), pieces);
                let row = heads.n_heads * dim;
                for position in tokens.clone().filter(|token| token % 16 == 0 || *token == tokens.end - 1) {
                    let got = &got[(position - tokens.start) * row..][..row];
                    for (got, expected) in got.iter().zip(sequence.definition(position)) {
                        assert!((got - expected).abs() < 2e-5, "{heads:?} at {position}: {got} and {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn long_contexts_of_floats_equal_the_definition() {
    long_contexts_equal_the_definition(|x| x);
}

#[test]
fn long_contexts_of_half_floats_equal_the_definition() {
    long_contexts_equal_the_definition(half);
}

#[test]
fn what_a_row_does_not_see_does_not_change_its_bits() {
    for window in [None, Some(40), Some(1000)] {
        for group in [1, 4, 7] {
            let heads = Heads { n_heads: group, n_kv_heads: 1, head_dim: 36, scale: 0.3, softcap: Some(5.0), window };
            let sequence = Sequence::noise(heads, 1300, 5, half);
            let row = heads.n_heads * heads.head_dim;
            for first in [17, 250, 1020, 1299] {
                let whole = sequence.attend(first..1300, 1);
                let hidden: Vec<usize> =
                    (first + 1..1312).chain(0..window.map_or(0, |window| (first + 1).saturating_sub(window))).collect();
                let mut poisoned = Sequence::noise(heads, 1300, 5, half);
                for (index, token) in hidden.into_iter().enumerate() {
                    poisoned.put(token, [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(half)[index % 3]);
                }
                for tokens in [first..1300, first..first + 1] {
                    let got = poisoned.attend(tokens, 1);
                    assert_eq!(got[..row], whole[..row], "window {window:?}, group {group}, token {first}");
                }
            }
        }
    }
}

#[test]
fn what_a_row_sees_of_nan_reaches_its_result() {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 16, scale: 0.3, softcap: None, window: None };
    for token in [0, 700, 1199] {
        let mut sequence = Sequence::noise(heads, 1200, 8, |x| x);
        sequence.put(token, f32::NAN);
        for pieces in [1, 100] {
            assert!(sequence.attend(1199..1200, pieces).iter().all(|x| x.is_nan()), "token {token}");
        }
    }
    // All scores are minus infinity: no token has any weight.
    let mut sequence = Sequence::noise(heads, 1200, 8, |x| x);
    sequence.queries.fill(f32::MAX);
    for token in 0..1200 {
        sequence.put(token, -f32::MAX);
    }
    assert_eq!(sequence.attend(1199..1200, 1), [0.0; 32]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// However a prompt is split, whatever is beside it, and in however many pieces it is computed.
    #[test]
    fn a_row_has_the_same_bits_in_every_step(
        group in 1..9_usize,
        n_kv_heads in 1..3_usize,
        head_dim in prop::sample::select(vec![16, 20, 64, 80, 128]),
        is_half in any::<bool>(),
        softcap in prop::option::of(Just(3.0)),
        window in prop::option::of(1..1500_usize),
        tokens in 1..2300_usize,
        cuts in prop::collection::vec((0..2300_usize, prop::sample::select(vec![1, 20, 1000])), 1..6),
    ) {
        let heads = Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim, scale: 0.3, softcap, window };
        if is_half {
            same_bits_in_every_step(&Sequence::noise(heads, tokens, 1, half), tokens, cuts);
        } else {
            same_bits_in_every_step(&Sequence::noise(heads, tokens, 1, |x| x), tokens, cuts);
        }
    }
}

/// Each cut is where a step ends, and the pieces in which that step is computed.
fn same_bits_in_every_step<E: Element>(sequence: &Sequence<E>, tokens: usize, mut cuts: Vec<(usize, usize)>) {
    let whole = sequence.attend(0..tokens, 1);
    cuts.retain(|(end, _)| *end < tokens);
    cuts.extend([(tokens - 1, 1), (tokens, 1000)]);
    cuts.sort_unstable();
    cuts.dedup_by_key(|(end, _)| *end);
    let (mut start, mut parts) = (0, Vec::new());
    for (end, pieces) in cuts {
        if start < end {
            parts.extend(sequence.attend(start..end, pieces));
        }
        start = end;
    }
    let differs = whole.iter().zip(&parts).position(|(whole, part)| whole.to_bits() != part.to_bits());
    assert_eq!((differs, whole.len()), (None, parts.len()), "{:?}, {tokens} tokens", sequence.heads);
}
