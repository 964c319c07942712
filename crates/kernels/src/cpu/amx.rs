//! Matrix products by AMX: sixteen activation rows times sixteen weight rows times 64 columns of bytes in one instruction.
//!
//! An unpacked [`IntTile`] already has the layout that AMX multiplies by: four columns of sixteen rows after each other. What
//! AMX cannot do is to scale the sums of a sub-block, of which a superblock has eight or sixteen. So the scales move into the
//! weights: a quant times its sub-block's scale is at most 16 bits, which are two bytes of two planes, and the sums over a
//! whole superblock of both planes make the sum that `microkernel.rs` reaches by scaling sub-blocks. All of it is exact in
//! integers, and what follows in floats is the same code: the bits are those of the other instruction sets.
//!
//! The minimums times the sums of the activations are a product as well, of bf16: a sum over sixteen columns in two digits,
//! a multiple of 64 and a remainder (`quantize.rs`). Digits and minimums are exact as bf16, and all sums of their products are
//! integers below 2^24, which a float adds exactly.
//!
//! The older types have a float scale for every block of 32 columns, so half of the columns of a register stay empty.
//!
//! A thread must have been granted the tile registers by the operating system, which [`granted`] asks for, and must have
//! configured them, which [`TileRegisters`] does. The compiler knows nothing of these registers and never uses them.

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
    mem::MaybeUninit,
    sync::OnceLock,
};

use super::{
    avx512::Avx512,
    lanes::{LANES, Lanes},
    microkernel::{self, Minimum, TileProduct},
    quantize::DIGITS,
    tile::{INT_SEGMENT, IntTile},
};

/// Activation rows of one instruction; fewer rows are left to the other kernels.
pub const ROWS: usize = 16;

/// Whether the processor has AMX for bytes, and the operating system lets this process use it.
pub fn granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| detected() && request())
}

/// AMX-TILE, AMX-INT8 and AMX-BF16, with their state enabled by the operating system.
fn detected() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    // Tile configuration and tile data.
    const STATE: u64 = 0b11 << 17;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: the caller has checked that the operating system uses XSAVE.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let needed = AMX_TILE | AMX_INT8 | AMX_BF16;
    // SAFETY: OSXSAVE says that the instruction is there.
    __cpuid_count(7, 0).edx & needed == needed && unsafe { enabled_state() } & STATE == STATE
}

/// Asks Linux for the 8 KiB of tile registers, which a process does not have until it asks (`arch_prctl(2)`).
fn request() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and changes nothing but this process's permission.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shapes of the eight tile registers: 0 to 3 are sums, 4 and 5 are activations, 6 and 7 are weights.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// For products over this many columns, at most 64.
    const fn of(columns: usize) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut register = 0;
        while register < 8 {
            let is_activations = register == 4 || register == 5;
            shapes.row_bytes[register] = if is_activations { columns as u16 } else { LINE as u16 };
            shapes.rows[register] = if register > 5 { (columns / 4) as u8 } else { ROWS as u8 };
            register += 1;
        }
        shapes
    }
}

/// This thread's tile registers, with the shapes for products over superblocks or over blocks, until it is dropped. Their
/// shapes of before are restored then: other code on this thread, candle's kernels for one, configures them only once.
#[derive(Debug)]
pub struct TileRegisters {
    before: MaybeUninit<Shapes>,
    /// They are the thread's.
    _not_sent: PhantomData<*const ()>,
}

impl TileRegisters {
    #[inline(always)]
    pub fn configure(_lanes: Avx512<true>, superblocks: bool) -> Self {
        const FOR_SUPERBLOCKS: Shapes = Shapes::of(64);
        const FOR_BLOCKS: Shapes = Shapes::of(32);
        let shapes: *const Shapes = if superblocks { &FOR_SUPERBLOCKS } else { &FOR_BLOCKS };
        let mut before = MaybeUninit::uninit();
        // SAFETY: the lanes exist only where AMX is granted; 64 bytes are written, and 64 of palette 1 are read.
        unsafe {
            asm!(
                "sttilecfg [{before}]",
                "ldtilecfg [{shapes}]",
                before = in(reg) before.as_mut_ptr(),
                shapes = in(reg) shapes,
                options(nostack, preserves_flags),
            );
        }
        Self { before, _not_sent: PhantomData }
    }

