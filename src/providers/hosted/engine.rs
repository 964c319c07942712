//! One engine of an upstream: its address and its connections, each model's breaker, what it has to do, and whether it
//! is well.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::metrics::Label;
use anyhow::Context as _;
use parking_lot::Mutex;
use reqwest::{
    Client,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use url::Url;

use super::{
    EngineSettings, UpstreamSettings, affinity,
    breaker::{Breaker, Permit},
    choice::Standing,
    metrics,
};

/// How long an idle connection is kept. Shorter than the usual timeout of servers and load balancers, so that no
/// request meets a connection that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub(super) struct RemoteEngine {
    settings: EngineSettings,
    upstream: String,
    /// Its upstream has no other.
    is_only: bool,
    client: Client,
    breaker_settings: super::BreakerSettings,
    breakers: Mutex<HashMap<String, Arc<Breaker>>>,
    in_flight: AtomicUsize,
    is_well: AtomicBool,
    seed: u64,
}

impl fmt::Debug for RemoteEngine {
    /// Without the client, which would show headers that hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteEngine")
            .field("upstream", &self.upstream)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl RemoteEngine {
    /// # Errors
    /// If a header or the certificates cannot be used.
    pub(super) fn new(settings: EngineSettings, upstream: &UpstreamSettings) -> anyhow::Result<Self> {
        let client = client(&settings, upstream)?;
        Ok(Self {
            upstream: upstream.name.clone(),
            is_only: upstream.engines.len() == 1,
            client,
            breaker_settings: upstream.breaker,
            breakers: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            is_well: AtomicBool::new(true),
            seed: affinity::seed_of(settings.base_url.as_str()),
            settings,
        })
    }

    /// Its name, if its upstream has others.
    pub(super) fn name(&self) -> Option<&str> {
        (!self.is_only).then_some(self.settings.name.as_str())
    }

    /// Its name among the engines of its upstream.
    pub(super) fn label(&self) -> &str {
        &self.settings.name
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The address of one of its routes, `path` being relative to the base URL.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.settings.base_url.as_str().trim_end_matches('/'))
    }

    /// The address of a path beside the contract's routes, which are below `/v1`.
    pub(super) fn url_beside(&self, path: &str) -> Url {
        let mut url = self.settings.base_url.clone();
        let routes = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{}{path}", routes.strip_suffix("/v1").unwrap_or(&routes)));
        url
    }

    /// The breaker of one of its models, by the upstream's own name for it.
    pub(super) fn breaker(&self, upstream_model: &str) -> Arc<Breaker> {
        let mut breakers = self.breakers.lock();
        if let Some(breaker) = breakers.get(upstream_model) {
            return breaker.clone();
        }
        let breaker = Breaker::new(self.breaker_settings);
        breakers.insert(upstream_model.to_owned(), breaker.clone());
        breaker
    }

    /// What a request for one of its models should know when it chooses.
    pub(super) fn standing(&self, upstream_model: &str) -> Standing {
        Standing {
            weight: self.settings.weight,
            in_flight: self.in_flight.load(Relaxed),
            is_well: self.is_well.load(Relaxed) && !self.breaker(upstream_model).is_open(),
            seed: self.seed,
        }
    }

    /// Records what a probe found.
    pub(super) fn set_well(&self, is_well: bool, found: &str) {
        let was_well = self.is_well.swap(is_well, Relaxed);
        let (upstream, engine) = (&self.upstream, &self.settings.name);
        if was_well && !is_well {
            tracing::warn!(
                upstream,
                engine,
                found,
                "an engine failed its health probe: it gets no new requests while another engine is healthy"
            );
        } else if !was_well && is_well {
            tracing::info!(upstream, engine, "an engine passes its health probe again: it gets requests");
        }
        metrics::engine_is_well(self, is_well);
    }

    /// Its upstream's name and, if its upstream has others, its own, as labels of metrics.
    pub(super) fn labels(&self) -> Vec<Label> {
        let upstream = Label::new("upstream", self.upstream.clone());
        let engine = self.name().map(|name| Label::new("engine", name.to_owned()));
        std::iter::once(upstream).chain(engine).collect()
    }
}

fn client(settings: &EngineSettings, upstream: &UpstreamSettings) -> anyhow::Result<Client> {
    let mut headers = HeaderMap::new();
    for (name, value) in &upstream.headers {
        let place = || format!("the header {name:?} of the upstream {}", upstream.name);
        let name = HeaderName::try_from(name).with_context(place)?;
        headers.insert(name, HeaderValue::try_from(value).with_context(place)?);
    }
    if let Some(key) = &upstream.api_key {
        let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
            .map_err(|_| anyhow::anyhow!("the key of the upstream {} cannot stand in a header", upstream.name))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(upstream.timeouts.connect)
        .pool_idle_timeout(POOL_IDLE)
        // A redirect would carry the text to an address that was not configured.
        .redirect(reqwest::redirect::Policy::none())
        // Only `retry.rs` decides what is retried.
        .retry(reqwest::retry::never());
    if settings.is_on_this_machine() {
        builder = builder.no_proxy();
    }
    if let Some(path) = &upstream.ca_file {
        let place = || format!("the certificates {} of the upstream {}", path.display(), upstream.name);
        let pem = std::fs::read(path).with_context(place)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).with_context(place)?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().with_context(|| format!("the upstream {}", upstream.name))
}

/// A request at an engine, from its sending to the last byte of its answer: a part of the engine's load, and the duty
/// to report the outcome to the breaker.
#[derive(Debug)]
pub(super) struct Visit {
    place: Place,
    permit: Permit,
}

impl Visit {
    /// # Errors
    /// How long to wait, if the breaker of the model at this engine lets no request through.
    pub(super) fn begin(engine: &Arc<RemoteEngine>, upstream_model: &str) -> Result<Self, Duration> {
        let permit = engine.breaker(upstream_model).admit()?;
        Ok(Self { place: Place::take(engine.clone()), permit })
    }

    pub(super) fn engine(&self) -> &Arc<RemoteEngine> {
        &self.place.0
    }

    /// The engine answered, if only to reject the request.
    pub(super) fn succeeded(self) {
        self.permit.succeeded();
    }

    pub(super) fn failed(self) {
        metrics::failed(&self.place.0);
        self.permit.failed();
    }
}

/// One of the requests in progress at an engine.
#[derive(Debug)]
struct Place(Arc<RemoteEngine>);

impl Place {
    fn take(engine: Arc<RemoteEngine>) -> Self {
        engine.in_flight.fetch_add(1, Relaxed);
        metrics::in_flight(&engine, 1.0);
        Self(engine)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        metrics::in_flight(&self.0, -1.0);
    }
}
