//! Matrix multiplication against the machine's ceilings and against candle's own quantized kernels; attention against
//! the same ceilings in `kernels/attention.rs`.
//!
//! A harness of our own rather than divan's, because the two contenders must alternate within a run for their
//! ratio to mean something on a machine that others use too: every figure is the median of the rounds, every
//! ratio the median of the rounds' ratios.
//!
//! `cargo bench --bench kernels` runs everything; `-- NAME...` (such as `Q4_K attention`) only these types, or attention, and
//! `-- NUMBER...` only these numbers of rows.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor},
};
use hearth_kernels::{
    arena::Arena,
    device::{cpu_features, threads},
    linear::Linear,
    pool,
    quant::{GgmlType, RawTensor},
};
use memmap2::MmapMut;

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/int8.rs"]
mod int8;

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

/// Bytes per second that all threads together read, of as many bytes as the weights of a sweep, by the widest loads, and from huge
/// pages as tiles are.
fn memory_ceiling() -> f64 {
    let mut map = MmapMut::map_anon(SWEEP_BYTES).expect("there is memory");
    #[cfg(target_os = "linux")]
    let _ignored = map.advise(memmap2::Advice::HugePage);
    map.fill(1);
    let buffer: &[u64] = bytemuck::cast_slice(&map);
    let chunks = 64 * threads();
    let read = || {
        pool::run(chunks, |chunk| {
            let part = &buffer[buffer.len() * chunk / chunks..buffer.len() * (chunk + 1) / chunks];
            black_box(sum(part));
        })
        .expect("nothing panics");
    };
    read();
    let times = (0..ROUNDS).map(|_| seconds(read)).collect();
    (8 * buffer.len()) as f64 / median(times)
}

fn sum(part: &[u64]) -> u64 {
    #[inline(always)]
    fn plain(part: &[u64]) -> u64 {
        let mut sums = [0u64; 64];
        for block in part.chunks_exact(64) {
            for (sum, value) in sums.iter_mut().zip(block) {
                *sum = sum.wrapping_add(*value);
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(part: &[u64]) -> u64 {
            plain(part)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(part: &[u64]) -> u64 {
            plain(part)
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: detected.
            return unsafe { avx512(part) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: detected.
            return unsafe { avx2(part) };
        }
    }
    plain(part)
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
    let arena = Arena::default();
    (0..count)
        .map(|_| {
            let raw = RawTensor { dtype, shape: vec![OUT, INP], data: Bytes::copy_from_slice(&data) };
            let storage =
                candle_core::quantized::QStorage::from_data((&data[..]).into(), &Device::Cpu, candle_type(dtype))?;
            let theirs = QMatMul::from_qtensor(QTensor::new(storage, (OUT, INP))?)?;
            let tiles = Linear::new(&raw, None, &Device::Cpu)?;
            tiles.repack(&arena, |_| {})?;
            Ok((Linear::new(&raw, None, &Device::Cpu)?, tiles, theirs))
        })
        .collect()
}

fn main() -> candle_core::Result<()> {
    let (numbers, wanted): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .partition(|argument| argument.parse::<usize>().is_ok());
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let memory = memory_ceiling();
    println!("instruction set: {}; threads: {}", cpu_features(), threads());
    println!("memory read: {:.1} GB/s", memory / 1e9);
    let peaks = int8::peaks();
    for (instruction, peak) in &peaks {
        println!("int8 peak of {instruction}: {:.2} T multiply-adds/s", peak / 1e12);
    }
    let int8 = peaks.last().map_or(f64::NAN, |(_, peak)| *peak);
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
            if !numbers.is_empty() && !numbers.contains(&rows.to_string()) {
                continue;
            }
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
                100.0 * products / int8,
                against(0),
                of(2) * 1e3,
                against(2),
            );
        }
    }
    Ok(())
}
