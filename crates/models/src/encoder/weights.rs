//! An encoder's tensors under one naming scheme, from safetensors or from GGUF.
//!
//! GGUF's names are used throughout (`blk.0.attn_q.weight`); a safetensors file is read through a table that maps them
//! to the names used by `transformers` and the model authors. Nothing is copied: tensors are slices of the mapped file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use hearth_kernels::quant::{GgmlType, RawTensor, dequantize};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{EncoderError, package::read_json};
use crate::gguf::{Gguf, map};

/// The tensors of one model.
#[derive(Debug)]
pub enum EncoderWeights<'a> {
    Gguf(&'a Gguf),
    Safetensors(SafetensorsWeights),
}

/// The tensors of all safetensors files of a model, by their own names.
#[derive(Debug)]
pub struct SafetensorsWeights {
    tensors: HashMap<String, RawTensor>,
    unsupported: HashMap<String, Dtype>,
    /// The prefix of every name, such as `bert.`.
    prefix: &'static str,
    file_bytes: u64,
}

/// GGUF's name of a module, and its names in safetensors files.
const MODULES: [(&str, &[&str]); 8] = [
    ("token_embd", &["embeddings.word_embeddings"]),
    ("position_embd", &["embeddings.position_embeddings"]),
    ("token_types", &["embeddings.token_type_embeddings"]),
    ("token_embd_norm", &["embeddings.LayerNorm", "emb_ln"]),
    // The classification heads of BERT and of RoBERTa.
    ("pooler", &["pooler.dense"]),
    ("classifier", &["classifier"]),
    ("cls", &["classifier.dense"]),
    ("cls.output", &["classifier.out_proj"]),
];

/// The same for a layer's modules: first BERT's names, then nomic-bert's.
const LAYER_MODULES: [(&str, &[&str]); 10] = [
    ("attn_q", &["attention.self.query"]),
    ("attn_k", &["attention.self.key"]),
    ("attn_v", &["attention.self.value"]),
    ("attn_qkv", &["attn.Wqkv"]),
    ("attn_output", &["attention.output.dense", "attn.out_proj"]),
    ("attn_output_norm", &["attention.output.LayerNorm", "norm1"]),
    ("ffn_up", &["intermediate.dense", "mlp.fc11"]),
    ("ffn_gate", &["mlp.fc12"]),
    ("ffn_down", &["output.dense", "mlp.fc2"]),
    ("layer_output_norm", &["output.LayerNorm", "norm2"]),
];

