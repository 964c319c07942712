//! GGML tensor types: the layout of their blocks, and the plain reference that dequantizes them.
//!
//! The layouts are ggml's (`ggml-common.h`); the reference matches the `gguf` Python package bit for bit, which
//! `scripts/fixtures/dequant.py` and the test below check. It is written one element at a time, so that each line can
//! be read against the layout. Fast paths live in `cpu/` and are tested against this file.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};

/// A tensor's storage type, with ggml's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "these are ggml's own names")]
#[repr(u32)]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
}

impl GgmlType {
    /// Every type that Hearth can compute with.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The type with this number in a file, if Hearth can compute with it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u32 == id)
    }

    /// Elements in one block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of one row of `columns` elements; `None` if the row is not whole blocks.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if columns.is_multiple_of(self.block_size()) {
            (columns / self.block_size()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

/// ggml's own name, such as `Q4_K`.
impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A tensor as stored in the file: raw blocks, shared with the memory map that holds them.
#[derive(Clone, Debug)]
pub struct RawTensor {
    pub dtype: GgmlType,
    /// Outermost first, as in row-major arrays: a linear layer's weight is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// Exactly the tensor's bytes. Alignment beyond one byte is not guaranteed.
    pub data: Bytes,
}

/// Dequantizes whole blocks: `out[i]` is the value of element `i` of the row (or rows) in `data`.
///
/// # Panics
/// If `data` is not whole blocks or `out` does not hold exactly their elements. Both lengths come from a tensor whose
/// shape was checked when its file was opened, so a mismatch is a bug in the caller.
pub fn dequantize(dtype: GgmlType, data: &[u8], out: &mut [f32]) {
    let (block_bytes, block_size) = (dtype.block_bytes(), dtype.block_size());
    assert_eq!(data.len() % block_bytes, 0, "{dtype}: data is not whole blocks");
    assert_eq!(data.len() / block_bytes * block_size, out.len(), "{dtype}: out does not fit the blocks");
    let dequantize_block = match dtype {
        GgmlType::F32 => f32_block,
        GgmlType::F16 => f16_block,
        GgmlType::BF16 => bf16_block,
        GgmlType::Q4_0 => q4_0_block,
        GgmlType::Q4_1 => q4_1_block,
        GgmlType::Q5_0 => q5_0_block,
        GgmlType::Q5_1 => q5_1_block,
        GgmlType::Q8_0 => q8_0_block,
        GgmlType::Q2_K => q2_k_block,
        GgmlType::Q3_K => q3_k_block,
        GgmlType::Q4_K => q4_k_block,
        GgmlType::Q5_K => q5_k_block,
        GgmlType::Q6_K => q6_k_block,
    };
    for (block, out) in data.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block_size)) {
        dequantize_block(block, out);
    }
}

/// The little-endian half-precision number at `offset`.
fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn f32_block(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_block(block: &[u8], out: &mut [f32]) {
    out[0] = half_at(block, 0);
}

fn bf16_block(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// Element `i` of 32 four-bit values: the low halves of 16 bytes, then their high halves.
fn nibble_of_32(quants: &[u8], i: usize) -> u8 {
    (quants[i % 16] >> (4 * (i / 16))) & 0x0F
}

/// `d`, then 16 bytes of nibbles, offset by 8.
fn q4_0_block(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble_of_32(&block[2..], i) as i8 - 8);
    }
}

/// `d`, the minimum `m`, then 16 bytes of nibbles.
fn q4_1_block(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble_of_32(&block[4..], i)) + m;
    }
}

/// `d`, a 32-bit word with the fifth bits, then 16 bytes of nibbles, offset by 16.
fn q5_0_block(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        let high = (block[2 + i / 8] >> (i % 8)) & 1;
        *out = d * f32::from((nibble_of_32(&block[6..], i) | high << 4) as i8 - 16);
    }
}

/// `d`, the minimum `m`, a 32-bit word with the fifth bits, then 16 bytes of nibbles.
fn q5_1_block(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let high = (block[4 + i / 8] >> (i % 8)) & 1;
        *out = d * f32::from(nibble_of_32(&block[8..], i) | high << 4) + m;
    }
}

/// `d`, then 32 signed bytes.
fn q8_0_block(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (out, &quant) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(quant as i8) * d;
    }
}

/// Element `i` of 256 two-bit values: each run of 32 bytes holds four runs of 32 elements, two bits each.
fn two_bits_of_256(quants: &[u8], i: usize) -> u8 {
    (quants[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4))) & 3
}

