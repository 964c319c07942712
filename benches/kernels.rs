//! Matrix multiplication against the machine's ceilings and against candle's own quantized kernels; attention against
//! the same ceilings in `kernels/attention.rs`.
//!
//! A harness of our own rather than divan's, because the two contenders must alternate within a run for their
//! ratio to mean something on a machine that others use too: every figure is the median of the rounds, every
//! ratio the median of the rounds' ratios.
//!
//! `cargo bench --bench kernels` runs everything; `-- NAME...` (such as `Q4_K attention`) only these types, or attention.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor},
};
use hearth_kernels::{
    device::{cpu_features, threads},
    linear::Linear,
    pool,
    quant::{GgmlType, RawTensor},
};

#[path = "kernels/attention.rs"]
mod attention;

const OUT: usize = 8192;
const INP: usize = 2048;
/// Weights read in one sweep, so that they come from memory and not from the cache.
const SWEEP_BYTES: usize = 256 << 20;
const ROUNDS: usize = 7;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Bytes per second that all threads together read from a buffer larger than any cache.
fn memory_ceiling() -> f64 {
    let buffer = vec![1u64; SWEEP_BYTES / 4];
    let chunks = 64 * threads();
    let read = || {
        pool::run(chunks, |chunk| {
            let part = &buffer[buffer.len() * chunk / chunks..buffer.len() * (chunk + 1) / chunks];
            let mut sums = [0u64; 32];
            for block in part.chunks_exact(32) {
                for (sum, value) in sums.iter_mut().zip(block) {
                    *sum = sum.wrapping_add(*value);
                }
            }
            black_box(sums);
        })
        .expect("nothing panics");
    };
    read();
    let times = (0..ROUNDS).map(|_| seconds(read)).collect();
    (8 * buffer.len()) as f64 / median(times)
}

/// Multiply-adds of bytes per second, all threads together; `None` without AVX-512 VNNI.
fn int8_ceiling() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")) {
            return None;
        }
        const STEPS: usize = 400_000;
        let chunks = 4 * threads();
        let compute = || {
            // SAFETY: the features were detected.
            pool::run(chunks, |_| _ = black_box(unsafe { dot_products(STEPS) })).expect("nothing panics");
        };
        compute();
        let times = (0..ROUNDS).map(|_| seconds(compute)).collect();
        Some((chunks * STEPS * 16 * 64) as f64 / median(times))
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_products(steps: usize) -> i32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 16];
    let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(2)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    let mut total = _mm512_setzero_si512();
    for sum in sums {
        total = _mm512_add_epi32(total, sum);
    }
    _mm512_reduce_add_epi32(total)
}

const fn candle_type(dtype: GgmlType) -> GgmlDType {
    match dtype {
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::F32 => GgmlDType::F32,
    }
}

/// The same weights in the file's layout, as tiles, and for candle, which quantizes them.
fn contenders(dtype: GgmlType, count: usize) -> candle_core::Result<Vec<(Linear, Linear, QMatMul)>> {
    let source = Tensor::randn(0f32, 1.0, (OUT, INP), &Device::Cpu)?;
    let first = QTensor::quantize(&source, candle_type(dtype))?;
    let data = Bytes::from(first.data()?.into_owned());
    (0..count)
        .map(|_| {
            let raw = RawTensor { dtype, shape: vec![OUT, INP], data: Bytes::copy_from_slice(&data) };
            let storage =
                candle_core::quantized::QStorage::from_data((&data[..]).into(), &Device::Cpu, candle_type(dtype))?;
            let theirs = QMatMul::from_qtensor(QTensor::new(storage, (OUT, INP))?)?;
            let tiles = Linear::new(&raw, None, &Device::Cpu)?;
            tiles.repack(|_| {})?;
            Ok((Linear::new(&raw, None, &Device::Cpu)?, tiles, theirs))
        })
        .collect()
}

fn main() -> candle_core::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let memory = memory_ceiling();
    let int8 = int8_ceiling();
    println!("instruction set: {}; threads: {}", cpu_features(), threads());
    println!(
        "memory read: {:.1} GB/s; int8 peak: {:.2} T multiply-adds/s",
        memory / 1e9,
        int8.unwrap_or(f64::NAN) / 1e12
    );
    if is_wanted("attention") {
        attention::run(memory)?;
    }
    println!(
        "{:5} {:>4} {:>10} {:>10} {:>8} {:>9} {:>9} {:>8} {:>10} {:>8}",
        "type", "rows", "file ms", "tiles ms", "GB/s", "% memory", "% int8", "speed-up", "candle ms", "speed-up"
    );
    use GgmlType::{BF16, F16, F32, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    for dtype in [Q4_K, Q6_K, Q8_0, Q5_0, F16, Q4_0, Q5_K, Q4_1, Q5_1, Q2_K, Q3_K, BF16, F32] {
        if !is_wanted(&format!("{dtype:?}")) {
            continue;
        }
        let bytes = dtype.row_bytes(INP).expect("whole blocks") * OUT;
        let sweep = contenders(dtype, SWEEP_BYTES.div_ceil(bytes))?;
        for rows in [1, 2, 4, 8, 16, 256] {
            let x = Tensor::randn(0f32, 1.0, (rows, INP), &Device::Cpu)?;
            let used = if rows < 256 { &sweep[..] } else { &sweep[..2] };
            let file = || used.iter().for_each(|(file, ..)| _ = black_box(file.forward(&x).expect("shapes fit")));
            let tiles = || used.iter().for_each(|(_, tiles, _)| _ = black_box(tiles.forward(&x).expect("shapes fit")));
            let candle = || used.iter().for_each(|(.., theirs)| _ = black_box(theirs.forward(&x).expect("shapes fit")));
            file();
            tiles();
            candle();
            let times: Vec<[f64; 3]> = (0..ROUNDS).map(|_| [seconds(file), seconds(tiles), seconds(candle)]).collect();
            let of = |contender: usize| median(times.iter().map(|t| t[contender]).collect()) / used.len() as f64;
            let against = |contender: usize| median(times.iter().map(|t| t[contender] / t[1]).collect());
            let per_call = of(1);
            let rate = bytes as f64 / per_call;
            let products = (rows * OUT * INP) as f64 / per_call;
            println!(
                "{:5} {rows:4} {:10.3} {:10.3} {:8.1} {:9.0} {:9.0} {:8.2} {:10.3} {:8.2}",
                format!("{dtype:?}"),
                of(0) * 1e3,
                per_call * 1e3,
                rate / 1e9,
                100.0 * rate / memory,
                100.0 * products / int8.unwrap_or(f64::NAN),
                against(0),
                of(2) * 1e3,
                against(2),
            );
        }
    }
    Ok(())
}
