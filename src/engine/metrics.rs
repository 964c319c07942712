//! The engine's metrics: their names, what they mean, and the places where they are recorded.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::{encoder, stats::EngineStats};

pub const TIME_TO_FIRST_TOKEN_SECONDS: &str = "hearth_time_to_first_token_seconds";
pub const INTER_TOKEN_SECONDS: &str = "hearth_inter_token_seconds";
pub const QUEUE_SECONDS: &str = "hearth_queue_seconds";
pub const PREFILL_SECONDS: &str = "hearth_prefill_seconds";
pub const DECODE_SECONDS: &str = "hearth_decode_seconds";
pub const STEP_SECONDS: &str = "hearth_step_seconds";
pub const PROMPT_TOKENS_TOTAL: &str = "hearth_prompt_tokens_total";
pub const GENERATED_TOKENS_TOTAL: &str = "hearth_generated_tokens_total";
pub const PREFIX_CACHE_HIT_TOKENS_TOTAL: &str = "hearth_prefix_cache_hit_tokens_total";
pub const PREEMPTIONS_TOTAL: &str = "hearth_preemptions_total";
pub const STEPS_TOTAL: &str = "hearth_steps_total";
pub const FAILED_STEPS_TOTAL: &str = "hearth_failed_steps_total";
pub const CANCELLED_REQUESTS_TOTAL: &str = "hearth_cancelled_requests_total";
pub const REQUESTS_RUNNING: &str = "hearth_requests_running";
pub const REQUESTS_WAITING: &str = "hearth_requests_waiting";
pub const KV_BLOCKS_USED: &str = "hearth_kv_blocks_used";
pub const KV_BLOCKS_CACHED: &str = "hearth_kv_blocks_cached";
pub const KV_BLOCKS_TOTAL: &str = "hearth_kv_blocks_total";

/// Registers the help text of each metric of the engine and the encoder.
pub fn describe() {
    describe_histogram!(TIME_TO_FIRST_TOKEN_SECONDS, "From a request's arrival to its first token.");
    describe_histogram!(INTER_TOKEN_SECONDS, "Between two tokens of one choice.");
    describe_histogram!(QUEUE_SECONDS, "From a request's arrival to its first step.");
    describe_histogram!(PREFILL_SECONDS, "From a request's first step to its first token.");
    describe_histogram!(DECODE_SECONDS, "From a request's first token to its last.");
    describe_histogram!(STEP_SECONDS, "One step of the model over all sequences in its batch.");
    describe_counter!(PROMPT_TOKENS_TOTAL, "Prompt tokens of admitted requests, those from the prefix cache included.");
    describe_counter!(GENERATED_TOKENS_TOTAL, "Tokens generated.");
    describe_counter!(PREFIX_CACHE_HIT_TOKENS_TOTAL, "Prompt tokens that were in the prefix cache already.");
    describe_counter!(PREEMPTIONS_TOTAL, "Sequences that gave their blocks back to others and were computed again.");
    describe_counter!(STEPS_TOTAL, "Steps of the model.");
    describe_counter!(FAILED_STEPS_TOTAL, "Steps that ended in an error.");
    describe_counter!(CANCELLED_REQUESTS_TOTAL, "Requests whose caller went away.");
    describe_gauge!(REQUESTS_RUNNING, "Requests that have been admitted to the batch.");
    describe_gauge!(REQUESTS_WAITING, "Requests in the queue.");
    describe_gauge!(KV_BLOCKS_USED, "Blocks of the KV cache that running sequences hold.");
    describe_gauge!(KV_BLOCKS_CACHED, "Blocks that nobody holds and a later prompt may find again.");
    describe_gauge!(KV_BLOCKS_TOTAL, "Blocks of the KV cache.");
    encoder::metrics::describe();
}

pub(super) fn queued(wait: Duration) {
    histogram!(QUEUE_SECONDS).record(wait.as_secs_f64());
}

pub(super) fn first_token(since_submission: Duration, prefill: Duration) {
    histogram!(TIME_TO_FIRST_TOKEN_SECONDS).record(since_submission.as_secs_f64());
    histogram!(PREFILL_SECONDS).record(prefill.as_secs_f64());
}

pub(super) fn next_token(since_last: Duration) {
    histogram!(INTER_TOKEN_SECONDS).record(since_last.as_secs_f64());
}

pub(super) fn finished(decode: Duration) {
    histogram!(DECODE_SECONDS).record(decode.as_secs_f64());
}

pub(super) fn step(duration: Duration) {
    histogram!(STEP_SECONDS).record(duration.as_secs_f64());
}

pub(super) fn cancelled() {
    counter!(CANCELLED_REQUESTS_TOTAL).increment(1);
}

/// Sets counters and gauges from the stats.
pub(super) fn publish(stats: &EngineStats) {
    counter!(PROMPT_TOKENS_TOTAL).absolute(stats.prompt_tokens);
    counter!(GENERATED_TOKENS_TOTAL).absolute(stats.generated_tokens);
    counter!(PREFIX_CACHE_HIT_TOKENS_TOTAL).absolute(stats.prefix_hit_tokens);
    counter!(PREEMPTIONS_TOTAL).absolute(stats.preemptions);
    counter!(STEPS_TOTAL).absolute(stats.steps);
    counter!(FAILED_STEPS_TOTAL).absolute(stats.failed_steps);
    let requests_running = stats.open_requests.saturating_sub(stats.waiting_requests);
    for (name, value) in [
        (REQUESTS_RUNNING, requests_running),
        (REQUESTS_WAITING, stats.waiting_requests),
        (KV_BLOCKS_USED, stats.blocks_used),
        (KV_BLOCKS_CACHED, stats.blocks_cached),
        (KV_BLOCKS_TOTAL, stats.blocks_total),
    ] {
        gauge!(name).set(value as f64);
    }
}
