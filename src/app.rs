//! The composition root: the one file that names concrete models, engines and providers.
//!
//! Loading is two functions that the server, `hearth chat` and `hearth bench` share, so that what is
//! measured and tried is what is served. The server listens before its models are loaded: probes get an
//! answer, and requests a 503 that says when to come back.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use parking_lot::RwLock;

use crate::{
    config::Config,
    domain::{ModelInfo, ModelKind, account::Books},
    engine::{
        self, Engine, EngineConfig,
        encoder::EncoderConfig,
        model::DecoderModel,
        sizing::{CacheSize, Wanted, size_cache},
    },
    http::{self, AppState, HttpSettings},
    kernels::{
        device::{DeviceChoice, cpu_features, device_name, open_device, set_threads, threads},
        kv::BLOCK_TOKENS,
    },
    metering::Metering,
    models::{
        decoder::{Decoder, DecoderConfig},
        gguf::Gguf,
        kv_cache::KvCache,
        manifest::Kind,
    },
    providers::{
        Embedder, Reranker,
        local::{LocalChat, Parts},
        local_embedder::{EmbedderSettings, LocalEmbedder},
        local_reranker::LocalReranker,
    },
    retrieval::search::Retriever,
    service::{
        analysis::Analyses,
        callers::Callers,
        documents::{Documents, ingest::Ingest, reindex::Reindex},
        health::{EngineReport, Health, HealthReport, ServerStatus},
        models::Models,
    },
    store::Store,
    telemetry,
    text::{
        chat_template::ChatTemplate,
        chunker::{ChunkOptions, Chunker},
        extract::sandbox::{self, Sandbox},
        grammar::{GrammarCompiler, GrammarVocabulary},
        tokenizer::Tokenizer,
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
    gguf.warm();
    let device = open_device(config.device)?;
    let decoder_config = DecoderConfig::from_gguf(&gguf).with_context(|| format!("loading {}", path.display()))?;
    let kv_type = config.engine.kv_type.unwrap_or_else(|| KvCache::default_type(&gguf));
    let block_bytes = decoder_config.kv_bytes_per_block(kv_type) as u64;
    let CacheSize { num_blocks, context_length } = size_cache(Wanted {
        model_context: decoder_config.context_length,
        context: config.engine.context_length,
        sequences: config.engine.max_running_sequences,
        block_tokens: BLOCK_TOKENS,
        block_bytes,
        budget_bytes: config.engine.kv_bytes,
        available_bytes: available_memory().saturating_sub(gguf.file_bytes()),
    })?;
    let decoder = Decoder::load_for_context(&gguf, &device, Some(context_length))
        .with_context(|| format!("loading {}", path.display()))?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let template = chat_template(config, &gguf, &tokenizer)?;
    let cache = KvCache::new(decoder.config(), num_blocks, kv_type, &device)
        .with_context(|| format!("making room for a context of {context_length} tokens"))?;
    let info = ModelInfo {
        id: config.aliases.first().cloned().unwrap_or_else(|| file_name(&path)),
        kind: ModelKind::Chat,
        architecture: gguf.architecture()?.to_owned(),
        context_length,
        vocab_size: decoder.config().vocab,
        embedding_length: None,
        parameters: gguf.parameters(),
        quantization: gguf.dominant_type(),
        size_bytes: gguf.file_bytes(),
        supports_tools: template.supports_tools(),
        supports_reasoning: template.supports_reasoning(),
        created: modified(&path),
    };
    let grammars = GrammarCompiler::from_vocabulary(&GrammarVocabulary::new(&tokenizer), decoder.config().vocab)?;
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
    tracing::info!(
        model = %info.id,
        architecture = %info.architecture,
        quantization = %info.quantization,
        size_mib = info.size_bytes >> 20,
        context_length,
        kv_blocks = num_blocks,
        device = device_name(&device),
        threads = threads(),
        cpu = %cpu_features(),
        load_ms = began.elapsed().as_millis(),
        "chat model loaded"
    );
    Ok(Some(LocalChat::new(Parts {
        info,
        tokenizer,
        template,
        grammars,
        engine,
        device: device_name(&device),
        kv_type,
        kv_bytes: block_bytes * num_blocks as u64,
    })))
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
fn load_reranker(config: &Config) -> anyhow::Result<Option<LocalReranker>> {
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
    let found = config.store().default_model(kind);
    found.with_context(|| format!("looking for a model in --models-dir {}", config.models_dir.display()))
}

/// What to tell someone who has no chat model.
pub fn no_chat_model(config: &Config) -> String {
    format!(
        "there is no chat model in {}: name a GGUF file with -m, or fetch one with `hearth pull`",
        config.models_dir.display()
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

/// The chat model's file; `None` if none is named and none is there.
///
/// # Errors
/// If the models directory cannot be read.
pub fn chat_model_path(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    match &config.model {
        Some(path) => Ok(Some(path.clone())),
        None => default_model(config, Kind::Chat),
    }
}

fn embedding_model_path(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    match &config.embedding_model {
        Some(path) => Ok(Some(path.clone())),
        None => default_model(config, Kind::Embedding),
    }
}

/// A model's name: its file's, without the extension and without what marks a part of a split file.
fn file_name(path: &Path) -> String {
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

/// The file of a data directory in which the server that has it says where it listens, for commands that need it.
pub const URL_FILE: &str = "server-url";

/// A server whose port is bound.
pub struct Server {
    config: Config,
    listener: TcpListener,
    models: Arc<Models>,
    documents: Arc<Documents>,
    callers: Arc<Callers>,
    books: Arc<dyn Books>,
    state: Arc<ServerState>,
}

/// After the grace every answer has its end, and all that is left is to deliver it: whoever does not read holds the
/// process no longer than this.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Takes the port and the data directory. Models are loaded by [`Server::run`].
    ///
    /// # Errors
    /// If the address cannot be listened on, the TLS files cannot be used, or the data directory is in use, damaged or
    /// of a newer version.
    pub fn bind(config: Config) -> anyhow::Result<Self> {
        http::check_tls(&config.http)?;
        let listener = TcpListener::bind(config.address).map_err(|error| {
            let reason = cannot_listen(config.address, error.kind());
            anyhow::Error::new(error).context(reason)
        })?;
        let store = Arc::new(Store::open(&config.data_dir)?);
        let callers = Callers::new(store.clone());
        let books: Arc<dyn Books> = Arc::new(Metering::default());
        let documents = Documents::new(store, callers.clone(), books.clone());
        let scheme = if config.http.tls.is_some() { "https" } else { "http" };
        let url_file = config.data_dir.join(URL_FILE);
        std::fs::write(&url_file, format!("{scheme}://{}\n", listener.local_addr()?))
            .with_context(|| format!("writing {}", url_file.display()))?;
        let models = Arc::new(Models::new(config.accept_any_model));
        let state = Arc::new(ServerState::new(config.device));
        Ok(Self { config, listener, models, documents, callers, books, state })
    }

    /// The address that is listened on, with the port that port 0 became.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves this model, which is loaded already, instead of what the configuration names.
    #[must_use]
    pub fn with_chat(self, chat: LocalChat) -> Self {
        serve_chat(&self.config, chat, &self.models, &self.state);
        self.state.ready();
        self
    }

    /// Serves until `shutdown` resolves and what is running has ended or had its grace.
    ///
    /// # Errors
    /// If no model could be loaded, or the listener fails.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { config, listener, models, documents, callers, books, state } = self;
        let metrics = telemetry::init_metrics()?;
        engine::metrics::describe();
        http::context::describe_metrics();
        let analyses = Analyses::new(documents.clone(), models.clone(), config.webhooks.clone());
        let app = AppState {
            models: models.clone(),
            documents: documents.clone(),
            analyses: analyses.clone(),
            callers,
            books,
            health: state.clone(),
            metrics: Some(metrics),
            settings: Arc::new(config.http.clone()),
        };
        let grace = config.http.shutdown_grace;
        let (loaded, outcome) = tokio::sync::oneshot::channel();
        {
            let (config, models, state) = (config.clone(), models.clone(), state.clone());
            let documents = documents.clone();
            tokio::task::spawn_blocking(move || {
                let is_loaded = state.status() == ServerStatus::Ready;
                let outcome = if is_loaded { Ok(()) } else { load(&config, &models, &documents, &state) };
                if outcome.is_ok() {
                    analyses.begin();
                }
                // The receiver is gone when the server has ended already: nobody waits for a load to end.
                drop(loaded.send(outcome));
            });
        }
        let (failed, failure) = tokio::sync::oneshot::channel::<anyhow::Error>();
        let until = {
            let state = state.clone();
            async move {
                if let Some(error) = told_or_failed(shutdown, outcome).await {
                    drop(failed.send(error));
                }
                tokio::join!(state.drain(grace), documents.stop());
            }
        };
        let http_settings = HttpSettings { shutdown_grace: grace.min(LAST_WORDS), ..config.http };
        http::serve(listener, http::router(app), &http_settings, until).await?;
        match failure.await {
            Ok(error) => Err(error),
            Err(_nothing_failed) => Ok(()),
        }
    }
}

/// Resolves when the server is to stop: with an error if that is because the models did not load.
async fn told_or_failed(
    shutdown: impl Future<Output = ()>,
    loaded: tokio::sync::oneshot::Receiver<anyhow::Result<()>>,
) -> Option<anyhow::Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        () = &mut shutdown => None,
        outcome = loaded => match outcome {
            Ok(Ok(())) => {
                shutdown.await;
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_panicked) => Some(anyhow::anyhow!(
                "loading the models failed by a fault of Hearth's own; please report it with the lines above"
            )),
        },
    }
}

/// What to do about an address that cannot be listened on.
fn cannot_listen(address: SocketAddr, kind: std::io::ErrorKind) -> String {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};

    let advice = match kind {
        AddrInUse => "another server is there, choose another port with --port",
        AddrNotAvailable => "this machine does not have that address, choose another with --host",
        PermissionDenied => "this user may not, choose a port above 1023 with --port",
        _ => "choose another address with --host and --port",
    };
    format!("cannot listen on {address}: {advice}")
}

