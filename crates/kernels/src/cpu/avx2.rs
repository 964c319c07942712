//! Sixteen lanes as two AVX2 registers, with FMA and F16C, and with AVX-VNNI where the processor has it.

use std::{arch::x86_64::*, convert::Infallible};

use super::{
    lanes::{Kernel, LANES, Lanes},
    microkernel::TileProduct,
};

/// Constructed only where [`Avx2::detect`] found the instructions.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// One in each half of every lane.
    #[inline(always)]
    fn ones(self) -> I {
        self.splat_i(0x0001_0001)
    }

    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        found.then_some(Self(()))
    }
}

type I = [__m256i; 2];
type F = [__m256; 2];

/// For a shuffle of bytes: byte `low` of every lane becomes its byte 1, byte `high` its byte 3, and all else zero.
#[inline(always)]
pub fn control(low: Option<usize>, high: Option<usize>) -> __m128i {
    let byte = |lane: usize, byte: Option<usize>| byte.map_or(0x80, |byte| 4 * lane + byte) as i32;
    let lane = |lane| 0x0080_0080 | byte(lane, low) << 8 | byte(lane, high) << 24;
    // SAFETY: part of the baseline.
    unsafe { _mm_setr_epi32(lane(0), lane(1), lane(2), lane(3)) }
}