impl EncoderWeights<'_> {
    /// `name` is GGUF's. `shape` is the shape that the config requires.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor, EncoderError> {
        let tensor = match self {
            Self::Gguf(gguf) => gguf.tensor(name)?,
            Self::Safetensors(weights) => weights.tensor(name)?,
        };
        if tensor.shape != shape {
            return Err(EncoderError::Config(format!(
                "the tensor {name} has the shape {:?}, but the model's config makes it {shape:?}",
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Gguf(gguf) => gguf.has_tensor(name),
            Self::Safetensors(weights) => weights.own_name(name).is_some(),
        }
    }

    /// A tensor as plain floats, for small tensors: biases, norms, position tables.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let tensor = self.tensor(name, shape)?;
        let mut floats = vec![0.0; shape.iter().product()];
        dequantize(tensor.dtype, &tensor.data, &mut floats);
        Ok(floats)
    }

    /// The same for a tensor that only some models have.
    pub fn optional_floats(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, EncoderError> {
        if self.has(name) { self.floats(name, shape).map(Some) } else { Ok(None) }
    }

    pub fn parameters(&self) -> u64 {
        match self {
            Self::Gguf(gguf) => gguf.parameters(),
            Self::Safetensors(weights) => {
                weights.tensors.values().map(|tensor| tensor.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
            }
        }
    }

    /// The type of most of the weights.
    pub fn dominant_type(&self) -> String {
        match self {
            Self::Gguf(gguf) => gguf.dominant_type(),
            Self::Safetensors(weights) => {
                let mut bytes: HashMap<GgmlType, usize> = HashMap::new();
                for tensor in weights.tensors.values() {
                    *bytes.entry(tensor.dtype).or_default() += tensor.data.len();
                }
                bytes
                    .into_iter()
                    .max_by_key(|(_, bytes)| *bytes)
                    .map_or_else(String::new, |(dtype, _)| format!("{dtype:?}"))
            }
        }
    }

    pub fn file_bytes(&self) -> u64 {
        match self {
            Self::Gguf(gguf) => gguf.file_bytes(),
            Self::Safetensors(weights) => weights.file_bytes,
        }
    }
}

impl SafetensorsWeights {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    pub fn open(directory: &Path) -> Result<Self, EncoderError> {
        let mut weights = Self { tensors: HashMap::new(), unsupported: HashMap::new(), prefix: "", file_bytes: 0 };
        for path in safetensors_files(directory)? {
            weights.add_file(&path)?;
        }
        let prefixes = ["", "bert.", "roberta.", "nomic_bert.", "model.", "0.auto_model."];
        let words = |prefix: &&str| {
            let name = format!("{prefix}embeddings.word_embeddings.weight");
            weights.tensors.contains_key(&name) || weights.unsupported.contains_key(&name)
        };
        weights.prefix = prefixes.into_iter().find(words).ok_or_else(|| {
            EncoderError::Config(format!(
                "{} holds no embeddings.word_embeddings.weight, so it is no encoder of the BERT class",
                directory.display()
            ))
        })?;
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), EncoderError> {
        let bytes = map(path).map_err(|source| EncoderError::Io { path: path.to_owned(), source })?;
        let parsed = SafeTensors::deserialize(&bytes).map_err(|error| {
            EncoderError::Config(format!("{} is not a whole safetensors file: {error}", path.display()))
        })?;
        self.file_bytes += bytes.len() as u64;
        for (name, view) in parsed.iter() {
            let dtype = match view.dtype() {
                Dtype::F32 => GgmlType::F32,
                Dtype::F16 => GgmlType::F16,
                Dtype::BF16 => GgmlType::BF16,
                other => {
                    self.unsupported.insert(name.to_owned(), other);
                    continue;
                }
            };
            let tensor = RawTensor { dtype, shape: view.shape().to_vec(), data: bytes.slice_ref(view.data()) };
            self.tensors.insert(name.to_owned(), tensor);
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> Result<RawTensor, EncoderError> {
        let own_name = self.own_name(name).ok_or_else(|| {
            let expected = own_names(name).into_iter().next().unwrap_or_default();
            EncoderError::Config(format!("the model file has no tensor {}{expected}", self.prefix))
        })?;
        if let Some(dtype) = self.unsupported.get(&own_name) {
            return Err(EncoderError::Config(format!(
                "the tensor {own_name} is stored as {dtype:?}; F32, F16 and BF16 are supported"
            )));
        }
        Ok(self.tensors[&own_name].clone())
    }

    /// The name in this file of the tensor that GGUF calls `name`.
    fn own_name(&self, name: &str) -> Option<String> {
        own_names(name)
            .into_iter()
            // A head's names are outside the network's prefix.
            .flat_map(|candidate| [format!("{}{candidate}", self.prefix), candidate])
            .find(|candidate| self.tensors.contains_key(candidate) || self.unsupported.contains_key(candidate))
    }
}

fn safetensors_files(directory: &Path) -> Result<Vec<PathBuf>, EncoderError> {
    let single = directory.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let Some(index) = read_json(&directory.join("model.safetensors.index.json"))? else {
        let advice = if directory.join("pytorch_model.bin").is_file() {
            "; pytorch_model.bin is not read, because loading it can run code: convert it to safetensors"
        } else {
            ""
        };
        return Err(EncoderError::Config(format!("{} has no model.safetensors{advice}", directory.display())));
    };
    let mut files: Vec<PathBuf> = index
        .get("weight_map")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.values().filter_map(Value::as_str))
        // A name with a folder in it could point outside the directory.
        .filter_map(|name| Path::new(name).file_name())
        .map(|name| directory.join(name))
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// Every name, without prefix, under which safetensors files may store the tensor that GGUF calls `name`.
fn own_names(name: &str) -> Vec<String> {
    let Some((module, kind)) = name.rsplit_once('.') else { return Vec::new() };
    // Files converted from the first TensorFlow checkpoints call a norm's weight gamma and its bias beta.
    let old_kind = if kind == "weight" { "gamma" } else { "beta" };
    let of_module = |stem: &str, names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|own| [format!("{stem}{own}.{kind}"), format!("{stem}{own}.{old_kind}")]).collect()
    };
    if let Some((layer, module)) = module.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        let stems = [format!("encoder.layer.{layer}."), format!("encoder.layers.{layer}.")];
        let names = LAYER_MODULES.iter().find(|(gguf, _)| *gguf == module).map_or(&[][..], |(_, names)| names);
        stems.iter().flat_map(|stem| of_module(stem, names)).collect()
    } else {
        let names = MODULES.iter().find(|(gguf, _)| *gguf == module).map_or(&[][..], |(_, names)| names);
        of_module("", names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_names_translate() {
        assert_eq!(own_names("token_embd.weight")[0], "embeddings.word_embeddings.weight");
        let names = own_names("blk.11.attn_output_norm.bias");
        assert_eq!(names[0], "encoder.layer.11.attention.output.LayerNorm.bias");
        assert_eq!(names[1], "encoder.layer.11.attention.output.LayerNorm.beta");
        assert!(names.contains(&"encoder.layers.11.norm1.bias".to_owned()));
        assert!(own_names("rope_freqs.weight").is_empty());
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("model.safetensors"), [255, 255, 0, 0, 0, 0, 0, 0, b'{'])
            .expect("writable");
        let error = SafetensorsWeights::open(directory.path()).expect_err("the header is cut off");
        assert!(error.to_string().contains("not a whole safetensors file"), "{error}");
    }

    #[test]
    fn a_directory_with_pickled_weights_only_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("pytorch_model.bin"), []).expect("writable");
        let error = SafetensorsWeights::open(directory.path()).expect_err("no safetensors");
        assert!(error.to_string().contains("convert it to safetensors"), "{error}");
    }
}
