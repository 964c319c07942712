//! The inner loops of matrix multiplication: a few activation rows times one or two tiles, over one segment.
//!
//! Every output is one lane of one accumulator, and its float operations do not depend on the numbers of rows (`M`) and
//! tiles (`N`), so decoding one token gives the same bits as prefilling it among others.

use std::ops::Range;

use super::{
    lanes::{LANES, Lanes},
    quantize::{ByteActivations, SUPERBLOCK_SUMS, WIDE_SUMS},
    tile::{FLOAT_SEGMENT, INT_SEGMENT, IntTile},
};

/// How a K type's values are recovered from its unsigned quants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    /// A float scale for the integer minimums.
    Scaled,
    /// Every quant carries this offset, a power of two.
    Offset(i32),
}

/// Where the rows of one segment are. All pointers point to the first row.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// `[rows][256]`
    pub quants: *const i8,
    /// `[rows]`, or `[rows][8]` for the older types.
    pub scales: *const f32,
    /// `[rows][8]`
    pub sums: *const i32,
    /// `[rows][8]`, of the older types.
    pub scaled_sums: *const f32,
}

/// A product of unpacked tiles and the rows of a chunk over one segment.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AMX alone reads it"))]
pub struct TileProduct<'a> {
    /// One or two.
    pub tiles: &'a [IntTile],
    /// Of the K types: groups of four columns in a sub-block.
    pub groups: Option<usize>,
    /// Of the older types: blocks in this segment.
    pub blocks: usize,
    pub minimum: Minimum,
    pub x: ByteActivations<'a>,
    pub segment: usize,
    /// The chunk's rows in `x`.
    pub rows: &'a Range<usize>,
    /// `[rows][tiles][16]`
    pub y: &'a mut [f32],
}

/// One superblock of a K type with sub-blocks of `groups` times four columns, in runs of `RUN` groups, which are a sub-block or
/// an even part of one.
///
/// # Safety
/// `segment` and `y` (`[M][N * 16]`) have `M` rows, `tiles` has `N` tiles.
#[inline(always)]
pub unsafe fn superblock<L: Lanes, const M: usize, const N: usize, const RUN: usize>(
    lanes: L,
    tiles: &[IntTile],
    groups: usize,
    segment: Segment,
    minimum: Minimum,
    y: *mut f32,
) {
    let tiles = &tiles[..N];
    let mut total = [[lanes.splat_i(0); M]; N];
    for run in 0..64 / RUN {
        let mut products = [[lanes.splat_i(0); M]; N];
        for g in 0..RUN {
            let group = run * RUN + g;
            let mut weights = [lanes.splat_i(0); N];
            for n in 0..N {
                // SAFETY: a tile has 64 groups of 64 bytes.
                weights[n] = unsafe { lanes.load_i(tiles[n].quants.as_ptr().add(group * 64)) };
            }
            for m in 0..M {
                // SAFETY: row `m` has 64 groups of 4 bytes.
                let four = unsafe { segment.quants.add(m * INT_SEGMENT + 4 * group).cast::<i32>().read_unaligned() };
                let four = lanes.splat_i(four);
                for n in 0..N {
                    products[n][m] = lanes.multiply_bytes(products[n][m], weights[n], four);
                }
            }
        }
        let sub = run * RUN / groups;
        for n in 0..N {
            // SAFETY: a tile has sixteen vectors of scales.
            let scale = unsafe { lanes.load_i(tiles[n].scales.as_ptr().add(sub * LANES).cast()) };
            for m in 0..M {
                total[n][m] = lanes.add_scaled(total[n][m], products[n][m], scale);
            }
        }
    }
    let mut minimums = [[lanes.splat_i(0); M]; N];
    // Sub-blocks of 32 columns have one minimum for both sums over 16, so the sums over 32 do.
    let (first, pairs) = if groups == 8 { (WIDE_SUMS, 4) } else { (0, 8) };
    for pair in 0..pairs {
        for m in 0..M {
            // SAFETY: row `m` has eight pairs of sums, and four of wide ones.
            let sums = lanes.splat_i(unsafe { *segment.sums.add(SUPERBLOCK_SUMS * m + first + pair) });
            for n in 0..N {
                let factors = if groups == 8 { &tiles[n].wide_minimums[..] } else { &tiles[n].minimums[..] };
                // SAFETY: a tile has four vectors of wide pairs, and eight of the others.
                let factors = unsafe { lanes.load_i(factors.as_ptr().add(pair * LANES).cast()) };
                minimums[n][m] = lanes.dot_halves(minimums[n][m], factors, sums);
            }
        }
    }
    for n in 0..N {
        let factors = superblock_factors(lanes, &tiles[n]);
        for m in 0..M {
            // SAFETY: row `m` of the scales and of `y`.
            unsafe {
                let scale = *segment.scales.add(m);
                let to = y.add((m * N + n) * LANES);
                let sums = [total[n][m], minimums[n][m]];
                lanes.store_f(to, add_superblock(lanes, factors, scale, sums, minimum, lanes.load_f(to)));
            }
        }
    }
}

