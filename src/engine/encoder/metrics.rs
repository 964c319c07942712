//! The encoder's metrics: their names, what they mean, and the places where they are recorded.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::EncoderStats;

pub const EMBEDDING_QUEUE_SECONDS: &str = "hearth_embedding_queue_seconds";
pub const EMBEDDING_BATCH_SECONDS: &str = "hearth_embedding_batch_seconds";
pub const EMBEDDED_TEXTS_TOTAL: &str = "hearth_embedded_texts_total";
pub const EMBEDDED_TOKENS_TOTAL: &str = "hearth_embedded_tokens_total";
pub const EMBEDDING_FAILED_BATCHES_TOTAL: &str = "hearth_embedding_failed_batches_total";
pub const EMBEDDING_ABANDONED_REQUESTS_TOTAL: &str = "hearth_embedding_abandoned_requests_total";
pub const EMBEDDING_TEXTS_OPEN: &str = "hearth_embedding_texts_open";

/// Registers each metric's help text.
pub(in crate::engine) fn describe() {
    describe_histogram!(EMBEDDING_QUEUE_SECONDS, "From an embedding request's arrival to its first batch.");
    describe_histogram!(EMBEDDING_BATCH_SECONDS, "Computing one batch of texts.");
    describe_counter!(EMBEDDED_TEXTS_TOTAL, "Texts embedded.");
    describe_counter!(EMBEDDED_TOKENS_TOTAL, "Tokens of the texts embedded.");
    describe_counter!(EMBEDDING_FAILED_BATCHES_TOTAL, "Batches that ended in an error.");
    describe_counter!(EMBEDDING_ABANDONED_REQUESTS_TOTAL, "Requests whose caller went away or whose deadline passed.");
    describe_gauge!(EMBEDDING_TEXTS_OPEN, "Texts that wait or are being computed.");
}

pub(super) fn queued(wait: Duration) {
    histogram!(EMBEDDING_QUEUE_SECONDS).record(wait.as_secs_f64());
}

pub(super) fn batch(duration: Duration) {
    histogram!(EMBEDDING_BATCH_SECONDS).record(duration.as_secs_f64());
}

/// Sets counters and the gauge from the stats.
pub(super) fn publish(stats: &EncoderStats) {
    counter!(EMBEDDED_TEXTS_TOTAL).absolute(stats.finished_texts);
    counter!(EMBEDDED_TOKENS_TOTAL).absolute(stats.finished_tokens);
    counter!(EMBEDDING_FAILED_BATCHES_TOTAL).absolute(stats.failed_batches);
    counter!(EMBEDDING_ABANDONED_REQUESTS_TOTAL).absolute(stats.abandoned_requests);
    gauge!(EMBEDDING_TEXTS_OPEN).set(stats.open_texts as f64);
}
