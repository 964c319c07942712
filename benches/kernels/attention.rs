//! Attention against the machine's ceilings: one token against the speed at which memory is read, a prompt against the
//! speed of multiply-adds in registers.
//!
//! The shape is that of a 1B model: 32 heads over 8 KV heads of 64, half floats, blocks scattered over the cache. One
//! call is one layer. Decode reads sequences that together are larger than any cache, one after the other, as the
//! layers of a model do.

use std::hint::black_box;

use candle_core::{Device, Result, Tensor};
use hearth_kernels::{
    attention::{AttentionBatch, AttentionParams, AttentionSpan, attention},
    device::{Backend, threads},
    kv::{BLOCK_TOKENS, KvLayer, KvType},
    pool,
};

use super::{ROUNDS, SWEEP_BYTES, median, seconds};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 64;
const PARAMS: AttentionParams = AttentionParams { scale: 0.125, softcap: None, window: None };

/// Prints milliseconds and shares of the ceilings; `memory` is bytes per second.
pub(super) fn run(memory: f64) -> Result<()> {
    let peak = float_ceiling();
    println!("f32 peak: {:.1} G multiply-adds/s", peak / 1e9);
    let block_bytes = KvLayer::bytes_per_block(KV_HEADS, DIM, KvType::F16);
    let mut layer = KvLayer::new(SWEEP_BYTES / block_bytes, KV_HEADS, DIM, KvType::F16, &Backend::Cpu)?;
    let blocks = shuffled(SWEEP_BYTES / block_bytes);
    fill(&mut layer, &blocks)?;

    println!("{:8} {:>6} {:>10} {:>8} {:>9}", "decode", "depth", "ms", "GB/s", "% memory");
    for depth in [512, 2048, 8192, 32768] {
        let tables: Vec<&[u32]> = blocks.chunks_exact(depth / BLOCK_TOKENS).collect();
        let per_call = time(&mut layer, &tables, depth - 1, 1)?;
        let rate = (depth / BLOCK_TOKENS * block_bytes) as f64 / per_call;
        println!("{:8} {depth:6} {:10.3} {:8.1} {:9.0}", "", per_call * 1e3, rate / 1e9, 100.0 * rate / memory);
    }
    println!("{:8} {:>6} {:>10} {:>8} {:>9}", "prefill", "depth", "ms", "GMAC/s", "% peak");
    for depth in [0, 8192] {
        let tokens = 512;
        let per_call = time(&mut layer, &[&blocks[..(depth + tokens) / BLOCK_TOKENS]], depth, tokens)?;
        let pairs = tokens * depth + tokens * (tokens + 1) / 2;
        let rate = (pairs * HEADS * 2 * DIM) as f64 / per_call;
        println!("{:8} {depth:6} {:10.3} {:8.1} {:9.0}", "", per_call * 1e3, rate / 1e9, 100.0 * rate / peak);
    }
    Ok(())
}

/// Seconds per call for `tokens` tokens at `start`, one call for each table in turn.
fn time(layer: &mut KvLayer, tables: &[&[u32]], start: usize, tokens: usize) -> Result<f64> {
    let q = Tensor::randn(0f32, 1.0, (tokens, HEADS, DIM), &Device::Cpu)?;
    let k = Tensor::randn(0f32, 1.0, (tokens, KV_HEADS, DIM), &Device::Cpu)?;
    let mut sweep = || {
        for block_table in tables {
            let batch = AttentionBatch::new(vec![AttentionSpan { num_tokens: tokens, start, block_table }])
                .expect("every token has a block");
            black_box(attention(&q, &k, &k, layer, &batch, &PARAMS).expect("shapes fit"));
        }
    };
    sweep();
    let times = (0..ROUNDS).map(|_| seconds(&mut sweep)).collect();
    Ok(median(times) / tables.len() as f64)
}

/// Writes every block, because a page that was never written is not read from memory.
fn fill(layer: &mut KvLayer, blocks: &[u32]) -> Result<()> {
    for part in blocks.chunks(64) {
        let tokens = part.len() * BLOCK_TOKENS;
        let q = Tensor::randn(0f32, 1.0, (tokens, HEADS, DIM), &Device::Cpu)?;
        let k = Tensor::randn(0f32, 1.0, (tokens, KV_HEADS, DIM), &Device::Cpu)?;
        let spans = part.chunks(1).map(|block_table| AttentionSpan { num_tokens: BLOCK_TOKENS, start: 0, block_table });
        attention(&q, &k, &k, layer, &AttentionBatch::new(spans.collect())?, &PARAMS)?;
    }
    Ok(())
}

/// `0..count` in a fixed random order.
fn shuffled(count: usize) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..count).map(|block| u32::try_from(block).expect("few blocks")).collect();
    let mut state = 1u64;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        blocks.swap(last, (state >> 33) as usize % (last + 1));
    }
    blocks
}

/// Multiply-adds of floats per second, all threads together, with everything in registers.
fn float_ceiling() -> f64 {
    const STEPS: usize = 2_000_000;
    let chunks = 4 * threads();
    let width = lanes_of_a_register();
    let compute = || pool::run(chunks, |_| _ = black_box(multiply_adds(STEPS))).expect("nothing panics");
    compute();
    let times = (0..ROUNDS).map(|_| seconds(compute)).collect();
    (chunks * STEPS * SUMS * width) as f64 / median(times)
}

/// Independent sums of the loop: enough to hide a latency of five cycles at two a cycle.
const SUMS: usize = 12;

#[cfg(target_arch = "x86_64")]
fn lanes_of_a_register() -> usize {
    if is_x86_feature_detected!("avx512f") {
        16
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        8
    } else {
        1
    }
}

#[cfg(target_arch = "x86_64")]
fn multiply_adds(steps: usize) -> f32 {
    match lanes_of_a_register() {
        // SAFETY: the feature was detected.
        16 => unsafe { multiply_adds_512(steps) },
        // SAFETY: the features were detected.
        8 => unsafe { multiply_adds_256(steps) },
        _ => plain_multiply_adds(steps),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn lanes_of_a_register() -> usize {
    1
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds(steps: usize) -> f32 {
    plain_multiply_adds(steps)
}

fn plain_multiply_adds(steps: usize) -> f32 {
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [0.0f32; SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_adds_512(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_adds_256(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
    let mut sums = [_mm256_setzero_ps(); SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(a, b, *sum);
        }
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}
