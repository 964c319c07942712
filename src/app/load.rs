//! Loads models from files: which file a configuration means, and what is built from it.
//!
//! The server, `hearth chat` and `hearth bench` share these functions, so that what is measured and tried is what is
//! served.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, UNIX_EPOCH},
};

use anyhow::Context;
use hearth_domain::{ModelInfo, ModelKind};
use hearth_kernels::{
    device::{Backend, cpu_features, open_device, set_threads, threads},
    freed_memory,
    kv::BLOCK_TOKENS,
    linear::Repack,
};
use hearth_models::{
    decoder::{Decoder, DecoderConfig},
    gguf::Gguf,
    kv_cache::KvCache,
    manifest::Kind,
};
use hearth_text::{chat_template::ChatTemplate, tokenizer::Tokenizer};

use crate::{
    config::Config,
    engine::{
        Engine, EngineConfig,
        encoder::EncoderConfig,
        model::DecoderModel,
        sizing::{CacheNeeds, CacheSize, size_cache},
    },
    providers::{
        local::{Grammars, LocalChat, Parts},
        local_embedder::{EmbedderSettings, LocalEmbedder},
        local_reranker::LocalReranker,
    },
};

/// Loads the chat model that the configuration names, or the one in its models directory; `None` if there is
/// none.
///
/// # Errors
/// If the file is not a model that Hearth runs, or does not fit in memory.
pub fn load_chat(config: &Config) -> anyhow::Result<Option<LocalChat>> {
    let Some(path) = chat_model_path(config)? else { return Ok(None) };
    let began = Instant::now();
    if let Some(count) = config.threads {
        set_threads(count);
    }
    let gguf = Gguf::open(&path)?;
    let backend = config.device.backend(&open_device(config.device)?);
    let decoder_config = DecoderConfig::from_gguf(&gguf).with_context(|| format!("loading {}", path.display()))?;
    let kv_type = config.engine.kv_type.unwrap_or_else(|| KvCache::default_type(&gguf));
    let block_bytes = decoder_config.kv_bytes_per_block(kv_type) as u64;
    let CacheSize { num_blocks, context_length } = size_cache(CacheNeeds {
        model_context: decoder_config.context_length,
        context: config.engine.context_length,
        sequences: config.engine.max_running_sequences,
        block_tokens: BLOCK_TOKENS,
        block_bytes,
        budget_bytes: config.engine.kv_bytes,
        available_bytes: available_memory().saturating_sub(gguf.file_bytes()),
    })?;
    if context_length > decoder_config.context_length {
        tracing::warn!(
            asked = context_length,
            of_the_model = decoder_config.context_length,
            "--ctx-size is larger than the context that the model was trained for: texts beyond that make it fail"
        );
    }
    let decoder = Decoder::load_for_context(&gguf, &backend, Some(context_length))
        .with_context(|| format!("loading {}", path.display()))?;
    repack(config.engine.repack, &decoder, &gguf);
    let repacked_bytes = decoder.tile_bytes();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let template = chat_template(config, &gguf, &tokenizer)?;
    let cache = KvCache::new(decoder.config(), num_blocks, kv_type, &backend)
        .with_context(|| format!("making room for a context of {context_length} tokens"))?;
    let info = chat_model_info(config, &gguf, &path, decoder.config().vocab, context_length, &template)?;
    let grammars = Grammars::new(tokenizer.clone(), decoder.config().vocab);
    let engine_config = EngineConfig {
        num_blocks,
        block_tokens: BLOCK_TOKENS,
        max_running_sequences: config.engine.max_running_sequences,
        max_waiting: config.engine.max_waiting_requests,
        max_batch_tokens: config.engine.max_batch_tokens,
        context_length,
        prefix_cache: config.engine.prefix_cache,
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(DecoderModel::new(Arc::new(decoder), cache)), engine_config)?;
    drop(gguf);
    // Of the file's metadata, which are megabytes of tokens and merges.
    freed_memory::give_back();
    tracing::info!(
        model = %info.id,
        architecture = %info.architecture,
        quantization = %info.quantization,
        size_mib = info.size_bytes >> 20,
        context_length,
        repacked_mib = repacked_bytes >> 20,
        kv_blocks = num_blocks,
        device = backend.name(),
        threads = threads(),
        cpu = %cpu_features(),
        load_ms = began.elapsed().as_millis() as u64,
        "chat model loaded"
    );
    Ok(Some(LocalChat::new(Parts {
        info,
        tokenizer,
        template,
        grammars,
        engine,
        callers_share_prefixes: config.engine.callers_share_prefixes,
        device: backend.name(),
        kv_type,
        kv_bytes: block_bytes * num_blocks as u64,
        repacked_bytes,
    })))
}

/// Makes the decoder's tiles if they are wanted.
fn repack(wanted: Repack, decoder: &Decoder, gguf: &Gguf) {
    let is_wanted = matches!(decoder.backend(), Backend::Cpu)
        && match wanted {
            Repack::On => true,
            Repack::Off => false,
            Repack::Auto => gguf.file_bytes() <= available_memory() / 2,
        };
    if !is_wanted {
        gguf.warm();
        return;
    }
    if let Err(error) = decoder.repack(gguf) {
        tracing::warn!(%error, "the chat model is not repacked as a whole: the rest is computed from the file, more slowly");
    }
}

