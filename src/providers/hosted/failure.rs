//! What an upstream's failure means: for the caller, for the operator, and for retries.
//!
//! A mistake in the request is returned in the upstream's words. Any other failure is the operator's concern: the
//! caller learns that the upstream failed, and the log says how. No message contains the key.

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use super::{answer::Fault, upstream::Upstream};
use hearth_domain::error::{Error, ErrorKind};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    /// The same request may succeed a little later.
    pub is_passing: bool,
    /// How long the upstream asks callers to wait.
    pub retry_after: Option<Duration>,
    /// The upstream is at fault, rather than the request.
    pub is_upstreams: bool,
    /// The connection was refused, so the upstream has seen nothing of the request.
    pub is_unreached: bool,
}

/// Longest upstream message that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 2000;

impl Failure {
    /// The upstream failed; a retry may help.
    pub(super) fn passing(error: Error) -> Self {
        Self { error, is_passing: true, retry_after: None, is_upstreams: true, is_unreached: false }
    }

    /// A retry would fail again.
    pub(super) fn lasting(error: Error) -> Self {
        Self { error, is_passing: false, retry_after: None, is_upstreams: true, is_unreached: false }
    }

    /// The request is at fault.
    fn of_request(error: Error) -> Self {
        Self { error, is_passing: false, retry_after: None, is_upstreams: false, is_unreached: false }
    }

    /// No answer within the timeout.
    pub(super) fn timed_out(upstream: &str, what: &str, after: Duration) -> Self {
        Self::passing(Error::new(
            ErrorKind::UpstreamTimeout,
            format!("The hosted upstream `{upstream}` {what} within {} seconds.", after.as_secs_f64()),
        ))
    }

    /// The request never got through, or its answer broke off.
    pub(super) fn of_transport(upstream: &str, error: reqwest::Error) -> Self {
        // The address may hold a secret, and the operator who configured it knows it.
        let error = error.without_url();
        // A silent host takes its time, and must count.
        let is_unreached = error.is_connect() && !error.is_timeout();
        if error.is_timeout() {
            let message = format!("The hosted upstream `{upstream}` could not be reached in time.");
            return Self::passing(Error::new(ErrorKind::UpstreamTimeout, message).with_source(error));
        }
        let is_tls = is_tls(&error);
        let what = if is_tls {
            "did not prove that it is who it should be (TLS)"
        } else if error.is_connect() {
            "could not be reached"
        } else {
            "broke off its answer"
        };
        let message = format!("The hosted upstream `{upstream}` {what}.");
        let error = Error::new(ErrorKind::UpstreamFailed, message).with_source(error);
        // A retry meets the same certificate.
        let failure = if is_tls { Self::lasting(error) } else { Self::passing(error) };
        Self { is_unreached, ..failure }
    }

    /// The upstream answered with an error.
    pub(super) fn of_status(upstream: &Upstream, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let name = upstream.name();
        let said = Said::read(upstream, body);
        let source = || anyhow!("status {status}: {}", said.message.as_deref().unwrap_or("no error of the contract"));
        let failed = |message: String| Error::new(ErrorKind::UpstreamFailed, message).with_source(source());
        let retry_after = retry_after(headers, SystemTime::now());
        match status.as_u16() {
            400 | 413 | 422 => Self::of_request(said.invalid()),
            // Without an error body of the contract, the address is wrong.
            404 if said.message.is_some() => Self::of_request(said.invalid()),
            401..=404 => {
                tracing::error!(
                    upstream = name,
                    %status,
                    "the upstream refuses this server: look at its key, its base URL and its account"
                );
                Self::lasting(failed(format!("The hosted upstream `{name}` does not serve this server at present.")))
            }
            429 if said.code.as_deref() == Some("insufficient_quota") => {
                tracing::error!(upstream = name, "the account at the upstream is used up");
                Self::lasting(failed(format!("The hosted upstream `{name}` does not serve this server at present.")))
            }
            429 | 503 if status.as_u16() == 429 || retry_after.is_some() => {
                let message = format!("The hosted upstream `{name}` has too much to do. Try again later.");
                let mut error = Error::new(ErrorKind::Overloaded, message).with_source(source());
                if let Some(wait) = retry_after {
                    error = error.with_retry_after(wait);
                }
                Self { retry_after, ..Self::passing(error) }
            }
            408 | 504 => {
                let message = format!("The hosted upstream `{name}` did not answer in time.");
                let error = Error::new(ErrorKind::UpstreamTimeout, message).with_source(source());
                Self { retry_after, ..Self::passing(error) }
            }
            500 | 502 | 503 => {
                let error = failed(format!("The hosted upstream `{name}` failed on this request."));
                Self { retry_after, ..Self::passing(error) }
            }
            _ => Self::lasting(failed(format!("The hosted upstream `{name}` failed on this request."))),
        }
    }

