//! The outermost layer: every request gets an id, a log line, a count and a clock, whatever its outcome.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, request::Parts},
    middleware::Next,
    response::Response,
};
use hearth_domain::{Account, error::Error};
use tracing::Instrument;

use super::{error::ApiError, state::AppState};
use crate::{service::documents::OwnedDocuments, wire::Envelope};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
const READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
/// The API version that OpenAI's own servers report.
const CONTRACT_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

/// Counter by `method`, `route`, `status`.
pub const REQUESTS_TOTAL: &str = "hearth_http_requests_total";
/// Histogram in seconds by `method`, `route`: until the response head is ready, which for a stream is its admission.
pub const REQUEST_DURATION_SECONDS: &str = "hearth_http_request_duration_seconds";

/// Registers each metric's help text.
pub fn describe_metrics() {
    metrics::describe_counter!(REQUESTS_TOTAL, "Requests answered.");
    metrics::describe_histogram!(REQUEST_DURATION_SECONDS, "Until the head of the answer was ready.");
}

/// What is known about a request apart from its body.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    request_id: String,
    /// The peer's address.
    peer: String,
    read_timeout: Option<Duration>,
    received: Instant,
}

impl Arrival {
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }
}

/// Everything a handler needs to build an [`Envelope`].
#[derive(Debug)]
pub(super) struct RequestCaller {
    arrival: Arrival,
    account: Arc<Account>,
}

impl RequestCaller {
    /// `streams`: an SDK's read timeout then bounds the wait for each chunk instead of the whole answer.
    pub(super) fn envelope(&self, state: &AppState, streams: bool) -> Envelope {
        let hint = self.arrival.read_timeout.filter(|_| !streams);
        let limit = [state.settings.request_deadline, hint].into_iter().flatten().min();
        Envelope {
            account: self.account.clone(),
            deadline: limit.map(|limit| self.arrival.received + limit),
            strict: state.settings.strict,
        }
    }

    /// This caller's documents.
    pub(super) fn documents(&self, state: &AppState) -> OwnedDocuments {
        state.documents.of(&self.account)
    }

    /// The owner of this caller's documents and jobs.
    pub(super) fn owner(&self) -> &str {
        &self.account.caller().id
    }

    /// The caller's permissions.
    pub(super) fn principal(&self) -> &hearth_domain::Caller {
        self.account.caller()
    }

    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

impl FromRequestParts<AppState> for RequestCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &AppState) -> Result<Self, ApiError> {
        let arrival = parts.extensions.get::<Arrival>().cloned();
        let account = parts.extensions.get::<Arc<Account>>().cloned();
        match (arrival, account) {
            (Some(arrival), Some(account)) => Ok(Self { arrival, account }),
            _ => Err(Error::internal(anyhow::anyhow!("the route lacks the layers of context and account")).into()),
        }
    }
}

/// The layer itself.
pub(super) async fn with_context(State(_state): State<AppState>, mut request: Request, next: Next) -> Response {
    let received = Instant::now();
    let request_id =
        sane_request_id(request.headers()).unwrap_or_else(|| format!("req_{}", uuid::Uuid::now_v7().simple()));
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or_else(|| "local".to_owned(), |ConnectInfo(address)| address.ip().to_string());
    let method = method_label(request.method());
    let route =
        request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |path| path.as_str().to_owned());
    let read_timeout = read_timeout_hint(request.headers());
    request.extensions_mut().insert(Arrival { request_id: request_id.clone(), peer, read_timeout, received });

    let span = tracing::info_span!("request", request_id, method, route);
    let mut response = next.run(request).instrument(span.clone()).await;

    let elapsed = received.elapsed();
    let status = response.status();
    metrics::counter!(REQUESTS_TOTAL, "method" => method, "route" => route.clone(), "status" => status.as_u16().to_string())
        .increment(1);
    metrics::histogram!(REQUEST_DURATION_SECONDS, "method" => method, "route" => route).record(elapsed.as_secs_f64());
    span.in_scope(|| tracing::debug!(status = status.as_u16(), duration_ms = elapsed.as_secs_f64() * 1e3, "answered"));

    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(request_id) {
        headers.insert(REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::try_from(elapsed.as_millis().to_string()) {
        headers.insert(PROCESSING_MS, value);
    }
    headers.insert(VERSION, CONTRACT_VERSION);
    response
}

/// The client's own id, if it is safe in a log line and a header.
fn sane_request_id(headers: &HeaderMap) -> Option<String> {
    const LONGEST: usize = 128;
    let id = headers.get(REQUEST_ID)?.to_str().ok()?.trim();
    let is_sane = (1..=LONGEST).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte));
    is_sane.then(|| id.to_owned())
}

fn read_timeout_hint(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(READ_TIMEOUT)?.to_str().ok()?.trim().parse().ok()?;
    // No client means a timeout below a millisecond.
    (seconds >= 0.001).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// A closed set, since a metric's labels must be bounded.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}
