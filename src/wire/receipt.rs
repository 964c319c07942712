//! What a request used and cost, as reported in answers and in the last event of a stream.
//!
//! The keys are the same for every provider, and all but `engine`, `grounding` and `violations` are always present, so a client
//! parses one shape.

use std::time::Duration;

use hearth_domain::{Account, usage::SchemaViolation};
use schemars::JsonSchema;
use serde::Serialize;

/// See the module.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Receipt {
    pub request_id: String,
    /// `local`, an upstream's name or `cache`; `none` where no model was needed.
    pub served_by: String,
    /// The engine of the upstream, where it has several; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// Why a side other than the first choice served.
    pub fallback_reason: Option<String>,
    /// Upstreams tried, including each retry.
    pub attempts: u32,
    /// The cache that held the answer.
    pub cache: Option<&'static str>,
    /// How an answer from documents is bound to them: `extract`, `quote` or `free`; absent in other answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["extract", "quote", "free"]))]
    pub grounding: Option<&'static str>,
    /// Across all models that worked for the request, as are the figures below.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    #[schemars(range(min = 0.0))]
    pub queue_ms: f64,
    #[schemars(range(min = 0.0))]
    pub prefill_ms: f64,
    #[schemars(range(min = 0.0))]
    pub decode_ms: f64,
    /// The request's share of the device's time.
    #[schemars(range(min = 0.0))]
    pub compute_ms: f64,
    /// Since the request was admitted.
    #[schemars(range(min = 0.0))]
    pub latency_ms: f64,
    #[schemars(range(min = 0.0))]
    pub cost_usd: f64,
    /// The same in whole millionths, for summing.
    pub cost_micro_usd: u64,
    /// What the answer's tool calls violate of the parts that `x-hearth-unenforced` names; absent if nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// Both are dotted paths.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Violation {
    /// In the answer, such as `choices.0.message.tool_calls.0.function.arguments.tags`.
    pub argument: String,
    /// In the request, such as `tools.0.function.parameters.properties.tags.uniqueItems`.
    pub rule: String,
}

impl From<SchemaViolation> for Violation {
    fn from(SchemaViolation { argument, rule }: SchemaViolation) -> Self {
        Self { argument, rule }
    }
}

impl Receipt {
    /// The account's receipt so far.
    pub fn of(account: &Account) -> Self {
        let receipt = account.receipt();
        let records = || receipt.models.iter();
        let main = receipt.main_model();
        Self {
            request_id: account.request_id().to_owned(),
            served_by: receipt.served_by().to_owned(),
            engine: receipt.engine().map(ToOwned::to_owned),
            model: main.map(|record| record.model.clone()),
            fallback_reason: receipt.fallback_reason.clone(),
            attempts: receipt.attempts,
            cache: receipt.cache,
            grounding: None,
            prompt_tokens: receipt.prompt_tokens(),
            cached_tokens: records().map(|record| record.cached_tokens).fold(0, u64::saturating_add),
            completion_tokens: receipt.completion_tokens(),
            queue_ms: milliseconds(records().map(|record| record.queue).sum()),
            prefill_ms: milliseconds(records().map(|record| record.prefill).sum()),
            decode_ms: milliseconds(records().map(|record| record.decode).sum()),
            compute_ms: milliseconds(receipt.compute()),
            latency_ms: milliseconds(receipt.latency),
            cost_usd: usd(receipt.cost_micro_usd),
            cost_micro_usd: receipt.cost_micro_usd,
            violations: account.violations().into_iter().map(Violation::from).collect(),
        }
    }
}

/// Rounded to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// For display; sums use the millionths.
#[expect(clippy::cast_precision_loss, reason = "exact below nine billion dollars")]
pub fn usd(micro_usd: u64) -> f64 {
    micro_usd as f64 / 1e6
}