    /// Adds a product of at least [`ROWS`] rows, of the kind that the registers are for, to its output.
    #[inline(always)]
    pub fn multiply(&self, lanes: Avx512<true>, product: TileProduct<'_>) {
        match (product.groups, product.tiles.len()) {
            (Some(groups), 1) => superblock::<1>(lanes, product, groups),
            (Some(groups), _) => superblock::<2>(lanes, product, groups),
            (None, 1) => blocks::<1>(lanes, product),
            (None, _) => blocks::<2>(lanes, product),
        }
    }
}

impl Drop for TileRegisters {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the registers are granted, this thread has nothing in them, and these are the 64 bytes that were stored.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) self.before.as_ptr(), options(nostack, readonly, preserves_flags)) };
    }
}

/// Bytes of a vector, and of a row of a tile register.
const LINE: usize = 4 * LANES;
/// Bytes of a tile's quants: `[64 groups][16 rows][4 columns]`, as in [`IntTile`].
const PLANE: usize = INT_SEGMENT * LANES;

/// Sums as they leave the tile registers: `[16 activation rows][16 weight rows]`.
#[repr(C, align(64))]
struct Sums([i32; ROWS * LANES]);

/// Room for sixteen sums, of which only what was stored may be read.
struct SumsBuffer(MaybeUninit<[Sums; 16]>);

impl SumsBuffer {
    const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    fn at(&mut self, number: usize) -> *mut u8 {
        // SAFETY: callers ask for numbers below sixteen.
        unsafe { self.0.as_mut_ptr().cast::<Sums>().add(number).cast() }
    }
}

/// Sixteen rows of a chunk; the last ones reach back to rows that are done already.
#[derive(Clone, Copy)]
struct Step {
    /// In the chunk.
    first: usize,
    done: usize,
}

impl Step {
    #[inline(always)]
    fn all(rows: usize) -> impl Iterator<Item = Self> {
        (0..rows.div_ceil(ROWS)).map(move |step| {
            let first = (step * ROWS).min(rows - ROWS);
            Self { first, done: step * ROWS - first }
        })
    }
}

/// A superblock's weights times their sub-blocks' scales, `256 * high + low`, and its minimums.
#[repr(C, align(64))]
struct Planes {
    /// Signed; `[64 groups][16 rows][4 columns]`, as in [`IntTile`].
    high: [u8; PLANE],
    /// Unsigned.
    low: [u8; PLANE],
    /// `[16 pairs][16 rows][2]` bf16, for both digits of the activations' sums.
    minimums: [u8; 16 * LINE],
}

/// Fills the planes of a tile with sub-blocks of `groups` times four columns.
///
/// # Safety
/// `planes` can be written.
#[inline(always)]
unsafe fn fill_planes(lanes: Avx512<true>, tile: &IntTile, groups: usize, planes: *mut Planes) {
    let planes: *mut u8 = planes.cast();
    for sub in 0..64 / groups {
        // SAFETY: detected. A tile has sixteen vectors of scales, and 64 groups of 64 bytes, as has each plane.
        unsafe {
            let low_bytes = _mm512_set1_epi16(0x00ff);
            let scale = lanes.load_i(tile.scales.as_ptr().add(sub * LANES).cast());
            // The scale, which is a byte and its sign, in both halves.
            let scale = lanes.or(lanes.and(scale, lanes.splat_i(0xffff)), lanes.shift_left::<16>(scale));
            for group in sub * groups..(sub + 1) * groups {
                let quants = lanes.load_i(tile.quants.as_ptr().add(LINE * group));
                let even = _mm512_mullo_epi16(lanes.and(quants, low_bytes), scale);
                let odd = _mm512_mullo_epi16(_mm512_srli_epi16::<8>(quants), scale);
                // Bits of the second where the first has them, else of the third.
                const CHOOSE: i32 = 0xca;
                let low = _mm512_ternarylogic_epi32::<CHOOSE>(low_bytes, even, _mm512_slli_epi16::<8>(odd));
                let high = _mm512_ternarylogic_epi32::<CHOOSE>(low_bytes, _mm512_srli_epi16::<8>(even), odd);
                lanes.store_i(planes.add(LINE * group), high);
                lanes.store_i(planes.add(PLANE + LINE * group), low);
            }
        }
    }
    for pair in 0..8 {
        // SAFETY: a tile has eight vectors of pairs, and the planes sixteen.
        unsafe {
            let both = lanes.load_i(tile.minimums.as_ptr().add(pair * LANES).cast());
            let low = lanes.to_floats(lanes.shift_right_signed::<16>(lanes.shift_left::<16>(both)));
            let high = lanes.to_floats(lanes.shift_right_signed::<16>(both));
            // Of a float with at most eight significant bits, bf16 is the high half.
            let low = lanes.shift_right::<16>(lanes.floats_as_bits(low));
            let high = lanes.and(lanes.floats_as_bits(high), lanes.splat_i(0xffff_0000_u32 as i32));
            let pairs = lanes.or(low, high);
            lanes.store_i(planes.add(2 * PLANE + LINE * pair), pairs);
            lanes.store_i(planes.add(2 * PLANE + LINE * (8 + pair)), pairs);
        }
    }
}

