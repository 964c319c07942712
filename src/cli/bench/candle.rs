//! The baseline of `--baseline`: candle-transformers' own quantized model of the same file.
//!
//! One sequence, as its examples run it: the whole prompt at once, then token by token. It computes on the CPU with as
//! many threads as candle chooses (`CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS` limit it).

use std::{fs::File, path::Path, time::Instant};

use anyhow::{Context, bail};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{
    quantized_gemma3, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
};

use super::{Workload, prompt, report::Measured};

pub(super) struct Baseline {
    model: Model,
    vocab_size: usize,
}

enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Phi3(quantized_phi3::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Baseline {
    /// # Errors
    /// If candle-transformers lacks the architecture or cannot read the file, such as a split one.
    pub(super) fn load(path: &Path, architecture: &str, vocab_size: usize) -> anyhow::Result<Self> {
        let model = Model::load(path, architecture)
            .with_context(|| format!("--baseline: candle-transformers cannot load {}", path.display()))?;
        Ok(Self { model, vocab_size })
    }

    /// Records the prefill, to the first token, and the decoding, from the first token to the last.
    pub(super) fn measure(&mut self, workload: Workload, salt: u64, measured: &mut Measured) -> anyhow::Result<()> {
        if workload.prefill {
            let tokens = prompt(workload.prompt_tokens, self.vocab_size, salt);
            let started = Instant::now();
            self.model.next_token(&tokens, 0)?;
            measured.record_prefill(workload, started.elapsed().as_secs_f64());
        }
        if workload.decode {
            let mut token = self.model.next_token(&prompt(workload.depth, self.vocab_size, salt + 1), 0)?;
            let started = Instant::now();
            for step in 0..workload.decode_tokens - 1 {
                token = self.model.next_token(&[token], workload.depth + step)?;
            }
            measured.record_decode(workload, started.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

impl Model {
    fn load(path: &Path, architecture: &str) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let device = Device::Cpu;
        Ok(match architecture {
            "llama" => Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &device)?),
            "qwen2" => Self::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device)?),
            "qwen3" => Self::Qwen3(quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &device)?),
            "phi3" => Self::Phi3(quantized_phi3::ModelWeights::from_gguf(false, content, &mut file, &device)?),
            "gemma" | "gemma2" | "gemma3" => {
                Self::Gemma3(quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &device)?)
            }
            other => bail!("it has no quantized model of the architecture {other}"),
        })
    }

    /// The likeliest token after `tokens`, the first of which is at `position`; position 0 starts a new sequence.
    fn next_token(&mut self, tokens: &[u32], position: usize) -> candle_core::Result<u32> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Llama(model) => model.forward(&input, position)?,
            Self::Qwen2(model) => model.forward(&input, position)?,
            Self::Qwen3(model) => {
                if position == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, position)?
            }
            Self::Phi3(model) => model.forward(&input, position)?,
            Self::Gemma3(model) => model.forward(&input, position)?,
        };
        logits.flatten_all()?.argmax(0)?.to_scalar()
    }
}