/// A superblock's float scale of its quants and the negated one of its minimums, a lane for each row of the tile.
#[inline(always)]
pub fn superblock_factors<L: Lanes>(lanes: L, tile: &IntTile) -> [L::F; 2] {
    // SAFETY: a tile has at least sixteen floats of each.
    let [d, dmin] = unsafe { [lanes.load_f(tile.d.as_ptr()), lanes.load_f(tile.m.as_ptr())] };
    [d, lanes.sub(lanes.splat_f(0.0), dmin)]
}

/// Adds a superblock to `out`: `sums` are those of the scaled products, and of the minimums times the sums of the activations.
#[inline(always)]
pub fn add_superblock<L: Lanes>(
    lanes: L,
    [d, negative_dmin]: [L::F; 2],
    scale: f32,
    [total, minimums]: [L::I; 2],
    minimum: Minimum,
    out: L::F,
) -> L::F {
    let scale = lanes.splat_f(scale);
    match minimum {
        Minimum::Scaled => {
            let product = lanes.mul(lanes.to_floats(total), d);
            lanes.fma(lanes.fma(lanes.to_floats(minimums), negative_dmin, product), scale, out)
        }
        Minimum::Offset(offset) => {
            let back = lanes.mul_i(minimums, lanes.splat_i(offset));
            let exact = lanes.sub_i(total, back);
            lanes.fma(lanes.to_floats(exact), lanes.mul(d, scale), out)
        }
    }
}

/// Up to eight blocks of an older type. `FULL`: the quants use all eight bits, otherwise at most five.
///
/// # Safety
/// `segment` and `y` (`[M][N * 16]`) have `M` rows, `tiles` has `N` tiles.
#[inline(always)]
pub unsafe fn blocks<L: Lanes, const M: usize, const N: usize, const FULL: bool>(
    lanes: L,
    tiles: &[IntTile],
    blocks: usize,
    segment: Segment,
    minimum: Minimum,
    y: *mut f32,
) {
    let tiles = &tiles[..N];
    let mut out = [[lanes.splat_f(0.0); M]; N];
    for n in 0..N {
        for m in 0..M {
            // SAFETY: `y` has `M` rows of `N` vectors.
            out[n][m] = unsafe { lanes.load_f(y.add((m * N + n) * LANES)) };
        }
    }
    let run = L::most_products(31).min(8);
    for block in 0..blocks.min(8) {
        let mut sum = [[lanes.splat_i(0); M]; N];
        let mut products = [[lanes.splat_i(0); M]; N];
        if let Minimum::Offset(offset) = minimum {
            for m in 0..M {
                // SAFETY: row `m` has eight sums. A sum is at most 32 * 128, an offset at most 128.
                let start = lanes.splat_i(-offset * unsafe { *segment.sums.add(8 * m + block) });
                for n in 0..N {
                    sum[n][m] = start;
                }
            }
        }
        for g in 0..8 {
            let group = 8 * block + g;
            let mut weights = [lanes.splat_i(0); N];
            for n in 0..N {
                // SAFETY: a tile has 64 groups of 64 bytes.
                weights[n] = unsafe { lanes.load_i(tiles[n].quants.as_ptr().add(group * 64)) };
            }
            for m in 0..M {
                // SAFETY: row `m` has 64 groups of 4 bytes.
                let four = unsafe { segment.quants.add(m * INT_SEGMENT + 4 * group).cast::<i32>().read_unaligned() };
                let four = lanes.splat_i(four);
                for n in 0..N {
                    if FULL {
                        sum[n][m] = lanes.dot_offset_bytes(sum[n][m], weights[n], four);
                    } else {
                        products[n][m] = lanes.multiply_bytes(products[n][m], weights[n], four);
                        if (g + 1) % run == 0 {
                            sum[n][m] = lanes.add_products(sum[n][m], products[n][m]);
                            products[n][m] = lanes.splat_i(0);
                        }
                    }
                }
            }
        }
        for n in 0..N {
            let factors = block_factors(lanes, &tiles[n], block);
            for m in 0..M {
                let at = 8 * m + block;
                // SAFETY: row `m` has eight scales and eight sums.
                let (scale, scaled_sum) = unsafe { (*segment.scales.add(at), *segment.scaled_sums.add(at)) };
                out[n][m] = add_block(lanes, factors, scale, scaled_sum, sum[n][m], minimum, out[n][m]);
            }
        }
    }
    for n in 0..N {
        for m in 0..M {
            // SAFETY: `y` has `M` rows of `N` vectors.
            unsafe { lanes.store_f(y.add((m * N + n) * LANES), out[n][m]) };
        }
    }
}

