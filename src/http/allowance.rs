//! The headers that report what is left of a caller's limits: OpenAI's names, with times in Go's duration notation.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use hearth_domain::usage::Allowance;

/// The names of the headers that [`write`] writes.
pub(super) const HEADERS: [&str; 6] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

/// Writes the headers of the limits that are set.
pub(super) fn write(headers: &mut HeaderMap, allowance: &Allowance) {
    let parts = [allowance.requests, allowance.tokens];
    for (names, remaining) in HEADERS.chunks_exact(3).zip(parts) {
        let Some(remaining) = remaining else { continue };
        let values = [remaining.limit.to_string(), remaining.remaining.to_string(), go_duration(remaining.reset)];
        for (name, value) in names.iter().zip(values) {
            // Digits and letters are always a valid header value.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// As Go's `Duration.String` prints it, in milliseconds, rounded up: `12ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn go_duration(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, within) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}s", within as f64 / 1000.0);
    match minutes {
        0 if (1..1000).contains(&milliseconds) => format!("{milliseconds}ms"),
        0 => seconds,
        1..60 => format!("{minutes}m{seconds}"),
        _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (duration, written) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(1), "1ms"),
            (Duration::from_millis(12), "12ms"),
            (Duration::from_millis(999), "999ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_millis(1500), "1.5s"),
            (Duration::from_micros(59_999_001), "1m0s"),
            (Duration::from_secs(360), "6m0s"),
            (Duration::from_millis(3_661_250), "1h1m1.25s"),
        ] {
            assert_eq!(go_duration(duration), written);
        }
    }
}
