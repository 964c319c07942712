//! The answers of the health routes.

use schemars::JsonSchema;
use serde::Serialize;

use hearth_domain::part::PartReport;

/// `GET /health`.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Health")]
pub struct HealthSummary {
    #[schemars(extend("const" = "ok"))]
    pub status: &'static str,
    pub model: Option<String>,
    pub embedding_model: Option<String>,
}

/// `GET /health/live`: the process answers.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Liveness {
    #[schemars(extend("const" = "ok"))]
    pub status: &'static str,
}

/// `GET /health/deep`.
#[derive(Debug, JsonSchema, Serialize)]
pub struct DeepHealth {
    /// `ok`, `loading`, `failed`, `draining` or `stalled`.
    #[schemars(extend("enum" = ["ok", "loading", "failed", "draining", "stalled"]))]
    pub status: &'static str,
    /// What is wrong, if anything is.
    pub reason: Option<String>,
    pub version: String,
    pub uptime_seconds: f64,
    pub model: Option<String>,
    pub embedding_model: Option<String>,
    pub device: DeviceHealth,
    pub engine: Option<EngineHealth>,
    /// The parts that run as long as the server does.
    pub parts: Vec<PartHealth>,
    pub storage: StorageHealth,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct StorageHealth {
    /// `false`: the disk is full, and nothing more is stored until there is room. Everything else continues.
    pub has_room: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct PartHealth {
    pub name: String,
    /// Internal failures since the start, after each of which the part restarted.
    pub panics: u64,
    /// Why it does not work, if it does not, and what to do.
    pub failure: Option<String>,
}

impl From<PartReport> for PartHealth {
    fn from(PartReport { name, panics, failure }: PartReport) -> Self {
        Self { name, panics, failure }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct DeviceHealth {
    /// As configured: `auto`, `cpu`, `cuda` or `metal`.
    pub asked: String,
    pub in_use: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct EngineHealth {
    /// Time since the engine's loop last completed a turn.
    pub heartbeat_age_ms: f64,
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_total: usize,
    pub kv_blocks_used: usize,
}
