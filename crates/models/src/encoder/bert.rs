//! The BERT class's forward pass (arXiv 1810.04805), over the packed tokens of several texts.
//!
//! Every layer is attention, residual and norm, then feed-forward, residual and norm. What varies within the class
//! (learned or rotary positions, plain or gated feed-forward, biases or none, fused or separate projections) is decided
//! when the weights are loaded.

use candle_core::{Device, Tensor};

use super::{
    EncoderError,
    config::{EncoderConfig, FeedForwardKind, Positions},
    weights::EncoderWeights,
};
use hearth_kernels::{
    activation::{Activation, activate, gated},
    attention::attention_encoder,
    embedding::Embedding,
    linear::Linear,
    norm::layer_norm,
    quant::RawTensor,
    rope::{RopeLayout, RopeTable, rope},
};

/// An encoder's weights: shared, immutable.
#[derive(Debug)]
pub struct Bert {
    words: Embedding,
    positions: PositionTable,
    /// `[2, hidden]`: what to add for a token of type 0 (zero) and of type 1, if the model has token types.
    type_shifts: Option<Tensor>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    n_heads: usize,
    head_dim: usize,
}

#[derive(Debug)]
enum PositionTable {
    /// `[max_positions, hidden]`, with the embedding of token type 0 already added.
    Learned(Tensor),
    Rotary {
        table: RopeTable,
        /// `[1, hidden]`, the embedding of token type 0, if the model has one.
        token_type: Option<Tensor>,
    },
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    feed_forward: FeedForward,
    output_norm: LayerNorm,
}

#[derive(Debug)]
enum FeedForward {
    Plain { up: Linear, activation: Activation, down: Linear },
    Gated { gate: Linear, up: Linear, activation: Activation, down: Linear },
}

#[derive(Debug)]
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Bert {
    pub fn load(config: &EncoderConfig, weights: &EncoderWeights, device: &Device) -> Result<Self, EncoderError> {
        let hidden = config.hidden;
        let load = Loader { config, weights, device };
        let token_type = load.token_type_zero()?;
        let positions = match config.positions {
            Positions::Learned { offset } => {
                let rows = config.max_positions + offset;
                let mut table = weights.floats("position_embd.weight", &[rows, hidden])?;
                table.drain(..offset * hidden);
                if let Some(token_type) = token_type {
                    for row in table.chunks_exact_mut(hidden) {
                        row.iter_mut().zip(&token_type).for_each(|(value, shift)| *value += shift);
                    }
                }
                PositionTable::Learned(Tensor::from_vec(table, (config.max_positions, hidden), device)?)
            }
            Positions::Rotary { base } => {
                let head_dim = config.head_dim();
                let frequencies: Vec<f32> =
                    (0..head_dim / 2).map(|pair| 1.0 / base.powf(2.0 * pair as f32 / head_dim as f32)).collect();
                let table = RopeTable::new(&frequencies, 1.0, config.max_positions, device)?;
                let token_type = token_type.map(|row| Tensor::from_vec(row, (1, hidden), device)).transpose()?;
                PositionTable::Rotary { table, token_type }
            }
        };
        Ok(Self {
            words: Embedding::new(&weights.tensor("token_embd.weight", &[config.vocab, hidden])?, device)?,
            positions,
            type_shifts: load.type_shifts()?,
            norm: load.norm("token_embd_norm")?,
            layers: (0..config.n_layers).map(|layer| load.layer(layer)).collect::<Result<_, _>>()?,
            n_heads: config.n_heads,
            head_dim: config.head_dim(),
        })
    }

    /// `tokens` holds `lengths.len()` texts, concatenated; the result is `[tokens.len(), hidden]`.
    ///
    /// # Errors
    /// Lengths that do not sum to the number of tokens, a text longer than the model's positions, or a token
    /// outside the vocabulary.
    pub fn forward(&self, tokens: &[u32], lengths: &[usize]) -> candle_core::Result<Tensor> {
        self.forward_typed(tokens, lengths, None)
    }

    /// The same with each token's type, 0 or 1, for models that use it to tell the two texts of a pair apart; other
    /// models ignore it. `None` means type 0 throughout.
    pub fn forward_typed(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        types: Option<&[u32]>,
    ) -> candle_core::Result<Tensor> {
        let positions: Vec<u32> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        if positions.len() != tokens.len() {
            candle_core::bail!("the lengths sum to {}, but there are {} tokens", positions.len(), tokens.len());
        }
        let mut x = self.words.forward(tokens)?;
        match &self.positions {
            PositionTable::Learned(table) => {
                let rows = Tensor::from_slice(&positions, positions.len(), x.device())?;
                x = (x + table.index_select(&rows, 0)?)?;
            }
            PositionTable::Rotary { token_type: Some(row), .. } => x = x.broadcast_add(row)?,
            PositionTable::Rotary { token_type: None, .. } => {}
        }
        if let (Some(shifts), Some(types)) = (&self.type_shifts, types) {
            x = (x + shifts.index_select(&Tensor::from_slice(types, types.len(), shifts.device())?, 0)?)?;
        }
        x = self.norm.forward(&x)?;
        for layer in &self.layers {
            let attended = self.attention(layer, &x, &positions, lengths)?;
            x = layer.attention_norm.forward(&(x + attended)?)?;
            let fed_forward = layer.feed_forward.forward(&x)?;
            x = layer.output_norm.forward(&(x + fed_forward)?)?;
        }
        Ok(x)
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        positions: &[u32],
        lengths: &[usize],
    ) -> candle_core::Result<Tensor> {
        let projected = Linear::forward_shared(&[&layer.query, &layer.key, &layer.value], x)?;
        let per_head = (positions.len(), self.n_heads, self.head_dim);
        let [mut query, mut key, value] = <[Tensor; 3]>::try_from(projected)
            .map_err(|_| candle_core::Error::Msg("three projections of one input are three tensors".into()))?
            .map(|tensor| tensor.reshape(per_head));
        if let PositionTable::Rotary { table, .. } = &self.positions {
            query = rope(&query?, positions, table, RopeLayout::Halves);
            key = rope(&key?, positions, table, RopeLayout::Halves);
        }
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let attended = attention_encoder(&query?, &key?, &value?, lengths, scale, None)?;
        layer.attention_output.forward(&attended)
    }
}

