//! Unpacks the K types (superblocks of 256) into integer tiles. Layouts are ggml's (`ggml-common.h`).
//!
//! Quants are unsigned: a type with signed values is unpacked with its offset included, and the matrix kernel subtracts
//! the offset through the activation sums. This is exact, since it is all integer arithmetic.

use super::{
    lanes::{LANES, Lanes},
    source::Source,
    tile::IntTile,
};
use crate::quant::GgmlType;

/// Bytes per vector in `quants`.
const VECTOR: usize = 4 * LANES;

/// Unpacks one superblock of sixteen rows.
///
/// # Safety
/// The source is whole blocks of `dtype`, which is one of the K types.
#[inline(always)]
pub unsafe fn unpack<L: Lanes, S: Source<L>>(lanes: L, dtype: GgmlType, source: S, tile: &mut IntTile) {
    // SAFETY: the caller vouches for whole blocks; every offset below lies within the type's block.
    unsafe {
        match dtype {
            GgmlType::Q2_K => q2(lanes, source, tile),
            GgmlType::Q3_K => q3(lanes, source, tile),
            GgmlType::Q4_K => {
                scales_and_minimums(lanes, source, tile);
                q4(lanes, source, tile);
            }
            GgmlType::Q5_K => {
                scales_and_minimums(lanes, source, tile);
                q5(lanes, source, tile);
            }
            _ => q6(lanes, source, tile),
        }
    }
}

#[inline(always)]
fn put_quants<L: Lanes>(lanes: L, tile: &mut IntTile, group: usize, value: L::I) {
    let slot = &mut tile.quants[group * VECTOR..][..VECTOR];
    // SAFETY: the slot has 64 bytes.
    unsafe { lanes.store_i(slot.as_mut_ptr(), value) }
}

#[inline(always)]
fn put_words<L: Lanes>(lanes: L, to: &mut [i32], index: usize, value: L::I) {
    let slot = &mut to[index * LANES..][..LANES];
    // SAFETY: the slot has sixteen words.
    unsafe { lanes.store_i(slot.as_mut_ptr().cast(), value) }
}

#[inline(always)]
fn put_floats<L: Lanes>(lanes: L, to: &mut [f32], value: L::F) {
    // SAFETY: the slice has sixteen floats.
    unsafe { lanes.store_f(to[..LANES].as_mut_ptr(), value) }
}

/// The eight 6-bit scales and minimums of `Q4_K` and `Q5_K`, four to a word each, from the three words that follow `d` and `dmin`.
#[inline(always)]
pub(super) fn six_bits<L: Lanes>(lanes: L, low: L::I, middle: L::I, high: L::I) -> ([L::I; 2], [L::I; 2]) {
    let six_bits = lanes.splat_i(0x3f3f_3f3f);
    let four_bits = lanes.splat_i(0x0f0f_0f0f);
    let two_bits = lanes.splat_i(0x0303_0303);
    let top_of = |word| lanes.shift_left::<4>(lanes.and(lanes.shift_right::<6>(word), two_bits));
    let scales = [lanes.and(low, six_bits), lanes.or(lanes.and(high, four_bits), top_of(low))];
    let minimums =
        [lanes.and(middle, six_bits), lanes.or(lanes.and(lanes.shift_right::<4>(high), four_bits), top_of(middle))];
    (scales, minimums)
}

/// The minimums of sub-blocks `2 pair` and `2 pair + 1` as halves of each word.
#[inline(always)]
pub(super) fn two_minimums<L: Lanes>(lanes: L, minimums: [L::I; 2], pair: usize) -> L::I {
    lanes.bytes_as_halves(minimums[pair / 2], 2 * pair % 4, 2 * pair % 4 + 1)
}

/// Q4_K and Q5_K: `d`, `dmin` and eight 6-bit scales and minimums in twelve bytes, at the block's start.
#[inline(always)]
unsafe fn scales_and_minimums<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    // SAFETY: the header is the block's first 16 bytes.
    let [halves, low, middle, high] = unsafe { source.words(lanes, 0) };
    put_floats(lanes, &mut tile.d, lanes.low_half_as_float(halves));
    put_floats(lanes, &mut tile.m, lanes.low_half_as_float(lanes.shift_right::<16>(halves)));
    let (scales, minimums) = six_bits(lanes, low, middle, high);
    let mut sub = 0;
    while sub < 8 {
        put_words(lanes, &mut tile.scales, sub, lanes.factor(scales[sub / 4], sub % 4));
        put_words(lanes, &mut tile.minimums, sub, lanes.bytes_as_halves(minimums[sub / 4], sub % 4, sub % 4));
        sub += 1;
    }
    let mut pair = 0;
    while pair < 4 {
        put_words(lanes, &mut tile.wide_minimums, pair, two_minimums(lanes, minimums, pair));
        pair += 1;
    }
}

