//! Hosted models: any upstream that speaks OpenAI's contract, behind the same traits as a local one.
//!
//! One [`Upstream`] is one service with its key and its timeouts: one address, or several equal engines. A
//! [`HostedChat`], a [`HostedEmbedder`] or a [`HostedReranker`] is one of its models. A request is translated
//! ([`request`](self)) and sent to an engine, with retries until the first event of the answer has arrived; after that
//! nothing is retried, so that no token comes twice. A field that the upstream's dialect cannot express is refused by
//! name, never left out.
//!
//! Which side serves a request is decided elsewhere: see `providers/fallback/mod.rs`.

mod affinity;
mod agreement;
mod answer;
mod breaker;
mod chat;
mod choice;
mod chunk;
mod dialect;
mod embedder;
mod engine;
pub mod event_decoder;
mod failure;
mod inspection;
mod metrics;
mod probe;
mod request;
mod reranker;
mod retry;
mod stream;
mod tool_calls;
mod upstream;

use std::{path::PathBuf, time::Duration};

pub use self::{
    affinity::Affinity, chat::HostedChat, dialect::Dialect, embedder::HostedEmbedder, inspection::Inspection,
    metrics::describe as describe_metrics, probe::ProbeSettings, reranker::HostedReranker, upstream::Upstream,
};
use hearth_domain::{ModelInfo, ModelKind};

/// An upstream, as configured.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// Appears in receipts, logs and metrics.
    pub name: String,
    /// At least one. They serve the same models and take the same key.
    pub engines: Vec<EngineSettings>,
    /// Which engine a request prefers.
    pub affinity: Affinity,
    pub probe: ProbeSettings,
    pub api_key: Option<ApiKey>,
    /// Sent with every request, beside the key.
    pub headers: Vec<(String, String)>,
    pub dialect: Dialect,
    pub timeouts: Timeouts,
    pub retries: Retries,
    /// Certificates to trust in addition to the system's own, PEM.
    pub ca_file: Option<PathBuf>,
    pub breaker: BreakerSettings,
}

impl std::fmt::Debug for UpstreamSettings {
    /// Headers by name only: some upstreams take their key in one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("UpstreamSettings")
            .field("name", &self.name)
            .field("engines", &self.engines)
            .field("dialect", &self.dialect)
            .field("headers", &headers)
            .finish_non_exhaustive()
    }
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Appears in receipts, logs and metrics of an upstream that has several.
    pub name: String,
    /// Up to and including `/v1`, without a trailing slash.
    pub base_url: url::Url,
    /// Its share of the requests relative to the others'; at least 1.
    pub weight: u32,
}

impl EngineSettings {
    /// The only engine of an upstream, or the first.
    pub fn at(base_url: url::Url) -> Self {
        Self { name: "1".to_owned(), base_url, weight: 1 }
    }

    /// Whether requests to it stay on this machine.
    pub fn is_on_this_machine(&self) -> bool {
        match self.base_url.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }
}

/// A key that never appears in a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// `None` if it is empty or not a valid header value.
    pub fn new(key: &str) -> Option<Self> {
        let is_header = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        is_header.then(|| Self(key.to_owned()))
    }

    /// For the header, and for nothing else.
    fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// An upstream's timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection is established, TLS included.
    pub connect: Duration,
    /// From the request to the response head.
    pub first_byte: Duration,
    /// Between two packets of an answer, keep-alives included.
    pub idle: Duration,
}

impl Default for Timeouts {
    /// A long prompt may take a minute or more before its first token.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), first_byte: Duration::from_secs(120), idle: Duration::from_secs(60) }
    }
}

/// How often a request that failed before its first event is retried, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first one.
    pub max: u32,
    /// The wait before attempt `n` is drawn from 0 to this times `2^n`, unless the upstream names one.
    pub base: Duration,
    /// The cap on that wait.
    pub longest: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { max: 2, base: Duration::from_millis(500), longest: Duration::from_secs(8) }
    }
}

/// When an upstream's breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row.
    pub failures: u32,
    /// How long the breaker stays open before one request may probe.
    pub rest: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { failures: 5, rest: Duration::from_secs(30) }
    }
}

/// What an upstream's model can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostedKind {
    Chat,
    Embedding,
    Rerank,
}

/// What the numbers of a rerank model are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scores {
    /// 0 to 1.
    #[default]
    Probabilities,
    /// Of any size: the logistic function makes probabilities of them.
    Logits,
}

impl From<HostedKind> for ModelKind {
    fn from(kind: HostedKind) -> Self {
        match kind {
            HostedKind::Chat => Self::Chat,
            HostedKind::Embedding => Self::Embedding,
            HostedKind::Rerank => Self::Rerank,
        }
    }
}

/// One model of an upstream, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostedModel {
    /// The upstream's own name for it.
    pub upstream_model: String,
    pub kind: HostedKind,
    /// Tokens, prompt and answer together.
    pub context_length: usize,
    /// Length of an embedding.
    pub dimensions: Option<usize>,
    /// What the vectors depend on: where it equals a local model's identity, their vectors may be compared.
    pub identity: Option<String>,
    /// Of a rerank model.
    pub scores: Scores,
}

/// The context assumed for a hosted model that is configured without one, in tokens.
pub const CONTEXT_LENGTH_ASSUMED: usize = 32_768;

impl HostedModel {
    /// A chat model of which only the name is known.
    pub fn chat(upstream_model: impl Into<String>) -> Self {
        Self {
            upstream_model: upstream_model.into(),
            kind: HostedKind::Chat,
            context_length: CONTEXT_LENGTH_ASSUMED,
            dimensions: None,
            identity: None,
            scores: Scores::default(),
        }
    }

    /// What `/v1/models` reports under the served name. The shape is that of local models; what only the upstream knows
    /// is 0 or empty.
    pub fn info(&self, served_name: &str) -> ModelInfo {
        ModelInfo {
            id: served_name.to_owned(),
            kind: self.kind.into(),
            architecture: "hosted".to_owned(),
            context_length: self.context_length,
            vocab_size: 0,
            embedding_length: self.dimensions,
            parameters: 0,
            quantization: String::new(),
            size_bytes: 0,
            supports_tools: self.kind == HostedKind::Chat,
            supports_reasoning: false,
            created: 0,
            fingerprint: String::new(),
        }
    }
}
