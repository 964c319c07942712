//! File + environment + flags -> one validated [`Config`].
//!
//! [`Settings`] is what the user typed, wherever it was typed: the same struct parses the command line and
//! the environment (through clap) and the TOML file (through serde), every field optional. [`Config`] is
//! what the program runs on: every field present, in range, with its unit. A flag wins over its environment
//! variable, which wins over the file, which wins over the default. Nothing else in the crate reads the
//! environment.

mod caches;
mod callers;
mod data;
mod env;
mod http;
mod limits;
mod prices;
mod routes;
mod settings;
mod upstreams;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use hearth_domain::RoutingPolicy;
use hearth_kernels::{
    device::DeviceChoice,
    index::{GRAPH_MIN, GraphParameters},
    kv::KvType,
    linear::Repack,
};
use hearth_models::{pull::HubSettings, store::ModelStore};
use hearth_text::extract::Limits;

use self::{caches::cache_settings, env::upstream_api_key, prices::price_list, upstreams::UpstreamFlags};
pub use self::{
    data::{DataSettings, KeyPlace, KeyPlaceSettings},
    env::{StoreSettings, hub_settings},
    prices::PriceSettings,
    routes::{Route, RouteTable, Target},
    settings::Settings,
    upstreams::{ModelDetails, ModelEntry, ModelTable, UpstreamConfig, UpstreamTable},
};
use crate::{
    http::HttpSettings,
    metering::{limits::LimitSettings, prices::Prices},
    providers::cache::CacheSettings,
    service::{callers::CallerSettings, webhook::WebhookSettings},
    store::SharedStore,
    telemetry::LogFormat,
};

/// What `hearth serve` runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// The chat model's file, which exists; `None` takes the best one of `models`.
    pub model: Option<PathBuf>,
    /// The embedding model's directory or file, which exists; `None` takes the best one of `models`.
    pub embedding_model: Option<PathBuf>,
    pub rerank_model: Option<PathBuf>,
    /// Names under which the chat model is served, besides its own.
    pub aliases: Vec<String>,
    /// Any model name in a request means the served one.
    pub accept_any_model: bool,
    /// Where models are found and new ones are stored.
    pub models: ModelStore,
    pub data_dir: PathBuf,
    /// The database that servers share; `None` keeps everything in the data directory.
    pub shared: Option<SharedStore>,
    /// Free bytes on the data directory's disk below which nothing more is stored; `None` is a share of the disk.
    pub min_free_bytes: Option<u64>,
    /// Make no outgoing connection.
    pub offline: bool,
    pub chat_template_file: Option<PathBuf>,
    pub chat_template: Option<String>,
    pub device: DeviceChoice,
    /// Threads that compute; `None` is one per physical core this process may use.
    pub threads: Option<usize>,
    pub engine: EngineSettings,
    pub documents: DocumentSettings,
    pub webhooks: WebhookSettings,
    pub prices: Arc<Prices>,
    pub limits: LimitSettings,
    pub caches: CacheSettings,
    /// Where hosted models are.
    pub upstreams: Vec<UpstreamConfig>,
    /// Names and who may serve them.
    pub routes: Vec<Route>,
    /// The side that serves by default.
    pub policy: RoutingPolicy,
    /// A request that would wait longer in the local queue goes to an upstream instead.
    pub queue_wait_max: Duration,
    pub address: SocketAddr,
    pub callers: CallerSettings,
    pub http: HttpSettings,
    pub log_filter: String,
    pub log_format: LogFormat,
}

/// Limits of the generation engine.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Tokens of prompt and answer together; `None` is the model's own, as far as memory goes.
    pub context_length: Option<usize>,
    /// Sequences that generate at the same time.
    pub max_running_sequences: usize,
    /// Requests that may wait beyond those; one more is refused with 503.
    pub max_waiting_requests: usize,
    /// Most tokens that one step computes.
    pub max_batch_tokens: usize,
    /// Memory for the KV cache in bytes; `None` sizes it from what the context and the sequences need, up to
    /// half of the free memory.
    pub kv_bytes: Option<u64>,
    /// Storage of keys and values; `None` is F32 for an F32 model and F16 for any other.
    pub kv_type: Option<KvType>,
    /// Whether the chat model's matrices are made into tiles.
    pub repack: Repack,
    pub prefix_cache: bool,
    /// Callers share the prefixes of one another's prompts in it.
    pub callers_share_prefixes: bool,
    /// Texts that may wait to be embedded; more are refused with 503.
    pub max_waiting_embeddings: usize,
}

