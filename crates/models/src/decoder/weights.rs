//! A decoder's weights, read from a file: every tensor is named, checked and put into the form the kernels need.
//!
//! Matrices stay in the file's own quantization blocks; on the CPU they stay in the memory map. Projections that some
//! converters fuse (`attn_qkv`, gate and up of Phi-3) are split by rows, which costs nothing, so one forward pass
//! serves both forms.

use hearth_kernels::{device::Backend, embedding::Embedding, linear::Linear, norm::RmsNorm, quant::RawTensor};

use super::{
    architecture::QkNorm,
    config::{DecoderConfig, LayerConfig},
    error::ModelError,
    tensors::{self, Tensors},
};
use crate::gguf::Gguf;

/// All learned parameters. Immutable.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) embedding: Embedding,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) output_norm: RmsNorm,
    /// From the hidden state to logits.
    pub(super) output: Linear,
}

/// One block. Norms are `None` where the family has none.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) attention_norm: Option<RmsNorm>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) query_norm: Option<RmsNorm>,
    pub(super) key_norm: Option<RmsNorm>,
    pub(super) attention_output: Linear,
    pub(super) attention_output_norm: Option<RmsNorm>,
    pub(super) ffn_norm: Option<RmsNorm>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) ffn_output_norm: Option<RmsNorm>,
}

impl Weights {
    pub(super) fn load(gguf: &Gguf, config: &DecoderConfig, backend: &Backend) -> Result<Self, ModelError> {
        let loader = Loader { tensors: Tensors::new(gguf), rms_norm_eps: config.rms_norm_eps, backend };
        loader.refuse_variants(gguf, config)?;

        let table_name = "token_embd.weight";
        let table = loader.matrix(table_name, config.vocab, config.hidden)?;
        let embedding =
            Embedding::new(&table, backend.device()).map_err(|error| loader.tensors.device_error(table_name, error))?;
        let output = if loader.tensors.contains("output.weight") {
            loader.linear("output", config.vocab, config.hidden)?
        } else {
            // Tied embeddings: the embedding table is also the output matrix.
            loader.place(table_name, &table, loader.tensors.optional_floats("output.bias", config.vocab)?)?
        };
        let output_norm = loader.rms_norm("output_norm.weight", config.hidden)?;
        let layers = (0..config.n_layers()).map(|layer| loader.layer(layer, config)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { embedding, layers, output_norm, output })
    }
}

struct Loader<'a> {
    tensors: Tensors<'a>,
    rms_norm_eps: f32,
    backend: &'a Backend,
}

