//! The forward pass: takes the token ids of many sequences and returns the logits of the requested rows.
//!
//! Tokens of all sequences are rows of one matrix; only attention knows where one sequence ends and the next begins. A
//! row's result does not depend on the other rows, so a sequence gets the same logits in one prefill, in chunks, token
//! by token, and alongside any other sequences.

use candle_core::Result;
use hearth_kernels::{
    attention::{AttentionBatch, AttentionParams, AttentionSpan},
    device::Backend,
    kv::{BLOCK_TOKENS, KvLayer},
    norm::RmsNorm,
    step::{Operations, Plan, Tensors},
};

use super::{
    Decoder,
    config::{AttentionTemperature, LayerConfig, LayerRope},
    weights::LayerWeights,
};
use crate::{
    batch::{Batch, LogitsWanted},
    kv_cache::KvCache,
};

/// What the layers of a step share.
struct Step<'a> {
    tokens: &'a [u32],
    /// Position of each token in its sequence.
    positions: Vec<u32>,
    /// Rows whose logits are wanted.
    wanted_rows: Vec<u32>,
    attention: AttentionBatch<'a>,
    /// Query factor of each token, for families that have one.
    query_scale: Option<Vec<f32>>,
}

impl Decoder {
    /// Computes one step: writes the tokens' keys and values into `cache` and returns the logits that the batch
    /// requests, `[batch.num_logits(), vocab]`, row by row.
    ///
    /// # Errors
    /// The batch is inconsistent or reaches beyond the context or the cache, or the device failed (most often out of
    /// memory). The contents of this batch's KV blocks are then undefined; other blocks are untouched.
    pub fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Vec<f32>> {
        self.check(batch, cache)?;
        if batch.tokens.is_empty() {
            return Ok(Vec::new());
        }
        let step = self.step(batch)?;
        let (layers, workspace) = cache.parts();
        match &self.backend {
            Backend::Cpu => Pass { decoder: self, step: &step, operations: Plan::new(workspace) }.run(layers),
            Backend::Candle(device) => {
                Pass { decoder: self, step: &step, operations: Tensors::new(device.clone()) }.run(layers)
            }
        }
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
        let mut wanted_rows = Vec::new();
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
                LogitsWanted::Last => wanted_rows.push(positions.len() as u32 - 1),
                LogitsWanted::All => wanted_rows.extend(first as u32..positions.len() as u32),
            }
            spans.push(AttentionSpan {
                num_tokens: sequence.num_tokens,
                start: sequence.start,
                block_table: &sequence.block_table,
            });
        }
        let query_scale = self.config.attention_temperature.map(|temperature| query_scale(temperature, &positions));
        Ok(Step { tokens: &batch.tokens, positions, wanted_rows, attention: AttentionBatch::new(spans)?, query_scale })
    }
}

/// One way through the layers.
struct Pass<'a, O> {
    decoder: &'a Decoder,
    step: &'a Step<'a>,
    operations: O,
}

