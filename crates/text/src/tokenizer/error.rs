//! What can be wrong with a tokenizer: what it is, where it comes from, and what to do next.

use std::path::PathBuf;

use hearth_domain::error::{Error, ErrorKind};

/// A tokenizer that cannot be loaded, or a text that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{path} is not a tokenizer.json that Hearth can read: {problem}", path = .path.display())]
    Json { path: PathBuf, problem: String },

    /// The file's metadata lacks a key that the tokenizer needs.
    #[error("{path} has no {key}, which its tokenizer needs: convert the model again", path = .path.display())]
    MissingKey { path: PathBuf, key: &'static str },

    /// A value contradicts another or is out of range.
    #[error("{path} has a {key} that {problem}: convert the model again", path = .path.display())]
    BadValue { path: PathBuf, key: &'static str, problem: String },

    /// `tokenizer.ggml.model` names an unsupported kind of tokenizer.
    #[error(
        "{path} has a tokenizer of the kind \"{kind}\"; Hearth has \"gpt2\" (byte-level BPE), \"gemma4\", \"llama\" \
         (SentencePiece), \"bert\" (WordPiece) and \"t5\" (Unigram)",
        path = .path.display()
    )]
    UnsupportedKind { path: PathBuf, kind: String },

    /// The text could not be encoded; `problem` says why.
    #[error("the text cannot be tokenized: {problem}")]
    Encode { problem: String },
}

impl From<TokenizerError> for Error {
    fn from(error: TokenizerError) -> Self {
        match error {
            TokenizerError::Encode { .. } => Self::new(ErrorKind::InvalidRequest, error.to_string()),
            _ => Self::internal(error),
        }
    }
}