fn chat_model_info(
    config: &Config,
    gguf: &Gguf,
    path: &Path,
    vocab_size: usize,
    context_length: usize,
    template: &ChatTemplate,
) -> anyhow::Result<ModelInfo> {
    Ok(ModelInfo {
        id: config.aliases.first().cloned().unwrap_or_else(|| file_name(path)),
        kind: ModelKind::Chat,
        architecture: gguf.architecture()?.to_owned(),
        context_length,
        vocab_size,
        embedding_length: None,
        parameters: gguf.parameters(),
        quantization: gguf.quantization(),
        size_bytes: gguf.file_bytes(),
        supports_tools: template.supports_tools(),
        supports_reasoning: template.supports_reasoning(),
        created: modified(path),
        fingerprint: gguf.fingerprint().to_hex().to_string(),
    })
}

/// Loads the embedding model that the configuration names, or the one in its models directory; `None` if
/// there is none.
///
/// # Errors
/// If the files are not a model that Hearth runs.
pub fn load_embedder(config: &Config) -> anyhow::Result<Option<LocalEmbedder>> {
    let Some(path) = embedding_model_path(config)? else { return Ok(None) };
    if let Some(count) = config.threads {
        set_threads(count);
    }
    let settings = EmbedderSettings {
        name: file_name(&path),
        device: config.device,
        queue: EncoderConfig { max_waiting_texts: config.engine.max_waiting_embeddings, ..EncoderConfig::default() },
        prompts: None,
    };
    LocalEmbedder::load(&path, settings).map(Some)
}

/// Loads the rerank model that the configuration names; `None` if it names none.
///
/// # Errors
/// If the files are not a cross-encoder that Hearth runs.
pub(super) fn load_reranker(config: &Config) -> anyhow::Result<Option<LocalReranker>> {
    let Some(path) = &config.rerank_model else { return Ok(None) };
    let settings = EmbedderSettings {
        name: file_name(path),
        device: config.device,
        queue: EncoderConfig { max_waiting_texts: config.engine.max_waiting_embeddings, ..EncoderConfig::default() },
        prompts: None,
    };
    LocalReranker::load(path, settings).map(Some)
}

fn default_model(config: &Config, kind: Kind) -> anyhow::Result<Option<PathBuf>> {
    let found = config.models.default_model(kind);
    found.with_context(|| format!("looking for a model in {}", config.models.places()))
}

/// What to tell a user who has no chat model.
pub fn no_chat_model(config: &Config) -> String {
    format!(
        "there is no chat model in {}: name a GGUF file with -m, or fetch one with `hearth pull`",
        config.models.places()
    )
}

fn chat_template(config: &Config, gguf: &Gguf, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    let text = |token: Option<u32>| token.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
    if let Some(path) = &config.chat_template_file {
        let source =
            std::fs::read_to_string(path).with_context(|| format!("--chat-template-file {}", path.display()))?;
        return ChatTemplate::new(&source, bos, eos)
            .with_context(|| format!("--chat-template-file {}", path.display()));
    }
    if let Some(name) = &config.chat_template {
        return ChatTemplate::builtin(name, bos, eos).with_context(|| format!("--chat-template {name}"));
    }
    match gguf.metadata().str("tokenizer.chat_template") {
        Some(source) => ChatTemplate::new(source, bos, eos)
            .context("the model's own chat template does not work; give another with --chat-template-file"),
        None => {
            let (template, name) = ChatTemplate::fallback(|token| tokenizer.token_id(token).is_some(), bos, eos)?;
            tracing::warn!(
                template = name,
                "the model file has no chat template; using a built-in one that fits its vocabulary. Give the right \
                 one with --chat-template-file if answers look wrong"
            );
            Ok(template)
        }
    }
}

/// The chat model's file; `None` if none is configured and none is found.
///
/// # Errors
/// If the models directory cannot be read.
pub fn chat_model_path(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    match &config.model {
        Some(path) => Ok(Some(path.clone())),
        None => default_model(config, Kind::Chat),
    }
}

/// Opens the model files that would be loaded, so that an invalid one is reported before the server announces its
/// address.
///
/// # Errors
/// If the header of a GGUF file cannot be read.
pub(super) fn check_files(config: &Config) -> anyhow::Result<()> {
    for path in [chat_model_path(config)?, embedding_model_path(config)?].into_iter().flatten() {
        if path.is_file() {
            drop(Gguf::open(&path)?);
        }
    }
    Ok(())
}

fn embedding_model_path(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    match &config.embedding_model {
        Some(path) => Ok(Some(path.clone())),
        None => default_model(config, Kind::Embedding),
    }
}

/// A model's name: its file name without the extension and the suffix of a split file's part.
pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // A directory's name may have a dot in it: bge-small-en-v1.5.
    let stem = name.strip_suffix(".gguf").map_or(name.clone(), str::to_owned);
    match stem.rsplit_once("-of-").and_then(|(front, _)| front.rsplit_once('-')) {
        Some((name, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => stem,
    }
}

/// Unix seconds.
fn modified(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|file| file.modified()).ok();
    modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

/// Bytes that a new allocation could take without swapping, within the limits of the container.
pub fn available_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = system.available_memory();
    system.cgroup_limits().map_or(machine, |limits| machine.min(limits.free_memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_after_its_file() {
        assert_eq!(file_name(Path::new("/x/Qwen3-0.6B-Q8_0.gguf")), "Qwen3-0.6B-Q8_0");
        assert_eq!(file_name(Path::new("models/bge-small-en-v1.5")), "bge-small-en-v1.5");
        assert_eq!(file_name(Path::new("big-00001-of-00003.gguf")), "big");
        assert_eq!(file_name(Path::new("state-of-the-art.gguf")), "state-of-the-art");
    }
}
