//! Hearth's decoder against candle-transformers' quantized models: same file, same machine, same run.
//!
//! Both compute one sequence: a prefill of `--prompt-tokens`, then `--decode-tokens` one at a time. They take
//! turns, so that whatever else the machine does falls on both, and medians over the repetitions are compared.
//! Both use as many threads as they choose; to bind candle, set `CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS`.
//!
//! `cargo bench --bench candle_baseline -- -m FILE --prompt-tokens 512 --decode-tokens 64`

use std::{fs::File, path::PathBuf, time::Instant};

use anyhow::{Context, bail};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{
    quantized_gemma3, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
};
use clap::Parser;
use hearth::{
    kernels::{device, kv::BLOCK_TOKENS},
    models::{
        batch::{Batch, BatchSequence, LogitsWanted},
        decoder::Decoder,
        gguf::Gguf,
        kv_cache::KvCache,
    },
};

#[derive(Parser)]
struct Arguments {
    /// A GGUF file of an architecture that candle-transformers has too.
    #[arg(short, long)]
    model: PathBuf,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 64)]
    decode_tokens: usize,
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Hearth's threads; its own choice if left out.
    #[arg(short, long)]
    threads: Option<usize>,
    /// Measure Hearth alone, for instance under a profiler.
    #[arg(long)]
    without_candle: bool,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One way to compute the model.
trait Runner {
    /// Logits of the token after `tokens`, the first of which is at `position`.
    fn step(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<Vec<f32>>;
}

struct HearthRunner {
    decoder: Decoder,
    cache: KvCache,
}

impl Runner for HearthRunner {
    fn step(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<Vec<f32>> {
        let blocks = (position + tokens.len()).div_ceil(BLOCK_TOKENS) as u32;
        let sequence = BatchSequence {
            num_tokens: tokens.len(),
            start: position,
            block_table: (0..blocks).collect(),
            logits: LogitsWanted::Last,
        };
        let batch = Batch { tokens: tokens.to_vec(), sequences: vec![sequence] };
        Ok(self.decoder.forward(&batch, &mut self.cache)?.flatten_all()?.to_vec1()?)
    }
}

enum CandleRunner {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Phi3(quantized_phi3::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl CandleRunner {
    fn load(path: &PathBuf, architecture: &str) -> anyhow::Result<Self> {
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
            other => bail!("candle-transformers has no quantized {other} model to compare with"),
        })
    }
}

impl Runner for CandleRunner {
    fn step(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<Vec<f32>> {
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
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}

/// Tokens per second of one repetition.
struct Speed {
    prefill: f64,
    decode: f64,
}

fn measure(runner: &mut dyn Runner, prompt: &[u32], decode_tokens: usize) -> anyhow::Result<(Speed, Vec<f32>)> {
    let began = Instant::now();
    let first = runner.step(prompt, 0)?;
    let prefill = prompt.len() as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    for offset in 0..decode_tokens {
        // Which token is decoded does not matter to the time; the same ones for everybody.
        runner.step(&[prompt[offset % prompt.len()]], prompt.len() + offset)?;
    }
    let decode = decode_tokens as f64 / began.elapsed().as_secs_f64();
    Ok((Speed { prefill, decode }, first))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(threads) = arguments.threads {
        device::set_threads(threads);
    }
    let began = Instant::now();
    let gguf = Gguf::open(&arguments.model)?;
    let decoder = Decoder::load(&gguf, &Device::Cpu)?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let architecture = decoder.config().architecture.name();
    println!(
        "{}: {architecture}, {}, {:.0} MB of weights, loaded in {load_ms:.0} ms, {} threads",
        arguments.model.display(),
        gguf.dominant_type(),
        decoder.weights_bytes() as f64 / 1e6,
        device::threads(),
    );
    let vocab = decoder.config().vocab;
    let total = arguments.prompt_tokens + arguments.decode_tokens;
    let kv_type = KvCache::default_type(&gguf);
    let cache = KvCache::new(decoder.config(), total.div_ceil(BLOCK_TOKENS), kv_type, &Device::Cpu)?;
    let mut runners: Vec<(&str, Box<dyn Runner>)> = vec![("hearth", Box::new(HearthRunner { decoder, cache }))];
    if !arguments.without_candle {
        let began = Instant::now();
        let candle = CandleRunner::load(&arguments.model, architecture).context("candle cannot load the file")?;
        println!("candle loaded it in {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
        runners.push(("candle", Box::new(candle)));
    }

    let prompt: Vec<u32> = (0..arguments.prompt_tokens).map(|index| ((index * 7919 + 11) % vocab) as u32).collect();
    let mut speeds: Vec<Vec<Speed>> = runners.iter().map(|_| Vec::new()).collect();
    let mut firsts = Vec::new();
    for repetition in 0..=arguments.repetitions {
        for ((name, runner), speeds) in runners.iter_mut().zip(&mut speeds) {
            let (speed, first) = measure(runner.as_mut(), &prompt, arguments.decode_tokens)?;
            // The first round warms caches and packs weights.
            if repetition == 0 {
                firsts.push(first);
            } else {
                println!("{name:8} prefill {:9.1} t/s, decode {:7.2} t/s", speed.prefill, speed.decode);
                speeds.push(speed);
            }
        }
    }
    if let [ours, theirs] = &firsts[..] {
        let difference = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        println!("largest difference of a logit after the prompt: {difference:.4}");
    }
    let medians: Vec<(f64, f64)> = speeds
        .iter()
        .map(|speeds| {
            (median(speeds.iter().map(|speed| speed.prefill)), median(speeds.iter().map(|speed| speed.decode)))
        })
        .collect();
    for ((name, _), (prefill, decode)) in runners.iter().zip(&medians) {
        println!("{name:8} median prefill {prefill:9.1} t/s, decode {decode:7.2} t/s");
    }
    if let [(our_prefill, our_decode), (their_prefill, their_decode)] = medians[..] {
        println!("ratio    prefill {:.2}, decode {:.2}", our_prefill / their_prefill, our_decode / their_decode);
    }
    Ok(())
}
