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
        let elements = [n_kv_heads, head_dim, BLOCK_TOKENS].iter().try_fold(num_blocks, |n, &x| n.checked_mul(x));
        let elements = elements.ok_or_else(|| larger_than_memory(num_blocks))?;
        let store = match (device.is_cpu(), kv_type) {
            (true, KvType::F32) => {
                KvStore::CpuF32 { keys: zeroed(elements, num_blocks)?, values: zeroed(elements, num_blocks)? }
            }
            (true, KvType::F16) => {
                KvStore::CpuF16 { keys: zeroed(elements, num_blocks)?, values: zeroed(elements, num_blocks)? }
            }
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

/// Zeroes that the operating system provides on first touch. Memory that it does not give is an error here and not
/// the end of the process: how large the cache is to be comes from the user.
fn zeroed<T: Clone + Default>(elements: usize, num_blocks: usize) -> Result<Vec<T>> {
    // Filling a reserved vector would touch every page, and `vec!` cannot fail; so the room is asked for twice. The
    // compiler must not see that the first vector is never used: it would take it away.
    let mut room = Vec::<T>::new();
    room.try_reserve_exact(elements).map_err(|_| larger_than_memory(num_blocks))?;
    drop(std::hint::black_box(room));
    Ok(vec![T::default(); elements])
}

fn larger_than_memory(num_blocks: usize) -> candle_core::Error {
    candle_core::Error::Msg(format!(
        "a KV cache of {num_blocks} blocks of {BLOCK_TOKENS} tokens is larger than memory: lower --ctx-size, --parallel \
         or --kv-cache-mib"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_memory_cannot_hold_is_an_error() {
        // Elements that no count has room for, bytes that no count has room for, and bytes that no machine has.
        for num_blocks in [usize::MAX, usize::MAX / (BLOCK_TOKENS * 8 * 64), 1 << 36] {
            for kv_type in [KvType::F16, KvType::F32] {
                let error = KvLayer::new(num_blocks, 8, 64, kv_type, &Device::Cpu).expect_err("no machine has it");
                assert!(error.to_string().contains("lower --ctx-size"), "{error}");
            }
        }
    }
}