impl<'a, O: Operations<'a>> Pass<'a, O> {
    fn run(mut self, caches: &'a mut [KvLayer]) -> Result<Vec<f32>> {
        let (config, weights) = (&self.decoder.config, &self.decoder.weights);
        let embedded = self.operations.lookup(&weights.embedding, self.step.tokens)?;
        let mut hidden = self.scaled(embedded, config.embedding_scale)?;
        let last = config.n_layers() - 1;
        for (index, ((layer, weights), kv)) in config.layers.iter().zip(&weights.layers).zip(caches).enumerate() {
            let mut attended = self.attention(layer, weights, &hidden, kv)?;
            if index == last && self.step.wanted_rows.is_empty() {
                return self.operations.compute(None);
            }
            // After the last layer's attention only the wanted rows continue.
            if index == last && self.step.wanted_rows.len() < self.step.tokens.len() {
                hidden = self.operations.select(&hidden, &self.step.wanted_rows)?;
                attended = self.operations.select(&attended, &self.step.wanted_rows)?;
            }
            hidden = match &weights.attention_output_norm {
                None => {
                    let output = &weights.attention_output;
                    self.operations.linear_added(output, &attended, &hidden, config.residual_scale)?
                }
                Some(norm) => {
                    let [output] = self.operations.linear([&weights.attention_output], &attended)?;
                    let output = self.operations.rms_norm(&output, norm)?;
                    self.operations.add(&hidden, &output, config.residual_scale)?
                }
            };
            hidden = self.feed_forward(weights, hidden)?;
        }
        let logits = self.logits(&hidden)?;
        self.operations.compute(Some(&logits))
    }

    /// Attention without its output projection: `[tokens, n_heads * head_dim]`.
    fn attention(
        &mut self,
        layer: &LayerConfig,
        weights: &'a LayerWeights,
        hidden: &O::Rows,
        kv: &'a mut KvLayer,
    ) -> Result<O::Rows> {
        let config = &self.decoder.config;
        let input = self.normalized(hidden, weights.attention_norm.as_ref())?;
        let [query, key, value] = self.operations.linear([&weights.query, &weights.key, &weights.value], &input)?;
        let query = self.positioned(query, weights.query_norm.as_ref(), layer.rope)?;
        let key = self.positioned(key, weights.key_norm.as_ref(), layer.rope)?;
        let query = match &self.step.query_scale {
            Some(factors) => self.operations.scale_rows(query, factors)?,
            None => query,
        };
        let params =
            AttentionParams { scale: config.attention_scale, softcap: config.attention_softcap, window: layer.window };
        self.operations.attention([query, key, value], kv, &self.step.attention, params)
    }

    /// Queries or keys, normalized, over each head or over all of them as the weight's width has it, and rotated.
    fn positioned(&mut self, x: O::Rows, norm: Option<&'a RmsNorm>, layer_rope: LayerRope) -> Result<O::Rows> {
        let x = self.normalized(&x, norm)?;
        let decoder = self.decoder;
        let table = match layer_rope {
            LayerRope::Global => &decoder.rope,
            LayerRope::Local => decoder.local_rope.as_ref().unwrap_or(&decoder.rope),
            LayerRope::None => return Ok(x),
        };
        let layout = decoder.config.architecture.rope_layout();
        self.operations.rope(x, decoder.config.head_dim, &self.step.positions, table, layout)
    }

    fn feed_forward(&mut self, weights: &'a LayerWeights, hidden: O::Rows) -> Result<O::Rows> {
        let config = &self.decoder.config;
        let input = self.normalized(&hidden, weights.ffn_norm.as_ref())?;
        let gate_and_up = [&weights.gate, &weights.up];
        let gated = self.operations.linear_gated(gate_and_up, &input, config.architecture.activation())?;
        match &weights.ffn_output_norm {
            None => self.operations.linear_added(&weights.down, &gated, &hidden, config.residual_scale),
            Some(norm) => {
                let [output] = self.operations.linear([&weights.down], &gated)?;
                let output = self.operations.rms_norm(&output, norm)?;
                self.operations.add(&hidden, &output, config.residual_scale)
            }
        }
    }

    fn logits(&mut self, hidden: &O::Rows) -> Result<O::Rows> {
        let (config, weights) = (&self.decoder.config, &self.decoder.weights);
        let hidden = self.operations.rms_norm(hidden, &weights.output_norm)?;
        let [logits] = self.operations.linear([&weights.output], &hidden)?;
        let logits = self.scaled(logits, config.logit_scale)?;
        match config.logit_softcap {
            Some(cap) => self.operations.soft_cap(logits, cap),
            None => Ok(logits),
        }
    }

    fn normalized(&mut self, x: &O::Rows, norm: Option<&'a RmsNorm>) -> Result<O::Rows> {
        norm.map_or_else(|| Ok(x.clone()), |norm| self.operations.rms_norm(x, norm))
    }

    fn scaled(&mut self, x: O::Rows, factor: f32) -> Result<O::Rows> {
        if factor == 1.0 { Ok(x) } else { self.operations.scale(x, factor) }
    }
}

fn query_scale(temperature: AttentionTemperature, positions: &[u32]) -> Vec<f32> {
    positions
        .iter()
        .map(|&position| {
            let periods = (position as usize / temperature.length) as f32;
            1.0 + temperature.scale * periods.ln_1p()
        })
        .collect()
}
