//! Sixteen lanes as plain arrays, for processors without any of the instruction sets and as the reference.

use std::{array::from_fn, convert::Infallible};

use half::f16;

use super::{
    lanes::{Kernel, LANES, Lanes},
    microkernel::TileProduct,
};

#[derive(Clone, Copy, Debug)]
pub struct Portable;

type I = [i32; LANES];
type F = [f32; LANES];

fn signed_bytes(word: i32) -> [i8; 4] {
    word.to_le_bytes().map(|byte| byte as i8)
}

impl Lanes for Portable {
    type I = I;
    type F = F;
    type TileRegisters = Infallible;

    const ROWS: usize = 4;
    const COLUMNS: usize = 1;
    const STREAMED_ROWS: usize = 0;
    const OFFSET: i32 = 0;
    const QUERY_ROWS: usize = 4;
    const QUERY_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> I {
        // SAFETY: the caller vouches for 64 bytes; any bit pattern is a valid integer.
        unsafe { from.cast::<I>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_i(self, to: *mut u8, value: I) {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { to.cast::<I>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_f(self, from: *const f32) -> F {
        // SAFETY: the caller vouches for sixteen floats.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_f(self, to: *mut f32, value: F) {
        // SAFETY: the caller vouches for sixteen floats.
        unsafe { to.cast::<F>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_half(self, from: *const u16) -> F {
        // SAFETY: the caller vouches for sixteen elements.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        from_fn(|i| f16::from_bits(bits[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut u16, value: F) {
        let bits: [u16; LANES] = from_fn(|i| f16::from_f32(value[i]).to_bits());
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8, value: I) {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(value.map(|value| value as i8)) }
    }

    #[inline(always)]
    unsafe fn transpose_words(self, rows: &[*const u8; LANES], offset: usize) -> [I; 4] {
        let mut words = [[0; LANES]; 4];
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: the caller vouches for 16 bytes at the offset of every row.
            let row = unsafe { row.add(offset).cast::<[i32; 4]>().read_unaligned() };
            for (word, value) in words.iter_mut().zip(row) {
                word[r] = i32::from_le(value);
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn gather(self, rows: &[*const u8; LANES], offset: usize) -> I {
        // SAFETY: the caller vouches for 4 bytes at the offset of every row.
        from_fn(|r| i32::from_le(unsafe { rows[r].add(offset).cast::<i32>().read_unaligned() }))
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        [value; LANES]
    }

    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn xor(self, a: I, b: I) -> I {
        from_fn(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn mul_i(self, a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, a: I) -> I {
        from_fn(|i| a[i] << N)
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, a: I) -> I {
        self.shift_right_by(a, N)
    }

    #[inline(always)]
    fn shift_right_by(self, a: I, n: u32) -> I {
        from_fn(|i| ((a[i] as u32) >> n) as i32)
    }

    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: I) -> I {
        from_fn(|i| a[i] >> N)
    }

    #[inline(always)]
    fn multiply_bytes(self, products: I, unsigned: I, signed: I) -> I {
        self.dot_full_bytes(products, unsigned, signed)
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
    fn most_products(_largest: usize) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn add_products(self, total: I, products: I) -> I {
        self.add_i(total, products)
    }

    #[inline(always)]
    fn add_scaled(self, total: I, products: I, factor: I) -> I {
        self.add_i(total, self.mul_i(products, factor))
    }

    #[inline(always)]
    fn factor(self, bytes: I, i: usize) -> I {
        from_fn(|lane| i32::from(signed_bytes(bytes[lane])[i]))
    }

    #[inline(always)]
    fn bytes_as_halves(self, bytes: I, low: usize, high: usize) -> I {
        from_fn(|lane| {
            let bytes = signed_bytes(bytes[lane]).map(i32::from);
            bytes[low] & 0xffff | bytes[high] << 16
        })
    }

    #[inline(always)]
    fn dot_full_bytes(self, sum: I, unsigned: I, signed: I) -> I {
        from_fn(|i| {
            let (u, s) = (unsigned[i].to_le_bytes(), signed_bytes(signed[i]));
            let products = (0..4).map(|j| i32::from(u[j]) * i32::from(s[j]));
            sum[i].wrapping_add(products.sum())
        })
    }

    #[inline(always)]
    fn add_offset(self, bytes: I) -> I {
        bytes
    }

    #[inline(always)]
    fn dot_offset_bytes(self, sum: I, offset: I, signed: I) -> I {
        from_fn(|i| {
            let (a, b) = (signed_bytes(offset[i]), signed_bytes(signed[i]));
            let products = (0..4).map(|j| i32::from(a[j]) * i32::from(b[j]));
            sum[i].wrapping_add(products.sum())
        })
    }

    #[inline(always)]
    fn dot_halves(self, sum: I, a: I, b: I) -> I {
        from_fn(|i| {
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            sum[i].wrapping_add(low).wrapping_add((a[i] >> 16) * (b[i] >> 16))
        })
    }

    #[inline(always)]
    fn to_floats(self, a: I) -> F {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn to_nearest(self, a: F) -> I {
        a.map(|a| a.round_ties_even() as i32)
    }

    #[inline(always)]
    fn bits_as_floats(self, a: I) -> F {
        a.map(|a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    fn floats_as_bits(self, a: F) -> I {
        a.map(|a| a.to_bits() as i32)
    }

    #[inline(always)]
    fn low_half_as_float(self, a: I) -> F {
        a.map(|a| f16::from_bits(a as u16).to_f32())
    }

    #[inline(always)]
    fn splat_f(self, value: f32) -> F {
        [value; LANES]
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |largest, &a| if a > largest { a } else { largest })
    }

    #[inline(always)]
    fn total(self, a: F) -> f32 {
        let mut lanes = a;
        for apart in [8, 4, 2, 1] {
            for i in 0..apart {
                lanes[i] += lanes[i + apart];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}