/// How documents are read.
#[derive(Clone, Debug, Default)]
pub struct DocumentSettings {
    pub limits: Limits,
    /// How collections' vectors are searched.
    pub graphs: GraphParameters,
    /// The program that reads PDF and Office files in a process of its own; `None` is this one.
    pub reader: Option<PathBuf>,
    /// Where the loader finds that program's libraries.
    pub library_path: Option<OsString>,
}

impl Config {
    /// Merges the settings over the file that they name, and validates.
    ///
    /// # Errors
    /// If the file cannot be read or holds an unknown key, or a value is out of range; the message names
    /// the setting and what it accepts.
    pub fn load(settings: Settings) -> anyhow::Result<Self> {
        let settings = match &settings.config {
            Some(path) => {
                let file = read_file(path)?;
                settings.or(file)
            }
            None => settings,
        };
        Self::from_settings(settings)
    }

    fn from_settings(mut settings: Settings) -> anyhow::Result<Self> {
        let limits = limits::limits(&settings)?;
        let caches = cache_settings(&settings)?;
        let callers = callers::read(&settings)?;
        let host = settings.host.as_deref().unwrap_or("127.0.0.1");
        let address = SocketAddr::new(parse_host(host)?, settings.port.unwrap_or(8080));
        let http = http::http_settings(&mut settings, address.ip())?;
        let engine = engine_settings(&settings)?;
        let offline = settings.offline.unwrap_or(false);
        let webhooks = webhook_settings(&settings, offline)?;
        let shared = data::shared_store(&settings)?;
        let data_dir = match settings.data_dir {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        let store = model_store(settings.models_dir, &data_dir, hub_settings())?;
        let resolve = |flag: &str, named: Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
            let Some(named) = named else { return Ok(None) };
            let path = store.resolve(&named.to_string_lossy()).with_context(|| format!("--{flag} {}", named.display()));
            path.map(Some)
        };
        let model = resolve("model", settings.model)?;
        let embedding_model = resolve("embedding-model", settings.embedding_model)?;
        let rerank_model = resolve("rerank-model", settings.rerank_model)?;
        if let Some(name) = &settings.chat_template {
            ensure!(
                settings.chat_template_file.is_none(),
                "--chat-template {name} and --chat-template-file exclude each other."
            );
        }
        let upstream_flags = UpstreamFlags {
            url: settings.upstream_url,
            key: upstream_api_key(),
            key_file: settings.upstream_key_file,
            models: settings.upstream_model.unwrap_or_default(),
        };
        let upstreams = upstreams::resolve(settings.upstream.unwrap_or_default(), upstream_flags, offline)?;
        Ok(Self {
            model,
            embedding_model,
            rerank_model,
            aliases: settings.alias.unwrap_or_default(),
            accept_any_model: settings.accept_any_model.unwrap_or(false),
            models: store,
            data_dir,
            shared,
            min_free_bytes: in_range("min-free-mib", settings.min_free_mib, 1..=16 << 20)?
                .map(|mib| (mib as u64) << 20),
            offline,
            chat_template_file: settings.chat_template_file,
            chat_template: settings.chat_template,
            device: settings.device.unwrap_or(match settings.n_gpu_layers {
                Some(0) => DeviceChoice::Cpu,
                _ => DeviceChoice::Auto,
            }),
            threads: in_range("threads", settings.threads, 1..=1024)?,
            engine,
            documents: DocumentSettings {
                limits: Limits { file_bytes: http.upload_limit_bytes as u64, ..Limits::default() },
                graphs: GraphParameters {
                    graph_min: in_range("graph-min", settings.graph_min, 2..=100_000_000)?.unwrap_or(GRAPH_MIN),
                    ..GraphParameters::default()
                },
                reader: None,
                library_path: env::library_path(),
            },
            webhooks,
            caches,
            routes: routes::resolve(settings.route.unwrap_or_default(), &upstreams)?,
            upstreams,
            policy: settings.policy.unwrap_or_default(),
            queue_wait_max: seconds("queue-wait", settings.queue_wait, QUEUE_WAIT_MAX)?,
            prices: Arc::new(price_list(settings.usd_per_compute_hour, settings.prices)?),
            limits,
            address,
            callers,
            http,
            log_filter: settings.log.unwrap_or_else(|| "info".to_owned()),
            log_format: settings.log_format.unwrap_or_default(),
        })
    }
}

