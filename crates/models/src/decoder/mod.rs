//! One decoder-only transformer, driven by its configuration, for all families of chat models.
//!
//! Families differ in a handful of choices (`architecture.rs`) and in numbers (`config.rs`). There is one forward pass
//! (`forward.rs`), written over the operations of `kernels/step`, which alone know about devices and quantization. Configuration and weights live here and never change; the state is a
//! [`KvCache`](crate::kv_cache::KvCache) that the caller lends to each step.

pub mod architecture;
pub mod config;
mod error;
mod forward;
mod keys;
mod layers;
mod repack;
pub mod rope;
mod tensors;
mod weights;

use hearth_kernels::{
    device::Backend,
    kv::{KvLayer, KvType},
    rope::RopeTable,
};

pub use self::{config::DecoderConfig, error::ModelError};
use self::{config::LayerRope, rope::RopeConfig, weights::Weights};
use crate::gguf::Gguf;

/// A loaded model: immutable, shared by all sequences.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    weights: Weights,
    rope: RopeTable,
    /// Where some layers use a different rotation.
    local_rope: Option<RopeTable>,
    context_length: usize,
    backend: Backend,
}

impl Decoder {
    /// Loads a model for the full context length stated in its file.
    ///
    /// # Errors
    /// The file does not hold a supported decoder, or is damaged; the error is one sentence for the file's owner.
    pub fn load(gguf: &Gguf, backend: &Backend) -> Result<Self, ModelError> {
        Self::load_for_context(gguf, backend, None)
    }

    /// Loads a model that will see at most `context_length` tokens, if that differs from the length in its file.
    ///
    /// The length matters for models scaled by `LongRoPE`, which have a better set of frequencies for contexts no
    /// longer than their original one.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_for_context(gguf: &Gguf, backend: &Backend, context_length: Option<usize>) -> Result<Self, ModelError> {
        let config = DecoderConfig::from_gguf(gguf)?;
        let context_length = context_length.unwrap_or(config.context_length);
        let weights = Weights::load(gguf, &config, backend)?;
        let table = |rope: &RopeConfig| {
            let frequencies = rope.frequencies(context_length);
            RopeTable::new(&frequencies.inverse, frequencies.attention_factor, context_length, backend.device())
                .map_err(|source| ModelError::Device {
                    path: gguf.metadata().path().to_owned(),
                    name: "of rotary angles".to_owned(),
                    source: Box::new(source),
                })
        };
        let has_local_layers = config.layers.iter().any(|layer| layer.rope == LayerRope::Local);
        let local_rope =
            (has_local_layers && config.local_rope != config.rope).then(|| table(&config.local_rope)).transpose()?;
        Ok(Self { rope: table(&config.rope)?, local_rope, config, weights, context_length, backend: backend.clone() })
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The number of positions that [`Decoder::forward`] accepts.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub const fn backend(&self) -> &Backend {
        &self.backend
    }
}

impl DecoderConfig {
    /// Bytes of one KV block, all layers together.
    pub fn kv_bytes_per_block(&self, kv_type: KvType) -> usize {
        self.layers.iter().map(|layer| KvLayer::bytes_per_block(layer.n_kv_heads, self.head_dim, kv_type)).sum()
    }
}