/// Loads what the configuration asks for and puts it before the callers.
fn load(config: &Config, models: &Models, documents: &Documents, state: &ServerState) -> anyhow::Result<()> {
    let embedder = load_embedder(config)?;
    let reranker = load_reranker(config)?;
    let chat = load_chat(config)?;
    if chat.is_none() && embedder.is_none() && reranker.is_none() {
        bail!(
            "there is no model in {}: name a chat model with -m or an embedding model with --embedding-model, or fetch \
             one with `hearth pull`",
            config.models_dir.display()
        );
    }
    if let Some(chat) = chat {
        serve_chat(config, chat, models, state);
    } else {
        tracing::warn!("{}; nothing is generated", no_chat_model(config));
    }
    match embedder {
        Some(embedder) => {
            state.set_embedder(embedder.clone());
            read_documents(config, documents, &embedder, reranker.as_ref())?;
            models.add_embedder(Arc::new(embedder), Vec::new());
        }
        None => tracing::info!("no embedding model: /v1/embeddings answers 404 until one is given"),
    }
    if let Some(reranker) = reranker {
        state.set_reranker(reranker.clone());
        models.add_reranker(Arc::new(reranker), Vec::new());
    }
    state.ready();
    tracing::info!("ready");
    Ok(())
}

/// Begins to read and search documents with this embedding model, and to put what is found in order with that rerank
/// model.
fn read_documents(
    config: &Config,
    documents: &Documents,
    embedder: &LocalEmbedder,
    reranker: Option<&LocalReranker>,
) -> anyhow::Result<()> {
    let (store, indexes) = (documents.store().clone(), documents.indexes().clone());
    let background: Arc<dyn Embedder> = Arc::new(embedder.in_background());
    let sandbox = match &config.documents.reader {
        Some(program) => Sandbox::of_program(program, [sandbox::CHILD_COMMAND]),
        None => Sandbox::of_this_program().context("finding this program, which reads documents")?,
    };
    let ingest = Ingest {
        store: store.clone(),
        indexes: indexes.clone(),
        embedder: background.clone(),
        chunker: Arc::new(Chunker::new(embedder.tokenizer().clone(), chunk_options(embedder))?),
        sandbox,
        limits: config.documents.limits.clone(),
    };
    let reindex = Reindex { store: store.clone(), indexes: indexes.clone(), embedder: background };
    let reranker = reranker.map(|reranker| Arc::new(reranker.clone()) as Arc<dyn Reranker>);
    let retriever = Retriever::new(store, indexes, Arc::new(embedder.clone())).with_reranker(reranker);
    documents.begin(retriever, ingest, reindex);
    Ok(())
}

