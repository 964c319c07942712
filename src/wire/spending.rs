//! `GET /metrics` as JSON and `GET /v1/usage`: the usage and cost of all requests, and by day, caller, model and
//! provider.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::{FieldSpec, RequestQuery, STRING, honoured};

/// The answer of `GET /metrics` to a request that does not ask for Prometheus' text: the sums of the whole ledger.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct MetricsSummary {
    pub total_cost_usd: f64,
    /// The same in whole millionths.
    pub total_cost_micro_usd: u64,
    pub total_requests: u64,
    /// From a request's admission to its end, however it ended.
    pub avg_latency_ms: f64,
    pub total_input_tokens: u64,
    /// The part of the input that was in a prefix cache.
    pub total_cached_tokens: u64,
    pub total_output_tokens: u64,
    pub total_compute_seconds: f64,
    /// Bytes of request text that left the machine.
    pub total_bytes_out: u64,
    pub requests_by_outcome: Outcomes,
    /// Requests whose rows were lost since the server started; in no other figure here.
    pub ledger_rows_lost: u64,
}

#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct Outcomes {
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
}

/// The query of `GET /v1/usage`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct UsageParameters {
    /// A date, an RFC 3339 time, or Unix seconds.
    pub from: Option<String>,
    /// The same; a date is included.
    pub to: Option<String>,
    /// `day`, `caller`, `model` and `provider`, separated by commas.
    pub group_by: Option<String>,
    pub caller: Option<String>,
}

const MOMENT: &str = r#"{"anyOf":[{"type":"string","format":"date"},{"type":"string","format":"date-time"},{"type":"string","pattern":"^[0-9]{1,10}$"}]}"#;
const GROUPS: &str = r#"{"type":"string","pattern":"^(day|caller|model|provider)(,(day|caller|model|provider))*$"}"#;

impl RequestQuery for UsageParameters {
    const PARAMETERS: &'static [FieldSpec] = &[
        honoured(
            "from",
            MOMENT,
            "A date, a time as RFC 3339 writes it, or Unix seconds. Default: 30 days before `to`.",
        ),
        honoured("to", MOMENT, "The same; a date is counted in. Default: now."),
        honoured("group_by", GROUPS, "`day`, `caller`, `model` and `provider`, with commas. Default `day`."),
        honoured("caller", STRING, "Of this caller only; another caller needs the scope `admin`."),
    ];
}

/// The answer of `GET /v1/usage`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct UsageReport {
    #[schemars(extend("const" = "usage"))]
    pub object: &'static str,
    /// Unix seconds; the first one included, and the first one excluded.
    pub from: i64,
    pub to: i64,
    pub group_by: Vec<&'static str>,
    /// Sorted by the grouping keys.
    pub data: Vec<UsageEntry>,
    pub total: UsageFigures,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct UsageEntry {
    /// The grouping keys, under their own names: `"day": "2026-01-31"`.
    #[serde(flatten)]
    pub keys: Map<String, Value>,
    #[serde(flatten)]
    pub figures: UsageFigures,
}

#[derive(Clone, Copy, Debug, Default, JsonSchema, Serialize)]
pub struct UsageFigures {
    pub requests: u64,
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
    pub avg_latency_ms: f64,
    pub compute_seconds: f64,
    pub bytes_out: u64,
    pub cost_usd: f64,
    pub cost_micro_usd: u64,
}
