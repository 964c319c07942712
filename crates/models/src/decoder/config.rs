//! A decoder's shape, read from a file's metadata and checked value by value.
//!
//! Files come from unknown sources: every count is bounded before anything is multiplied, divided or allocated by it,
//! and a missing value takes the default that the file's own producer assumes. After [`DecoderConfig::from_gguf`] the
//! rest of the decoder may rely on the numbers. Tensor shapes are checked against them where the tensors are read
//! (`tensors.rs`).

use super::{
    architecture::{Architecture, QkNorm},
    error::ModelError,
    keys::Keys,
    layers,
    rope::{LongRopeScaling, RopeConfig, RopeScaling, YarnScaling},
    tensors::Tensors,
};
use crate::gguf::Gguf;

/// No published model comes near these; a file beyond them is damaged or hostile.
const MAX_LAYERS: usize = 1024;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_FFN: usize = 1 << 20;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_CONTEXT: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 24;

/// Everything about a decoder except its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the token embedding and of the logits.
    pub vocab: usize,
    /// In tokens, prompt and answer together, as the file states it.
    pub context_length: usize,
    /// Width of one attention head; even.
    pub head_dim: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    pub rms_norm_eps: f32,
    /// Rotation in layers of [`LayerRope::Global`].
    pub rope: RopeConfig,
    /// Rotation in layers of [`LayerRope::Local`].
    pub local_rope: RopeConfig,
    /// Multiplies query-key products.
    pub attention_scale: f32,
    /// Bounds attention scores: `c * tanh(score / c)`.
    pub attention_softcap: Option<f32>,
    /// Bounds logits the same way.
    pub logit_softcap: Option<f32>,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// Multiplies the outputs of attention and feed-forward before they are added to the residual.
    pub residual_scale: f32,
    /// Multiplies logits.
    pub logit_scale: f32,
    /// Scales up queries at distant positions.
    pub attention_temperature: Option<AttentionTemperature>,
}

/// What may differ between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    pub n_heads: usize,
    /// Heads of keys and values; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of the feed-forward network.
    pub ffn: usize,
    /// Attends only to this many most recent positions.
    pub window: Option<usize>,
    pub rope: LayerRope,
}

/// Which rotation a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerRope {
    Global,
    Local,
    /// No position information.
    None,
}

/// Query scaling `1 + scale * ln(1 + floor(position / length))`, from Llama 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionTemperature {
    pub scale: f32,
    pub length: usize,
}

impl DecoderConfig {
    /// Reads and validates the metadata of `gguf`.
    ///
    /// # Errors
    /// The architecture or a variant of it is not supported, a key is missing, or a value is out of bounds.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let name = gguf.architecture()?;
        let architecture = Architecture::from_name(name).ok_or_else(|| ModelError::UnsupportedArchitecture {
            path: gguf.metadata().path().to_owned(),
            found: name.to_owned(),
        })?;
        let keys = Keys::new(gguf.metadata(), architecture);
        let tensors = Tensors::new(gguf);
        refuse_variants(&keys)?;

        let n_layers = keys.required_count("block_count", MAX_LAYERS)?;
        let hidden = keys.required_count("embedding_length", MAX_HIDDEN)?;
        let context_length = keys.required_count("context_length", MAX_CONTEXT)?;
        let vocab = vocabulary(&keys, &tensors, hidden)?;
        let n_heads = keys.counts_per_layer("attention.head_count", n_layers, MAX_HEADS, None)?;
        let n_kv_heads = keys.counts_per_layer("attention.head_count_kv", n_layers, MAX_HEADS, Some(&n_heads))?;
        let ffn = keys.counts_per_layer("feed_forward_length", n_layers, MAX_FFN, None)?;
        let head_dim = head_dim(&keys, hidden, n_heads[0])?;
        for (layer, (&heads, &kv_heads)) in n_heads.iter().zip(&n_kv_heads).enumerate() {
            if heads % kv_heads != 0 {
                return Err(keys.invalid(
                    "attention.head_count_kv",
                    kv_heads,
                    format!("it must divide the {heads} attention heads of layer {layer}"),
                ));
            }
        }