#[inline(always)]
unsafe fn q4<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let mut piece = 0;
    while piece < 8 {
        // SAFETY: the quants are bytes 16..144.
        let words = unsafe { source.words(lanes, 16 + 16 * piece) };
        let group = 16 * (piece / 2) + 4 * (piece % 2);
        let mut j = 0;
        while j < 4 {
            put_quants(lanes, tile, group + j, lanes.and(words[j], nibbles));
            put_quants(lanes, tile, group + 8 + j, lanes.and(lanes.shift_right::<4>(words[j]), nibbles));
            j += 1;
        }
        piece += 1;
    }
}

#[inline(always)]
unsafe fn q5<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let one_bit = lanes.splat_i(0x0101_0101);
    let mut half = 0;
    while half < 2 {
        // SAFETY: the fifth bits are bytes 16..48.
        let fifth = unsafe { source.words(lanes, 16 + 16 * half) };
        let mut chunk = 0;
        while chunk < 4 {
            // SAFETY: the low four bits are bytes 48..176.
            let words = unsafe { source.words(lanes, 48 + 32 * chunk + 16 * half) };
            let mut j = 0;
            while j < 4 {
                // Sub-blocks 2 chunk and 2 chunk + 1 use bits 2 chunk and 2 chunk + 1.
                let bit = |n: usize| {
                    let bits = lanes.and(lanes.shift_right_by(fifth[j], n as u32), one_bit);
                    lanes.shift_left::<4>(bits)
                };
                let group = 16 * chunk + 4 * half + j;
                put_quants(lanes, tile, group, lanes.or(lanes.and(words[j], nibbles), bit(2 * chunk)));
                let upper = lanes.and(lanes.shift_right::<4>(words[j]), nibbles);
                put_quants(lanes, tile, group + 8, lanes.or(upper, bit(2 * chunk + 1)));
                j += 1;
            }
            chunk += 1;
        }
        half += 1;
    }
}

#[inline(always)]
unsafe fn q6<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let top = lanes.splat_i(0x3030_3030);
    let mut half = 0;
    while half < 2 {
        let mut piece = 0;
        while piece < 2 {
            // SAFETY: the low bits are bytes 0..128, the high bits 128..192, both in halves of the superblock.
            let (first, second, high) = unsafe {
                (
                    source.words(lanes, 64 * half + 16 * piece),
                    source.words(lanes, 64 * half + 32 + 16 * piece),
                    source.words(lanes, 128 + 32 * half + 16 * piece),
                )
            };
            let mut j = 0;
            while j < 4 {
                let group = 32 * half + 4 * piece + j;
                let (a, b, h) = (first[j], second[j], high[j]);
                let quants = |low, high| lanes.or(lanes.and(low, nibbles), lanes.and(high, top));
                put_quants(lanes, tile, group, quants(a, lanes.shift_left::<4>(h)));
                put_quants(lanes, tile, group + 8, quants(b, lanes.shift_left::<2>(h)));
                put_quants(lanes, tile, group + 16, quants(lanes.shift_right::<4>(a), h));
                put_quants(lanes, tile, group + 24, quants(lanes.shift_right::<4>(b), lanes.shift_right::<2>(h)));
                j += 1;
            }
            piece += 1;
        }
        half += 1;
    }
    // SAFETY: the signed byte scales are bytes 192..208, `d` is 208..210.
    let (words, d) = unsafe { (source.words(lanes, 192), source.lone_half(lanes, 208)) };
    put_floats(lanes, &mut tile.d, d);
    put_scales(lanes, tile, words, words);
}

/// The scales of sixteen sub-blocks, and what is multiplied with the sums of their columns: the minimums or, where the quants
/// have an offset to be subtracted, the scales.
#[inline(always)]
fn put_scales<L: Lanes>(lanes: L, tile: &mut IntTile, scales: [L::I; 4], minimums: [L::I; 4]) {
    let mut sub = 0;
    while sub < 16 {
        put_words(lanes, &mut tile.scales, sub, lanes.factor(scales[sub / 4], sub % 4));
        put_words(lanes, &mut tile.scales, sub + 1, lanes.factor(scales[sub / 4], sub % 4 + 1));
        let both = lanes.bytes_as_halves(minimums[sub / 4], sub % 4, sub % 4 + 1);
        put_words(lanes, &mut tile.minimums, sub / 2, both);
        sub += 2;
    }
}

