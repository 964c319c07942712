//! Metrics of upstreams, labelled by name, and by engine where an upstream has several.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::engine::RemoteEngine;

const ATTEMPTS_TOTAL: &str = "hearth_upstream_attempts_total";
const FAILURES_TOTAL: &str = "hearth_upstream_failures_total";
const BYTES_SENT_TOTAL: &str = "hearth_upstream_bytes_sent_total";
const USAGE_ESTIMATED_TOTAL: &str = "hearth_upstream_usage_estimated_total";
const ENGINE_REQUESTS: &str = "hearth_upstream_engine_requests";
const ENGINE_WELL: &str = "hearth_upstream_engine_well";

/// Registers each metric's help text.
pub fn describe() {
    describe_counter!(ATTEMPTS_TOTAL, "Requests sent to a hosted upstream, repetitions included.");
    describe_counter!(FAILURES_TOTAL, "Of those, the ones that failed, streams that broke off included.");
    describe_counter!(BYTES_SENT_TOTAL, "Bytes of request bodies that left this machine for a hosted upstream.");
    describe_counter!(
        USAGE_ESTIMATED_TOTAL,
        "Answers whose token counts are this server's own, as the upstream's were absent or impossible."
    );
    describe_gauge!(ENGINE_REQUESTS, "Requests in progress at an engine of a hosted upstream.");
    describe_gauge!(ENGINE_WELL, "1 if an engine of a hosted upstream passed its last health probe, 0 if not.");
}

pub(super) fn attempted(engine: &RemoteEngine) {
    counter!(ATTEMPTS_TOTAL, engine.labels()).increment(1);
}

pub(super) fn failed(engine: &RemoteEngine) {
    counter!(FAILURES_TOTAL, engine.labels()).increment(1);
}

pub(super) fn sent(engine: &RemoteEngine, bytes: u64) {
    counter!(BYTES_SENT_TOTAL, engine.labels()).increment(bytes);
}

pub(super) fn estimated(upstream: &str) {
    counter!(USAGE_ESTIMATED_TOTAL, "upstream" => upstream.to_owned()).increment(1);
}

/// One request more, or one less.
pub(super) fn in_flight(engine: &RemoteEngine, change: f64) {
    if engine.name().is_some() {
        gauge!(ENGINE_REQUESTS, engine.labels()).increment(change);
    }
}

pub(super) fn engine_is_well(engine: &RemoteEngine, is_well: bool) {
    gauge!(ENGINE_WELL, engine.labels()).set(if is_well { 1.0 } else { 0.0 });
}
