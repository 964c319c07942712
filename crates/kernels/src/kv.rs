//! One layer's keys and values, in KV blocks.
//!
//! On the CPU a block holds, for every KV head, its keys as `[head_dim, BLOCK_TOKENS]`, so that one vector load brings
//! in the same dimension of sixteen tokens, and its values as `[BLOCK_TOKENS, head_dim]`. Blocks that were never used
//! take no memory (`zeroed_pages.rs` sees to that); blocks that were used and freed keep theirs.

use bytemuck::Pod;
use candle_core::{DType, Result};

use super::{candle::CandleKv, device::Backend, zeroed_pages::ZeroedPages};

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
        keys: ZeroedPages<f32>,
        values: ZeroedPages<f32>,
    },
    /// Half floats as raw bits.
    CpuF16 {
        keys: ZeroedPages<u16>,
        values: ZeroedPages<u16>,
    },
    Candle(CandleKv),
}

impl KvLayer {
    pub fn new(
        num_blocks: usize,
        n_kv_heads: usize,
        head_dim: usize,
        kv_type: KvType,
        backend: &Backend,
    ) -> Result<Self> {
        let elements = [n_kv_heads, head_dim, BLOCK_TOKENS].iter().try_fold(num_blocks, |n, &x| n.checked_mul(x));
        let elements = elements.ok_or_else(|| larger_than_memory(num_blocks))?;
        let store = match (backend, kv_type) {
            (Backend::Cpu, KvType::F32) => {
                KvStore::CpuF32 { keys: zeroed(elements, num_blocks)?, values: zeroed(elements, num_blocks)? }
            }
            (Backend::Cpu, KvType::F16) => {
                KvStore::CpuF16 { keys: zeroed(elements, num_blocks)?, values: zeroed(elements, num_blocks)? }
            }
            (Backend::Candle(device), KvType::F32) => {
                KvStore::Candle(CandleKv::new(num_blocks, n_kv_heads, head_dim, DType::F32, device)?)
            }
            (Backend::Candle(device), KvType::F16) => {
                KvStore::Candle(CandleKv::new(num_blocks, n_kv_heads, head_dim, DType::F16, device)?)
            }
        };
        Ok(Self { num_blocks, n_kv_heads, head_dim, store })
    }

    /// Bytes of keys and values together.
    pub const fn bytes_per_block(n_kv_heads: usize, head_dim: usize, kv_type: KvType) -> usize {
        2 * BLOCK_TOKENS * n_kv_heads * head_dim * kv_type.bytes()
    }

    /// Copies a whole block, for a sequence that continues from another sequence's partly filled last block.
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
            KvStore::Candle(cache) => cache.copy_block(from, to),
        }
    }

    /// Number of keys (and of values) in one block.
    pub(super) const fn elements_per_block(&self) -> usize {
        BLOCK_TOKENS * self.n_kv_heads * self.head_dim
    }
}

/// If the system refuses the memory, that is an error and does not end the process: the cache size comes from the user.
fn zeroed<T: Pod>(elements: usize, num_blocks: usize) -> Result<ZeroedPages<T>> {
    ZeroedPages::new(elements).map_err(|_| larger_than_memory(num_blocks))
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
        // More elements than a count can hold, more bytes than a count can hold, and more bytes than any machine has.
        for num_blocks in [usize::MAX, usize::MAX / (BLOCK_TOKENS * 8 * 64), 1 << 36] {
            for kv_type in [KvType::F16, KvType::F32] {
                let error = KvLayer::new(num_blocks, 8, 64, kv_type, &Backend::Cpu).expect_err("no machine has it");
                assert!(error.to_string().contains("lower --ctx-size"), "{error}");
            }
        }
    }

    /// Resident bytes of this process.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") * 1024
    }

    /// A layer of `SmolLM2` with 8 sequences of 8192 tokens is two arrays of 24 MiB. glibc's allocator takes these from
    /// its heap and clears them once a mapping of that size has been freed.
    #[cfg(target_os = "linux")]
    #[test]
    fn blocks_that_were_never_used_are_not_resident() {
        const MIB: usize = 1 << 20;
        let elements = 24 * MIB / 2;
        drop(std::hint::black_box(vec![0_u16; elements]));
        for kv_type in [KvType::F16, KvType::F32] {
            let num_blocks = elements / (BLOCK_TOKENS * 3 * 64) / (kv_type.bytes() / 2);
            let before = resident();
            let mut layers: Vec<KvLayer> = (0..8)
                .map(|_| KvLayer::new(num_blocks, 3, 64, kv_type, &Backend::Cpu).expect("there is memory"))
                .collect();
            let made = resident().saturating_sub(before);
            for layer in &mut layers {
                layer.copy_block(0, num_blocks as u32 / 2).expect("both blocks are there");
            }
            let used = resident().saturating_sub(before);
            // 384 MiB in all. Other tests in the same process may use a few MiB meanwhile.
            assert!(made < 64 * MIB, "{kv_type:?}: {} MiB are resident before any block is used", made / MIB);
            assert!(used < 64 * MIB, "{kv_type:?}: {} MiB are resident for 16 blocks", used / MIB);
        }
    }
}
