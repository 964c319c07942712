//! One upstream: its address, its key, its connection pool, and each model's breaker.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use reqwest::{
    Client, Response,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use super::{Dialect, Retries, Timeouts, UpstreamSettings, breaker::Breaker, failure::Failure, metrics};
use hearth_domain::Account;

/// How long an idle connection is kept. Shorter than the usual timeout of servers and load balancers, so that no
/// request meets a connection that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// The largest answer that is not a stream, in bytes: 2048 embeddings of 4096 numbers as text.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How much of an error body is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// See the module's documentation.
pub struct Upstream {
    settings: UpstreamSettings,
    client: Client,
    breakers: Mutex<HashMap<String, Arc<Breaker>>>,
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
    /// If a header or the certificates cannot be used.
    pub fn new(settings: UpstreamSettings) -> anyhow::Result<Arc<Self>> {
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let place = || format!("the header {name:?} of the upstream {}", settings.name);
            let name = HeaderName::try_from(name).with_context(place)?;
            headers.insert(name, HeaderValue::try_from(value).with_context(place)?);
        }
        if let Some(key) = &settings.api_key {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
                .map_err(|_| anyhow::anyhow!("the key of the upstream {} cannot stand in a header", settings.name))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = Client::builder()
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(settings.timeouts.connect)
            .pool_idle_timeout(POOL_IDLE)
            // A redirect would carry the text to an address that was not configured.
            .redirect(reqwest::redirect::Policy::none())
            // Only `retry.rs` decides what is retried.
            .retry(reqwest::retry::never());
        if settings.is_on_this_machine() {
            builder = builder.no_proxy();
        }
        if let Some(path) = &settings.ca_file {
            let place = || format!("the certificates {} of the upstream {}", path.display(), settings.name);
            let pem = std::fs::read(path).with_context(place)?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).with_context(place)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().with_context(|| format!("the upstream {}", settings.name))?;
        Ok(Arc::new(Self { settings, client, breakers: Mutex::default() }))
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

    /// The breaker of one of its models, by the upstream's own name for it.
    pub fn breaker(&self, upstream_model: &str) -> Arc<Breaker> {
        let mut breakers = self.breakers.lock();
        if let Some(breaker) = breakers.get(upstream_model) {
            return breaker.clone();
        }
        let breaker = Breaker::new(self.settings.breaker);
        breakers.insert(upstream_model.to_owned(), breaker.clone());
        breaker
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

    /// Sends one request and waits for the head of a successful response.
    pub(super) async fn send(&self, path: &str, body: Bytes, account: &Arc<Account>) -> Result<Response, Failure> {
        let url = format!("{}/{path}", self.settings.base_url.as_str().trim_end_matches('/'));
        let body = CountedBody { bytes: Some(body), account: account.clone(), upstream: self.settings.name.clone() };
        let sending = self
            .client
            .post(url)
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
    upstream: String,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        let sent = bytes.len() as u64;
        self.account.add_bytes_out(sent);
        metrics::sent(&self.upstream, sent);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, Bytes::len) as u64)
    }
}
