//! What a sentence-transformers directory says about its model beside the weights: pooling, normalization, prompts and
//! maximum text length.
//!
//! `modules.json` lists the pipeline; this server computes transformer, pooling and normalization, in that order, and
//! refuses a pipeline that does more. GGUF files carry the same facts in their metadata, with llama.cpp's conventions:
//! pooling by number, vectors always normalized, no prompts.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{EncoderError, pooling::Pooling};
use crate::gguf::Gguf;

/// The pipeline around the transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Package {
    pub pooling: Pooling,
    pub normalize: bool,
    pub prompts: Prompts,
    /// Maximum tokens of a text, special tokens included; `None` leaves the limit to the model's positions.
    pub max_tokens: Option<usize>,
    /// Lowercase texts before the tokenizer sees them.
    pub lowercase: bool,
}

/// Prefixes for the caller's text, by what the text is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    pub plain: Option<String>,
    pub query: Option<String>,
    pub passage: Option<String>,
}

impl Package {
    /// Reads the directory; missing files mean what sentence-transformers takes them to mean.
    pub fn from_directory(directory: &Path) -> Result<Self, EncoderError> {
        let Some(modules) = read_json(&directory.join("modules.json"))? else {
            tracing::info!(
                directory = %directory.display(),
                "no modules.json: pooling by the mean, without normalization, as sentence-transformers does"
            );
            return Ok(Self {
                pooling: Pooling::Mean,
                normalize: false,
                prompts: read_prompts(directory)?,
                max_tokens: tokenizer_limit(directory)?,
                lowercase: false,
            });
        };
        let pipeline = Pipeline::parse(directory, &modules)?;
        let (pooling, transformer) = (read_pooling(&pipeline.pooling)?, &pipeline.transformer);
        let sentence_config = read_json(&transformer.join("sentence_bert_config.json"))?.unwrap_or_default();
        let max_tokens = match sentence_config.get("max_seq_length").and_then(Value::as_u64) {
            Some(limit) => usize::try_from(limit).ok(),
            None => tokenizer_limit(transformer)?,
        };
        Ok(Self {
            pooling,
            normalize: pipeline.normalize,
            prompts: read_prompts(directory)?,
            max_tokens,
            lowercase: sentence_config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// Reads `pooling_type`; if absent, llama.cpp's default for encoders, the mean.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, EncoderError> {
        let key = format!("{}.pooling_type", gguf.architecture()?);
        let pooling = match gguf.metadata().u64(&key) {
            Some(number) => Pooling::from_gguf(number)?,
            None => {
                tracing::info!(key, "the GGUF file names no pooling: the mean is used");
                Pooling::Mean
            }
        };
        Ok(Self { pooling, normalize: true, prompts: Prompts::default(), max_tokens: None, lowercase: false })
    }

    /// Where the transformer's own files are: the directory itself, or a folder named by `modules.json`.
    pub fn transformer_directory(directory: &Path) -> Result<PathBuf, EncoderError> {
        match read_json(&directory.join("modules.json"))? {
            Some(modules) => Ok(Pipeline::parse(directory, &modules)?.transformer),
            None => Ok(directory.to_owned()),
        }
    }
}

/// The modules of the pipeline, by function.
struct Pipeline {
    transformer: PathBuf,
    pooling: PathBuf,
    normalize: bool,
}

impl Pipeline {
    fn parse(directory: &Path, modules: &Value) -> Result<Self, EncoderError> {
        let invalid = |what: String| EncoderError::Config(format!("modules.json of {}: {what}", directory.display()));
        let modules = modules.as_array().ok_or_else(|| invalid("it is not a list".into()))?;
        let (mut transformer, mut pooling, mut normalize) = (None, None, false);
        for module in modules {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
            let path = directory.join(module.get("path").and_then(Value::as_str).unwrap_or_default());
            // Class paths have changed between releases; the class names have not.
            match (kind.rsplit('.').next().unwrap_or_default(), transformer.is_some(), pooling.is_some()) {
                ("Transformer", false, false) => transformer = Some(path),
                ("Pooling", true, false) => pooling = Some(path),
                ("Normalize", true, true) => normalize = true,
                _ => {
                    return Err(invalid(format!(
                        "the module {kind:?} is not supported here; a pipeline is a transformer, a pooling and optionally a normalization"
                    )));
                }
            }
        }
        Ok(Self {
            transformer: transformer.ok_or_else(|| invalid("it lists no transformer".into()))?,
            pooling: pooling.ok_or_else(|| invalid("it lists no pooling".into()))?,
            normalize,
        })
    }
}

/// `config.json` of a pooling module: `pooling_mode`, or the older flags, one for each mode.
fn read_pooling(directory: &Path) -> Result<Pooling, EncoderError> {
    let path = directory.join("config.json");
    let config = read_json(&path)?
        .ok_or_else(|| EncoderError::Config(format!("{} is missing, so the pooling is unknown", path.display())))?;
    let invalid = |what: String| EncoderError::Config(format!("{}: {what}", path.display()));
    if config.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(invalid("include_prompt = false is not supported".into()));
    }
    let flag = |name: &str| config.get(name).and_then(Value::as_bool).unwrap_or(false);
    let modes: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => [
            ("pooling_mode_cls_token", "cls"),
            ("pooling_mode_max_tokens", "max"),
            ("pooling_mode_mean_tokens", "mean"),
            ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("pooling_mode_weightedmean_tokens", "weightedmean"),
            ("pooling_mode_lasttoken", "lasttoken"),
        ]
        .into_iter()
        .filter_map(|(key, mode)| flag(key).then_some(mode))
        .collect(),
    };
    match modes[..] {
        [] => Ok(Pooling::Mean),
        [mode] => {
            Pooling::from_name(mode).ok_or_else(|| invalid(format!("the pooling mode {mode:?} is not supported")))
        }
        _ => Err(invalid(format!("a combination of pooling modes ({}) is not supported", modes.join(", ")))),
    }
}

