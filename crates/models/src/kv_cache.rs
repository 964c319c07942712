//! Keys and values of all running sequences, all layers, in blocks that the engine allocates.
//!
//! The cache knows nothing about sequences: the block tables in each batch say which tokens are in which block. With it goes what
//! else a step needs memory for, its intermediate results.

use candle_core::Result;

use super::{decoder::DecoderConfig, gguf::Gguf};
use hearth_kernels::{
    device::Backend,
    kv::{KvLayer, KvType},
    step::Workspace,
};

/// One [`KvLayer`] per layer of the model, all with the same number of blocks.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
    num_blocks: usize,
    workspace: Workspace,
}

impl KvCache {
    /// Full precision for files with f32 weights, half precision for quantized ones.
    pub fn default_type(gguf: &Gguf) -> KvType {
        if gguf.dominant_type() == "F32" { KvType::F32 } else { KvType::F16 }
    }

    /// Room for `num_blocks` blocks of [`BLOCK_TOKENS`](hearth_kernels::kv::BLOCK_TOKENS) tokens.
    ///
    /// # Errors
    /// The device has too little memory for it.
    pub fn new(config: &DecoderConfig, num_blocks: usize, kv_type: KvType, backend: &Backend) -> Result<Self> {
        let layers = config
            .layers
            .iter()
            .map(|layer| KvLayer::new(num_blocks, layer.n_kv_heads, config.head_dim, kv_type, backend))
            .collect::<Result<_>>()?;
        Ok(Self { layers, num_blocks, workspace: Workspace::default() })
    }

    /// Bytes of one block, all layers together.
    pub fn bytes_per_block(config: &DecoderConfig, kv_type: KvType) -> usize {
        config.kv_bytes_per_block(kv_type)
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Copies a block in every layer, for a sequence that continues from another sequence's partly filled last block.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.copy_block(from, to))
    }

    pub(super) fn n_layers(&self) -> usize {
        self.layers.len()
    }

    pub(super) fn parts(&mut self) -> (&mut [KvLayer], &mut Workspace) {
        (&mut self.layers, &mut self.workspace)
    }
}
