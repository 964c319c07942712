//! Sixteen lanes of 32 bits: the one vector width that the kernels are written in.
//!
//! A kernel is written once, generic over [`Lanes`], and compiled for each instruction set: one AVX-512 register, two
//! AVX2 registers, four NEON registers, or a plain array. Lanes and operation order are the same everywhere, and so are
//! the results, except for the fused multiply-add, which the plain array rounds twice.
//!
//! A value of a `Lanes` type exists only where its instructions were detected, which makes its register
//! operations safe to call. Kernels must be `#[inline(always)]` down to the instruction, so that they are
//! compiled inside the one function that enables the instruction set.

use super::{
    features::{InstructionSet, cpu_features},
    microkernel::TileProduct,
};

/// Lanes of one vector.
pub const LANES: usize = 16;

/// Operations on sixteen 32-bit integers (`I`) and sixteen floats (`F`).
pub trait Lanes: Copy {
    type I: Copy;
    type F: Copy;
    /// Registers that hold whole tiles.
    type TileRegisters;

    /// Activation rows that a matrix kernel keeps in registers.
    const ROWS: usize;
    /// Vectors of weight rows that it keeps side by side.
    const COLUMNS: usize;
    /// Activation rows that are multiplied with a tile as it is read, without unpacking it first; 0 if it is always unpacked.
    const STREAMED_ROWS: usize;
    /// What signed bytes must have added to be multiplied by signed bytes: 128 where the processor multiplies unsigned bytes
    /// only, else 0.
    const OFFSET: i32;
    /// Query rows that an attention kernel keeps in registers; `cpu/attend/shape.rs` has the shapes for each number.
    const QUERY_ROWS: usize;
    /// Vectors that it keeps side by side at that many rows.
    const QUERY_VECTORS: usize;

    /// # Safety
    /// 64 bytes can be read.
    unsafe fn load_i(self, from: *const u8) -> Self::I;
    /// # Safety
    /// 64 bytes can be written.
    unsafe fn store_i(self, to: *mut u8, value: Self::I);
    /// # Safety
    /// Sixteen floats can be read.
    unsafe fn load_f(self, from: *const f32) -> Self::F;
    /// # Safety
    /// Sixteen floats can be written.
    unsafe fn store_f(self, to: *mut f32, value: Self::F);
    /// Sixteen half floats, widened.
    /// # Safety
    /// Sixteen elements can be read.
    unsafe fn load_half(self, from: *const u16) -> Self::F;
    /// Rounded to sixteen half floats.
    /// # Safety
    /// Sixteen elements can be written.
    unsafe fn store_half(self, to: *mut u16, value: Self::F);
    /// Integers from -128 to 127, as bytes.
    /// # Safety
    /// Sixteen bytes can be written.
    unsafe fn store_bytes(self, to: *mut i8, value: Self::I);
    /// Words `0..4` of the 16 bytes at `offset` in each of sixteen rows: result `j` has word `j` of row `r` in lane
    /// `r`.
    /// # Safety
    /// 16 bytes at `offset` can be read from every row.
    unsafe fn transpose_words(self, rows: &[*const u8; LANES], offset: usize) -> [Self::I; 4];
    /// The 32 bits at `offset` of each row.
    /// # Safety
    /// 4 bytes at `offset` can be read from every row.
    unsafe fn gather(self, rows: &[*const u8; LANES], offset: usize) -> Self::I;

