//! The receipt in a response's headers: who served, why, and what it cost.
//!
//! A stream's head is sent on admission, so it has only what is known by then; the figures are in its last event.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hearth_domain::Account;

use crate::wire::receipt::milliseconds;

pub(super) const SERVED_BY: HeaderName = HeaderName::from_static("x-hearth-served-by");
pub(super) const ENGINE: HeaderName = HeaderName::from_static("x-hearth-engine");
pub(super) const MODEL: HeaderName = HeaderName::from_static("x-hearth-model");
pub(super) const FALLBACK_REASON: HeaderName = HeaderName::from_static("x-hearth-fallback-reason");
pub(super) const ATTEMPTS: HeaderName = HeaderName::from_static("x-hearth-attempts");
pub(super) const CACHE: HeaderName = HeaderName::from_static("x-hearth-cache");
/// Only on answers from documents.
pub(super) const GROUNDING: HeaderName = HeaderName::from_static("x-hearth-grounding");
/// Parts of the request's schemas that are not enforced on the answer.
pub(super) const UNENFORCED: HeaderName = HeaderName::from_static("x-hearth-unenforced");
/// Those parts that the answer's tool calls violate.
pub(super) const VIOLATED: HeaderName = HeaderName::from_static("x-hearth-violated");
pub(super) const QUEUE_MS: HeaderName = HeaderName::from_static("x-hearth-queue-ms");
pub(super) const COMPUTE_MS: HeaderName = HeaderName::from_static("x-hearth-compute-ms");
pub(super) const COST_USD: HeaderName = HeaderName::from_static("x-hearth-cost-usd");

/// All receipt headers, with their descriptions for the OpenAPI document.
pub(super) const DESCRIBED: [(HeaderName, &str); 12] = [
    (SERVED_BY, "`local`, an upstream's name or `cache`; `none` where no model was needed."),
    (ENGINE, "The engine of the upstream, where it has several."),
    (MODEL, "The model that answered."),
    (FALLBACK_REASON, "Why another one than the first choice served."),
    (ATTEMPTS, "Upstreams tried."),
    (CACHE, "The cache that had the answer."),
    (GROUNDING, "How an answer from documents is bound to them."),
    (UNENFORCED, "Parts of the request's schemas that the answer is not held to."),
    (VIOLATED, "Those of them that tool calls of the answer violate. Not in a stream, whose last event has them."),
    (QUEUE_MS, "Not in a stream, whose last event has it."),
    (COMPUTE_MS, "Not in a stream, whose last event has it."),
    (COST_USD, "Not in a stream, whose last event has it."),
];

/// Writes the account's receipt.
pub(super) fn write(headers: &mut HeaderMap, account: &Account, is_stream: bool) {
    let receipt = account.receipt();
    let mut set = |name: HeaderName, value: &str| {
        // A name that no header can carry is still in the body.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(SERVED_BY, receipt.served_by());
    if let Some(engine) = receipt.engine() {
        set(ENGINE, engine);
    }
    if let Some(record) = receipt.main_model() {
        set(MODEL, &record.model);
    }
    if let Some(reason) = &receipt.fallback_reason {
        set(FALLBACK_REASON, reason);
    }
    set(ATTEMPTS, &receipt.attempts.to_string());
    if let Some(cache) = receipt.cache {
        set(CACHE, cache);
    }
    let unenforced = account.unenforced();
    if !unenforced.is_empty() {
        set(UNENFORCED, &listed(&unenforced));
    }
    if !is_stream {
        let mut violated: Vec<String> = account.violations().into_iter().map(|violation| violation.rule).collect();
        violated.dedup();
        if !violated.is_empty() {
            set(VIOLATED, &listed(&violated));
        }
        set(QUEUE_MS, &milliseconds(receipt.models.iter().map(|record| record.queue).sum()).to_string());
        set(COMPUTE_MS, &milliseconds(receipt.compute()).to_string());
        set(COST_USD, &dollars(receipt.cost_micro_usd));
    }
}

/// As many paths as a header should hold, and the number of the rest. Characters that are not plain become `?`.
fn listed(paths: &[String]) -> String {
    const SHOWN_MAX: usize = 20;
    const PATH_CHARS_MAX: usize = 200;
    let plain = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
    let mut shown: Vec<String> =
        paths.iter().take(SHOWN_MAX).map(|path| path.chars().take(PATH_CHARS_MAX).map(plain).collect()).collect();
    if let Some(more @ 1..) = paths.len().checked_sub(SHOWN_MAX) {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

/// In decimals, never in scientific notation.
fn dollars(micro_usd: u64) -> String {
    format!("{}.{:06}", micro_usd / 1_000_000, micro_usd % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_have_six_decimals() {
        assert_eq!([0, 7, 12_345_678].map(dollars), ["0.000000", "0.000007", "12.345678"]);
    }
}
