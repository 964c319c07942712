//! Sixteen lanes as four NEON registers, with the dot products of bytes that ARMv8.2 adds.
//!
//! The intrinsics of `sdot` are not stable, so it stands here as an instruction. It multiplies signed bytes, which the quants of
//! all types but `Q8_0` are as well as unsigned ones, and those of `Q8_0` need no offset.

use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    array::from_fn,
    convert::Infallible,
};

use super::{
    lanes::{Kernel, LANES, Lanes},
    microkernel::TileProduct,
};

/// Constructed only where [`Neon::detect`] found the instructions.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }

    /// Adds the products of four signed bytes to each lane of a register.
    #[inline(always)]
    fn dot(self, mut sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: `self` exists only where the instruction was detected; it touches no memory.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}

type I = [int32x4_t; 4];
type F = [float32x4_t; 4];

/// Operations on registers only; the expression is of one register of each argument. Without a closure, which would not be part of
/// the function that enables the instructions.
macro_rules! register_operations {
    ($(fn $name:ident($lanes:ident $(, $argument:ident: $type:ty)*) -> $result:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name(self $(, $argument: $type)*) -> $result {
            let $lanes = self;
            let _ = $lanes;
            // SAFETY: `self` exists only where these instructions were detected; they touch no memory.
            unsafe {
                [
                    { $(let $argument = $argument[0];)* $body },
                    { $(let $argument = $argument[1];)* $body },
                    { $(let $argument = $argument[2];)* $body },
                    { $(let $argument = $argument[3];)* $body },
                ]
            }
        }
    )*};
}

/// Shifts left, or right if `by` is negative, with zeros.
#[inline(always)]
unsafe fn shift(a: int32x4_t, by: i32) -> int32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(by))) }
}

/// Byte `i` of every lane with its sign.
#[inline(always)]
unsafe fn signed_byte(a: int32x4_t, i: usize) -> int32x4_t {
    // SAFETY: the caller has the instructions.
    unsafe { vshrq_n_s32::<24>(shift(a, 24 - 8 * i as i32)) }
}

impl Lanes for Neon {
    type I = I;
    type F = F;
    type TileRegisters = Infallible;