fn webhook_settings(settings: &Settings, offline: bool) -> anyhow::Result<WebhookSettings> {
    let secret = settings.webhook_secret.as_ref().map(|secret| secret.parse()).transpose();
    Ok(WebhookSettings {
        secret: secret.map_err(|reason| anyhow::anyhow!("--webhook-secret: {reason}."))?,
        allow_private: settings.webhook_allow_private.unwrap_or(false),
        offline,
    })
}

fn engine_settings(settings: &Settings) -> anyhow::Result<EngineSettings> {
    Ok(EngineSettings {
        context_length: in_range("ctx-size", settings.ctx_size, 0..=16 << 20)?.filter(|&tokens| tokens > 0),
        max_running_sequences: in_range("parallel", settings.parallel, 1..=1024)?.unwrap_or(8),
        max_waiting_requests: in_range("max-queue", settings.max_queue, 0..=100_000)?.unwrap_or(256),
        max_batch_tokens: in_range("batch-size", settings.batch_size, 16..=65_536)?.unwrap_or(512),
        kv_bytes: in_range("kv-cache-mib", settings.kv_cache_mib, 1..=16 << 20)?.map(|mib| (mib as u64) << 20),
        kv_type: settings.cache_type,
        repack: settings.repack.unwrap_or_default(),
        prefix_cache: !settings.no_prefix_cache.unwrap_or(false),
        callers_share_prefixes: settings.share_prefix_cache.unwrap_or(false),
        max_waiting_embeddings: in_range("max-embedding-queue", settings.max_embedding_queue, 1..=1_000_000)?
            .unwrap_or(16_384),
    })
}

/// Longer than most answers take: a client that waits this long for the first word is better served elsewhere.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(10);

fn read_file(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
    let settings: Settings = toml::from_str(&text).map_err(|error| {
        // The error's own message takes several lines to show the place.
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = text[before.rfind('\n').map_or(0, |end| end + 1)..].lines().next().unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        let number = before.matches('\n').count() + 1;
        let message = error.message().replace('\n', " ");
        let message = match meant(&message) {
            Some(meant) => format!("there is no such setting; did you mean `{meant}`?"),
            None => message,
        };
        anyhow::anyhow!("--config {}, line {number}, {key:?}: {message}", path.display())
    })?;
    ensure!(settings.config.is_none(), "--config {}: a file cannot name another one.", path.display());
    Ok(settings)
}

/// From a message that names an unknown key and all known ones, the known key that was probably meant: spelled like a
/// flag, or with a letter or two wrong.
fn meant(message: &str) -> Option<&str> {
    let (unknown, known) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let spelled = unknown.trim_start_matches('-').replace('-', "_").to_lowercase();
    let known = known.split('`').skip(1).step_by(2);
    let nearest = known.map(|name| (strsim::damerau_levenshtein(&spelled, name), name)).min()?;
    (nearest.0 <= 2).then_some(nearest.1)
}

fn parse_host(host: &str) -> anyhow::Result<IpAddr> {
    if host == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    host.trim_matches(['[', ']']).parse().with_context(|| {
        format!("--host {host:?} is not an address; use 127.0.0.1 for this machine only, 0.0.0.0 or :: for all")
    })
}

/// As browsers send it: they compare origins character by character, so a trailing slash would match no page.
fn in_range(name: &str, value: Option<usize>, range: std::ops::RangeInclusive<usize>) -> anyhow::Result<Option<usize>> {
    if let Some(value) = value {
        ensure!(range.contains(&value), "--{name} {value}: must be from {} to {}.", range.start(), range.end());
    }
    Ok(value)
}

