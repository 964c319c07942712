//! What the user typed: every setting once, as a flag, an environment variable and a key of the file.
//!
//! Flags take llama-server's names where they mean the same. The environment variable of a flag is
//! `HEARTH_` and its name in capitals; the file's key is its name with underscores. Defaults and ranges
//! belong to [`Config`](super::Config).

use std::path::PathBuf;

use hearth_domain::RoutingPolicy;
use hearth_kernels::{device::DeviceChoice, kv::KvType, linear::Repack};
use serde::Deserialize;

use super::{prices::PriceSettings, routes::RouteTable, upstreams::UpstreamTable};
use crate::telemetry::LogFormat;

/// Reads a value of the file that is spelled as on the command line.
fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// Declares [`Settings`], and how two of them merge, from one list of fields.
macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// See the module's documentation.
        #[derive(Clone, Debug, Default, clap::Args, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $($(#[$attribute])* pub $name: Option<$type>,)*
        }

        impl Settings {
            /// These settings, with the other's where these are unset.
            pub fn or(self, other: Self) -> Self {
                Self { $($name: self.$name.or(other.$name),)* }
            }
        }
    };
}

settings! {
    /// Chat model: a GGUF file (any part of a split one), or the name of a model as `hearth models list` shows it
    #[arg(short, long, env = "HEARTH_MODEL", value_name = "FILE", help_heading = "Models")]
    model: PathBuf,
    /// Embedding model: a directory with config.json, tokenizer.json and model.safetensors, a GGUF file, or a name
    #[arg(long, env = "HEARTH_EMBEDDING_MODEL", value_name = "PATH", help_heading = "Models")]
    embedding_model: PathBuf,
    /// Rerank model, a cross-encoder: a directory with config.json, tokenizer.json and model.safetensors, or a name
    #[arg(long, env = "HEARTH_RERANK_MODEL", value_name = "PATH", help_heading = "Models")]
    rerank_model: PathBuf,
    /// Serve the chat model under this name, too; several with commas
    #[arg(short, long, env = "HEARTH_ALIAS", value_name = "NAME", value_delimiter = ',', help_heading = "Models")]
    alias: Vec<String>,
    /// Take any model name in a request for the served model; `GET /v1/models/NAME` still says which there are
    #[arg(long, env = "HEARTH_ACCEPT_ANY_MODEL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Models")]
    accept_any_model: bool,
    /// Where models are looked for [default: models in the data directory, and ./models]
    #[arg(long, env = "HEARTH_MODELS_DIR", value_name = "DIR", help_heading = "Models")]
    models_dir: PathBuf,
    /// A chat template in Jinja, instead of the model's own
    #[arg(long, env = "HEARTH_CHAT_TEMPLATE_FILE", value_name = "FILE", help_heading = "Models")]
    chat_template_file: PathBuf,
    /// The name of a built-in chat template, instead of the model's own
    #[arg(long, env = "HEARTH_CHAT_TEMPLATE", value_name = "NAME", help_heading = "Models")]
    chat_template: String,

    /// Context in tokens, prompt and answer together; 0 is the model's own
    #[arg(short, long, env = "HEARTH_CTX_SIZE", value_name = "N", help_heading = "Engine")]
    ctx_size: usize,
    /// Sequences that generate at the same time (-np) [default: 8]
    #[arg(long, env = "HEARTH_PARALLEL", value_name = "N", help_heading = "Engine")]
    parallel: usize,
    /// Threads that compute [default: one per physical core]
    #[arg(short, long, env = "HEARTH_THREADS", value_name = "N", help_heading = "Engine")]
    threads: usize,
    /// Tokens that one step computes at most [default: 512]
    #[arg(short, long, env = "HEARTH_BATCH_SIZE", value_name = "N", help_heading = "Engine")]
    batch_size: usize,
    /// Requests that may wait for a place; one more is refused with 503 [default: 256]
    #[arg(long, env = "HEARTH_MAX_QUEUE", value_name = "N", help_heading = "Engine")]
    max_queue: usize,
    /// Texts that may wait to be embedded; more are refused with 503 [default: 16384]
    #[arg(long, env = "HEARTH_MAX_EMBEDDING_QUEUE", value_name = "N", help_heading = "Engine")]
    max_embedding_queue: usize,
    /// Chunks from which a collection is searched through a graph instead of one by one [default: 20000]
    #[arg(long, env = "HEARTH_GRAPH_MIN", value_name = "N", help_heading = "Engine")]
    graph_min: usize,
    /// Memory for the KV cache, in MiB [default: what context and sequences need, up to half of the free memory]
    #[arg(long, env = "HEARTH_KV_CACHE_MIB", value_name = "MIB", help_heading = "Engine")]
    kv_cache_mib: usize,
    /// Storage of keys and values: f16 or f32 [default: f32 for an F32 model, else f16]
    #[arg(long, env = "HEARTH_CACHE_TYPE", value_name = "TYPE", help_heading = "Engine")]
    #[serde(deserialize_with = "from_text")]
    cache_type: KvType,
    /// Copy the chat model's matrices into the order in which the processor reads them fastest: auto, on or off, which leaves them in
    /// the file's pages, which processes share. CPU only [default: auto, on if the model fits into half of the free memory]
    #[arg(long, env = "HEARTH_REPACK", value_name = "WHEN", help_heading = "Engine")]
    #[serde(deserialize_with = "from_text")]
    repack: Repack,
    /// Compute every prompt from its first token
    #[arg(long, env = "HEARTH_NO_PREFIX_CACHE", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Engine")]
    no_prefix_cache: bool,
    /// Let callers find the beginnings of one another's prompts in the prefix cache, which tells them what others have sent
    #[arg(long, env = "HEARTH_SHARE_PREFIX_CACHE", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Engine")]
    share_prefix_cache: bool,
    /// Keep answers to requests that are repeated (temperature 0 or a seed) in this much memory, in MiB; 0 keeps none [default: 0]
    #[arg(long, env = "HEARTH_RESPONSE_CACHE_MIB", value_name = "MIB", help_heading = "Caches")]
    response_cache_mib: usize,
    /// Seconds for which an answer is kept [default: 3600]
    #[arg(long, env = "HEARTH_RESPONSE_CACHE_TTL", value_name = "SECONDS", help_heading = "Caches")]
    response_cache_ttl: f64,
    /// Give a question the answer to an earlier one of the same caller that is this similar, such as 0.97 [default: never]
    #[arg(long, env = "HEARTH_SEMANTIC_CACHE", value_name = "SIMILARITY", help_heading = "Caches")]
    semantic_cache: f32,
    /// Memory for such answers, in MiB [default: 64]
    #[arg(long, env = "HEARTH_SEMANTIC_CACHE_MIB", value_name = "MIB", help_heading = "Caches")]
    semantic_cache_mib: usize,
    /// Keep vectors of texts in this much memory, in MiB; 0 keeps none [default: 0]
    #[arg(long, env = "HEARTH_EMBEDDING_CACHE_MIB", value_name = "MIB", help_heading = "Caches")]
    embedding_cache_mib: usize,
    /// Seconds for which a vector is kept [default: 86400]
    #[arg(long, env = "HEARTH_EMBEDDING_CACHE_TTL", value_name = "SECONDS", help_heading = "Caches")]
    embedding_cache_ttl: f64,
    /// Device: auto, cpu, cuda or metal; candle is the CPU by candle's own operations, to compare with [default: auto]
    #[arg(long, env = "HEARTH_DEVICE", value_name = "DEVICE", help_heading = "Engine")]
    #[serde(deserialize_with = "from_text")]
    device: DeviceChoice,

    /// llama-server's flag (-ngl): 0 computes on the CPU, any other number on --device, which takes all layers
    #[arg(long, env = "HEARTH_N_GPU_LAYERS", value_name = "N", hide = true, alias = "gpu-layers", allow_negative_numbers = true, help_heading = "Engine")]
    n_gpu_layers: i64,
    /// llama-server's flag (-fa), which changes nothing: the device decides how attention is computed
    #[arg(long, env = "HEARTH_FLASH_ATTN", value_name = "on|off|auto", value_parser = ["on", "off", "auto"], num_args = 0..=1, default_missing_value = "on", hide = true, help_heading = "Engine")]
    flash_attn: String,

    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "HEARTH_HOST", value_name = "ADDRESS", help_heading = "Server")]
    host: String,
    /// Port to listen on; 0 takes a free one and says which [default: 8080]
    #[arg(long, env = "HEARTH_PORT", value_name = "PORT", help_heading = "Server")]
    port: u16,
    /// Ask callers for this key; several with commas
    #[arg(long, env = "HEARTH_API_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true, help_heading = "Server")]
    api_key: Vec<String>,
    /// Ask callers for one of the keys in this file, one on each line
    #[arg(long, env = "HEARTH_API_KEY_FILE", value_name = "FILE", help_heading = "Server")]
    api_key_file: PathBuf,
    /// Serve on an address that others reach though nobody is asked for a key
    #[arg(long, env = "HEARTH_ALLOW_UNAUTHENTICATED", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    allow_unauthenticated: bool,
    /// Take tokens (JWT) that are signed with this secret, HS256; 32 bytes or more
    #[arg(long, env = "HEARTH_JWT_SECRET", value_name = "SECRET", hide_env_values = true, help_heading = "Tokens")]
    jwt_secret: String,
    /// The same, from a file; a line end at its end is not part of it
    #[arg(long, env = "HEARTH_JWT_SECRET_FILE", value_name = "FILE", help_heading = "Tokens")]
    jwt_secret_file: PathBuf,
    /// Take tokens (JWT) that are signed with one of an issuer's public keys: a JWKS, by file or https:// address
    #[arg(long, env = "HEARTH_JWT_JWKS", value_name = "PLACE", help_heading = "Tokens")]
    jwt_jwks: String,
    /// A token must be for this audience (`aud`); several with commas
    #[arg(long, env = "HEARTH_JWT_AUDIENCE", value_name = "NAME", value_delimiter = ',', help_heading = "Tokens")]
    jwt_audience: Vec<String>,
    /// A token must be from this issuer (`iss`); several with commas
    #[arg(long, env = "HEARTH_JWT_ISSUER", value_name = "NAME", value_delimiter = ',', help_heading = "Tokens")]
    jwt_issuer: Vec<String>,
    /// What goes before a token's `sub` in its caller's id; must have a colon [default: jwt:]
    #[arg(long, env = "HEARTH_JWT_CALLER_PREFIX", value_name = "TEXT", help_heading = "Tokens")]
    jwt_caller_prefix: String,
    /// Seconds that an issuer's clock may be off [default: 30]
    #[arg(long, env = "HEARTH_JWT_LEEWAY", value_name = "SECONDS", help_heading = "Tokens")]
    jwt_leeway: u64,

    /// Host under which the server may be reached, beside addresses and localhost, or * for any; several with commas
    #[arg(long, env = "HEARTH_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', help_heading = "Server")]
    allowed_host: Vec<String>,
    /// TLS certificate chain, PEM
    #[arg(long, env = "HEARTH_SSL_CERT_FILE", value_name = "FILE", help_heading = "Server")]
    ssl_cert_file: PathBuf,
    /// TLS private key, PEM
    #[arg(long, env = "HEARTH_SSL_KEY_FILE", value_name = "FILE", help_heading = "Server")]
    ssl_key_file: PathBuf,
    /// Origin whose pages may call and read answers, or * for any; several with commas
    #[arg(long, env = "HEARTH_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = "Server")]
    cors_origin: Vec<String>,
    /// Largest request body, in MiB [default: 32]
    #[arg(long, env = "HEARTH_BODY_LIMIT_MIB", value_name = "MIB", help_heading = "Server")]
    body_limit_mib: usize,
    /// Largest file that may be uploaded, in MiB [default: 100]
    #[arg(long, env = "HEARTH_UPLOAD_LIMIT_MIB", value_name = "MIB", help_heading = "Server")]
    upload_limit_mib: usize,
    /// Seconds a client has for its headers [default: 30]
    #[arg(long, env = "HEARTH_HEADER_TIMEOUT", value_name = "SECONDS", help_heading = "Server")]
    header_timeout: f64,
    /// Seconds a client has for its body [default: 60]
    #[arg(long, env = "HEARTH_BODY_TIMEOUT", value_name = "SECONDS", help_heading = "Server")]
    body_timeout: f64,
    /// Seconds after which a request ends with 504 [default: 3600]
    #[arg(long, env = "HEARTH_TIMEOUT", value_name = "SECONDS", help_heading = "Server")]
    timeout: f64,
    /// Seconds between signs of life in a stream [default: 10]
    #[arg(long, env = "HEARTH_SSE_PING_INTERVAL", value_name = "SECONDS", help_heading = "Server")]
    sse_ping_interval: f64,
    /// Seconds that running streams get to end after SIGTERM; a second SIGTERM ends them at once [default: 30]
    #[arg(long, env = "HEARTH_GRACE", value_name = "SECONDS", help_heading = "Server")]
    grace: f64,
    /// Refuse parameters that would change nothing, too
    #[arg(long, env = "HEARTH_STRICT", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    strict: bool,
    /// Sign webhooks with this secret; without one, none are sent. `whsec_` and base64, or any text
    #[arg(long, env = "HEARTH_WEBHOOK_SECRET", value_name = "SECRET", hide_env_values = true, help_heading = "Server")]
    webhook_secret: String,
    /// Send webhooks to private addresses, too, such as those of your own network
    #[arg(long, env = "HEARTH_WEBHOOK_ALLOW_PRIVATE", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    webhook_allow_private: bool,

    /// What an hour of computing costs, in US dollars; for each device and for upstreams see `[prices]` of the file [default: 0]
    #[arg(long, env = "HEARTH_USD_PER_COMPUTE_HOUR", value_name = "USD", help_heading = "Cost")]
    usd_per_compute_hour: f64,
    /// What each device and each upstream's models cost
    #[arg(skip)]
    prices: PriceSettings,

    /// Requests a minute of all callers together
    #[arg(long, env = "HEARTH_RPM", value_name = "N", help_heading = "Limits")]
    rpm: usize,
    /// Tokens a minute of all callers together, prompts and answers
    #[arg(long, env = "HEARTH_TPM", value_name = "N", help_heading = "Limits")]
    tpm: usize,
    /// Requests at the same time of all callers together
    #[arg(long, env = "HEARTH_MAX_CONCURRENT", value_name = "N", help_heading = "Limits")]
    max_concurrent: usize,
    /// US dollars a day (UTC) of all callers together
    #[arg(long, env = "HEARTH_DAILY_USD", value_name = "USD", help_heading = "Limits")]
    daily_usd: f64,
    /// US dollars a month (UTC) of all callers together
    #[arg(long, env = "HEARTH_MONTHLY_USD", value_name = "USD", help_heading = "Limits")]
    monthly_usd: f64,
    /// Seconds of compute time a day (UTC) of all callers together
    #[arg(long, env = "HEARTH_DAILY_COMPUTE", value_name = "SECONDS", help_heading = "Limits")]
    daily_compute: f64,
    /// Seconds of compute time a month (UTC) of all callers together
    #[arg(long, env = "HEARTH_MONTHLY_COMPUTE", value_name = "SECONDS", help_heading = "Limits")]
    monthly_compute: f64,
    /// Requests a minute of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_RPM", value_name = "N", help_heading = "Limits")]
    caller_rpm: usize,
    /// Tokens a minute of each caller that has no limit of its own, prompts and answers
    #[arg(long, env = "HEARTH_CALLER_TPM", value_name = "N", help_heading = "Limits")]
    caller_tpm: usize,
    /// Requests at the same time of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_MAX_CONCURRENT", value_name = "N", help_heading = "Limits")]
    caller_max_concurrent: usize,
    /// US dollars a day (UTC) of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_DAILY_USD", value_name = "USD", help_heading = "Limits")]
    caller_daily_usd: f64,
    /// US dollars a month (UTC) of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_MONTHLY_USD", value_name = "USD", help_heading = "Limits")]
    caller_monthly_usd: f64,
    /// Seconds of compute time a day (UTC) of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_DAILY_COMPUTE", value_name = "SECONDS", help_heading = "Limits")]
    caller_daily_compute: f64,
    /// Seconds of compute time a month (UTC) of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_MONTHLY_COMPUTE", value_name = "SECONDS", help_heading = "Limits")]
    caller_monthly_compute: f64,
    /// MiB of uploaded files of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_STORAGE_MIB", value_name = "MIB", help_heading = "Limits")]
    caller_storage_mib: usize,
    /// Documents of each caller that has no limit of its own
    #[arg(long, env = "HEARTH_CALLER_DOCUMENTS", value_name = "N", help_heading = "Limits")]
    caller_documents: usize,

    /// A hosted upstream that speaks OpenAI's contract, such as `https://api.example.com/v1`; its key is read from
    /// `HEARTH_UPSTREAM_API_KEY`. Several upstreams: see `[[upstream]]` of the file
    #[arg(long, env = "HEARTH_UPSTREAM_URL", value_name = "URL", help_heading = "Hosted models")]
    upstream_url: String,
    /// Read the upstream's key from this file
    #[arg(long, env = "HEARTH_UPSTREAM_KEY_FILE", value_name = "FILE", help_heading = "Hosted models")]
    upstream_key_file: PathBuf,
    /// Serve this model of the upstream; NAME=MODEL serves it as NAME; several with commas
    #[arg(long, env = "HEARTH_UPSTREAM_MODEL", value_name = "MODEL", value_delimiter = ',', help_heading = "Hosted models")]
    upstream_model: Vec<String>,
    /// Upstreams with their models and timeouts
    #[arg(skip)]
    upstream: Vec<UpstreamTable>,
    /// Which side serves: local-first, local-only, hosted-first or hosted-only [default: local-first]
    #[arg(long, env = "HEARTH_POLICY", value_name = "POLICY", help_heading = "Hosted models")]
    #[serde(deserialize_with = "from_text")]
    policy: RoutingPolicy,
    /// Ask an upstream instead where a request would wait longer than this for its turn here, in seconds [default: 10]
    #[arg(long, env = "HEARTH_QUEUE_WAIT", value_name = "SECONDS", help_heading = "Hosted models")]
    queue_wait: f64,
    /// Names and who may serve them
    #[arg(skip)]
    route: Vec<RouteTable>,

    /// Settings file, TOML
    #[arg(long, env = "HEARTH_CONFIG", value_name = "FILE", help_heading = "General")]
    config: PathBuf,
    /// Where Hearth keeps its data [default: hearth in the XDG data directory]
    #[arg(long, env = "HEARTH_DATA_DIR", value_name = "DIR", help_heading = "General")]
    data_dir: PathBuf,
    /// Share a PostgreSQL database with other servers, instead of the one in the data directory: postgres://USER:PASSWORD@HOST:PORT/DATABASE
    #[arg(long, env = "HEARTH_STORE_URL", value_name = "URL", hide_env_values = true, help_heading = "Cluster")]
    store_url: String,
    /// Read that address from this file
    #[arg(long, env = "HEARTH_STORE_URL_FILE", value_name = "FILE", help_heading = "Cluster")]
    store_url_file: PathBuf,
    /// Certificates in PEM that sign the database's [default: those of the system]
    #[arg(long, env = "HEARTH_STORE_CA_FILE", value_name = "FILE", help_heading = "Cluster")]
    store_ca_file: PathBuf,
    /// Connections to the database at most [default: 16]
    #[arg(long, env = "HEARTH_STORE_POOL", value_name = "N", help_heading = "Cluster")]
    store_pool: usize,
    /// The secret that API keys are hashed with, the same for all servers that share a database [default: keys.secret in the data directory]
    #[arg(long, env = "HEARTH_KEY_SECRET_FILE", value_name = "FILE", help_heading = "Cluster")]
    key_secret_file: PathBuf,
    /// What this server is called among the others [default: the name of the machine]
    #[arg(long, env = "HEARTH_REPLICA_NAME", value_name = "NAME", help_heading = "Cluster")]
    replica_name: String,
    /// Free space on the disk of the data directory below which nothing more is stored, in MiB [default: a twentieth of the disk, from 1 to 512]
    #[arg(long, env = "HEARTH_MIN_FREE_MIB", value_name = "MIB", help_heading = "General")]
    min_free_mib: usize,
    /// Make no outgoing connection
    #[arg(long, env = "HEARTH_OFFLINE", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "General")]
    offline: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter such as hearth=debug,warn [default: info]
    #[arg(long, env = "HEARTH_LOG", value_name = "FILTER", help_heading = "General")]
    log: String,
    /// How it is logged: text or json [default: text]
    #[arg(long, env = "HEARTH_LOG_FORMAT", value_name = "FORMAT", help_heading = "General")]
    log_format: LogFormat,
}