#[inline(always)]
unsafe fn q2<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    // SAFETY: scales and minimums, four bits each, are bytes 0..16; `d` and `dmin` are 80..84.
    let (words, halves) = unsafe { (source.words(lanes, 0), source.word(lanes, 80)) };
    put_floats(lanes, &mut tile.d, lanes.low_half_as_float(halves));
    put_floats(lanes, &mut tile.m, lanes.low_half_as_float(lanes.shift_right::<16>(halves)));
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let (mut scales, mut minimums) = (words, words);
    let mut word = 0;
    while word < 4 {
        scales[word] = lanes.and(words[word], nibbles);
        minimums[word] = lanes.and(lanes.shift_right::<4>(words[word]), nibbles);
        word += 1;
    }
    put_scales(lanes, tile, scales, minimums);
    let two_bits = lanes.splat_i(0x0303_0303);
    let mut piece = 0;
    while piece < 4 {
        // SAFETY: the quants are bytes 16..80.
        let words = unsafe { source.words(lanes, 16 + 16 * piece) };
        let group = 32 * (piece / 2) + 4 * (piece % 2);
        let mut j = 0;
        while j < 4 {
            put_quants(lanes, tile, group + j, lanes.and(words[j], two_bits));
            put_quants(lanes, tile, group + 8 + j, lanes.and(lanes.shift_right::<2>(words[j]), two_bits));
            put_quants(lanes, tile, group + 16 + j, lanes.and(lanes.shift_right::<4>(words[j]), two_bits));
            put_quants(lanes, tile, group + 24 + j, lanes.and(lanes.shift_right::<6>(words[j]), two_bits));
            j += 1;
        }
        piece += 1;
    }
}

/// Half of the sixteen 6-bit scales of `Q3_K` as signed bytes, four to a word, from the last three words of the block.
#[inline(always)]
pub(super) fn q3_scales<L: Lanes>(lanes: L, low: L::I, middle: L::I, tops: L::I, half: usize) -> [L::I; 2] {
    let nibbles = lanes.splat_i(0x0f0f_0f0f);
    let two_bits = lanes.splat_i(0x0303_0303);
    let shift = 4 * half as u32;
    let joined = |low, top| {
        let low = lanes.and(lanes.shift_right_by(low, shift), nibbles);
        let six = lanes.or(low, lanes.shift_left::<4>(lanes.and(lanes.shift_right_by(top, shift), two_bits)));
        // Subtracting 32 flips bit 5, which is the sign: the two bits above it must be the same.
        let flipped = lanes.xor(six, lanes.splat_i(0x2020_2020));
        let sign = lanes.and(flipped, lanes.splat_i(0x2020_2020));
        lanes.or(flipped, lanes.or(lanes.shift_left::<1>(sign), lanes.shift_left::<2>(sign)))
    };
    [joined(low, tops), joined(middle, lanes.shift_right::<2>(tops))]
}

#[inline(always)]
unsafe fn q3<L: Lanes, S: Source<L>>(lanes: L, source: S, tile: &mut IntTile) {
    // SAFETY: the twelve bytes of 6-bit scales are 96..108 (the first of these words lies before them), `d` is
    // 108..110.
    let ([_, low, middle, tops], d) = unsafe { (source.words(lanes, 92), source.lone_half(lanes, 108)) };
    put_floats(lanes, &mut tile.d, d);
    let two_bits = lanes.splat_i(0x0303_0303);
    let ([a, b], [c, d]) = (q3_scales(lanes, low, middle, tops, 0), q3_scales(lanes, low, middle, tops, 1));
    put_scales(lanes, tile, [a, b, c, d], [a, b, c, d]);
    let one_bit = lanes.splat_i(0x0101_0101);
    let mut piece = 0;
    while piece < 2 {
        // SAFETY: the high bits are bytes 0..32, the low two bits 32..96.
        let (high, first, second) = unsafe {
            (
                source.words(lanes, 16 * piece),
                source.words(lanes, 32 + 16 * piece),
                source.words(lanes, 64 + 16 * piece),
            )
        };
        let mut j = 0;
        while j < 4 {
            let mut i = 0;
            while i < 8 {
                // Eight runs of 32 columns: bit i of the high bits, and two bits of one of the halves.
                let low = if i < 4 { first[j] } else { second[j] };
                let low = lanes.and(lanes.shift_right_by(low, 2 * (i % 4) as u32), two_bits);
                let top = lanes.and(lanes.shift_right_by(high[j], i as u32), one_bit);
                let quants = lanes.or(low, lanes.shift_left::<2>(top));
                put_quants(lanes, tile, 8 * i + 4 * piece + j, quants);
                i += 1;
            }
            j += 1;
        }
        piece += 1;
    }
}
