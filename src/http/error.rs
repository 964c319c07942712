//! The one mapping from [`ErrorKind`] to status, type and code, and the headers that tell an SDK whether to retry.
//!
//! SDKs retry 408, 409, 429 and every 5xx on their own; `Retry-After` tells them when, and `x-should-retry: false` that
//! waiting does not help.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearth_domain::{
    error::{Error, ErrorKind},
    usage::Outcome,
};

use crate::wire::error::{ErrorBody, ErrorDetail};

/// An error on its way out. Every refusal of a handler or extractor becomes one.
#[derive(Debug)]
pub struct ApiError(pub Error);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Used when an overloaded server has no better estimate.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Status, `type` and `code` of a kind; the error's own code takes precedence.
fn contract(kind: ErrorKind) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    const SERVER: &str = "server_error";
    match kind {
        ErrorKind::InvalidRequest => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_request")),
        ErrorKind::ContextLengthExceeded => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        ErrorKind::Unauthorized => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
        ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "permission_error", Some("forbidden")),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, INVALID, Some("not_found")),
        ErrorKind::ModelForbidden => (StatusCode::FORBIDDEN, "permission_error", Some("model_not_allowed")),
        ErrorKind::ModelNotFound => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
        ErrorKind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed")),
        ErrorKind::Conflict => (StatusCode::CONFLICT, INVALID, Some("conflict")),
        ErrorKind::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout")),
        ErrorKind::HeadTooLarge => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, Some("request_header_fields_too_large"))
        }
        ErrorKind::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("payload_too_large")),
        ErrorKind::UnsupportedMediaType => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media_type"))
        }
        ErrorKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded")),
        ErrorKind::TokensLimited => (StatusCode::TOO_MANY_REQUESTS, "tokens", Some("rate_limit_exceeded")),
        ErrorKind::QuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", Some("insufficient_quota")),
        ErrorKind::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded")),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("unavailable")),
        ErrorKind::ModelLoading => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("model_loading")),
        ErrorKind::ModelFailed => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("model_failed")),
        ErrorKind::BreakerOpen => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("upstream_unavailable")),
        ErrorKind::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("draining")),
        ErrorKind::OutOfMemory => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("out_of_memory")),
        ErrorKind::InsufficientStorage => (StatusCode::INSUFFICIENT_STORAGE, SERVER, Some("insufficient_storage")),
        ErrorKind::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, SERVER, Some("deadline_exceeded")),
        ErrorKind::UpstreamFailed => (StatusCode::BAD_GATEWAY, SERVER, Some("upstream_error")),
        ErrorKind::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, SERVER, Some("upstream_timeout")),
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
    }
}

/// How the account records a request that ended with this error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) code: Option<&'static str>,
}

impl Ended {
    pub(super) fn by(error: &Error) -> Self {
        let (_, _, code) = contract(error.kind());
        Self { outcome: Outcome::from(error), code: error.code().or(code) }
    }
}

/// The body of an error, for a response or for the last frame of a stream.
pub(super) fn error_body(error: &Error) -> ErrorBody {
    let (_, kind, code) = contract(error.kind());
    ErrorBody {
        error: ErrorDetail {
            message: error.message().to_owned(),
            kind,
            param: error.param().map(str::to_owned),
            code: error.code().or(code),
            n_prompt_tokens: error.context().map(|(prompt, _)| prompt),
            n_ctx: error.context().map(|(_, context)| context),
        },
    }
}

/// Logs a server error once, with the cause that the caller is not told.
pub(super) fn log_failure(error: &Error) {
    let (status, _, code) = contract(error.kind());
    if !status.is_server_error() {
        return;
    }
    let cause = error.internal_source().map(|source| format!("{source:#}")).unwrap_or_default();
    let code = error.code().or(code);
    if matches!(error.kind(), ErrorKind::ModelLoading | ErrorKind::Draining) {
        // A probe asks often while the server starts or stops.
        tracing::debug!(code, "request refused: {error}");
    } else if error.kind() == ErrorKind::Internal {
        tracing::error!(code, cause, "request failed: {error}");
    } else {
        tracing::warn!(code, cause, "request refused: {error}");
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.0;
        log_failure(&error);
        let (status, _, _) = contract(error.kind());
        let mut response = (status, Json(error_body(&error))).into_response();
        response.extensions_mut().insert(Ended::by(&error));
        let headers = response.headers_mut();
        let passes = status == StatusCode::CONFLICT && error.retry_after().is_some();
        if passes || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let permanent = error.is_lasting() || error.kind() == ErrorKind::ModelFailed;
            // A lasting error gets no default wait, but a spent budget knows when its next day or month starts.
            let wait = error.retry_after().or((!error.is_lasting()).then_some(RETRY_AFTER_DEFAULT));
            // Rounded up: a retry a moment too early is refused again. Decimal digits are always a valid header value.
            let whole = |unit: Duration| wait.map(|wait| wait.as_nanos().div_ceil(unit.as_nanos()).max(1).to_string());
            for (name, unit) in
                [(header::RETRY_AFTER, Duration::from_secs(1)), (RETRY_AFTER_MS, Duration::from_millis(1))]
            {
                if let Some(Ok(value)) = whole(unit).map(HeaderValue::try_from) {
                    headers.insert(name, value);
                }
            }
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if permanent { "false" } else { "true" }));
        } else if matches!(
            status,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::CONFLICT | StatusCode::INSUFFICIENT_STORAGE
        ) {
            // The same request would meet the same deadline, the same state, or the same disk.
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
