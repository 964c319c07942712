//! The forward pass: takes the token ids of many sequences and returns the logits of the requested rows.
//!
//! Tokens of all sequences are rows of one matrix; only attention knows where one sequence ends and the next begins. A
//! row's result does not depend on the other rows, so a sequence gets the same logits in one prefill, in chunks, token
//! by token, and alongside any other sequences.

use candle_core::{DType, Device, Result, Tensor};
use hearth_kernels::{
    activation,
    attention::{self, AttentionBatch, AttentionParams, AttentionSpan},
    kv::{BLOCK_TOKENS, KvLayer},
    linear::Linear,
    norm, rope,
};

use super::{
    Decoder,
    architecture::QkNorm,
    config::{AttentionTemperature, LayerConfig, LayerRope},
    weights::LayerWeights,
};
use crate::{
    batch::{Batch, LogitsWanted},
    kv_cache::KvCache,
};

/// What the layers of a step share.
struct Step<'a> {
    /// Position of each token in its sequence.
    positions: Vec<u32>,
    /// Rows whose logits are wanted; `None` if all are.
    wanted_rows: Option<Tensor>,
    attention: AttentionBatch<'a>,
    /// Query factor of each token, `[tokens, 1, 1]`, for families that have one.
    query_scale: Option<Tensor>,
}

impl Decoder {
    /// Computes one step: writes the tokens' keys and values into `cache` and returns the logits that the batch
    /// requests, `[batch.num_logits(), vocab]`, f32, on the CPU.
    ///
    /// # Errors
    /// The batch is inconsistent or reaches beyond the context or the cache, or the device failed (most often out of
    /// memory). The contents of this batch's KV blocks are then undefined; other blocks are untouched.
    pub fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Tensor> {
        self.check(batch, cache)?;
        if batch.tokens.is_empty() {
            return self.no_logits();
        }
        let step = self.step(batch)?;
        let mut hidden = scaled(self.weights.embedding.forward(&batch.tokens)?, self.config.embedding_scale)?;
        let last = self.config.n_layers() - 1;
        let layers = self.config.layers.iter().zip(&self.weights.layers).zip(cache.layers_mut());
        for (index, ((layer, weights), kv)) in layers.enumerate() {
            let attended = self.attention(layer, weights, &hidden, kv, &step)?;
            if index == last && batch.num_logits() == 0 {
                return self.no_logits();
            }
            // After the last layer's attention only the wanted rows continue.
            let attended = match (&step.wanted_rows, index == last) {
                (Some(rows), true) => {
                    hidden = hidden.index_select(rows, 0)?;
                    attended.index_select(rows, 0)?
                }
                _ => attended,
            };
            hidden = self.attention_residual(weights, &attended, &hidden)?;
            hidden = self.feed_forward(weights, &hidden)?;
        }
        self.logits(&hidden)
    }

    fn no_logits(&self) -> Result<Tensor> {
        Tensor::zeros((0, self.config.vocab), DType::F32, &Device::Cpu)
    }

    fn check(&self, batch: &Batch, cache: &KvCache) -> Result<()> {
        let tokens: usize = batch.sequences.iter().map(|sequence| sequence.num_tokens).sum();
        if tokens != batch.tokens.len() {
            candle_core::bail!("the batch has {} tokens, its sequences {tokens}", batch.tokens.len());
        }
        if cache.n_layers() != self.config.n_layers() {
            candle_core::bail!(
                "the KV cache has {} layers, the model {}: it was made for another model",
                cache.n_layers(),
                self.config.n_layers()
            );
        }
        for sequence in &batch.sequences {
            let end = sequence.start.saturating_add(sequence.num_tokens);
            if end > self.context_length {
                candle_core::bail!("position {end} is beyond the context of {} tokens", self.context_length);
            }
            let blocks = end.div_ceil(BLOCK_TOKENS);
            match sequence.block_table.get(..blocks) {
                None => candle_core::bail!("{end} tokens need {blocks} KV blocks, not {}", sequence.block_table.len()),
                Some(table) => {
                    if let Some(block) = table.iter().find(|&&block| block as usize >= cache.num_blocks()) {
                        candle_core::bail!("KV block {block} is not among the {} there are", cache.num_blocks());
                    }
                }
            }
        }
        Ok(())
    }

