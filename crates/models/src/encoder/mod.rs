//! Embedding models: take the tokens of texts and return one vector per text.
//!
//! [`EncoderSource`] says where a model is stored: a sentence-transformers directory or a GGUF file. [`Encoder`] is the
//! loaded model: the network of [`bert`] and the facts of its [`package`]. Tokenization is not done here: the encoder
//! takes token ids, including the model's special tokens.

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use candle_core::{Device, Tensor};

pub mod bert;
pub mod config;
pub mod cross_encoder;
pub mod package;
pub mod pooling;
pub mod weights;

use self::{
    bert::Bert,
    config::{EncoderConfig, SUPPORTED},
    package::{Package, read_json},
    weights::{EncoderWeights, SafetensorsWeights},
};
use super::gguf::{Gguf, GgufError};

/// Why an embedding model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error("this is a model of the architecture {architecture:?}; embedding models are supported from {SUPPORTED}")]
    UnsupportedArchitecture { architecture: String },
    #[error("{0}")]
    Config(String),
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("the weights cannot be placed on the device: {0}")]
    Device(#[from] candle_core::Error),
}

/// Where an embedding model is stored.
#[derive(Debug)]
pub enum EncoderSource {
    /// A directory in sentence-transformers' layout; `transformer` is the folder of the network's own files.
    Directory {
        root: PathBuf,
        transformer: PathBuf,
    },
    Gguf(Box<Gguf>),
}

/// The files that a model directory needs beside its weights, which have an error of their own.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];

impl EncoderSource {
    /// `path` is a model directory, the `model.safetensors` in one, or a GGUF file of any name.
    pub fn open(path: &Path) -> Result<Self, EncoderError> {
        let is_safetensors = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"));
        if !path.is_dir() && !is_safetensors {
            return Ok(Self::Gguf(Box::new(Gguf::open(path)?)));
        }
        let root = if is_safetensors { path.parent().unwrap_or(Path::new(".")) } else { path };
        let transformer = Package::transformer_directory(root)?;
        let missing: Vec<_> = NEEDED.into_iter().filter(|name| !transformer.join(name).is_file()).collect();
        if !missing.is_empty() {
            return Err(EncoderError::Config(format!(
                "{} is no model directory, it lacks {}; an embedding model is a directory with config.json, tokenizer.json \
                 and model.safetensors, or a GGUF file",
                transformer.display(),
                missing.join(" and "),
            )));
        }
        Ok(Self::Directory { root: root.to_owned(), transformer })
    }

    /// The weights' files.
    fn weights_paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Directory { transformer, .. } => vec![transformer.join("model.safetensors")],
            Self::Gguf(gguf) => gguf.paths().to_vec(),
        }
    }

    /// Modification time of the weights in Unix seconds; 0 where the file system does not provide it.
    pub fn modified(&self) -> u64 {
        let path = self.weights_paths().into_iter().next();
        path.and_then(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
            .and_then(|modified: SystemTime| modified.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_secs())
    }

    /// A hash of the weights and the tokenizer: everything vectors depend on, and no file name.
    pub fn fingerprint(&self) -> Result<blake3::Hash, EncoderError> {
        let mut paths = self.weights_paths();
        if let Self::Directory { transformer, .. } = self {
            paths.push(transformer.join("tokenizer.json"));
        }
        let mut hasher = blake3::Hasher::new();
        for path in paths {
            let hashed = std::fs::File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
            hashed.map_err(|source| EncoderError::Io { path, source })?;
        }
        Ok(hasher.finalize())
    }
}

/// A loaded embedding model: configuration and weights, immutable, shared between threads.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    package: Package,
    network: Bert,
    facts: EncoderFacts,
}

/// What `/v1/models` reports about the weights.
#[derive(Clone, Debug)]
pub struct EncoderFacts {
    pub parameters: u64,
    /// The type of most of the weights.
    pub dominant_type: String,
    pub file_bytes: u64,
}

impl Encoder {
    pub fn load(source: &EncoderSource, device: &Device) -> Result<Self, EncoderError> {
        let (config, package, weights) = match source {
            EncoderSource::Directory { root, transformer } => {
                let path = transformer.join("config.json");
                let config =
                    read_json(&path)?.ok_or_else(|| EncoderError::Config(format!("{} is gone", path.display())))?;
                let config = EncoderConfig::from_json(&config)?;
                let weights = EncoderWeights::Safetensors(SafetensorsWeights::open(transformer)?);
                (config, Package::from_directory(root)?, weights)
            }
            EncoderSource::Gguf(gguf) => {
                (EncoderConfig::from_gguf(gguf)?, Package::from_gguf(gguf)?, EncoderWeights::Gguf(gguf))
            }
        };
        let facts = EncoderFacts {
            parameters: weights.parameters(),
            dominant_type: weights.dominant_type(),
            file_bytes: weights.file_bytes(),
        };
        Ok(Self { network: Bert::load(&config, &weights, device)?, config, package, facts })
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    pub fn package(&self) -> &Package {
        &self.package
    }

    pub fn facts(&self) -> &EncoderFacts {
        &self.facts
    }

    /// Maximum length of a text in tokens, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.package.max_tokens.unwrap_or(usize::MAX).min(self.config.max_positions)
    }

    /// Every token's vector: `[tokens.len(), hidden]` on the model's device.
    pub fn forward(&self, tokens: &[u32], lengths: &[usize]) -> candle_core::Result<Tensor> {
        if let Some(length) = lengths.iter().find(|&&length| length == 0 || length > self.config.max_positions) {
            candle_core::bail!("a text of {length} tokens is outside 1..={}", self.config.max_positions);
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.config.vocab) {
            candle_core::bail!("token {token} is outside the vocabulary of {}", self.config.vocab);
        }
        self.network.forward(tokens, lengths)
    }

    /// One vector per text, pooled and, if the model requires it, normalized. `tokens` holds the texts, concatenated,
    /// and `lengths` the number of tokens of each.
    pub fn embed(&self, tokens: &[u32], lengths: &[usize]) -> candle_core::Result<Vec<Vec<f32>>> {
        let hidden = self.config.hidden;
        let states = self.forward(tokens, lengths)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rest = states.as_slice();
        let pooled = lengths.iter().map(|length| {
            let (text, after) = rest.split_at(length * hidden);
            rest = after;
            let mut vector = self.package.pooling.pool(text, hidden);
            if self.package.normalize {
                pooling::normalize(&mut vector);
            }
            vector
        });
        Ok(pooled.collect())
    }
}
