//! Turns a loaded decoder's matrices into tiles, one after the other.
//!
//! Tiles are memory of the process, where the file's pages are the system's. So each matrix's pages are given back as soon as its
//! tiles are made, and at no time is there more than one matrix twice.

use super::{Decoder, ModelError};
use crate::gguf::Gguf;

impl Decoder {
    /// Makes tiles of every matrix; see [`Linear::repack`](hearth_kernels::linear::Linear::repack). `gguf` is the file that the
    /// decoder was loaded from. Returns the memory that the tiles take, in bytes.
    ///
    /// # Errors
    /// If there is not enough memory. Matrices that have no tiles by then are computed from the file.
    pub fn repack(&self, gguf: &Gguf) -> Result<u64, ModelError> {
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
        let mut bytes = 0;
        for (matrix, name) in layers.chain([(&self.weights.output, "output")]) {
            bytes += matrix.repack(|file| gguf.release(file)).map_err(|source| ModelError::Device {
                path: gguf.metadata().path().to_owned(),
                name: name.to_owned(),
                source: Box::new(source),
            })? as u64;
        }
        Ok(bytes)
    }
}