/// One superblock of a K type and `N` tiles.
#[inline(always)]
fn superblock<const N: usize>(lanes: Avx512<true>, product: TileProduct<'_>, groups: usize) {
    let TileProduct { tiles, x, segment, rows, minimum, y, .. } = product;
    let mut planes = MaybeUninit::<[Planes; 2]>::uninit();
    let planes: *mut Planes = planes.as_mut_ptr().cast();
    let mut factors = [[lanes.splat_f(0.0); 2]; N];
    for n in 0..N {
        // SAFETY: there is room for two.
        unsafe { fill_planes(lanes, &tiles[n], groups, planes.add(n)) };
        factors[n] = microkernel::superblock_factors(lanes, &tiles[n]);
    }
    let mut buffer = SumsBuffer::new();
    for step in Step::all(rows.len()) {
        let at = segment * x.rows + rows.start + step.first;
        let quants = x.quants[at * INT_SEGMENT..][..ROWS * INT_SEGMENT].as_ptr();
        let digits = x.digits[at * DIGITS..][..ROWS * DIGITS].as_ptr();
        // SAFETY: the registers are granted and have these shapes. What is read is the digits and the 256 quants of sixteen rows,
        // and the planes of `N` tiles; what is written is sums: the highs and lows of each tile, then the minimums of each.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm4, [{digits} + {line}*1]",
                "tileloadd tmm6, [{minimums} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tilestored [{sums} + {line}*1], tmm0",
                digits = in(reg) digits,
                minimums = in(reg) &raw const (*planes).minimums,
                sums = in(reg) buffer.at(4),
                line = in(reg) LINE,
                options(nostack, preserves_flags),
            );
            if N == 2 {
                asm!(
                    "tilezero tmm1",
                    "tileloadd tmm7, [{minimums} + {line}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tilestored [{sums} + {line}*1], tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    minimums = in(reg) &raw const (*planes.add(1)).minimums,
                    sums = in(reg) buffer.at(5),
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                );
            }
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem, preserves_flags));
            for quarter in 0..4 {
                asm!(
                    "tileloadd tmm4, [{x} + {row}*1]",
                    "tileloadd tmm6, [{high} + {line}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{low} + {line}*1]",
                    "tdpbsud tmm1, tmm4, tmm7",
                    x = in(reg) quants.add(LINE * quarter),
                    row = in(reg) INT_SEGMENT,
                    high = in(reg) (*planes).high.as_ptr().add(ROWS * LINE * quarter),
                    low = in(reg) (*planes).low.as_ptr().add(ROWS * LINE * quarter),
                    line = in(reg) LINE,
                    options(nostack, readonly, preserves_flags),
                );
                if N == 2 {
                    asm!(
                        "tileloadd tmm6, [{high} + {line}*1]",
                        "tdpbssd tmm2, tmm4, tmm6",
                        "tileloadd tmm7, [{low} + {line}*1]",
                        "tdpbsud tmm3, tmm4, tmm7",
                        high = in(reg) (*planes.add(1)).high.as_ptr().add(ROWS * LINE * quarter),
                        low = in(reg) (*planes.add(1)).low.as_ptr().add(ROWS * LINE * quarter),
                        line = in(reg) LINE,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            }
            asm!(
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                sums = in(reg) buffer.at(0),
                line = in(reg) LINE,
                options(nostack, preserves_flags),
            );
            if N == 2 {
                asm!(
                    "tilestored [{sums} + {line}*1], tmm2",
                    "tilestored [{sums} + {line}*1 + 1024], tmm3",
                    sums = in(reg) buffer.at(2),
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                );
            }
        }
        for row in step.done..ROWS {
            let scale = x.scales[at + row];
            let to = y[(step.first + row) * N * LANES..][..N * LANES].as_mut_ptr();
            for n in 0..N {
                // SAFETY: these sums are stored; there are `N` vectors of the output.
                unsafe {
                    let high = lanes.load_i(buffer.at(2 * n).add(LINE * row));
                    let low = lanes.load_i(buffer.at(2 * n + 1).add(LINE * row));
                    let minimums = lanes.load_f(buffer.at(4 + n).add(LINE * row).cast());
                    let sums = [lanes.add_i(lanes.shift_left::<8>(high), low), lanes.to_nearest(minimums)];
                    let to = to.add(n * LANES);
                    let out = lanes.load_f(to);
                    lanes.store_f(to, microkernel::add_superblock(lanes, factors[n], scale, sums, minimum, out));
                }
            }
        }
    }
}

