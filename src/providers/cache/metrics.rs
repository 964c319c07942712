//! The caches' metrics: their names, what they mean, and where they are recorded.

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Counter by `cache`.
pub const HITS_TOTAL: &str = "hearth_cache_hits_total";
/// Counter by `cache`.
pub const MISSES_TOTAL: &str = "hearth_cache_misses_total";
/// Gauge by `cache`.
pub const BYTES: &str = "hearth_cache_bytes";

/// Registers each metric's help text.
pub fn describe() {
    describe_counter!(HITS_TOTAL, "Answers, or vectors of texts, that were there already.");
    describe_counter!(MISSES_TOTAL, "Answers, or vectors of texts, that were looked for and had to be computed.");
    describe_gauge!(BYTES, "Memory that the cache's entries take.");
}

pub(super) fn looked_up(cache: &'static str, hits: usize, misses: usize) {
    counter!(HITS_TOTAL, "cache" => cache).increment(hits as u64);
    counter!(MISSES_TOTAL, "cache" => cache).increment(misses as u64);
}

pub(super) fn holds(cache: &'static str, bytes: usize) {
    gauge!(BYTES, "cache" => cache).set(bytes as f64);
}
