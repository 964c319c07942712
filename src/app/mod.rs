//! The composition root: these files name concrete models, engines and providers. `load` builds them from files,
//! `state` is what the server knows about itself, and [`Server`] serves them all to callers.
//!
//! The server listens before its models are loaded: probes get an answer, and requests a 503 that says when to retry.

mod load;
mod routes;
mod state;

use std::{
    future::Future,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use hearth_domain::{error::sentence, usage::UsageSink};
use hearth_text::{
    chunker::{ChunkOptions, Chunker},
    extract::sandbox::{self, Sandbox},
};

pub use self::load::{available_memory, chat_model_path, load_chat, load_embedder, no_chat_model};
use self::{load::load_reranker, routes::Router, state::ServerState};
use crate::{
    config::Config,
    engine,
    http::{self, AppState, HttpSettings},
    metering::{
        Metering,
        ledger::{self, Ledger},
        limits::{Limits, Now},
    },
    providers::{
        Embedder, Reranker, cache, fallback, hosted, local::LocalChat, local_embedder::LocalEmbedder,
        local_reranker::LocalReranker, metered::Metered,
    },
    retrieval::search::Retriever,
    service::{
        analysis::Analyses,
        callers::Callers,
        documents::{Documents, ingest::Ingest, reindex::Reindex},
        health::{Health, ServerStatus},
        models::Models,
    },
    store::{self, Store, StoreError},
    telemetry,
};

/// The file in a data directory in which its server records its address, for commands that need it.
pub const URL_FILE: &str = "server-url";

/// A server whose port is bound.
pub struct Server {
    config: Config,
    listener: TcpListener,
    models: Arc<Models>,
    router: Arc<Router>,
    documents: Arc<Documents>,
    callers: Arc<Callers>,
    usage_sink: Arc<Metering>,
    ledger: Arc<Ledger>,
    state: Arc<ServerState>,
}

/// How often a server that shares its store looks at how many share it, and at what all of them have spent.
const CLUSTER_READ_EVERY: Duration = Duration::from_secs(5);
/// After the grace period every answer has ended and only needs delivery: a client that does not read holds the process
/// no longer than this.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a server told to stop at once may take to end its requests.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long writing their rows may take: they wait for the change in progress, such as that of a large document.
const LAST_ROWS: Duration = Duration::from_secs(15);

/// Ends a running server without a grace period. It outlives [`Server::run`].
pub struct CutOff {
    state: Arc<ServerState>,
    usage_sink: Arc<dyn UsageSink>,
    ledger: Arc<Ledger>,
}

impl std::fmt::Debug for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CutOff").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl CutOff {
    /// Ends running requests with an error, where the client can still be told, and records what they used.
    pub async fn at_once(self) {
        // A step of a large model may take longer than this; its result is discarded.
        let _ended = tokio::time::timeout(AT_ONCE, self.state.drain(Duration::ZERO)).await;
        close_books(&self.usage_sink, self.ledger, LAST_ROWS).await;
    }
}

