//! The engine over a real decoder: what a request gets depends neither on who else is running nor on how the weights are laid out.
//!
//! Requests share prefixes, outnumber the running sequences and do not fit the cache together, so that chunked
//! prefill, prefix reuse and preemption all happen; each must still get the tokens that it would get alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt;
use hearth::engine::{DecoderModel, Engine, EngineConfig, SequenceRequest, TokenEvent};
use hearth_domain::SamplingParams;
use hearth_kernels::{
    device::Backend,
    kv::{BLOCK_TOKENS, KvType},
};
use hearth_models::{decoder::Decoder, gguf::Gguf, kv_cache::KvCache};

fn decoder(path: &Path, is_repacked: bool) -> Arc<Decoder> {
    let gguf = Gguf::open(path).expect("the fixture is a GGUF file");
    let decoder = Decoder::load(&gguf, &Backend::Cpu).expect("the fixture's family is supported");
    if is_repacked {
        assert_eq!(decoder.tile_bytes(), 0);
        decoder.repack(&gguf).expect("there is memory");
        let bytes = decoder.tile_bytes();
        assert!(bytes > 0 && bytes < 2 * gguf.file_bytes() + (1 << 16), "{bytes} of {}", gguf.file_bytes());
        decoder.repack(&gguf).expect("there is nothing to do");
        assert_eq!(decoder.tile_bytes(), bytes);
    }
    Arc::new(decoder)
}

fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/logits/{family}.gguf"))
}

fn engine(decoder: &Arc<Decoder>, num_blocks: usize) -> Engine {
    let cache = KvCache::new(decoder.config(), num_blocks, KvType::F32, &Backend::Cpu).expect("a small cache fits");
    let config = EngineConfig {
        num_blocks,
        block_tokens: BLOCK_TOKENS,
        max_running_sequences: 4,
        max_batch_tokens: 24,
        context_length: decoder.context_length(),
        ..EngineConfig::default()
    };
    Engine::start(Box::new(DecoderModel::new(Arc::clone(decoder), cache)), config).expect("the limits are valid")
}

/// Prompts that begin alike and go apart at different places.
fn prompts() -> Vec<Vec<u32>> {
    (0..8u32)
        .map(|index| (0..40 + 5 * index).map(|token| 3 + (token * 7 + (token / 33) * index) % 60).collect())
        .collect()
}

async fn generate(engine: &Engine, prompt: Vec<u32>, seed: Option<i64>) -> Vec<u32> {
    let mut request = SequenceRequest::new(prompt);
    request.sampling =
        SamplingParams { temperature: if seed.is_some() { 1.0 } else { 0.0 }, seed, ..Default::default() };
    request.max_new_tokens = Some(30);
    let mut stream = engine.submit(request).expect("there is room in the queue");
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        if let TokenEvent::Token { id, .. } = event.expect("no step fails") {
            tokens.push(id);
        }
    }
    tokens
}

#[tokio::test]
async fn company_changes_no_text() {
    for family in ["llama3", "qwen3", "gemma3"] {
        let decoder = decoder(&fixture(family), false);
        for seed in [None, Some(7)] {
            let roomy = engine(&decoder, 256);
            let mut alone = Vec::new();
            for prompt in prompts() {
                alone.push(generate(&roomy, prompt, seed).await);
            }
            assert!(alone.iter().all(|tokens| tokens.len() == 30), "nothing ends early without end tokens");

            // Ten blocks: two of the longer sequences do not fit together.
            let tight = engine(&decoder, 10);
            let together = prompts().into_iter().map(|prompt| generate(&tight, prompt, seed));
            assert_eq!(futures_util::future::join_all(together).await, alone, "{family}, seed {seed:?}");
        }
    }
}

/// The bundled model has quantized weights, which the families' fixtures do not.
#[tokio::test]
async fn tiles_and_company_change_no_text() {
    let bundled = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/hearth-chat.gguf");
    for path in [bundled, fixture("llama3")] {
        let from_file = engine(&decoder(&path, false), 256);
        let from_tiles = engine(&decoder(&path, true), 256);
        for seed in [None, Some(7)] {
            let mut alone = Vec::new();
            for prompt in prompts() {
                alone.push(generate(&from_file, prompt, seed).await);
            }
            let together = prompts().into_iter().map(|prompt| generate(&from_tiles, prompt, seed));
            assert_eq!(futures_util::future::join_all(together).await, alone, "{}, seed {seed:?}", path.display());
        }
    }
}