/// A block's float scale and its minimum, a lane for each row of the tile.
#[inline(always)]
pub fn block_factors<L: Lanes>(lanes: L, tile: &IntTile, block: usize) -> [L::F; 2] {
    let at = block * LANES;
    // SAFETY: the slices have sixteen floats.
    unsafe { [lanes.load_f(tile.d[at..][..LANES].as_ptr()), lanes.load_f(tile.m[at..][..LANES].as_ptr())] }
}

/// Adds a block to `out`: `sum` is that of its products, `scaled_sum` that of its activations, times their scale.
#[inline(always)]
pub fn add_block<L: Lanes>(
    lanes: L,
    [d, minimums]: [L::F; 2],
    scale: f32,
    scaled_sum: f32,
    sum: L::I,
    minimum: Minimum,
    out: L::F,
) -> L::F {
    let factor = lanes.mul(d, lanes.splat_f(scale));
    let out = lanes.fma(lanes.to_floats(sum), factor, out);
    match minimum {
        Minimum::Scaled => lanes.fma(minimums, lanes.splat_f(scaled_sum), out),
        Minimum::Offset(_) => out,
    }
}

/// Up to 128 columns of floats, summed separately and then added to `y`.
///
/// # Safety
/// `x` (`[M][128]`) and `y` (`[M][N * 16]`) have `M` rows; `tiles` are `N` tiles, `[columns][16 rows]`.
#[inline(always)]
pub unsafe fn floats<L: Lanes, const M: usize, const N: usize>(
    lanes: L,
    tiles: &[*const f32; 2],
    columns: usize,
    x: *const f32,
    y: *mut f32,
) {
    let mut sum = [[lanes.splat_f(0.0); M]; N];
    for column in 0..columns.min(FLOAT_SEGMENT) {
        let mut weights = [lanes.splat_f(0.0); N];
        for n in 0..N {
            // SAFETY: a tile has a vector for each column.
            weights[n] = unsafe { lanes.load_f(tiles[n].add(column * LANES)) };
        }
        for m in 0..M {
            // SAFETY: row `m` has 128 columns.
            let value = lanes.splat_f(unsafe { *x.add(m * FLOAT_SEGMENT + column) });
            for n in 0..N {
                sum[n][m] = lanes.fma(weights[n], value, sum[n][m]);
            }
        }
    }
    for n in 0..N {
        for m in 0..M {
            // SAFETY: `y` has `M` rows of `N` vectors.
            unsafe {
                let to = y.add((m * N + n) * LANES);
                lanes.store_f(to, lanes.add(lanes.load_f(to), sum[n][m]));
            }
        }
    }
}