    const ROWS: usize = 3;
    const COLUMNS: usize = 1;
    const STREAMED_ROWS: usize = 2;
    const OFFSET: i32 = 0;
    const QUERY_ROWS: usize = 4;
    const QUERY_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        // SAFETY: detected; the caller vouches for 64 bytes.
        from_fn(|i| unsafe { vld1q_s32(from.add(16 * i).cast()) })
    }

    #[inline(always)]
    unsafe fn store_i(self, to: *mut u8, value: I) {
        for (i, value) in value.into_iter().enumerate() {
            // SAFETY: detected; the caller vouches for 64 bytes.
            unsafe { vst1q_s32(to.add(16 * i).cast(), value) };
        }
    }

    #[inline(always)]
    unsafe fn load_f(self, from: *const f32) -> F {
        // SAFETY: detected; the caller vouches for sixteen floats.
        from_fn(|i| unsafe { vld1q_f32(from.add(4 * i)) })
    }

    #[inline(always)]
    unsafe fn store_f(self, to: *mut f32, value: F) {
        for (i, value) in value.into_iter().enumerate() {
            // SAFETY: detected; the caller vouches for sixteen floats.
            unsafe { vst1q_f32(to.add(4 * i), value) };
        }
    }

    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> F {
        // SAFETY: detected; the caller vouches for sixteen elements.
        from_fn(|i| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.add(4 * i)))) })
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut u16, value: F) {
        for (i, value) in value.into_iter().enumerate() {
            // SAFETY: detected; the caller vouches for sixteen elements.
            unsafe { vst1_u16(to.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(value))) };
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, value: I) {
        for half in 0..2 {
            // SAFETY: detected; the caller vouches for sixteen bytes.
            unsafe {
                let halves = vcombine_s16(vmovn_s32(value[2 * half]), vmovn_s32(value[2 * half + 1]));
                vst1_s8(to.add(8 * half), vmovn_s16(halves));
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose_words(self, rows: &[*const u8; LANES], offset: usize) -> [I; 4] {
        // SAFETY: detected; the caller vouches for 16 bytes at the offset of every row.
        unsafe {
            let mut words = [[vdupq_n_s32(0); 4]; 4];
            let mut four = 0;
            while four < 4 {
                let row = |i: usize| vld1q_s32(rows[4 * four + i].add(offset).cast());
                let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                let even = [vtrn1q_s32(a, b), vtrn1q_s32(c, d)].map(|x| vreinterpretq_s64_s32(x));
                let odd = [vtrn2q_s32(a, b), vtrn2q_s32(c, d)].map(|x| vreinterpretq_s64_s32(x));
                words[0][four] = vreinterpretq_s32_s64(vtrn1q_s64(even[0], even[1]));
                words[1][four] = vreinterpretq_s32_s64(vtrn1q_s64(odd[0], odd[1]));
                words[2][four] = vreinterpretq_s32_s64(vtrn2q_s64(even[0], even[1]));
                words[3][four] = vreinterpretq_s32_s64(vtrn2q_s64(odd[0], odd[1]));
                four += 1;
            }
            words
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
        // SAFETY: 64 bytes.
        unsafe { self.load_i(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        // SAFETY: detected.
        [unsafe { vdupq_n_s32(value) }; 4]
    }

    #[inline(always)]
    fn splat_f(self, value: f32) -> F {
        // SAFETY: detected.
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    register_operations! {
        fn and(lanes, a: I, b: I) -> I { vandq_s32(a, b) }
        fn or(lanes, a: I, b: I) -> I { vorrq_s32(a, b) }
        fn xor(lanes, a: I, b: I) -> I { veorq_s32(a, b) }
        fn add_i(lanes, a: I, b: I) -> I { vaddq_s32(a, b) }
        fn sub_i(lanes, a: I, b: I) -> I { vsubq_s32(a, b) }
        fn mul_i(lanes, a: I, b: I) -> I { vmulq_s32(a, b) }
        fn add_products(lanes, total: I, products: I) -> I { vaddq_s32(total, products) }
        fn add_scaled(lanes, total: I, products: I, factor: I) -> I { vmlaq_s32(total, products, factor) }
        // The upper half of the unsigned bytes as negative ones, and the 128 that they lack.
        fn dot_full_bytes(lanes, sum: I, unsigned: I, signed: I) -> I {{
            let less = veorq_s32(unsigned, vreinterpretq_s32_u8(vdupq_n_u8(0x80)));
            let sums = lanes.dot(vdupq_n_s32(0), vdupq_n_s32(0x0101_0101), signed);
            vaddq_s32(lanes.dot(sum, less, signed), vshlq_n_s32::<7>(sums))
        }}
        fn dot_halves(lanes, sum: I, a: I, b: I) -> I {{
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
        }}
        fn to_floats(lanes, a: I) -> F { vcvtq_f32_s32(a) }
        fn to_nearest(lanes, a: F) -> I { vcvtnq_s32_f32(a) }
        fn bits_as_floats(lanes, a: I) -> F { vreinterpretq_f32_s32(a) }
        fn floats_as_bits(lanes, a: F) -> I { vreinterpretq_s32_f32(a) }
        fn low_half_as_float(lanes, a: I) -> F {
            vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_s32(a))))
        }
        fn add(lanes, a: F, b: F) -> F { vaddq_f32(a, b) }
        fn sub(lanes, a: F, b: F) -> F { vsubq_f32(a, b) }
        fn mul(lanes, a: F, b: F) -> F { vmulq_f32(a, b) }
        fn div(lanes, a: F, b: F) -> F { vdivq_f32(a, b) }
        fn fma(lanes, a: F, b: F, c: F) -> F { vfmaq_f32(c, a, b) }
        // By comparing, since the instructions of that name return NaN where there is one.
        fn max(lanes, a: F, b: F) -> F { vbslq_f32(vcgtq_f32(a, b), a, b) }
        fn min(lanes, a: F, b: F) -> F { vbslq_f32(vcltq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn multiply_bytes(self, products: I, unsigned: I, signed: I) -> I {
        self.dot_offset_bytes(products, unsigned, signed)
    }

    #[inline(always)]
    fn dot_offset_bytes(self, sum: I, a: I, b: I) -> I {
        [
            self.dot(sum[0], a[0], b[0]),
            self.dot(sum[1], a[1], b[1]),
            self.dot(sum[2], a[2], b[2]),
            self.dot(sum[3], a[3], b[3]),
        ]
    }

    #[inline(always)]
    fn add_offset(self, bytes: I) -> I {
        bytes
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        a.map(|a| unsafe { shift(a, N as i32) })
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, a: I) -> I {
        self.shift_right_by(a, N)
    }

    #[inline(always)]
    fn shift_right_by(self, a: I, n: u32) -> I {
        // SAFETY: detected.
        a.map(|a| unsafe { shift(a, -(n as i32)) })
    }

    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: I) -> I {
        // SAFETY: detected.
        a.map(|a| unsafe { vshlq_s32(a, vdupq_n_s32(-(N as i32))) })
    }

    #[inline(always)]
    fn most_products(_largest: usize) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn factor(self, bytes: I, i: usize) -> I {
        // SAFETY: detected.
        bytes.map(|bytes| unsafe { signed_byte(bytes, i) })
    }

    #[inline(always)]
    fn bytes_as_halves(self, bytes: I, low: usize, high: usize) -> I {
        // SAFETY: detected. The high one is put over the upper half of the low one.
        bytes.map(|bytes| unsafe { vsliq_n_s32::<16>(signed_byte(bytes, low), signed_byte(bytes, high)) })
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
    fn largest(self, a: F) -> f32 {
        // SAFETY: detected.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    fn total(self, a: F) -> f32 {
        // SAFETY: detected.
        unsafe {
            let quarters = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let pairs = vadd_f32(vget_low_f32(quarters), vget_high_f32(quarters));
            vget_lane_f32::<0>(pairs) + vget_lane_f32::<1>(pairs)
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn enabled<K: Kernel>(lanes: Neon, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` exists only where these were detected.
        unsafe { enabled(self, kernel) }
    }
}
