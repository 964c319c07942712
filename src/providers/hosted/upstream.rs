//! One upstream: its engines, its key, and how it is talked to.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hearth_domain::{Account, usage::ServedBy};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rand::Rng;
use reqwest::{
    Response,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::{
    Affinity, Dialect, Retries, Timeouts, UpstreamSettings,
    choice::choose,
    engine::{RemoteEngine, Visit},
    failure::Failure,
    metrics, probe,
};

/// The largest answer that is not a stream, in bytes: 2048 embeddings of 4096 numbers as text.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How much of an error body is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// See the module's documentation.
pub struct Upstream {
    settings: UpstreamSettings,
    engines: Vec<Arc<RemoteEngine>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Sends nothing yet.
    ///
    /// # Errors
    /// If there is no engine, or a header or the certificates cannot be used.
    pub fn new(settings: UpstreamSettings) -> anyhow::Result<Arc<Self>> {
        anyhow::ensure!(!settings.engines.is_empty(), "the upstream {} has no engine", settings.name);
        let engines = settings.engines.iter().map(|engine| RemoteEngine::new(engine.clone(), &settings).map(Arc::new));
        Ok(Arc::new(Self { engines: engines.collect::<anyhow::Result<_>>()?, settings }))
    }

    /// Probes its engines from now on, if it has several. Must be called on the runtime.
    pub fn watch(self: &Arc<Self>) {
        if self.engines.len() > 1
            && let Some(path) = &self.settings.probe.path
        {
            for engine in &self.engines {
                let interval = self.settings.probe.interval;
                tokio::spawn(probe::keep_asking(Arc::downgrade(engine), path.clone(), interval));
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.settings.dialect
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.settings.timeouts
    }

    pub(super) fn retries(&self) -> Retries {
        self.settings.retries
    }

    pub(super) fn affinity(&self) -> Affinity {
        if self.engines.len() > 1 { self.settings.affinity } else { Affinity::None }
    }

    pub fn num_engines(&self) -> usize {
        self.engines.len()
    }

    pub(super) fn engines(&self) -> &[Arc<RemoteEngine>] {
        &self.engines
    }

    /// Who serves, as receipts say it.
    pub(super) fn served_by(&self, engine: Option<&RemoteEngine>) -> ServedBy {
        let engine = engine.and_then(RemoteEngine::name).map(ToOwned::to_owned);
        ServedBy::Upstream { name: self.settings.name.clone(), engine }
    }

    /// Whether a request for one of its models would be refused now, because every engine has failed several times.
    pub fn is_left_alone(&self, upstream_model: &str) -> bool {
        self.engines.iter().all(|engine| engine.breaker(upstream_model).is_open())
    }

    /// The engine that a request with this key goes to, other than those at which it has failed (`tried`, by position).
    ///
    /// # Errors
    /// The time until one may take a request, if none does now.
    pub(super) fn visit(
        &self,
        upstream_model: &str,
        key: Option<u64>,
        tried: &[bool],
    ) -> Result<(usize, Visit), Duration> {
        let standings: Vec<_> = self.engines.iter().map(|engine| engine.standing(upstream_model)).collect();
        let mut excluded = tried.to_vec();
        let mut shortest = Duration::MAX;
        while let Some(index) = choose(&standings, key, |index| excluded[index], || rand::rng().random()) {
            match Visit::begin(&self.engines[index], upstream_model) {
                Ok(visit) => return Ok((index, visit)),
                Err(wait) => shortest = shortest.min(wait),
            }
            excluded[index] = true;
        }
        Err(shortest)
    }

    /// Whether an engine other than those tried may take a request now.
    pub(super) fn has_another(&self, upstream_model: &str, tried: &[bool]) -> bool {
        let mut others = self.engines.iter().zip(tried).filter(|(_, tried)| !**tried);
        others.any(|(engine, _)| engine.standing(upstream_model).is_well)
    }

    /// `text` without this upstream's key and without the values of its configured headers, which may hold keys as
    /// well.
    pub(super) fn redacted(&self, text: &str) -> String {
        /// Shorter values are words, such as a version, and no keys.
        const KEY_CHARS_MIN: usize = 8;
        let key = self.settings.api_key.as_ref().map(|key| key.reveal());
        let headers = self.settings.headers.iter().map(|(_, value)| value);
        // Of `Bearer KEY` an upstream may quote the key alone.
        let headers = headers.flat_map(|value| [Some(value.as_str()), value.split_once(' ').map(|(_, key)| key)]);
        let secrets = headers.flatten().filter(|value| value.len() >= KEY_CHARS_MIN).chain(key);
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    /// Sends one request to an engine and waits for the head of a successful response.
    pub(super) async fn send(
        &self,
        engine: &Arc<RemoteEngine>,
        path: &str,
        body: Bytes,
        account: &Arc<Account>,
    ) -> Result<Response, Failure> {
        let body = CountedBody { bytes: Some(body), account: account.clone(), engine: engine.clone() };
        let sending = engine
            .client()
            .post(engine.url(path))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(reqwest::Body::wrap(body))
            .send();
        let first_byte = self.settings.timeouts.first_byte;
        let answer = match tokio::time::timeout(first_byte, sending).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failure::of_transport(self.name(), error)),
            Err(_elapsed) => return Err(Failure::timed_out(self.name(), "did not begin to answer", first_byte)),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let headers = answer.headers().clone();
        // Without a body, the status says enough.
        let said = self.read(answer, ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(Failure::of_status(self, status, &headers, &said))
    }

    /// The whole body of a non-streaming response.
    pub(super) async fn read_whole(&self, answer: Response) -> Result<Vec<u8>, Failure> {
        self.read(answer, ANSWER_BYTES_MAX).await
    }

    async fn read(&self, mut answer: Response, most: usize) -> Result<Vec<u8>, Failure> {
        let idle = self.settings.timeouts.idle;
        let mut whole = Vec::new();
        loop {
            match tokio::time::timeout(idle, answer.chunk()).await {
                Ok(Ok(Some(packet))) if whole.len() + packet.len() <= most => whole.extend_from_slice(&packet),
                Ok(Ok(Some(_))) => {
                    let message = format!("The hosted upstream `{}` sent more than {most} bytes.", self.name());
                    let kind = hearth_domain::error::ErrorKind::UpstreamFailed;
                    return Err(Failure::lasting(hearth_domain::error::Error::new(kind, message)));
                }
                Ok(Ok(None)) => return Ok(whole),
                Ok(Err(error)) => return Err(Failure::of_transport(self.name(), error)),
                Err(_elapsed) => return Err(Failure::timed_out(self.name(), "did not go on", idle)),
            }
        }
    }
}

/// A body whose bytes are counted when the connection takes them, not before.
struct CountedBody {
    bytes: Option<Bytes>,
    account: Arc<Account>,
    engine: Arc<RemoteEngine>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        let sent = bytes.len() as u64;
        self.account.add_bytes_out(sent);
        metrics::sent(&self.engine, sent);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, Bytes::len) as u64)
    }
}