/// The longest timeout a request may ask for: beyond it, a deadline is no longer a useful instant.
const LONGEST_TIMEOUT_SECONDS: f64 = 7.0 * 24.0 * 3600.0;

fn seconds(name: &str, value: Option<f64>, default: Duration) -> anyhow::Result<Duration> {
    let Some(value) = value else { return Ok(default) };
    ensure!(
        value > 0.0 && value <= LONGEST_TIMEOUT_SECONDS,
        "--{name} {value}: must be more than 0 and at most {LONGEST_TIMEOUT_SECONDS} seconds."
    );
    Ok(Duration::from_secs_f64(value))
}

/// `$XDG_DATA_HOME/hearth`, else `~/.local/share/hearth`.
fn default_data_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("hearth"));
    }
    match std::env::home_dir() {
        Some(home) if !home.as_os_str().is_empty() => Ok(home.join(".local/share/hearth")),
        _ => bail!("There is no home directory to keep data in: give one with --data-dir."),
    }
}

/// The named directory; else `models/` in the data directory, so that pulled models are found from everywhere, and
/// beside it the checkout's `models/` when a command runs in one.
fn model_store(named: Option<PathBuf>, data_dir: &Path, hub: HubSettings) -> anyhow::Result<ModelStore> {
    let Some(directory) = named else {
        return Ok(ModelStore::new(data_dir.join("models"), hub).and_in("models"));
    };
    ensure!(
        directory.is_dir() || !directory.exists(),
        "--models-dir {} is not a directory: give the one that the model's file is in, or name the file with --model.",
        directory.display()
    );
    Ok(ModelStore::new(directory, hub))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, toml).expect("a writable directory");
        Config::load(Settings { config: Some(path), ..Settings::default() })
    }

    #[test]
    fn defaults_bind_loopback_and_ask_for_no_key() {
        let config = Config::load(Settings::default()).expect("defaults are valid");
        assert_eq!(config.address.to_string(), "127.0.0.1:8080");
        assert!(config.callers.api_keys.is_empty() && config.callers.jwt.is_none());
        assert!(config.http.cors_origins.is_empty());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, "port = 9000\nparallel = 3\n").expect("a writable directory");
        let config = Config::load(Settings { config: Some(path), port: Some(9001), ..Settings::default() })
            .expect("both are valid");
        assert_eq!(config.address.port(), 9001);
        assert_eq!(config.engine.max_running_sequences, 3);
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = format!("{:#}", parse("paralel = 3").expect_err("a typing error"));
        assert!(unknown.contains("paralel"), "{unknown}");
        let range = format!("{:#}", parse("parallel = 0").expect_err("out of range"));
        assert!(range.contains("--parallel 0"), "{range}");
        let host = format!("{:#}", parse("host = \"nowhere\"").expect_err("not an address"));
        assert!(host.contains("nowhere"), "{host}");
        let tls = format!("{:#}", parse("ssl_key_file = \"k.pem\"").expect_err("half of a pair"));
        assert!(tls.contains("--ssl-cert-file"), "{tls}");
        for origin in ["example.com", "https://example.com/", "https://", "https://*.example.com", "https://a b", ""] {
            let refused = format!("{:#}", parse(&format!("cors_origin = [{origin:?}]")).expect_err("not an origin"));
            assert!(refused.contains("--cors-origin"), "{refused}");
        }
        for origin in
            ["*", "null", "https://example.com", "http://localhost:3000", "http://[::1]:3000", "tauri://localhost"]
        {
            parse(&format!("cors_origin = [{origin:?}]")).expect("an origin");
        }
        let allowed = format!("{:#}", parse("allowed_host = [\"https://a.example\"]").expect_err("not a host"));
        assert!(allowed.contains("--allowed-host \"https://a.example\""), "{allowed}");
        parse("allowed_host = [\"a.example\", \"192.168.0.7\", \"::1\", \"*\"]").expect("hosts");
        let file = format!("{:#}", parse("models_dir = \"Cargo.toml\"").expect_err("a file"));
        assert!(file.contains("--models-dir Cargo.toml"), "{file}");
    }
}
