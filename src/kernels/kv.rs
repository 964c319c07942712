//! One layer's keys and values, in blocks.
//!
//! On the CPU a block holds, for every KV head, its keys as `[head_dim, BLOCK_TOKENS]`, so that one vector load
//! brings the same dimension of sixteen tokens, and its values as `[BLOCK_TOKENS, head_dim]`. Memory is zeroed
//! by the operating system on first touch: blocks that were never used cost nothing.

use candle_core::{DType, Device, Result};

use super::gpu::GpuKv;

/// Tokens in one block; also the width of a vector in the attention kernels.
pub const BLOCK_TOKENS: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F32,
    F16,
}

impl KvType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(format!("unknown cache type `{text}`: use f16 or f32")),
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct KvLayer {
    pub(super) num_blocks: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) store: KvStore,
}

#[derive(Debug)]
pub(super) enum KvStore {
    CpuF32 {
        keys: Vec<f32>,
        values: Vec<f32>,
    },
    /// Half floats as their bits, because zeroed integers come from the allocator untouched.
    CpuF16 {
        keys: Vec<u16>,
        values: Vec<u16>,
    },
    Gpu(GpuKv),
}

impl KvLayer {
    pub fn new(
        num_blocks: usize,
        n_kv_heads: usize,
        head_dim: usize,
        kv_type: KvType,
        device: &Device,
    ) -> Result<Self> {
        let Some(elements) = [n_kv_heads, head_dim, BLOCK_TOKENS].iter().try_fold(num_blocks, |n, &x| n.checked_mul(x))
        else {
            candle_core::bail!("a KV cache of {num_blocks} blocks is larger than memory: lower --ctx-size");
        };
        let store = match (device.is_cpu(), kv_type) {
            (true, KvType::F32) => KvStore::CpuF32 { keys: vec![0.0; elements], values: vec![0.0; elements] },
            (true, KvType::F16) => KvStore::CpuF16 { keys: vec![0; elements], values: vec![0; elements] },
            (false, KvType::F32) => KvStore::Gpu(GpuKv::new(num_blocks, n_kv_heads, head_dim, DType::F32, device)?),
            (false, KvType::F16) => KvStore::Gpu(GpuKv::new(num_blocks, n_kv_heads, head_dim, DType::F16, device)?),
        };
        Ok(Self { num_blocks, n_kv_heads, head_dim, store })
    }

    /// Bytes of keys and values together.
    pub const fn bytes_per_block(n_kv_heads: usize, head_dim: usize, kv_type: KvType) -> usize {
        2 * BLOCK_TOKENS * n_kv_heads * head_dim * kv_type.bytes()
    }

    /// Copies a whole block, for a sequence that goes on from another one's partly filled last block.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        let (from, to) = (from as usize, to as usize);
        if from >= self.num_blocks || to >= self.num_blocks {
            candle_core::bail!("blocks {from} and {to} are not both among the {} there are", self.num_blocks);
        }
        let elements = self.elements_per_block();
        let source = from * elements..(from + 1) * elements;
        match &mut self.store {
            KvStore::CpuF32 { keys, values } => {
                keys.copy_within(source.clone(), to * elements);
                values.copy_within(source, to * elements);
                Ok(())
            }
            KvStore::CpuF16 { keys, values } => {
                keys.copy_within(source.clone(), to * elements);
                values.copy_within(source, to * elements);
                Ok(())
            }
            KvStore::Gpu(cache) => cache.copy_block(from, to),
        }
    }

    /// Elements of keys (and as many of values) in one block.
    pub(super) const fn elements_per_block(&self) -> usize {
        BLOCK_TOKENS * self.n_kv_heads * self.head_dim
    }
}
