//! What can be wrong with a GGUF file: which file, where in it, and what to do next.

use std::path::PathBuf;

use hearth_kernels::quant::GgmlType;

/// A GGUF file that cannot be opened, or a part of it that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot open {path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },

    /// The file is something else; `what` says what it is and what to do with it.
    #[error("{path} is not a GGUF file: {what}", path = .path.display())]
    NotGguf { path: PathBuf, what: String },

    #[error(
        "{path} is a GGUF file of version {version}, and Hearth reads versions 2 and 3: {advice}",
        path = .path.display()
    )]
    Version { path: PathBuf, version: u32, advice: &'static str },

    #[error(
        "{path} is a big-endian GGUF file, and Hearth reads little-endian ones: convert it with \
         `gguf-convert-endian {path} little` from the gguf Python package",
        path = .path.display()
    )]
    BigEndian { path: PathBuf },

    /// The file ends before its declared contents do.
    #[error(
        "{path} is truncated: {what} at byte {offset} needs {needed} bytes, but the file has {length}; \
         the download was probably cut short, fetch the file again",
        path = .path.display()
    )]
    Truncated { path: PathBuf, what: String, offset: u64, needed: u64, length: u64 },

    /// The file contradicts itself or the format.
    #[error("{path} is damaged at byte {offset}: {problem}; fetch or convert the file again", path = .path.display())]
    Malformed { path: PathBuf, offset: u64, problem: String },

    /// The parts of a split file do not belong together or are incomplete.
    #[error("{path} is part of a split GGUF file: {problem}", path = .path.display())]
    Split { path: PathBuf, problem: String },

    #[error(
        "{path} has no tensor {name}: the file is incomplete, or of a variant of its architecture that Hearth does \
         not know",
        path = .path.display()
    )]
    MissingTensor { path: PathBuf, name: String },

    #[error(
        "tensor {name} of {path} is of type {type_name}, which Hearth does not support; choose a file quantized as \
         one of {supported}",
        path = .path.display(),
        supported = supported_types()
    )]
    UnsupportedType { path: PathBuf, name: String, type_name: String },

    #[error("{path} has no metadata key {key}: the file is incomplete, convert it again", path = .path.display())]
    MissingKey { path: PathBuf, key: String },

    #[error("metadata key {key} of {path} is {found} where {expected} is needed", path = .path.display())]
    WrongValue { path: PathBuf, key: String, expected: &'static str, found: String },
}

/// `F32, F16, ...`: the alternatives to an unsupported type.
fn supported_types() -> String {
    GgmlType::ALL.map(|dtype| dtype.to_string()).join(", ")
}
