//! Why a file is not a decoder that can be run: what was found, what was expected, and what to do.

use std::path::PathBuf;

use super::architecture::Architecture;
use crate::{encoder::config::is_encoder_architecture, gguf::GgufError};

/// Loading a decoder failed. Every message is one sentence for the person who chose the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file itself cannot be read, or lacks a key or a tensor.
    #[error(transparent)]
    Gguf(#[from] GgufError),

    #[error(
        "{path} is a {found} model, which is not a chat model that Hearth runs: supported architectures are \
         {supported}{advice}",
        path = .path.display(),
        supported = Architecture::names(),
        advice = encoder_advice(found)
    )]
    UnsupportedArchitecture { path: PathBuf, found: String },

    /// The architecture is known, but this variant of it is not supported.
    #[error("{path} is a {architecture} model with {feature}, which Hearth does not support", path = .path.display())]
    UnsupportedFeature { path: PathBuf, architecture: &'static str, feature: String },

    /// A metadata value that no working model has.
    #[error("{path} says {key} = {found}, but {expected}; the file is damaged, convert it again", path = .path.display())]
    InvalidConfig { path: PathBuf, key: String, found: String, expected: String },

    #[error(
        "tensor {name} of {path} has shape {found:?} where {expected:?} is needed; the file is damaged or of a variant \
         that Hearth does not know",
        path = .path.display()
    )]
    TensorShape { path: PathBuf, name: String, expected: Vec<usize>, found: Vec<usize> },

    /// The device rejected a weight, most often for lack of memory.
    #[error("cannot place tensor {name} of {path} on the device: {source}", path = .path.display())]
    Device { path: PathBuf, name: String, source: Box<candle_core::Error> },
}

/// Embedding models use the same container, so the error says where they belong.
fn encoder_advice(architecture: &str) -> &'static str {
    if is_encoder_architecture(architecture) {
        "; it looks like an embedding model, which belongs to --embedding-model"
    } else {
        ""
    }
}
