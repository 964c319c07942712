//! Sixteen lanes as one AVX-512 register, with VNNI for the integer dot products and, where there is AMX, whole tiles of
//! them at once.

use std::arch::x86_64::*;

use super::{
    amx::{self, TileRegisters},
    avx2::control,
    lanes::{Kernel, LANES, Lanes},
    microkernel::TileProduct,
};

/// Constructed only where [`Avx512::detect`] found the instructions.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const AMX: bool>(());

impl<const AMX: bool> Avx512<AMX> {
    pub fn detect() -> Option<Self> {
        let found = (!AMX || amx::granted())
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// Operations on registers only.
macro_rules! register_operations {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) -> $result {
            // SAFETY: `self` exists only where these instructions were detected; they touch no memory.
            unsafe { $body }
        }
    )*};
}

type I = __m512i;
type F = __m512;

impl<const AMX: bool> Lanes for Avx512<AMX> {
    type I = I;
    type F = F;
    type TileRegisters = TileRegisters;

    const ROWS: usize = 6;
    const COLUMNS: usize = 2;
    const STREAMED_ROWS: usize = 8;
    const OFFSET: i32 = 128;
    const QUERY_ROWS: usize = 12;
    const QUERY_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        // SAFETY: detected; the caller vouches for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i(self, to: *mut u8, value: I) {
        // SAFETY: detected; the caller vouches for 64 bytes.
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn load_f(self, from: *const f32) -> F {
        // SAFETY: detected; the caller vouches for sixteen floats.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_f(self, to: *mut f32, value: F) {
        // SAFETY: detected; the caller vouches for sixteen floats.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> F {
        // SAFETY: detected; the caller vouches for sixteen elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut u16, value: F) {
        // SAFETY: detected; the caller vouches for sixteen elements.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, value: I) {
        // SAFETY: detected; the caller vouches for sixteen bytes.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(value)) }
    }

