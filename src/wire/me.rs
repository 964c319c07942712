//! What `GET /v1/me` reports about a caller.

use schemars::JsonSchema;
use serde::Serialize;

use hearth_domain::{Budget, Caller, ModelKind, Standing, usage::Remaining};

#[derive(Debug, JsonSchema, Serialize)]
pub struct Me {
    #[schemars(extend("const" = "caller"))]
    pub object: &'static str,
    /// The id that owns the caller's documents, limits and usage.
    pub id: String,
    /// The key or token presented; null where none is required.
    pub key_id: Option<String>,
    #[schemars(extend("items" = {"enum": ["chat", "embed", "documents", "admin"]}))]
    pub scopes: Vec<&'static str>,
    /// Models that the caller may name; null means all.
    pub models: Option<Vec<String>>,
    /// None of this caller's data leaves the machine.
    pub local_only: bool,
    /// Which side serves if a request does not say; null means the server's own policy.
    #[schemars(extend("enum" = ["local-first", "local-only", "hosted-first", "hosted-only", null]))]
    pub policy: Option<&'static str>,
    pub limits: Limits,
    pub left: Left,
    pub features: Features,
}

/// Null means no limit.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Limits {
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    pub concurrent_requests: Option<u32>,
    pub daily_usd: Option<f64>,
    pub monthly_usd: Option<f64>,
    pub daily_compute_seconds: Option<f64>,
    pub monthly_compute_seconds: Option<f64>,
    pub storage_bytes: Option<u64>,
    pub documents: Option<u64>,
}

/// Remaining requests and tokens under the caller's limits or the server's, whichever is nearer, as in the headers of
/// every answer; remaining budgets under the caller's own alone. Null where there is no limit.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Left {
    pub requests: Option<u32>,
    pub tokens: Option<u32>,
    pub daily_usd: Option<f64>,
    pub monthly_usd: Option<f64>,
    pub daily_compute_seconds: Option<f64>,
    pub monthly_compute_seconds: Option<f64>,
}

/// What the server can do now, so that a client need not learn it from errors.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct Features {
    pub chat: bool,
    pub embeddings: bool,
    /// Documents can be read, searched and asked.
    pub documents: bool,
    pub rerank: bool,
}

impl Features {
    /// `has`: whether a model of a kind is served; `documents`: whether there is a local embedding model to search
    /// with.
    pub fn of(has: impl Fn(ModelKind) -> bool, documents: bool) -> Self {
        Self {
            chat: has(ModelKind::Chat),
            embeddings: has(ModelKind::Embedding),
            documents,
            rerank: has(ModelKind::Rerank),
        }
    }
}

impl Me {
    pub fn new(caller: &Caller, standing: &Standing, features: Features) -> Self {
        let limits = standing.limits;
        let left_of = |remaining: Option<Remaining>| remaining.map(|remaining| remaining.remaining);
        Self {
            object: "caller",
            id: caller.id.clone(),
            key_id: caller.key_id.clone(),
            scopes: caller.scopes.iter().map(|scope| scope.as_str()).collect(),
            models: caller.allowed_models.clone(),
            local_only: caller.local_only,
            policy: caller.policy.map(|policy| policy.as_str()),
            limits: Limits {
                requests_per_minute: limits.requests_per_minute,
                tokens_per_minute: limits.tokens_per_minute,
                concurrent_requests: limits.concurrent_requests,
                daily_usd: usd(limits.daily),
                monthly_usd: usd(limits.monthly),
                daily_compute_seconds: seconds(limits.daily),
                monthly_compute_seconds: seconds(limits.monthly),
                storage_bytes: limits.storage.bytes,
                documents: limits.storage.documents,
            },
            left: Left {
                requests: left_of(standing.allowance.requests),
                tokens: left_of(standing.allowance.tokens),
                daily_usd: usd(standing.daily_left),
                monthly_usd: usd(standing.monthly_left),
                daily_compute_seconds: seconds(standing.daily_left),
                monthly_compute_seconds: seconds(standing.monthly_left),
            },
            features,
        }
    }
}

fn usd(budget: Budget) -> Option<f64> {
    budget.micro_usd.map(|micro| micro as f64 / 1e6)
}

fn seconds(budget: Budget) -> Option<f64> {
    budget.compute.map(|compute| compute.as_secs_f64())
}