        let rope = rope(&keys, &tensors, head_dim, context_length)?;
        let windows = layers::windows(&keys, n_layers, context_length)?;
        let local_rope = layers::local_rope(&keys, &rope)?;
        let layers = (0..n_layers)
            .map(|layer| LayerConfig {
                n_heads: n_heads[layer],
                n_kv_heads: n_kv_heads[layer],
                ffn: ffn[layer],
                window: windows[layer].tokens,
                rope: layers::rope_of_layer(architecture, layer, windows[layer].is_local),
            })
            .collect();

        Ok(Self {
            architecture,
            hidden,
            vocab,
            context_length,
            head_dim,
            layers,
            rms_norm_eps: keys
                .positive("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon", "a number"))?
                as f32,
            attention_scale: attention_scale(&keys, n_layers, hidden, n_heads[0], head_dim)?,
            attention_softcap: softcap(&keys, "attn_logit_softcapping", 50.0)?,
            logit_softcap: softcap(&keys, "final_logit_softcapping", 30.0)?,
            embedding_scale: if architecture.is_gemma() {
                (hidden as f32).sqrt()
            } else {
                keys.nonzero("embedding_scale")?.unwrap_or(1.0) as f32
            },
            residual_scale: keys.nonzero("residual_scale")?.unwrap_or(1.0) as f32,
            // Granite's files store the divisor.
            logit_scale: 1.0 / keys.nonzero("logit_scale")?.unwrap_or(1.0) as f32,
            attention_temperature: keys
                .nonzero("attention.temperature_scale")?
                .map(|scale| -> Result<_, ModelError> {
                    let length =
                        keys.count("rope.scaling.original_context_length", MAX_CONTEXT)?.unwrap_or(context_length);
                    Ok(AttentionTemperature { scale: scale as f32, length })
                })
                .transpose()?,
            rope,
            local_rope,
        })
    }

    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// How queries and keys are normalized.
    pub fn qk_norm(&self) -> QkNorm {
        self.architecture.qk_norm()
    }
}

/// Variants that share an architecture's name but have a different network.
fn refuse_variants(keys: &Keys<'_>) -> Result<(), ModelError> {
    if keys.unsigned("expert_count").is_some_and(|experts| experts > 0) {
        return Err(keys.unsupported("mixture-of-experts layers"));
    }
    if keys.metadata().bool(&keys.name("attention.causal")) == Some(false) {
        return Err(keys.unsupported("attention in both directions (it is an embedding model)"));
    }
    let (key, value) = (keys.unsigned("attention.key_length"), keys.unsigned("attention.value_length"));
    if let (Some(key), Some(value)) = (key, value)
        && key != value
    {
        return Err(keys.unsupported(format!("keys of length {key} and values of length {value}")));
    }
    Ok(())
}

/// The vocabulary size is the number of rows of the token embedding.
fn vocabulary(keys: &Keys<'_>, tensors: &Tensors<'_>, hidden: usize) -> Result<usize, ModelError> {
    let shape = tensors.raw("token_embd.weight")?.shape;
    match shape[..] {
        [vocab, width] if width == hidden && (1..=MAX_VOCAB).contains(&vocab) => Ok(vocab),
        _ => Err(ModelError::TensorShape {
            path: keys.metadata().path().to_owned(),
            name: "token_embd.weight".to_owned(),
            expected: vec![shape.first().copied().unwrap_or(0).clamp(1, MAX_VOCAB), hidden],
            found: shape,
        }),
    }
}

fn head_dim(keys: &Keys<'_>, hidden: usize, n_heads: usize) -> Result<usize, ModelError> {
    let head_dim = match keys.count("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            return Err(keys.invalid(
                "attention.head_count",
                n_heads,
                format!("it must divide the hidden size {hidden}"),
            ));
        }
    };
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        return Err(keys.invalid(
            "attention.key_length",
            head_dim,
            format!("the width of a head must be even and at most {MAX_HEAD_DIM}"),
        ));
    }
    Ok(head_dim)
}

fn attention_scale(
    keys: &Keys<'_>,
    n_layers: usize,
    hidden: usize,
    n_heads: usize,
    head_dim: usize,
) -> Result<f32, ModelError> {
    if let Some(scale) = keys.nonzero("attention.scale")? {
        return Ok(scale as f32);
    }
    let by_hidden = keys.architecture().layers_of_size_scaled_by_hidden() == Some(n_layers);
    let divisor = if by_hidden { hidden as f64 / n_heads as f64 } else { head_dim as f64 };
    Ok((1.0 / divisor.sqrt()) as f32)
}

