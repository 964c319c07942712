//! The ceiling of the products of bytes: how fast the processor multiplies what is in its registers already.

use hearth_kernels::{
    device::{InstructionSet, cpu_features, threads},
    pool,
};

use super::{ROUNDS, median, seconds};

/// Multiply-adds per second of all threads together, for each instruction that this processor has, slowest first.
pub(super) fn peaks() -> Vec<(&'static str, f64)> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut peaks = Vec::new();
        if is_x86_feature_detected!("avx2") {
            // SAFETY: detected.
            peaks.push(("AVX2 (vpmaddubsw)", peak(32, |steps| unsafe { x86::multiply_add_bytes(steps) })));
        }
        if is_x86_feature_detected!("avxvnni") {
            // SAFETY: detected.
            peaks.push(("AVX-VNNI (vpdpbusd)", peak(32, |steps| unsafe { x86::dot_products_256(steps) })));
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: detected.
            peaks.push(("AVX-512 VNNI (vpdpbusd)", peak(64, |steps| unsafe { x86::dot_products_512(steps) })));
        }
        if cpu_features().instruction_set == InstructionSet::Amx {
            // SAFETY: the kernels use these instructions, and have asked for the registers.
            peaks.push(("AMX-INT8 (tdpbusd)", peak(16 * 16 * 64, |steps| unsafe { x86::tile_products(steps) })));
        }
        peaks
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Of a loop of `steps` times sixteen instructions, each of which is this many multiply-adds.
#[cfg(target_arch = "x86_64")]
fn peak(products: usize, compute: impl Fn(usize) + Sync) -> f64 {
    // Some milliseconds.
    let steps = (64 << 20) / products.clamp(64, 1024);
    let chunks = 4 * threads();
    let all = || pool::run(chunks, |_| compute(steps)).expect("nothing panics");
    all();
    let times = (0..ROUNDS).map(|_| seconds(all)).collect();
    (chunks * steps * 16 * products) as f64 / median(times)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::*},
        hint::black_box,
    };

    /// Sums of 16 bits, as the AVX2 kernels keep them.
    #[target_feature(enable = "avx2")]
    pub(super) fn multiply_add_bytes(steps: usize) {
        let mut sums = [_mm256_setzero_si256(); 8];
        let (a, b) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi8(2)));
        for _ in 0..2 * steps {
            for sum in &mut sums {
                let product: __m256i;
                // By itself the compiler would multiply once, before the loop.
                // SAFETY: it has AVX2, and touches registers only.
                unsafe {
                    asm!(
                        "vpmaddubsw {product}, {a}, {b}",
                        product = lateout(ymm_reg) product,
                        a = in(ymm_reg) a,
                        b = in(ymm_reg) b,
                        options(nostack, nomem, preserves_flags),
                    );
                }
                *sum = _mm256_add_epi16(*sum, product);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn dot_products_256(steps: usize) {
        let mut sums = [_mm256_setzero_si256(); 8];
        let (a, b) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi8(2)));
        for _ in 0..2 * steps {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dot_products_512(steps: usize) {
        let mut sums = [_mm512_setzero_si512(); 16];
        let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(2)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The operating system has granted the tile registers.
    pub(super) unsafe fn tile_products(steps: usize) {
        /// Palette 1, eight registers of sixteen rows of 64 bytes.
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for register in 0..8 {
            shapes.0[16 + 2 * register] = 64;
            shapes.0[48 + register] = 16;
        }
        // SAFETY: granted, as the caller says; the loop touches registers only, and the compiler uses none of these.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const shapes, options(nostack, readonly));
            for _ in 0..4 * steps {
                asm!(
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tdpbusd tmm3, tmm5, tmm7",
                    options(nostack, nomem),
                );
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