/// Up to eight blocks of an older type and `N` tiles.
#[inline(always)]
fn blocks<const N: usize>(lanes: Avx512<true>, product: TileProduct<'_>) {
    let TileProduct { tiles, x, segment, rows, minimum, y, .. } = product;
    let blocks = product.blocks.min(8);
    let mut signed = MaybeUninit::<[Signed; 2]>::uninit();
    let signed: *mut u8 = signed.as_mut_ptr().cast();
    let offset = if let Minimum::Offset(offset) = minimum { offset } else { 0 };
    for n in 0..N {
        for line in 0..8 * blocks {
            // SAFETY: detected; a tile and its copy have 64 lines.
            unsafe {
                let quants = lanes.load_i(tiles[n].quants.as_ptr().add(LINE * line));
                // 128 is the lowest byte, and takes away the same.
                let less = _mm512_sub_epi8(quants, _mm512_set1_epi8(offset as i8));
                lanes.store_i(signed.add(PLANE * n + LINE * line), less);
            }
        }
    }
    let mut buffer = SumsBuffer::new();
    for step in Step::all(rows.len()) {
        let at = segment * x.rows + rows.start + step.first;
        let quants = x.quants[at * INT_SEGMENT..][..ROWS * INT_SEGMENT].as_ptr();
        for block in 0..blocks {
            // SAFETY: the registers are granted and have these shapes. What is read is 32 bytes of sixteen rows of 256, and eight of
            // 64 lines of each tile; what is written is a sum of each tile.
            unsafe {
                let weights = signed.add(8 * LINE * block);
                asm!(
                    "tilezero tmm0",
                    "tileloadd tmm4, [{x} + {row}*1]",
                    "tileloadd tmm6, [{weights} + {line}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tilestored [{sums} + {line}*1], tmm0",
                    x = in(reg) quants.add(32 * block),
                    weights = in(reg) weights,
                    row = in(reg) INT_SEGMENT,
                    sums = in(reg) buffer.at(2 * block),
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                );
                if N == 2 {
                    asm!(
                        "tilezero tmm1",
                        "tileloadd tmm7, [{weights} + {line}*1]",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tilestored [{sums} + {line}*1], tmm1",
                        weights = in(reg) weights.add(PLANE),
                        sums = in(reg) buffer.at(2 * block + 1),
                        line = in(reg) LINE,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }
        for row in step.done..ROWS {
            let (scales, scaled_sums) = (&x.scales[8 * (at + row)..][..8], &x.scaled_sums[8 * (at + row)..][..8]);
            let to = y[(step.first + row) * N * LANES..][..N * LANES].as_mut_ptr();
            for n in 0..N {
                // SAFETY: these sums are stored; there are `N` vectors of the output.
                unsafe {
                    let to = to.add(n * LANES);
                    let mut out = lanes.load_f(to);
                    for block in 0..blocks {
                        let sum = lanes.load_i(buffer.at(2 * block + n).add(LINE * row));
                        let factors = microkernel::block_factors(lanes, &tiles[n], block);
                        out = microkernel::add_block(
                            lanes,
                            factors,
                            scales[block],
                            scaled_sums[block],
                            sum,
                            minimum,
                            out,
                        );
                    }
                    lanes.store_f(to, out);
                }
            }
        }
    }
}

/// A tile's quants less their offset, as signed bytes.
#[repr(C, align(64))]
struct Signed([u8; PLANE]);