    fn step<'a>(&self, batch: &'a Batch) -> Result<Step<'a>> {
        let mut positions = Vec::with_capacity(batch.tokens.len());
        let mut wanted = Vec::new();
        let mut spans = Vec::with_capacity(batch.sequences.len());
        for sequence in &batch.sequences {
            let first = positions.len();
            // `check` has already bounded every position by the context length.
            positions.extend((sequence.start..sequence.start + sequence.num_tokens).map(|position| position as u32));
            match sequence.logits {
                LogitsWanted::None => {}
                LogitsWanted::Last if sequence.num_tokens == 0 => {
                    candle_core::bail!("logits are wanted of a sequence without tokens");
                }
                LogitsWanted::Last => wanted.push(positions.len() as u32 - 1),
                LogitsWanted::All => wanted.extend(first as u32..positions.len() as u32),
            }
            spans.push(AttentionSpan {
                num_tokens: sequence.num_tokens,
                start: sequence.start,
                block_table: &sequence.block_table,
            });
        }
        let wanted_rows = if wanted.len() == positions.len() {
            None
        } else {
            let count = wanted.len();
            Some(Tensor::from_vec(wanted, count, &self.device)?)
        };
        let query_scale = self
            .config
            .attention_temperature
            .map(|temperature| query_scale(temperature, &positions, &self.device))
            .transpose()?;
        Ok(Step { positions, wanted_rows, attention: AttentionBatch { spans }, query_scale })
    }

    /// Attention without its output projection: `[tokens, n_heads * head_dim]`.
    fn attention(
        &self,
        layer: &LayerConfig,
        weights: &LayerWeights,
        hidden: &Tensor,
        kv: &mut KvLayer,
        step: &Step<'_>,
    ) -> Result<Tensor> {
        let input = self.normalized(hidden, weights.attention_norm.as_ref())?;
        let projected = Linear::forward_shared(&[&weights.query, &weights.key, &weights.value], &input)?;
        let [query, key, value]: [Tensor; 3] =
            projected.try_into().map_err(|_| candle_core::Error::msg("three projections gave another count"))?;
        let tokens = step.positions.len();
        let by_head = |x: Tensor, heads: usize| x.reshape((tokens, heads, self.config.head_dim));
        let query = self.positioned(query, weights.query_norm.as_ref(), layer.n_heads, layer.rope, step)?;
        let key = self.positioned(key, weights.key_norm.as_ref(), layer.n_kv_heads, layer.rope, step)?;
        let value = by_head(value, layer.n_kv_heads)?;
        let query = match &step.query_scale {
            Some(scale) => query.broadcast_mul(scale)?,
            None => query,
        };
        let params = AttentionParams {
            scale: self.config.attention_scale,
            softcap: self.config.attention_softcap,
            window: layer.window,
        };
        attention::attention(&query, &key, &value, kv, &step.attention, &params)
    }

    /// Queries or keys, normalized and rotated: `[tokens, heads, head_dim]`.
    fn positioned(
        &self,
        x: Tensor,
        weight: Option<&Tensor>,
        heads: usize,
        layer_rope: LayerRope,
        step: &Step<'_>,
    ) -> Result<Tensor> {
        let shape = (step.positions.len(), heads, self.config.head_dim);
        let x = match self.config.qk_norm() {
            QkNorm::AllHeads => self.normalized(&x, weight)?.reshape(shape)?,
            QkNorm::None | QkNorm::PerHead => self.normalized(&x.reshape(shape)?, weight)?,
        };
        let table = match layer_rope {
            LayerRope::Global => &self.rope,
            LayerRope::Local => self.local_rope.as_ref().unwrap_or(&self.rope),
            LayerRope::None => return Ok(x),
        };
        rope::rope(&x, &step.positions, table, self.config.architecture.rope_layout())
    }

    fn attention_residual(&self, weights: &LayerWeights, attended: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let output = weights.attention_output.forward(attended)?;
        let output = self.normalized(&output, weights.attention_output_norm.as_ref())?;
        hidden + scaled(output, self.config.residual_scale)?
    }

    fn feed_forward(&self, weights: &LayerWeights, hidden: &Tensor) -> Result<Tensor> {
        let input = self.normalized(hidden, weights.ffn_norm.as_ref())?;
        let projected = Linear::forward_shared(&[&weights.gate, &weights.up], &input)?;
        let [gate, up]: [Tensor; 2] =
            projected.try_into().map_err(|_| candle_core::Error::msg("two projections gave another count"))?;
        let gated = activation::gated(&gate, &up, self.config.architecture.activation())?;
        let output = weights.down.forward(&gated)?;
        let output = self.normalized(&output, weights.ffn_output_norm.as_ref())?;
        hidden + scaled(output, self.config.residual_scale)?
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.normalized(hidden, Some(&self.weights.output_norm))?;
        let logits = scaled(self.weights.output.forward(&hidden)?, self.config.logit_scale)?;
        let logits = match self.config.logit_softcap {
            Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
            None => logits,
        };
        logits.to_device(&Device::Cpu)
    }

    fn normalized(&self, x: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        match weight {
            Some(weight) => norm::rms_norm(x, weight, self.config.rms_norm_eps),
            None => Ok(x.clone()),
        }
    }
}

fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x * f64::from(factor) }
}

fn query_scale(temperature: AttentionTemperature, positions: &[u32], device: &Device) -> Result<Tensor> {
    let scales: Vec<f32> = positions
        .iter()
        .map(|&position| {
            let periods = (position as usize / temperature.length) as f32;
            1.0 + temperature.scale * periods.ln_1p()
        })
        .collect();
    Tensor::from_vec(scales, (positions.len(), 1, 1), device)
}