/// `config_sentence_transformers.json`: prompts by name, and the name of the default prompt.
fn read_prompts(directory: &Path) -> Result<Prompts, EncoderError> {
    let config = read_json(&directory.join("config_sentence_transformers.json"))?.unwrap_or_default();
    let prompts: BTreeMap<&str, &str> = config
        .get("prompts")
        .and_then(Value::as_object)
        .map(|prompts| prompts.iter().filter_map(|(name, text)| Some((name.as_str(), text.as_str()?))).collect())
        .unwrap_or_default();
    let named = |name: &str| prompts.get(name).filter(|text| !text.is_empty()).map(|&text| text.to_owned());
    let plain = match config.get("default_prompt_name").and_then(Value::as_str) {
        Some(name) if !prompts.contains_key(name) => {
            return Err(EncoderError::Config(format!(
                "config_sentence_transformers.json: default_prompt_name {name:?} is not among its prompts"
            )));
        }
        Some(name) => named(name),
        None => None,
    };
    let passage = ["document", "passage", "corpus"].into_iter().find(|name| prompts.contains_key(name));
    let (query, passage) = (prompts.contains_key("query").then_some("query"), passage);
    Ok(Prompts {
        query: query.map_or_else(|| plain.clone(), named),
        passage: passage.map_or_else(|| plain.clone(), named),
        plain,
    })
}

/// `model_max_length` of `tokenizer_config.json`; the huge number that stands for "none" is read as none.
pub(super) fn tokenizer_limit(directory: &Path) -> Result<Option<usize>, EncoderError> {
    let config = read_json(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
    let limit = config.get("model_max_length").and_then(Value::as_u64);
    Ok(limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit < 1 << 28))
}

/// A JSON file, or `None` if it does not exist.
pub fn read_json(path: &Path) -> Result<Option<Value>, EncoderError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(EncoderError::Io { path: path.to_owned(), source }),
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| EncoderError::Config(format!("{} is not valid JSON: {error}", path.display())))
}