/// 16 bytes of scale (low half) and minimum (high half) for runs of 16, 64 bytes of two-bit values, `d`, `dmin`.
fn q2_k_block(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let scale = d * f32::from(scales[i / 16] & 0x0F);
        let minimum = dmin * f32::from(scales[i / 16] >> 4);
        *out = scale * f32::from(two_bits_of_256(quants, i)) - minimum;
    }
}

/// 32 bytes of third bits, 64 bytes of two-bit values, 16 six-bit scales in 12 bytes, `d`.
fn q3_k_block(block: &[u8], out: &mut [f32]) {
    let (high_bits, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (i, out) in out.iter_mut().enumerate() {
        let run = i / 16;
        let low = (scales[run % 8] >> (4 * (run / 8))) & 0x0F;
        let high = (scales[8 + run % 4] >> (2 * (run / 4))) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        // Where the third bit is set, nothing is subtracted.
        let offset = if high_bits[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        *out = scale * f32::from(two_bits_of_256(quants, i) as i8 - offset);
    }
}

/// Six-bit scale and minimum of run `j` of 8, as `Q4_K` and `Q5_K` pack them into 12 bytes.
fn k_scale_and_minimum(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 0x3F, scales[j + 4] & 0x3F)
    } else {
        let both = scales[j + 4];
        ((both & 0x0F) | (scales[j - 4] >> 2 & 0x30), (both >> 4) | (scales[j] >> 2 & 0x30))
    }
}

/// Element `i` of 256 four-bit values: each run of 32 bytes holds two runs of 32 elements.
fn nibble_of_256(quants: &[u8], i: usize) -> u8 {
    (quants[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 0x0F
}

/// `d`, `dmin`, 12 bytes of scales and minima for runs of 32, 128 bytes of nibbles.
fn q4_k_block(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let (scale, minimum) = k_scale_and_minimum(&block[4..16], i / 32);
        *out = d * f32::from(scale) * f32::from(nibble_of_256(&block[16..], i)) - dmin * f32::from(minimum);
    }
}

/// As `Q4_K`, with 32 bytes of fifth bits before the nibbles.
fn q5_k_block(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let (scale, minimum) = k_scale_and_minimum(&block[4..16], i / 32);
        let high = block[16 + i % 32] >> (i / 32) & 1;
        let quant = nibble_of_256(&block[48..], i) | high << 4;
        *out = d * f32::from(scale) * f32::from(quant) - dmin * f32::from(minimum);
    }
}

/// 128 bytes of low nibbles, 64 bytes of high two bits, 16 signed scales for runs of 16, `d`; offset by 32.
fn q6_k_block(block: &[u8], out: &mut [f32]) {
    let (low_bits, high_bits, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let low = (low_bits[i / 128 * 64 + i % 64] >> (4 * (i / 64 % 2))) & 0x0F;
        let quant = (low | two_bits_of_256(high_bits, i) << 4) as i8 - 32;
        *out = d * f32::from(scales[i / 16] as i8) * f32::from(quant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Per type: id and number of blocks (`u32`), the blocks, and the floats that the `gguf` package produces from
    /// them.
    const FIXTURE: &[u8] = include_bytes!("../../../tests/fixtures/dequant.bin");

    fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = rest.split_at(count);
        *rest = tail;
        head
    }

    fn u32_from(bytes: &[u8]) -> u32 {
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Which NaN results depends on the instruction that converts half floats, so all NaNs compare equal here.
    #[test]
    fn equals_the_gguf_package_bit_for_bit() {
        let mut rest = FIXTURE;
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let dtype = GgmlType::from_id(u32_from(take(&mut rest, 4))).expect("the fixture has supported types only");
            let blocks = u32_from(take(&mut rest, 4)) as usize;
            let data = take(&mut rest, blocks * dtype.block_bytes());
            let mut out = vec![0.0; blocks * dtype.block_size()];
            dequantize(dtype, data, &mut out);
            for (i, value) in out.iter().enumerate() {
                let expected = f32::from_bits(u32_from(take(&mut rest, 4)));
                assert!(
                    value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                    "{dtype} element {i}: {value:e} instead of {expected:e}"
                );
            }
            seen.push(dtype);
        }
        assert_eq!(seen, GgmlType::ALL);
    }

    #[test]
    fn ids_and_names_are_ggmls() {
        assert_eq!(GgmlType::from_id(12), Some(GgmlType::Q4_K));
        assert_eq!(GgmlType::from_id(16), None);
        assert_eq!(GgmlType::Q4_K.to_string(), "Q4_K");
    }

    #[test]
    fn a_row_is_whole_blocks() {
        assert_eq!(GgmlType::Q6_K.row_bytes(512), Some(420));
        assert_eq!(GgmlType::Q6_K.row_bytes(500), None);
    }
}
