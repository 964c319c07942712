//! The shape of the encoder in a file, read from `config.json` or from GGUF metadata.
//!
//! One definition serves the BERT class; the differences between its members are data here: where positions come from,
//! where they start, whether the feed-forward is gated. An architecture outside the class is refused with one sentence
//! that names it.

use hearth_kernels::activation::Activation;
use serde_json::Value;

use super::EncoderError;
use crate::gguf::{Gguf, Metadata, Strings};

/// The architectures that [`super::bert::Bert`] supports, by the names used in model files.
pub const SUPPORTED: &str = "bert, roberta, xlm-roberta, camembert and nomic-bert";

/// Whether a GGUF file of this architecture holds an embedding model, supported or not.
pub fn is_encoder_architecture(architecture: &str) -> bool {
    architecture.contains("bert") || architecture.contains("embedding")
}

/// The shape of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// As named in the file: `bert`, `roberta`, `xlm-roberta`, `nomic-bert`.
    pub architecture: String,
    pub n_layers: usize,
    pub hidden: usize,
    pub n_heads: usize,
    /// Inner width of the feed-forward network.
    pub ffn: usize,
    pub vocab: usize,
    /// Maximum length of a text in tokens, by the model's positions.
    pub max_positions: usize,
    pub positions: Positions,
    pub layer_norm_eps: f32,
    pub feed_forward: FeedForwardKind,
}

/// How a token gets its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned table; the first token reads row `offset` (RoBERTa keeps the rows up to its padding id unused).
    Learned { offset: usize },
    /// Rotary embedding of queries and keys over the whole head, in the halves layout, with this base.
    Rotary { base: f32 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForwardKind {
    /// `down(activation(up(x)))`
    Plain(Activation),
    /// `down(activation(gate(x)) * up(x))`
    Gated(Activation),
}

impl EncoderConfig {
    pub fn head_dim(&self) -> usize {
        self.hidden / self.n_heads
    }

    /// Reads a `config.json` in the format that `transformers` writes.
    pub fn from_json(config: &Value) -> Result<Self, EncoderError> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
        let parsed = match model_type {
            "bert" => bert_from_json(config, "bert", 0),
            "roberta" | "xlm-roberta" | "camembert" => {
                let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1);
                bert_from_json(config, model_type, usize_from(padding, "pad_token_id")? + 1)
            }
            "nomic_bert" => nomic_from_json(config),
            other => Err(EncoderError::UnsupportedArchitecture { architecture: other.to_owned() }),
        }?;
        parsed.validated()
    }

    /// Reads the `bert.*` or `nomic-bert.*` keys of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, EncoderError> {
        let architecture = gguf.architecture()?.to_owned();
        let metadata = gguf.metadata();
        let key = |name: &str| format!("{architecture}.{name}");
        let (positions, feed_forward) = match architecture.as_str() {
            // The converter has already removed the unused rows of a RoBERTa position table.
            "bert" => (Positions::Learned { offset: 0 }, FeedForwardKind::Plain(Activation::Gelu)),
            "nomic-bert" => (
                Positions::Rotary { base: metadata.f32(&key("rope.freq_base")).unwrap_or(10_000.0) },
                FeedForwardKind::Gated(Activation::Silu),
            ),
            other => return Err(EncoderError::UnsupportedArchitecture { architecture: other.to_owned() }),
        };
        let size = |name: &str| -> Result<usize, EncoderError> {
            let key = key(name);
            usize_from(metadata.require_u64(&key)?, &key)
        };
        let epsilon = key("attention.layer_norm_epsilon");
        Self {
            n_layers: size("block_count")?,
            hidden: size("embedding_length")?,
            n_heads: size("attention.head_count")?,
            ffn: size("feed_forward_length")?,
            vocab: vocabulary_size(metadata)?,
            max_positions: size("context_length")?,
            positions,
            layer_norm_eps: metadata
                .f32(&epsilon)
                .ok_or_else(|| EncoderError::Config(format!("the GGUF file has no {epsilon}")))?,
            feed_forward,
            architecture,
        }
        .validated()
    }

    fn validated(self) -> Result<Self, EncoderError> {
        for (name, value) in [
            ("layers", self.n_layers),
            ("hidden size", self.hidden),
            ("attention heads", self.n_heads),
            ("feed-forward size", self.ffn),
            ("vocabulary", self.vocab),
            ("positions", self.max_positions),
        ] {
            // Far above any real encoder, and low enough that no product of two of them overflows.
            if value == 0 || value > 1 << 28 {
                return Err(EncoderError::Config(format!("the model's number of {name} is {value}")));
            }
        }
        if !self.hidden.is_multiple_of(self.n_heads) {
            return Err(EncoderError::Config(format!(
                "the hidden size {} is not a multiple of the {} attention heads",
                self.hidden, self.n_heads
            )));
        }
        Ok(self)
    }
}

