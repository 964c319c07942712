//! Cross-encoders: take a query's and a passage's tokens together and return one logit.
//!
//! The network is the same [`Bert`] that embeds; the classification head that `transformers` calls
//! `...ForSequenceClassification`, with one label, is applied to the first token's vector. BERT's head is a pooler
//! (dense, tanh) and a linear layer; RoBERTa's has the same shape under other names. Joining a pair into one text is
//! not done here.

use candle_core::{Device, IndexOp, Tensor};

use super::{
    EncoderError, EncoderFacts, EncoderSource,
    bert::Bert,
    config::EncoderConfig,
    package::{read_json, tokenizer_limit},
    weights::{EncoderWeights, SafetensorsWeights},
};
use hearth_kernels::linear::Linear;

/// A loaded cross-encoder: immutable, shared between threads.
#[derive(Debug)]
pub struct CrossEncoder {
    config: EncoderConfig,
    network: Bert,
    head: Head,
    /// Maximum length of a pair in tokens, special tokens included.
    max_tokens: usize,
    facts: EncoderFacts,
}

/// `classifier · tanh(dense(x)) + bias`
#[derive(Debug)]
struct Head {
    dense: Linear,
    classifier: Vec<f32>,
    bias: f32,
}

impl CrossEncoder {
    /// # Errors
    /// A GGUF file, a model without a classification head or with several labels, and every reason for which an
    /// embedding model may be refused.
    pub fn load(source: &EncoderSource, device: &Device) -> Result<Self, EncoderError> {
        let EncoderSource::Directory { transformer, .. } = source else {
            return Err(EncoderError::Config(
                "a rerank model is a directory with config.json, tokenizer.json and model.safetensors; GGUF files are \
                 not read as one"
                    .into(),
            ));
        };
        let path = transformer.join("config.json");
        let json = read_json(&path)?.ok_or_else(|| EncoderError::Config(format!("{} is gone", path.display())))?;
        let config = EncoderConfig::from_json(&json)?;
        let weights = EncoderWeights::Safetensors(SafetensorsWeights::open(transformer)?);
        let head = Head::load(&config, &weights, device)?;
        let max_tokens = tokenizer_limit(transformer)?.unwrap_or(usize::MAX).min(config.max_positions);
        let facts = EncoderFacts {
            parameters: weights.parameters(),
            dominant_type: weights.dominant_type(),
            file_bytes: weights.file_bytes(),
        };
        Ok(Self { network: Bert::load(&config, &weights, device)?, config, head, max_tokens, facts })
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    pub fn facts(&self) -> &EncoderFacts {
        &self.facts
    }

    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// One logit per pair. `tokens` holds the pairs, concatenated, and `lengths` the number of tokens of each. A pair's
    /// second part, of token type 1, begins after the first `separator` token.
    pub fn logits(&self, tokens: &[u32], lengths: &[usize], separator: u32) -> candle_core::Result<Vec<f32>> {
        if let Some(length) = lengths.iter().find(|&&length| length == 0 || length > self.config.max_positions) {
            candle_core::bail!("a pair of {length} tokens is outside 1..={}", self.config.max_positions);
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.config.vocab) {
            candle_core::bail!("token {token} is outside the vocabulary of {}", self.config.vocab);
        }
        let (mut types, mut firsts, mut start) = (Vec::with_capacity(tokens.len()), Vec::new(), 0_usize);
        for &length in lengths {
            let pair = tokens.get(start..start + length).unwrap_or_default();
            let first_part = pair.iter().position(|&token| token == separator).map_or(length, |at| at + 1);
            types.extend((0..length).map(|position| u32::from(position >= first_part)));
            firsts.push(start as u32);
            start += length;
        }
        let states = self.network.forward_typed(tokens, lengths, Some(&types))?;
        let firsts = Tensor::from_vec(firsts, lengths.len(), states.device())?;
        let pooled = self.head.dense.forward(&states.index_select(&firsts, 0)?)?.tanh()?;
        (0..lengths.len())
            .map(|pair| {
                let pooled = pooled.i(pair)?.to_vec1::<f32>()?;
                Ok(self.head.bias + pooled.iter().zip(&self.head.classifier).map(|(x, weight)| x * weight).sum::<f32>())
            })
            .collect()
    }
}

impl Head {
    fn load(config: &EncoderConfig, weights: &EncoderWeights, device: &Device) -> Result<Self, EncoderError> {
        let hidden = config.hidden;
        // `cls` and `cls.output` are RoBERTa's names, the other two BERT's.
        let (dense, out) = if weights.has("cls.weight") { ("cls", "cls.output") } else { ("pooler", "classifier") };
        if !weights.has(&format!("{dense}.weight")) || !weights.has(&format!("{out}.weight")) {
            return Err(EncoderError::Config(
                "the model has no classification head, so it is no rerank model; use one made for \
                 ...ForSequenceClassification with one label"
                    .into(),
            ));
        }
        let linear = weights.tensor(&format!("{dense}.weight"), &[hidden, hidden])?;
        let bias = weights.floats(&format!("{dense}.bias"), &[hidden])?;
        let classifier = weights.floats(&format!("{out}.weight"), &[1, hidden])?;
        let out_bias = weights.floats(&format!("{out}.bias"), &[1])?;
        Ok(Self {
            dense: Linear::new(&linear, Some(bias), device)?,
            classifier,
            bias: out_bias.first().copied().unwrap_or_default(),
        })
    }
}