    /// A stream that began with 200 cannot continue.
    pub(super) fn of_stream(upstream: &Upstream, fault: Fault) -> Self {
        let name = upstream.name();
        match fault {
            Fault::Reported(error) => {
                let said = Said::of_error(upstream, &error);
                let is_invalid = said.kind.as_deref() == Some("invalid_request_error");
                if is_invalid {
                    return Self::of_request(said.invalid());
                }
                let source = anyhow!("{}", said.message.unwrap_or_else(|| "an error without a message".to_owned()));
                let message = format!("The hosted upstream `{name}` failed while it answered.");
                Self::passing(Error::new(ErrorKind::UpstreamFailed, message).with_source(source))
            }
            Fault::Malformed(what) => {
                let message = format!("The hosted upstream `{name}` sent what is not an answer.");
                Self::passing(Error::new(ErrorKind::UpstreamFailed, message).with_source(anyhow!(what)))
            }
        }
    }
}

/// Whether TLS failed, rather than the connection beneath it. An I/O error hides what it wraps from `source`, and
/// several may be nested.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || match wrapped {
            Some(inner) => is_tls(inner),
            None => error.source().is_some_and(is_tls),
        }
}

/// What an error body of the contract says.
#[derive(Debug, Default)]
struct Said {
    message: Option<String>,
    kind: Option<String>,
    param: Option<String>,
    code: Option<String>,
    context: Option<(usize, usize)>,
}

impl Said {
    fn read(upstream: &Upstream, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        body.get("error")
            .or_else(|| body.get("message").map(|_| &body))
            .map_or_else(Self::default, |error| Self::of_error(upstream, error))
    }

    /// OpenAI's object, or what other upstreams send instead.
    fn of_error(upstream: &Upstream, error: &Value) -> Self {
        let text = |name: &str| error.get(name).and_then(Value::as_str).map(|text| upstream.redacted(text));
        let count = |name: &str| error.get(name).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let message = text("message").or_else(|| error.as_str().map(|text| upstream.redacted(text)));
        let message = message.map(|message| message.chars().take(MESSAGE_CHARS_MAX).collect());
        Self {
            message,
            kind: text("type"),
            param: text("param"),
            code: text("code"),
            context: count("n_prompt_tokens").zip(count("n_ctx")),
        }
    }

    /// The caller's mistake, in the upstream's words.
    fn invalid(self) -> Error {
        let is_context = self.code.as_deref() == Some("context_length_exceeded");
        let kind = if is_context { ErrorKind::ContextLengthExceeded } else { ErrorKind::InvalidRequest };
        let message = self.message.unwrap_or_else(|| "The hosted model refuses this request.".to_owned());
        let mut error = Error::new(kind, message);
        if let Some(param) = self.param {
            error = error.with_param(param);
        }
        if let Some((tokens, limit)) = self.context {
            error = error.with_context(tokens, limit);
        }
        match self.code.as_deref().and_then(known_code) {
            Some(code) if !is_context => error.with_code(code),
            _ => error,
        }
    }
}

/// Codes that clients act upon.
fn known_code(code: &str) -> Option<&'static str> {
    const CODES: [&str; 7] = [
        "content_filter",
        "invalid_value",
        "unsupported_parameter",
        "unsupported_value",
        "missing_required_parameter",
        "invalid_type",
        "content_policy_violation",
    ];
    CODES.into_iter().find(|known| *known == code)
}

/// How long the upstream asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    /// A longer wait is no longer a useful number.
    const LONGEST_SECONDS: f64 = 1e9;
    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64((milliseconds / 1e3).min(LONGEST_SECONDS)));
    }
    let text = text("retry-after")?;
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs_f64(seconds.min(LONGEST_SECONDS)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(SystemTime::from(date).duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_its_three_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (reqwest::header::HeaderName::from_static(name), reqwest::header::HeaderValue::from_str(value).unwrap())
            });
            retry_after(&headers.collect(), now)
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(read(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(read(&[("retry-after", "2"), ("retry-after-ms", "150")]), Some(Duration::from_millis(150)));
        assert_eq!(read(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Duration::from_secs(7)));
        assert_eq!(read(&[("retry-after", "Sun, 06 Nov 1993 08:49:37 GMT")]), None, "not a Sunday");
        for nonsense in ["soon", "-1", "NaN", "inf"] {
            assert_eq!(read(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
        assert!(read(&[("retry-after", "1e300")]).is_some());
    }
}