/// Gemma 2 has both caps even where its files omit them; for the other families a missing key or 0 means none.
fn softcap(keys: &Keys<'_>, key: &str, gemma2_default: f64) -> Result<Option<f32>, ModelError> {
    let default = (keys.architecture() == Architecture::Gemma2).then_some(gemma2_default);
    match keys.number(key)? {
        None => Ok(default.map(|cap| cap as f32)),
        Some(0.0) => Ok(None),
        Some(cap) if cap > 0.0 => Ok(Some(cap as f32)),
        Some(cap) => Err(keys.invalid(key, cap, "a cap is positive".to_owned())),
    }
}

fn rope(
    keys: &Keys<'_>,
    tensors: &Tensors<'_>,
    head_dim: usize,
    context_length: usize,
) -> Result<RopeConfig, ModelError> {
    let rotary_dim = keys.count("rope.dimension_count", MAX_HEAD_DIM)?.unwrap_or(head_dim);
    if !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
        return Err(keys.invalid(
            "rope.dimension_count",
            rotary_dim,
            format!("it must be even and at most the {head_dim} dimensions of a head"),
        ));
    }
    let base = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(keys.invalid("rope.freq_base", base, "the base of the frequencies must be above 1".to_owned()));
    }
    let frequency_factors = tensors.rope_factors("rope_freqs.weight", rotary_dim / 2)?;
    let scaling = rope_scaling(keys, tensors, rotary_dim, context_length)?;
    Ok(RopeConfig { base, rotary_dim, scaling, frequency_factors })
}

fn rope_scaling(
    keys: &Keys<'_>,
    tensors: &Tensors<'_>,
    rotary_dim: usize,
    context_length: usize,
) -> Result<RopeScaling, ModelError> {
    let original_context_length =
        keys.count("rope.scaling.original_context_length", MAX_CONTEXT)?.unwrap_or(context_length);
    // Converters mark LongRoPE by its tensors; some omit the type.
    let long_factors = tensors.rope_factors("rope_factors_long.weight", rotary_dim / 2)?;
    let short_factors = tensors.rope_factors("rope_factors_short.weight", rotary_dim / 2)?;
    if let (Some(long_factors), Some(short_factors)) = (long_factors, short_factors) {
        let attention_factor = keys
            .positive("rope.scaling.attn_factor")?
            .unwrap_or_else(|| LongRopeScaling::derived_attention_factor(context_length, original_context_length));
        return Ok(RopeScaling::LongRope(LongRopeScaling {
            original_context_length,
            short_factors,
            long_factors,
            attention_factor,
        }));
    }
    // Files from 2023 use the key `rope.scale_linear`.
    let factor = match keys.nonzero("rope.scaling.factor")? {
        None => keys.nonzero("rope.scale_linear")?,
        factor => factor,
    };
    let factor = factor.unwrap_or(1.0);
    if factor < 0.0 {
        return Err(keys.invalid("rope.scaling.factor", factor, "a scaling factor is positive".to_owned()));
    }
    match keys.metadata().str(&keys.name("rope.scaling.type")).unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => Ok(RopeScaling::Yarn(YarnScaling {
            factor,
            original_context_length,
            beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            extrapolation_factor: match keys.number("rope.scaling.yarn_ext_factor")? {
                // llama.cpp writes a negative value for "not set".
                Some(factor) if factor >= 0.0 => factor,
                _ => 1.0,
            },
            attention_factor: match keys.nonzero("rope.scaling.yarn_attn_factor")? {
                Some(factor) => Some(factor),
                None => keys.nonzero("rope.scaling.attn_factor")?,
            },
            log_multiplier: keys.nonzero("rope.scaling.yarn_log_multiplier")?,
        })),
        "longrope" => {
            Err(keys.unsupported("LongRoPE but without its tensors rope_factors_long and rope_factors_short"))
        }
        other => Err(keys.unsupported(format!("rope scaling of type {other}"))),
    }
}
