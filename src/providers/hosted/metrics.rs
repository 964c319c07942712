//! Metrics of upstreams, labelled by name.

use metrics::{counter, describe_counter};

const ATTEMPTS_TOTAL: &str = "hearth_upstream_attempts_total";
const FAILURES_TOTAL: &str = "hearth_upstream_failures_total";
const BYTES_SENT_TOTAL: &str = "hearth_upstream_bytes_sent_total";
const USAGE_ESTIMATED_TOTAL: &str = "hearth_upstream_usage_estimated_total";

/// Registers each metric's help text.
pub fn describe() {
    describe_counter!(ATTEMPTS_TOTAL, "Requests sent to a hosted upstream, repetitions included.");
    describe_counter!(FAILURES_TOTAL, "Of those, the ones that failed, streams that broke off included.");
    describe_counter!(BYTES_SENT_TOTAL, "Bytes of request bodies that left this machine for a hosted upstream.");
    describe_counter!(
        USAGE_ESTIMATED_TOTAL,
        "Answers whose token counts are this server's own, as the upstream's were absent or impossible."
    );
}

pub(super) fn attempted(upstream: &str) {
    counter!(ATTEMPTS_TOTAL, "upstream" => upstream.to_owned()).increment(1);
}

pub(super) fn failed(upstream: &str) {
    counter!(FAILURES_TOTAL, "upstream" => upstream.to_owned()).increment(1);
}

pub(super) fn sent(upstream: &str, bytes: u64) {
    counter!(BYTES_SENT_TOTAL, "upstream" => upstream.to_owned()).increment(bytes);
}

pub(super) fn estimated(upstream: &str) {
    counter!(USAGE_ESTIMATED_TOTAL, "upstream" => upstream.to_owned()).increment(1);
}
