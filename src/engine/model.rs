//! The engine's real model: a decoder's shared weights and the KV cache that this engine owns.

use std::sync::Arc;

use super::{StepError, StepModel};
use hearth_models::{batch::Batch, decoder::Decoder, kv_cache::KvCache};

/// Several engines may share the weights; each has its own cache.
#[derive(Debug)]
pub struct DecoderModel {
    decoder: Arc<Decoder>,
    cache: KvCache,
}

impl DecoderModel {
    /// `cache` must have been made for `decoder`; otherwise a step fails with an error that says so.
    pub fn new(decoder: Arc<Decoder>, cache: KvCache) -> Self {
        Self { decoder, cache }
    }
}

impl StepModel for DecoderModel {
    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, StepError> {
        self.decoder.forward(batch, &mut self.cache).map_err(|error| step_error(&error))
    }
}

/// Devices report a lack of memory only in the message: CUDA as `CUDA_ERROR_OUT_OF_MEMORY`, Metal and allocators in
/// prose.
fn step_error(error: &candle_core::Error) -> StepError {
    let message = error.to_string();
    let words = message.to_ascii_lowercase().replace('_', " ");
    if ["out of memory", "failed to allocate", "memory allocation"].iter().any(|phrase| words.contains(phrase)) {
        StepError::OutOfMemory(message)
    } else {
        StepError::Failed(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_memory_is_told_from_other_failures() {
        let error = |message: &str| step_error(&candle_core::Error::Msg(message.to_owned()));
        let out_of_memory = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(error(out_of_memory), StepError::OutOfMemory(out_of_memory.to_owned()));
        assert_eq!(error("shape mismatch"), StepError::Failed("shape mismatch".to_owned()));
    }
}
