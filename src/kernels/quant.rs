//! GGML tensor types: how their blocks are laid out, and the plain reference that turns them into floats.
//!
//! The layouts are ggml's (`ggml-common.h`); the reference equals the `gguf` Python package bit for bit.
//! Fast paths live in `cpu/`; this file is what they are tested against.

use bytes::Bytes;

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

/// A tensor as it lies in the file: raw blocks, shared with the memory map that holds them.
#[derive(Clone, Debug)]
pub struct RawTensor {
    pub dtype: GgmlType,
    /// Outermost first, as in row-major arrays: a linear layer's weight is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// Exactly the tensor's bytes. Not necessarily aligned to more than one byte.
    pub data: Bytes,
}