    fn splat_i(self, value: i32) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The low 32 bits of the product.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn shift_left<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical.
    fn shift_right<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical, by an amount known at run time.
    fn shift_right_by(self, a: Self::I, n: u32) -> Self::I;
    /// Arithmetic.
    fn shift_right_signed<const N: u32>(self, a: Self::I) -> Self::I;
    /// Adds the products of four unsigned and four signed bytes to every lane's sum, or to its two sums of 16 bits: signed
    /// bytes are above -128, and unsigned ones and the number of additions are within [`Lanes::most_products`]. A sum
    /// begins as zero; [`Lanes::add_products`] and [`Lanes::add_scaled`] end it.
    fn multiply_bytes(self, products: Self::I, unsigned: Self::I, signed: Self::I) -> Self::I;
    /// How often bytes of at most `largest`, below 128, can be multiplied until their sum must be ended; `usize::MAX` where a sum of
    /// products is an integer in every lane from the beginning, to which others can be added.
    fn most_products(largest: usize) -> usize;
    /// `total` and the sums of products.
    fn add_products(self, total: Self::I, products: Self::I) -> Self::I;
    /// `total` and the sums of products times a factor, which [`Lanes::factor`] gives.
    fn add_scaled(self, total: Self::I, products: Self::I, factor: Self::I) -> Self::I;
    /// Signed byte `i` of every lane, in the form that [`Lanes::add_scaled`] needs.
    fn factor(self, bytes: Self::I, i: usize) -> Self::I;
    /// Signed byte `low` of every lane in its low half and byte `high` in its high half, each extended to 16 bits.
    fn bytes_as_halves(self, bytes: Self::I, low: usize, high: usize) -> Self::I;
    /// Adds to every lane the products of four unsigned bytes, up to 255, and four signed bytes.
    fn dot_full_bytes(self, sum: Self::I, unsigned: Self::I, signed: Self::I) -> Self::I;
    /// Signed bytes plus [`Lanes::OFFSET`].
    fn add_offset(self, bytes: Self::I) -> Self::I;
    /// Adds to every lane the products of four bytes with [`Lanes::OFFSET`] and four signed bytes above -128.
    fn dot_offset_bytes(self, sum: Self::I, offset: Self::I, signed: Self::I) -> Self::I;
    /// Adds to every lane the products of its two signed 16-bit halves.
    fn dot_halves(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// Registers that hold whole tiles, ready for products of this many rows over superblocks or blocks, if the processor has
    /// them and the rows fill them.
    fn tile_registers(self, rows: usize, superblocks: bool) -> Option<Self::TileRegisters>;
    /// Adds a product of unpacked tiles, of the rows and the kind that the registers are for, to its output.
    fn multiply_tiles(self, registers: &Self::TileRegisters, product: TileProduct<'_>);

    fn to_floats(self, a: Self::I) -> Self::F;
    /// To the nearest integer, ties to even.
    fn to_nearest(self, a: Self::F) -> Self::I;
    fn bits_as_floats(self, a: Self::I) -> Self::F;
    fn floats_as_bits(self, a: Self::F) -> Self::I;
    /// The half float in the low 16 bits of every lane.
    fn low_half_as_float(self, a: Self::I) -> Self::F;

    fn splat_f(self, value: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the processor supports it.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger value; `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller value; `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn largest(self, a: Self::F) -> f32;
    /// Sums the lanes in halves: 8 apart, then 4, 2, 1.
    fn total(self, a: Self::F) -> f32;

    /// Runs the kernel inside a function that enables the instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// A piece of work that is compiled once per instruction set. `run` must be `#[inline(always)]`.
pub trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs the kernel with the best instruction set this processor has.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    dispatch_to(cpu_features().instruction_set, kernel)
}

/// Runs the kernel with the given instruction set, or with the portable one if the processor lacks it.
pub fn dispatch_to<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use super::{avx2::Avx2, avx512::Avx512};
        match set {
            InstructionSet::Amx => {
                if let Some(lanes) = Avx512::<true>::detect() {
                    return lanes.run(kernel);
                }
            }
            InstructionSet::Avx512Vnni => {
                if let Some(lanes) = Avx512::<false>::detect() {
                    return lanes.run(kernel);
                }
            }
            InstructionSet::AvxVnni => {
                if let Some(lanes) = Avx2::<true>::detect() {
                    return lanes.run(kernel);
                }
            }
            InstructionSet::Avx2 => {
                if let Some(lanes) = Avx2::<false>::detect() {
                    return lanes.run(kernel);
                }
            }
            InstructionSet::Neon | InstructionSet::Portable => {}
        }
    }
    #[cfg(target_arch = "aarch64")]
    if set == InstructionSet::Neon
        && let Some(lanes) = super::neon::Neon::detect()
    {
        return lanes.run(kernel);
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = set;
    super::portable::Portable.run(kernel)
}