/// Operations that act on both halves in the same way.
macro_rules! on_both_halves {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty { $operation:expr })*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) -> $result {
            // SAFETY: `self` exists only where these instructions were detected; they touch no memory.
            unsafe { [$operation($($argument[0]),*), $operation($($argument[1]),*)] }
        }
    )*};
}

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type I = I;
    type F = F;
    type TileRegisters = Infallible;

    const ROWS: usize = 3;
    const COLUMNS: usize = 1;
    const STREAMED_ROWS: usize = 2;
    const OFFSET: i32 = if VNNI { 128 } else { 0 };
    const QUERY_ROWS: usize = 6;
    const QUERY_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        // SAFETY: detected; the caller vouches for 64 bytes.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_i(self, to: *mut u8, value: I) {
        // SAFETY: detected; the caller vouches for 64 bytes.
        unsafe {
            _mm256_storeu_si256(to.cast(), value[0]);
            _mm256_storeu_si256(to.add(32).cast(), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f(self, from: *const f32) -> F {
        // SAFETY: detected; the caller vouches for sixteen floats.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store_f(self, to: *mut f32, value: F) {
        // SAFETY: detected; the caller vouches for sixteen floats.
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> F {
        // SAFETY: detected; the caller vouches for sixteen elements.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut u16, value: F) {
        // SAFETY: detected; the caller vouches for sixteen elements.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]));
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, value: I) {
        // SAFETY: detected; the caller vouches for sixteen bytes.
        unsafe {
            // Packing works within 128-bit lanes: [a0 b0 | a1 b1] becomes [a0 a1 b0 b1] by the permutation.
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(value[0], value[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn transpose_words(self, rows: &[*const u8; LANES], offset: usize) -> [I; 4] {
        // SAFETY: detected; the caller vouches for 16 bytes at the offset of every row.
        unsafe {
            let mut words = [[_mm256_setzero_si256(); 2]; 4];
            let mut half = 0;
            while half < 2 {
                // Lane group g of `v[i]` holds row 8 half + 4 g + i.
                let mut v = [_mm256_setzero_si256(); 4];
                let mut i = 0;
                while i < 4 {
                    let first = _mm256_castsi128_si256(_mm_loadu_si128(rows[8 * half + i].add(offset).cast()));
                    let second = _mm_loadu_si128(rows[8 * half + 4 + i].add(offset).cast());
                    v[i] = _mm256_inserti128_si256::<1>(first, second);
                    i += 1;
                }
                let low01 = _mm256_unpacklo_epi32(v[0], v[1]);
                let low23 = _mm256_unpacklo_epi32(v[2], v[3]);
                let high01 = _mm256_unpackhi_epi32(v[0], v[1]);
                let high23 = _mm256_unpackhi_epi32(v[2], v[3]);
                words[0][half] = _mm256_unpacklo_epi64(low01, low23);
                words[1][half] = _mm256_unpackhi_epi64(low01, low23);
                words[2][half] = _mm256_unpacklo_epi64(high01, high23);
                words[3][half] = _mm256_unpackhi_epi64(high01, high23);
                half += 1;
            }
            words
        }
    }

    #[inline(always)]
    unsafe fn gather(self, rows: &[*const u8; LANES], offset: usize) -> I {
        let mut w = [0i32; LANES];
        let mut r = 0;
        while r < LANES {
            // SAFETY: the caller vouches for 4 bytes at the offset of every row.
            w[r] = unsafe { rows[r].add(offset).cast::<i32>().read_unaligned() };
            r += 1;
        }
        // SAFETY: detected.
        unsafe {
            [
                _mm256_setr_epi32(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]),
                _mm256_setr_epi32(w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15]),
            ]
        }
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        // SAFETY: detected.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn splat_f(self, value: f32) -> F {
        // SAFETY: detected.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    on_both_halves! {
        fn and(a: I, b: I) -> I { _mm256_and_si256 }
        fn or(a: I, b: I) -> I { _mm256_or_si256 }
        fn xor(a: I, b: I) -> I { _mm256_xor_si256 }
        fn add_i(a: I, b: I) -> I { _mm256_add_epi32 }
        fn sub_i(a: I, b: I) -> I { _mm256_sub_epi32 }
        fn mul_i(a: I, b: I) -> I { _mm256_mullo_epi32 }
        fn to_floats(a: I) -> F { _mm256_cvtepi32_ps }
        fn to_nearest(a: F) -> I { _mm256_cvtps_epi32 }
        fn bits_as_floats(a: I) -> F { _mm256_castsi256_ps }
        fn floats_as_bits(a: F) -> I { _mm256_castps_si256 }
        fn add(a: F, b: F) -> F { _mm256_add_ps }
        fn sub(a: F, b: F) -> F { _mm256_sub_ps }
        fn mul(a: F, b: F) -> F { _mm256_mul_ps }
        fn div(a: F, b: F) -> F { _mm256_div_ps }
        fn fma(a: F, b: F, c: F) -> F { _mm256_fmadd_ps }
        fn max(a: F, b: F) -> F { _mm256_max_ps }
        fn min(a: F, b: F) -> F { _mm256_min_ps }
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(a[0], n), _mm256_sll_epi32(a[1], n)]
        }
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, a: I) -> I {
        self.shift_right_by(a, N)
    }

    #[inline(always)]
    fn shift_right_by(self, a: I, n: u32) -> I {
        // SAFETY: detected.
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            [_mm256_srl_epi32(a[0], n), _mm256_srl_epi32(a[1], n)]
        }
    }

    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sra_epi32(a[0], n), _mm256_sra_epi32(a[1], n)]
        }
    }

    // Without VNNI, sums of products are of 16 bits: pairs of products are added as they are, and widened only by the
    // multiplication with a factor, which is in both halves of its lane.

    #[inline(always)]
    fn multiply_bytes(self, products: I, unsigned: I, signed: I) -> I {
        // SAFETY: detected, AVX-VNNI where `VNNI` says so.
        unsafe {
            if VNNI {
                [
                    _mm256_dpbusd_avx_epi32(products[0], unsigned[0], signed[0]),
                    _mm256_dpbusd_avx_epi32(products[1], unsigned[1], signed[1]),
                ]
            } else {
                [
                    _mm256_add_epi16(products[0], _mm256_maddubs_epi16(unsigned[0], signed[0])),
                    _mm256_add_epi16(products[1], _mm256_maddubs_epi16(unsigned[1], signed[1])),
                ]
            }
        }
    }

    #[inline(always)]
    fn tile_registers(self, _rows: usize, _superblocks: bool) -> Option<Infallible> {
        None
    }

    #[inline(always)]
    fn multiply_tiles(self, registers: &Infallible, _product: TileProduct<'_>) {
        match *registers {}
    }

    #[inline(always)]
    fn most_products(largest: usize) -> usize {
        if VNNI { usize::MAX } else { i16::MAX as usize / (2 * 127 * largest) }
    }

    #[inline(always)]
    fn add_products(self, total: I, products: I) -> I {
        // SAFETY: detected.
        if VNNI { self.add_i(total, products) } else { self.dot_halves(total, products, self.ones()) }
    }

    #[inline(always)]
    fn add_scaled(self, total: I, products: I, factor: I) -> I {
        if VNNI { self.add_i(total, self.mul_i(products, factor)) } else { self.dot_halves(total, products, factor) }
    }

    #[inline(always)]
    fn factor(self, bytes: I, i: usize) -> I {
        if !VNNI {
            return self.bytes_as_halves(bytes, i, i);
        }
        // SAFETY: detected.
        unsafe {
            let control = _mm256_broadcastsi128_si256(control(None, Some(i)));
            [
                _mm256_srai_epi32::<24>(_mm256_shuffle_epi8(bytes[0], control)),
                _mm256_srai_epi32::<24>(_mm256_shuffle_epi8(bytes[1], control)),
            ]
        }
    }

    #[inline(always)]
    fn bytes_as_halves(self, bytes: I, low: usize, high: usize) -> I {
        // SAFETY: detected.
        unsafe {
            let control = _mm256_broadcastsi128_si256(control(Some(low), Some(high)));
            [
                _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(bytes[0], control)),
                _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(bytes[1], control)),
            ]
        }
    }

    #[inline(always)]
    fn add_offset(self, bytes: I) -> I {
        // Adding 128 to a signed byte flips its top bit.
        if VNNI { self.xor(bytes, self.splat_i(0x8080_8080_u32 as i32)) } else { bytes }
    }

    #[inline(always)]
    fn dot_offset_bytes(self, sum: I, offset: I, signed: I) -> I {
        if VNNI {
            return self.multiply_bytes(sum, offset, signed);
        }
        // The first operand has no offset, and is split into its signs and magnitudes: at most 128, times at most 127, so that two
        // products fit 16 bits.
        // SAFETY: detected.
        let products = |i: usize| unsafe {
            _mm256_maddubs_epi16(_mm256_abs_epi8(offset[i]), _mm256_sign_epi8(signed[i], offset[i]))
        };
        self.dot_halves(sum, [products(0), products(1)], self.ones())
    }

    #[inline(always)]
    fn dot_full_bytes(self, sum: I, unsigned: I, signed: I) -> I {
        if VNNI {
            return self.multiply_bytes(sum, unsigned, signed);
        }
        // The top bit is added separately, because two products of 255 * 127 do not fit 16 bits.
        let low = self.and(unsigned, self.splat_i(0x7f7f_7f7f));
        let top = self.and(self.shift_right::<7>(unsigned), self.splat_i(0x0101_0101));
        let sum = self.add_products(sum, self.multiply_bytes(self.splat_i(0), low, signed));
        // SAFETY: detected.
        unsafe {
            let weight = _mm256_set1_epi16(128);
            let first = _mm256_madd_epi16(_mm256_maddubs_epi16(top[0], signed[0]), weight);
            let second = _mm256_madd_epi16(_mm256_maddubs_epi16(top[1], signed[1]), weight);
            [_mm256_add_epi32(sum[0], first), _mm256_add_epi32(sum[1], second)]
        }
    }

    #[inline(always)]
    fn dot_halves(self, sum: I, a: I, b: I) -> I {
        // SAFETY: detected.
        unsafe {
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    fn low_half_as_float(self, a: I) -> F {
        // SAFETY: detected.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff);
            // Packing works within 128-bit lanes: [a0 b0 | a1 b1] becomes [a0 a1 b0 b1] by the permutation.
            let packed = _mm256_packus_epi32(_mm256_and_si256(a[0], mask), _mm256_and_si256(a[1], mask));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(ordered))]
        }
    }

    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        // SAFETY: detected.
        unsafe {
            let half = _mm256_max_ps(a[0], a[1]);
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    #[inline(always)]
    fn total(self, a: F) -> f32 {
        // SAFETY: detected.
        unsafe {
            let half = _mm256_add_ps(a[0], a[1]);
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<K: Kernel>(lanes: Avx2<false>, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn enabled_with_vnni<K: Kernel>(lanes: Avx2<true>, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` exists only where all of these were detected.
        unsafe { if VNNI { enabled_with_vnni(Avx2(()), kernel) } else { enabled(Avx2(()), kernel) } }
    }
}