fn bert_from_json(config: &Value, architecture: &str, offset: usize) -> Result<EncoderConfig, EncoderError> {
    if let Some(kind) = config.get("position_embedding_type").and_then(Value::as_str)
        && kind != "absolute"
    {
        return Err(EncoderError::Config(format!(
            "position_embedding_type {kind:?} is not supported, only \"absolute\""
        )));
    }
    let activation = match config.get("hidden_act").and_then(Value::as_str).unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        other => return Err(EncoderError::Config(format!("hidden_act {other:?} is not supported"))),
    };
    let max_positions = size(config, "max_position_embeddings")?;
    Ok(EncoderConfig {
        architecture: architecture.to_owned(),
        n_layers: size(config, "num_hidden_layers")?,
        hidden: size(config, "hidden_size")?,
        n_heads: size(config, "num_attention_heads")?,
        ffn: size(config, "intermediate_size")?,
        vocab: size(config, "vocab_size")?,
        max_positions: max_positions.saturating_sub(offset),
        positions: Positions::Learned { offset },
        layer_norm_eps: float(config, "layer_norm_eps", 1e-12),
        feed_forward: FeedForwardKind::Plain(activation),
    })
}

/// Reads the keys that `transformers` itself writes, or those of the model's own repository, which follow GPT-2's
/// names.
fn nomic_from_json(config: &Value) -> Result<EncoderConfig, EncoderError> {
    let either = |own: &str, gpt2: &str| size(config, own).or_else(|_| size(config, gpt2));
    for (flag, must_be) in [("prenorm", false), ("rotary_emb_interleaved", false), ("use_rms_norm", false)] {
        if config.get(flag).and_then(Value::as_bool).unwrap_or(must_be) != must_be {
            return Err(EncoderError::Config(format!("{flag} = {} is not supported", !must_be)));
        }
    }
    if config.get("rotary_emb_fraction").and_then(Value::as_f64).unwrap_or(1.0) != 1.0 {
        return Err(EncoderError::Config("a rotary_emb_fraction other than 1 is not supported".into()));
    }
    let activation = config.get("activation_function").or_else(|| config.get("hidden_act")).and_then(Value::as_str);
    if !matches!(activation, None | Some("swiglu" | "silu")) {
        return Err(EncoderError::Config(format!("activation {:?} is not supported", activation.unwrap_or_default())));
    }
    let base = config
        .pointer("/rope_parameters/rope_theta")
        .or_else(|| config.get("rotary_emb_base"))
        .and_then(Value::as_f64)
        .unwrap_or(10_000.0);
    Ok(EncoderConfig {
        architecture: "nomic-bert".to_owned(),
        n_layers: either("num_hidden_layers", "n_layer")?,
        hidden: either("hidden_size", "n_embd")?,
        n_heads: either("num_attention_heads", "n_head")?,
        ffn: either("intermediate_size", "n_inner")?,
        vocab: size(config, "vocab_size")?,
        max_positions: either("max_position_embeddings", "n_positions")?,
        positions: Positions::Rotary { base: base as f32 },
        layer_norm_eps: float(config, "layer_norm_eps", float(config, "layer_norm_epsilon", 1e-12)),
        feed_forward: FeedForwardKind::Gated(Activation::Silu),
    })
}

fn vocabulary_size(metadata: &Metadata) -> Result<usize, EncoderError> {
    metadata
        .strings("tokenizer.ggml.tokens")
        .map(Strings::len)
        .ok_or_else(|| EncoderError::Config("the GGUF file has no tokenizer.ggml.tokens".into()))
}

fn size(config: &Value, key: &str) -> Result<usize, EncoderError> {
    let value = config
        .get(key)
        .and_then(Value::as_u64)
        .ok_or_else(|| EncoderError::Config(format!("config.json has no whole number {key:?}")))?;
    usize_from(value, key)
}

fn usize_from(value: u64, key: &str) -> Result<usize, EncoderError> {
    usize::try_from(value).map_err(|_| EncoderError::Config(format!("{key} = {value} is out of range")))
}

fn float(config: &Value, key: &str, default: f32) -> f32 {
    config.get(key).and_then(Value::as_f64).map_or(default, |value| value as f32)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minilm() -> Value {
        json!({
            "model_type": "bert", "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12,
            "num_hidden_layers": 6, "vocab_size": 30522
        })
    }

    #[test]
    fn bert_starts_at_position_zero() {
        let config = EncoderConfig::from_json(&minilm()).expect("a supported model");
        assert_eq!(config.positions, Positions::Learned { offset: 0 });
        assert_eq!((config.max_positions, config.head_dim()), (512, 32));
    }

    #[test]
    fn roberta_starts_after_its_padding_id() {
        let mut json = minilm();
        json["model_type"] = "xlm-roberta".into();
        json["pad_token_id"] = 1.into();
        json["max_position_embeddings"] = 514.into();
        let config = EncoderConfig::from_json(&json).expect("a supported model");
        assert_eq!(config.positions, Positions::Learned { offset: 2 });
        assert_eq!(config.max_positions, 512);
    }

    #[test]
    fn another_architecture_is_named() {
        let error = EncoderConfig::from_json(&json!({"model_type": "t5"})).expect_err("t5 is no encoder of this class");
        let message = error.to_string();
        assert!(message.contains("\"t5\"") && message.contains("xlm-roberta"), "{message}");
    }

    #[test]
    fn hostile_shapes_are_refused() {
        for (key, value) in [("num_attention_heads", json!(0)), ("hidden_size", json!(385)), ("vocab_size", json!(-1))]
        {
            let mut json = minilm();
            json[key] = value;
            EncoderConfig::from_json(&json).expect_err("the shape is impossible");
        }
    }
}