/// Chunks that the model reads whole, with room for the headings above them.
fn chunk_options(embedder: &LocalEmbedder) -> ChunkOptions {
    let usual = ChunkOptions::default();
    let room = embedder.info().context_length * 4 / 5;
    let max_tokens = usual.max_tokens.min(room).max(ChunkOptions::LEAST_TOKENS);
    ChunkOptions { max_tokens, overlap_tokens: usual.overlap_tokens.min(max_tokens / 4) }
}

fn serve_chat(config: &Config, chat: LocalChat, models: &Models, state: &ServerState) {
    let mut aliases = config.aliases.clone();
    aliases.extend(config.model.as_deref().map(file_name));
    state.set_chat(&chat);
    models.add_chat(Arc::new(chat), aliases);
}

/// What the server knows of its own state.
#[derive(Debug)]
struct ServerState {
    device_asked: DeviceChoice,
    started: Instant,
    inner: RwLock<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: ServerStatus,
    /// Where the chat model computes; empty before it is loaded.
    device_in_use: &'static str,
    engine: Option<Engine>,
    embedder: Option<LocalEmbedder>,
    reranker: Option<LocalReranker>,
}

impl Inner {
    fn status(&self) -> ServerStatus {
        let has_failed = |engine: &Engine| !engine.heartbeat().alive;
        if self.status == ServerStatus::Ready && self.engine.as_ref().is_some_and(has_failed) {
            return ServerStatus::Failed(
                "the engine has stopped; the log has the cause. Restart the server.".to_owned(),
            );
        }
        self.status.clone()
    }
}