impl FeedForward {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Plain { up, activation, down } => down.forward(&activate(&up.forward(x)?, *activation)?),
            Self::Gated { gate, up, activation, down } => {
                let both = Linear::forward_shared(&[gate, up], x)?;
                down.forward(&gated(&both[0], &both[1], *activation)?)
            }
        }
    }
}

impl LayerNorm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Builds modules from named tensors.
struct Loader<'a> {
    config: &'a EncoderConfig,
    weights: &'a EncoderWeights<'a>,
    device: &'a Device,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer, EncoderError> {
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        let name = |module: &str| format!("blk.{index}.{module}");
        let [query, key, value] = if self.weights.has(&name("attn_qkv.weight")) {
            self.fused_projections(&name("attn_qkv"))?
        } else {
            [
                self.linear(&name("attn_q"), hidden, hidden)?,
                self.linear(&name("attn_k"), hidden, hidden)?,
                self.linear(&name("attn_v"), hidden, hidden)?,
            ]
        };
        let up = self.linear(&name("ffn_up"), ffn, hidden)?;
        let down = self.linear(&name("ffn_down"), hidden, ffn)?;
        let feed_forward = match self.config.feed_forward {
            FeedForwardKind::Plain(activation) => FeedForward::Plain { up, activation, down },
            FeedForwardKind::Gated(activation) => {
                FeedForward::Gated { gate: self.linear(&name("ffn_gate"), ffn, hidden)?, up, activation, down }
            }
        };
        Ok(Layer {
            query,
            key,
            value,
            attention_output: self.linear(&name("attn_output"), hidden, hidden)?,
            attention_norm: self.norm(&name("attn_output_norm"))?,
            feed_forward,
            output_norm: self.norm(&name("layer_output_norm"))?,
        })
    }

    fn linear(&self, name: &str, out: usize, inp: usize) -> Result<Linear, EncoderError> {
        let weight = self.weights.tensor(&format!("{name}.weight"), &[out, inp])?;
        let bias = self.weights.optional_floats(&format!("{name}.bias"), &[out])?;
        Ok(Linear::new(&weight, bias, self.device)?)
    }

    /// Query, key and value, each a third of the rows of one tensor.
    fn fused_projections(&self, name: &str) -> Result<[Linear; 3], EncoderError> {
        let hidden = self.config.hidden;
        let weight = self.weights.tensor(&format!("{name}.weight"), &[3 * hidden, hidden])?;
        let bias = self.weights.optional_floats(&format!("{name}.bias"), &[3 * hidden])?;
        let bytes = weight.data.len() / 3;
        let third = |part: usize| -> Result<Linear, EncoderError> {
            let weight = RawTensor {
                dtype: weight.dtype,
                shape: vec![hidden, hidden],
                data: weight.data.slice(part * bytes..(part + 1) * bytes),
            };
            let bias = bias.as_ref().map(|bias| bias[part * hidden..(part + 1) * hidden].to_vec());
            Ok(Linear::new(&weight, bias, self.device)?)
        };
        Ok([third(0)?, third(1)?, third(2)?])
    }

    fn norm(&self, name: &str) -> Result<LayerNorm, EncoderError> {
        let hidden = self.config.hidden;
        let floats = |kind: &str| -> Result<Tensor, EncoderError> {
            Ok(Tensor::from_vec(self.weights.floats(&format!("{name}.{kind}"), &[hidden])?, hidden, self.device)?)
        };
        Ok(LayerNorm { weight: floats("weight")?, bias: floats("bias")?, eps: self.config.layer_norm_eps })
    }

    /// For a table of two rows, the second minus the first; the first is already added to every token.
    fn type_shifts(&self) -> Result<Option<Tensor>, EncoderError> {
        let hidden = self.config.hidden;
        let Ok(Some(rows)) = self.weights.optional_floats("token_types.weight", &[2, hidden]) else { return Ok(None) };
        let (zero, one) = rows.split_at(hidden);
        let shifts = zero.iter().map(|_| 0.0).chain(one.iter().zip(zero).map(|(one, zero)| one - zero));
        Ok(Some(Tensor::from_vec(shifts.collect::<Vec<f32>>(), (2, hidden), self.device)?))
    }

    /// The embedding of type 0, which every token of a single text has: `[hidden]`, if the model has token types.
    fn token_type_zero(&self) -> Result<Option<Vec<f32>>, EncoderError> {
        let hidden = self.config.hidden;
        // One row or two, depending on the model: no config key that all files have gives the number of types.
        for shape in [[2, hidden], [1, hidden]] {
            if let Ok(Some(mut rows)) = self.weights.optional_floats("token_types.weight", &shape) {
                rows.truncate(hidden);
                return Ok(Some(rows));
            }
        }
        // A table of another shape is an error; a missing table means no token types.
        self.weights.optional_floats("token_types.weight", &[1, hidden])
    }
}