/// Writes a row for every request, including those still in progress.
async fn close_books(usage_sink: &Arc<dyn UsageSink>, ledger: Arc<Ledger>, patience: Duration) {
    usage_sink.close();
    let flushed = tokio::task::spawn_blocking(move || ledger.flush(patience)).await;
    if !matches!(flushed, Ok(true)) {
        tracing::error!("the ledger was not written to its end");
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Takes the port and the data directory. [`Server::run`] loads the models.
    ///
    /// # Errors
    /// If the address cannot be listened on, or would be open to anyone, the TLS files or the files for checking tokens
    /// cannot be used, or the data directory is in use, damaged or of a newer version.
    pub fn bind(config: Config) -> anyhow::Result<Self> {
        http::check_tls(&config.http)?;
        // A server with upstreams starts without its own models.
        if config.upstreams.is_empty() {
            load::check_files(&config)?;
        }
        let listener = TcpListener::bind(config.address).map_err(|error| {
            let reason = cannot_listen(config.address, error.kind());
            anyhow::Error::new(error).context(reason)
        })?;
        let opened = match &config.shared {
            Some(shared) => Store::connect(shared, &config.data_dir, config.min_free_bytes),
            None => Store::open_with_reserve(&config.data_dir, config.min_free_bytes),
        };
        let store = opened.map_err(|error| with_advice(error, &config.data_dir))?;
        let callers = Callers::with_settings(store.clone(), &config.callers)?;
        let is_exposed = !config.address.ip().is_loopback() && !callers.asks_for_keys();
        ensure!(
            !is_exposed || config.callers.allow_unauthenticated,
            "anyone who reaches {} could use this server: make a key with `hearth keys create`, or name one with --api-key \
             (or listen on this machine only, with --host 127.0.0.1; or say that it is meant, with \
             --allow-unauthenticated)",
            config.address
        );
        if is_exposed {
            tracing::warn!(address = %config.address, "anyone who reaches this address can use the server");
        }
        let ledger = Ledger::open(store.clone())?;
        let limits = Limits::open(config.limits, &*store, Now::since(Instant::now()))?;
        let usage_sink = Arc::new(Metering::new(config.prices.clone(), ledger.clone(), limits));
        let quota = config.limits.caller.storage;
        let documents =
            Documents::new(store.clone(), config.documents.graphs, callers.clone(), usage_sink.clone() as _, quota);
        let scheme = if config.http.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}\n", listener.local_addr()?);
        if let Err(error) = store::write_note(&config.data_dir, URL_FILE, url.as_bytes()) {
            tracing::warn!(%error, "commands that use this data directory will not find the server");
        }
        let models = Arc::new(Models::new(config.accept_any_model).with_caches(&config.caches));
        let router = Arc::new(Router::new(&config, models.clone())?);
        let state = Arc::new(ServerState::new(config.device));
        let (ledgers, jobs, stores) = (ledger.part().clone(), documents.jobs().clone(), documents.store().clone());
        state.watch(move || vec![stores.report()]);
        state.watch(move || vec![ledgers.report()]);
        state.watch(move || jobs.parts());
        Ok(Self { config, listener, models, router, documents, callers, usage_sink, ledger, state })
    }

    /// The listen address, with the port that port 0 became.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves this loaded model instead of the configured one.
    #[must_use]
    pub fn with_chat(self, chat: LocalChat) -> Self {
        self.state.set_chat(&chat);
        self.router.take_chat(&self.config, chat);
        self.state.ready();
        self
    }

    /// The handle that ends the running server without a grace period.
    pub fn cut_off(&self) -> CutOff {
        CutOff { state: self.state.clone(), usage_sink: self.usage_sink.clone() as _, ledger: self.ledger.clone() }
    }

    /// Serves until `shutdown` resolves and running requests have ended or used up their grace period.
    ///
    /// # Errors
    /// If no model could be loaded, or the listener fails.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { config, listener, models, router, documents, callers, usage_sink, ledger, state } = self;
        let metrics = telemetry::init_metrics()?;
        let upkeep = tokio::spawn(telemetry::keep_up(metrics.clone()));
        engine::metrics::describe();
        hosted::describe_metrics();
        http::context::describe_metrics();
        fallback::describe_metrics();
        ledger::describe_metrics();
        cache::metrics::describe();
        router.watch_upstreams();
        let cluster = tokio::spawn(read_cluster(usage_sink.clone()));
        let usage_sink: Arc<dyn UsageSink> = usage_sink;
        let analyses = Analyses::new(documents.clone(), models.clone(), config.webhooks.clone());
        let app = AppState {
            models: models.clone(),
            documents: documents.clone(),
            analyses: analyses.clone(),
            callers: callers.clone(),
            usage_sink: usage_sink.clone(),
            ledger: ledger.clone(),
            health: state.clone(),
            metrics: Some(metrics),
            settings: Arc::new(config.http.clone()),
        };
        let grace = config.http.shutdown_grace;
        let store = documents.store().clone();
        let (loaded, outcome) = tokio::sync::oneshot::channel();
        {
            let (config, models, state) = (config.clone(), models.clone(), state.clone());
            let documents = documents.clone();
            tokio::task::spawn_blocking(move || {
                let is_loaded = state.status() == ServerStatus::Ready;
                let outcome = if is_loaded { Ok(()) } else { load_all(&config, &models, &router, &documents, &state) };
                let outcome = outcome.or_else(|error| serve_without(error, &router, &state));
                if outcome.is_ok() {
                    analyses.begin();
                }
                // The receiver is gone if the server has already ended: it does not wait for a load to end.
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
        let served = http::serve(listener, http::router(app), &http_settings, until).await;
        upkeep.abort();
        cluster.abort();
        close_books(&usage_sink, ledger, LAST_WORDS).await;
        // A task that still holds the store would keep its log from being merged into the database.
        let close = move || {
            callers.flush();
            store.close();
        };
        if let Err(error) = tokio::task::spawn_blocking(close).await {
            tracing::error!(%error, "closing the store failed");
        }
        served?;
        match failure.await {
            Ok(error) => Err(error),
            Err(_nothing_failed) => Ok(()),
        }
    }
}

/// Reads what the servers that share the store have in common, again and again. Ends at once if no other can share it.
async fn read_cluster(metering: Arc<Metering>) {
    while metering.ledger().store().cluster().is_some() {
        tokio::time::sleep(CLUSTER_READ_EVERY).await;
        let reading = metering.clone();
        match tokio::task::spawn_blocking(move || reading.read_cluster()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what other servers have spent cannot be read now"),
            // A panic is in the log already.
            Err(_) => return,
        }
    }
}

/// Resolves when the server is to stop, with an error if the models failed to load.
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

/// The error of a store that cannot be opened, with advice if the directory cannot be used.
fn with_advice(error: StoreError, data_dir: &Path) -> anyhow::Error {
    let is_of_directory = matches!(&error, StoreError::Io { .. });
    let error = anyhow::Error::new(error);
    if !is_of_directory {
        return error;
    }
    error.context(format!(
        "{} cannot be used as the data directory: name one of your own with --data-dir",
        data_dir.display()
    ))
}

/// What to do about an address that cannot be listened on.
fn cannot_listen(address: SocketAddr, kind: ErrorKind) -> String {
    use ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};

    let advice = match kind {
        AddrInUse => "another server is there, choose another port with --port",
        AddrNotAvailable => "this machine does not have that address, choose another with --host",
        PermissionDenied => "this user may not, choose a port above 1023 with --port",
        _ => "choose another address with --host and --port",
    };
    format!("cannot listen on {address}: {advice}")
}

/// A model that failed to load is not fatal if upstreams serve; the server reports the failure.
fn serve_without(error: anyhow::Error, router: &Router, state: &ServerState) -> anyhow::Result<()> {
    if !router.has_hosted() {
        return Err(error);
    }
    let reason = sentence(&error);
    tracing::error!("the local models could not be loaded, upstreams serve alone: {reason}");
    // Health routes show this to anyone, and the cause contains paths.
    let told = "it could not be loaded; the server's log has the cause, and `hearth doctor` finds it.";
    router.failed(told);
    state.failed(told.to_owned());
    Ok(())
}

/// Loads the configured models and serves them to callers.
fn load_all(
    config: &Config,
    models: &Models,
    router: &Router,
    documents: &Documents,
    state: &ServerState,
) -> anyhow::Result<()> {
    let embedder = load_embedder(config)?;
    let reranker = load_reranker(config)?;
    let chat = load_chat(config)?;
    if chat.is_none() && embedder.is_none() && reranker.is_none() && !router.has_hosted() {
        bail!(
            "there is no model in {}: name a chat model with -m or an embedding model with --embedding-model, or fetch \
             one with `hearth pull`",
            config.models.places()
        );
    }
    let foreground = chat.as_ref().map(|chat| chat.engine().foreground());
    if let Some(chat) = chat {
        state.set_chat(&chat);
        router.take_chat(config, chat);
    } else if router.has_hosted() {
        tracing::info!("no local chat model: upstreams generate alone");
    } else {
        tracing::info!("{}; questions to documents are answered by quoting them", no_chat_model(config));
    }
    match embedder {
        Some(embedder) => {
            if let Some(foreground) = foreground {
                embedder.give_way_to(foreground);
            }
            state.set_embedder(embedder.clone());
            read_documents(config, models, documents, router, &embedder, reranker.as_ref())?;
            router.take_embedder(config, embedder);
        }
        None => tracing::info!("no local embedding model: documents cannot be searched until one is given"),
    }
    if let Some(reranker) = reranker {
        state.set_reranker(reranker.clone());
        router.take_reranker(config, reranker);
    }
    router.all_loaded();
    state.ready();
    tracing::info!("ready");
    Ok(())
}

/// The process that reads one document.
///
/// # Errors
/// If the system does not report the path of this program.
pub fn reader(config: &Config) -> anyhow::Result<Sandbox> {
    let sandbox = match &config.documents.reader {
        Some(program) => Sandbox::of_program(program, [sandbox::CHILD_COMMAND]),
        None => Sandbox::of_this_program().context("finding this program, which reads documents")?,
    };
    Ok(sandbox.with_library_path(config.documents.library_path.clone()))
}

/// Starts reading and searching documents with this embedding model, and reranking results with that rerank model.
fn read_documents(
    config: &Config,
    models: &Models,
    documents: &Documents,
    router: &Router,
    embedder: &LocalEmbedder,
    reranker: Option<&LocalReranker>,
) -> anyhow::Result<()> {
    let (store, indexes) = (documents.store().clone(), documents.indexes().clone());
    let local: Arc<dyn Embedder> = Arc::new(embedder.in_background());
    let shared = router.document_embedder(config, local.clone())?;
    let (background, requests_at_once) = shared.unwrap_or((local, 1));
    let sandbox = reader(config)?;
    let ingest = Ingest {
        store: store.clone(),
        indexes: indexes.clone(),
        embedder: background.clone(),
        requests_at_once,
        chunker: Arc::new(Chunker::new(embedder.tokenizer().clone(), chunk_options(embedder))?),
        sandbox,
        limits: config.documents.limits.clone(),
    };
    let reindex = Reindex { store: store.clone(), indexes: indexes.clone(), embedder: background };
    let reranker =
        reranker.map(|reranker| Metered::new(Arc::new(reranker.clone()) as Arc<dyn Reranker>) as Arc<dyn Reranker>);
    let asked = models.for_requests(Arc::new(embedder.clone()));
    let retriever = Retriever::new(store, indexes, asked).with_reranker(reranker);
    documents.begin(retriever, ingest, reindex);
    Ok(())
}

/// Chunks that fit the model whole, with room for the headings above them.
fn chunk_options(embedder: &LocalEmbedder) -> ChunkOptions {
    let usual = ChunkOptions::default();
    let room = embedder.info().context_length * 4 / 5;
    let max_tokens = usual.max_tokens.min(room).max(ChunkOptions::LEAST_TOKENS);
    ChunkOptions { max_tokens, overlap_tokens: usual.overlap_tokens.min(max_tokens / 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