    #[inline(always)]
    unsafe fn transpose_words(self, rows: &[*const u8; LANES], offset: usize) -> [I; 4] {
        // SAFETY: detected; the caller vouches for 16 bytes at the offset of every row.
        unsafe {
            // Lane group g of `v[i]` holds row 4 g + i, so transposing 4x4 words in every group is all that remains.
            let mut v = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 4 {
                let first = _mm512_castsi128_si512(_mm_loadu_si128(rows[i].add(offset).cast()));
                let second = _mm512_inserti32x4::<1>(first, _mm_loadu_si128(rows[4 + i].add(offset).cast()));
                let third = _mm512_inserti32x4::<2>(second, _mm_loadu_si128(rows[8 + i].add(offset).cast()));
                v[i] = _mm512_inserti32x4::<3>(third, _mm_loadu_si128(rows[12 + i].add(offset).cast()));
                i += 1;
            }
            let low01 = _mm512_unpacklo_epi32(v[0], v[1]);
            let low23 = _mm512_unpacklo_epi32(v[2], v[3]);
            let high01 = _mm512_unpackhi_epi32(v[0], v[1]);
            let high23 = _mm512_unpackhi_epi32(v[2], v[3]);
            [
                _mm512_unpacklo_epi64(low01, low23),
                _mm512_unpackhi_epi64(low01, low23),
                _mm512_unpacklo_epi64(high01, high23),
                _mm512_unpackhi_epi64(high01, high23),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather(self, rows: &[*const u8; LANES], offset: usize) -> I {
        let mut words = [0i32; LANES];
        let mut r = 0;
        while r < LANES {
            // SAFETY: the caller vouches for 4 bytes at the offset of every row.
            words[r] = unsafe { rows[r].add(offset).cast::<i32>().read_unaligned() };
            r += 1;
        }
        let w = words;
        // SAFETY: detected.
        unsafe {
            _mm512_setr_epi32(
                w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15],
            )
        }
    }

    register_operations! {
        fn splat_i(value: i32) -> I { _mm512_set1_epi32(value) }
        fn and(a: I, b: I) -> I { _mm512_and_si512(a, b) }
        fn or(a: I, b: I) -> I { _mm512_or_si512(a, b) }
        fn xor(a: I, b: I) -> I { _mm512_xor_si512(a, b) }
        fn add_i(a: I, b: I) -> I { _mm512_add_epi32(a, b) }
        fn sub_i(a: I, b: I) -> I { _mm512_sub_epi32(a, b) }
        fn mul_i(a: I, b: I) -> I { _mm512_mullo_epi32(a, b) }
        fn shift_right_by(a: I, n: u32) -> I { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn multiply_bytes(products: I, unsigned: I, signed: I) -> I { _mm512_dpbusd_epi32(products, unsigned, signed) }
        fn add_products(total: I, products: I) -> I { _mm512_add_epi32(total, products) }
        fn add_scaled(total: I, products: I, factor: I) -> I {
            _mm512_add_epi32(total, _mm512_mullo_epi32(products, factor))
        }
        fn factor(bytes: I, i: usize) -> I {
            _mm512_srai_epi32::<24>(_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(control(None, Some(i)))))
        }
        fn bytes_as_halves(bytes: I, low: usize, high: usize) -> I {
            _mm512_srai_epi16::<8>(_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(control(Some(low), Some(high)))))
        }
        // Adding 128 to a signed byte flips its top bit.
        fn add_offset(bytes: I) -> I { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
        fn dot_offset_bytes(sum: I, offset: I, signed: I) -> I { _mm512_dpbusd_epi32(sum, offset, signed) }
        fn dot_full_bytes(sum: I, unsigned: I, signed: I) -> I { _mm512_dpbusd_epi32(sum, unsigned, signed) }
        fn dot_halves(sum: I, a: I, b: I) -> I { _mm512_dpwssd_epi32(sum, a, b) }
        fn to_floats(a: I) -> F { _mm512_cvtepi32_ps(a) }
        fn to_nearest(a: F) -> I { _mm512_cvtps_epi32(a) }
        fn bits_as_floats(a: I) -> F { _mm512_castsi512_ps(a) }
        fn floats_as_bits(a: F) -> I { _mm512_castps_si512(a) }
        fn low_half_as_float(a: I) -> F { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
        fn splat_f(value: f32) -> F { _mm512_set1_ps(value) }
        fn add(a: F, b: F) -> F { _mm512_add_ps(a, b) }
        fn sub(a: F, b: F) -> F { _mm512_sub_ps(a, b) }
        fn mul(a: F, b: F) -> F { _mm512_mul_ps(a, b) }
        fn div(a: F, b: F) -> F { _mm512_div_ps(a, b) }
        fn fma(a: F, b: F, c: F) -> F { _mm512_fmadd_ps(a, b, c) }
        fn max(a: F, b: F) -> F { _mm512_max_ps(a, b) }
        fn min(a: F, b: F) -> F { _mm512_min_ps(a, b) }
        fn largest(a: F) -> f32 { _mm512_reduce_max_ps(a) }
        fn total(a: F) -> f32 {{
            let halves = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let quarters = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            let pairs = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
            _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
        }}
    }

    #[inline(always)]
    fn tile_registers(self, rows: usize, superblocks: bool) -> Option<TileRegisters> {
        (AMX && rows >= amx::ROWS).then(|| TileRegisters::configure(Avx512(()), superblocks))
    }

    #[inline(always)]
    fn multiply_tiles(self, registers: &TileRegisters, product: TileProduct<'_>) {
        registers.multiply(Avx512(()), product);
    }

    #[inline(always)]
    fn most_products(_largest: usize) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }

    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        unsafe { _mm512_srai_epi32::<N>(a) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        fn enabled<const AMX: bool, K: Kernel>(lanes: Avx512<AMX>, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` exists only where all of these were detected.
        unsafe { enabled(self, kernel) }
    }
}