impl ServerState {
    fn new(device_asked: DeviceChoice) -> Self {
        let inner =
            Inner { status: ServerStatus::Loading, device_in_use: "", engine: None, embedder: None, reranker: None };
        Self { device_asked, started: Instant::now(), inner: RwLock::new(inner) }
    }

    fn set_chat(&self, chat: &LocalChat) {
        let mut inner = self.inner.write();
        inner.engine = Some(chat.engine().clone());
        inner.device_in_use = chat.device();
    }

    fn set_embedder(&self, embedder: LocalEmbedder) {
        self.inner.write().embedder = Some(embedder);
    }

    fn set_reranker(&self, reranker: LocalReranker) {
        self.inner.write().reranker = Some(reranker);
    }

    fn ready(&self) {
        let mut inner = self.inner.write();
        // A server that was told to stop while it loaded does not come back.
        if inner.status == ServerStatus::Loading {
            inner.status = ServerStatus::Ready;
        }
    }

    /// Refuses new requests at once, and ends the running ones within the grace time.
    async fn drain(&self, grace: Duration) {
        let (engine, embedder, reranker) = {
            let mut inner = self.inner.write();
            inner.status = ServerStatus::Draining;
            (inner.engine.clone(), inner.embedder.clone(), inner.reranker.clone())
        };
        let engine = async {
            if let Some(engine) = engine {
                engine.drain(grace).await;
            }
        };
        let embedder = async {
            if let Some(embedder) = embedder {
                embedder.drain(grace).await;
            }
        };
        let reranker = async {
            if let Some(reranker) = reranker {
                reranker.drain(grace).await;
            }
        };
        tokio::join!(engine, embedder, reranker);
    }
}

impl Health for ServerState {
    fn status(&self) -> ServerStatus {
        self.inner.read().status()
    }

    fn report(&self) -> HealthReport {
        let inner = self.inner.read();
        let engine = inner.engine.as_ref().map(|engine| {
            let (stats, heartbeat) = (engine.stats(), engine.heartbeat());
            EngineReport {
                heartbeat_age: heartbeat.since_last_turn,
                running: stats.running_sequences,
                waiting: stats.waiting_sequences,
                kv_blocks_total: stats.blocks_total,
                kv_blocks_used: stats.blocks_used,
            }
        });
        HealthReport {
            status: inner.status(),
            device_asked: self.device_asked.to_string(),
            device_in_use: inner.device_in_use.to_owned(),
            engine,
            uptime: self.started.elapsed(),
        }
    }
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

    /// A model that is never asked.
    struct NoModel;

    impl engine::StepModel for NoModel {
        fn vocab_size(&self) -> usize {
            1
        }

        fn forward(&mut self, _: &crate::models::batch::Batch) -> Result<Vec<f32>, engine::StepError> {
            Err(engine::StepError::Failed("there is no model".to_owned()))
        }
    }

    #[tokio::test]
    async fn a_server_whose_engine_has_ended_is_not_ready() {
        let state = ServerState::new(DeviceChoice::Cpu);
        let engine = Engine::start(Box::new(NoModel), EngineConfig::default()).expect("a valid configuration");
        state.inner.write().engine = Some(engine.clone());
        state.ready();
        assert_eq!(state.status(), ServerStatus::Ready);
        engine.drain(Duration::ZERO).await;
        assert!(matches!(state.status(), ServerStatus::Failed(_)), "{:?}", state.status());
        assert_eq!(state.report().status, state.status());
    }

    #[tokio::test]
    async fn a_server_stops_while_its_models_load_and_when_loading_them_fails() {
        let (loading, loaded) = tokio::sync::oneshot::channel();
        assert!(told_or_failed(std::future::ready(()), loaded).await.is_none());
        drop(loading);
        let (loading, loaded) = tokio::sync::oneshot::channel();
        loading.send(Err(anyhow::anyhow!("no such file"))).expect("somebody listens");
        let error = told_or_failed(std::future::pending(), loaded).await.expect("a reason");
        assert_eq!(error.to_string(), "no such file");
        let (loading, loaded) = tokio::sync::oneshot::channel::<anyhow::Result<()>>();
        drop(loading);
        assert!(told_or_failed(std::future::pending(), loaded).await.is_some(), "a load that panicked");
    }
}