impl Loader<'_> {
    /// Refuses tensors that change the network and that this definition would otherwise silently ignore.
    fn refuse_variants(&self, gguf: &Gguf, config: &DecoderConfig) -> Result<(), ModelError> {
        let unexpected = [
            ("blk.0.ffn_gate_inp.weight", "mixture-of-experts layers", true),
            ("blk.0.attn_sinks.weight", "attention sinks", true),
            ("blk.0.attn_q_norm.weight", "query and key norms", config.qk_norm() == QkNorm::None),
            ("blk.0.post_attention_norm.weight", "norms after attention", !config.architecture.has_output_norms()),
        ];
        for (tensor, feature, is_unexpected) in unexpected {
            if is_unexpected && self.tensors.contains(tensor) {
                return Err(ModelError::UnsupportedFeature {
                    path: gguf.metadata().path().to_owned(),
                    architecture: config.architecture.name(),
                    feature: feature.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn layer(&self, index: usize, config: &DecoderConfig) -> Result<LayerWeights, ModelError> {
        let layer = &config.layers[index];
        let name = |tensor: &str| format!("blk.{index}.{tensor}");
        let hidden = config.hidden;
        let (query_width, kv_width) = (layer.n_heads * config.head_dim, layer.n_kv_heads * config.head_dim);
        let [query, key, value] = self.query_key_value(index, query_width, kv_width, hidden)?;
        let (query_norm, key_norm) = match config.qk_norm() {
            QkNorm::None => (None, None),
            QkNorm::PerHead => (Some(config.head_dim), Some(config.head_dim)),
            QkNorm::AllHeads => (Some(query_width), Some(kv_width)),
        };
        let [gate, up] = self.gate_up(index, layer, hidden)?;
        let input_norm = config.architecture.has_input_norms().then_some(hidden);
        let output_norm = config.architecture.has_output_norms().then_some(hidden);
        Ok(LayerWeights {
            attention_norm: self.norm(&name("attn_norm.weight"), input_norm)?,
            query,
            key,
            value,
            query_norm: self.norm(&name("attn_q_norm.weight"), query_norm)?,
            key_norm: self.norm(&name("attn_k_norm.weight"), key_norm)?,
            attention_output: self.linear(&name("attn_output"), hidden, query_width)?,
            attention_output_norm: self.norm(&name("post_attention_norm.weight"), output_norm)?,
            ffn_norm: self.norm(&name("ffn_norm.weight"), input_norm)?,
            gate,
            up,
            down: self.linear(&name("ffn_down"), hidden, layer.ffn)?,
            ffn_output_norm: self.norm(&name("post_ffw_norm.weight"), output_norm)?,
        })
    }

    fn query_key_value(
        &self,
        index: usize,
        query_width: usize,
        kv_width: usize,
        hidden: usize,
    ) -> Result<[Linear; 3], ModelError> {
        let fused = format!("blk.{index}.attn_qkv");
        if self.tensors.contains(&format!("{fused}.weight")) {
            return self.fused(&fused, [query_width, kv_width, kv_width], hidden);
        }
        Ok([
            self.linear(&format!("blk.{index}.attn_q"), query_width, hidden)?,
            self.linear(&format!("blk.{index}.attn_k"), kv_width, hidden)?,
            self.linear(&format!("blk.{index}.attn_v"), kv_width, hidden)?,
        ])
    }

    fn gate_up(&self, index: usize, layer: &LayerConfig, hidden: usize) -> Result<[Linear; 2], ModelError> {
        let (gate, up) = (format!("blk.{index}.ffn_gate"), format!("blk.{index}.ffn_up"));
        if self.tensors.contains(&format!("{gate}.weight")) {
            return Ok([self.linear(&gate, layer.ffn, hidden)?, self.linear(&up, layer.ffn, hidden)?]);
        }
        // Phi-3 stores the gate in the first half of `ffn_up`.
        self.fused(&up, [layer.ffn, layer.ffn], hidden)
    }

    /// Splits a matrix by rows into layers of these widths, in order.
    fn fused<const N: usize>(&self, name: &str, widths: [usize; N], columns: usize) -> Result<[Linear; N], ModelError> {
        let (weight_name, total) = (format!("{name}.weight"), widths.iter().sum());
        let weight = self.matrix(&weight_name, total, columns)?;
        let bias = self.tensors.optional_floats(&format!("{name}.bias"), total)?;
        let mut parts = Vec::with_capacity(N);
        let mut start = 0;
        for width in widths {
            let part = tensors::rows(&weight, start, width).ok_or_else(|| {
                let error = candle_core::Error::Msg(format!("its rows of {columns} elements are not whole blocks"));
                self.tensors.device_error(&weight_name, error)
            })?;
            let bias = bias.as_ref().map(|bias| bias[start..start + width].to_vec());
            parts.push(self.place(&weight_name, &part, bias)?);
            start += width;
        }
        Ok(parts.try_into().expect("one part was pushed for each width"))
    }

    /// `NAME.weight` and, if there is one, `NAME.bias`.
    fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        let weight_name = format!("{name}.weight");
        let weight = self.matrix(&weight_name, rows, columns)?;
        let bias = self.tensors.optional_floats(&format!("{name}.bias"), rows)?;
        self.place(&weight_name, &weight, bias)
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<RawTensor, ModelError> {
        self.tensors.shaped(name, &[rows, columns])
    }

    fn place(&self, name: &str, weight: &RawTensor, bias: Option<Vec<f32>>) -> Result<Linear, ModelError> {
        Linear::of_backend(weight, bias, self.backend).map_err(|error| self.tensors.device_error(name, error))
    }

    fn norm(&self, name: &str, width: Option<usize>) -> Result<Option<RmsNorm>, ModelError> {
        width.map(|width| self.rms_norm(name, width)).transpose()
    }

    fn rms_norm(&self, name: &str, width: usize) -> Result<RmsNorm, ModelError> {
        let weight = self.tensors.floats(name, width)?;
        RmsNorm::new(weight, self.rms_norm_eps, self.backend.device())
            .map_err(|error| self.tensors.device_error(name, error))
    }
}
