//! Turns a loaded decoder's matrices into tiles, one after the other.
//!
//! Tiles are memory of the process, where the file's pages are the system's. So the pages are given back as soon as tiles are made
//! of them, and at no time is there more than a part of one matrix twice.

use hearth_kernels::{arena::Arena, linear::Linear};

use super::{Decoder, ModelError};
use crate::gguf::Gguf;

impl Decoder {
    /// Makes tiles of every matrix; see [`Linear::repack`]. `gguf` is the file that the decoder was loaded from.
    ///
    /// # Errors
    /// If there is not enough memory. Matrices that have no tiles by then are computed from the file.
    pub fn repack(&self, gguf: &Gguf) -> Result<(), ModelError> {
        let arena = Arena::default();
        for (matrix, name) in self.matrices() {
            matrix.repack(&arena, |file| gguf.release(file)).map_err(|source| ModelError::Device {
                path: gguf.metadata().path().to_owned(),
                name: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// The memory that tiles take, in bytes.
    pub fn tile_bytes(&self) -> u64 {
        self.matrices().map(|(matrix, _)| matrix.tile_bytes() as u64).sum()
    }

    /// The matrices that can be repacked, with the names of their tensors.
    fn matrices(&self) -> impl Iterator<Item = (&Linear, &'static str)> {
        let layers = self.weights.layers.iter().flat_map(|layer| {
            [
                (&layer.query, "attn_q"),
                (&layer.key, "attn_k"),
                (&layer.value, "attn_v"),
                (&layer.attention_output, "attn_output"),
                (&layer.gate, "ffn_gate"),
                (&layer.up, "ffn_up"),
                (&layer.down, "ffn_down"),
            ]
        });
        layers.chain([(&self.weights.output, "output")])
    }
}
