//! The server's knowledge of its own state. The health routes ask through [`Health`], so that they work before a model
//! is loaded and need no engine in tests.

use std::time::Duration;

use hearth_domain::{
    error::{Error, ErrorKind, Result},
    part::PartReport,
};

/// Whether requests are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// A model is being loaded.
    Loading,
    Ready,
    /// The models cannot be used, for this reason.
    Failed(String),
    /// Running requests finish; new ones are refused.
    Draining,
}

/// The server's state at one instant.
#[derive(Clone, Debug)]
pub struct HealthReport {
    pub status: ServerStatus,
    pub device_asked: String,
    pub device_in_use: String,
    /// `None` without a chat model.
    pub engine: Option<EngineReport>,
    /// The parts that run as long as the server does.
    pub parts: Vec<PartReport>,
    pub uptime: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct EngineReport {
    /// Time since the loop's last turn; an idle loop still wakes up.
    pub heartbeat_age: Duration,
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_total: usize,
    pub kv_blocks_used: usize,
}

/// A source of the server's state. Must return at once: liveness probes ask it.
pub trait Health: Send + Sync {
    fn status(&self) -> ServerStatus;

    fn report(&self) -> HealthReport;
}

/// An engine with work to do that has made no turn for this long is stuck. One step of the largest prefill chunk on a
/// slow machine stays below it.
pub const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(60);

impl HealthReport {
    /// The engine has work and makes no progress.
    pub fn is_stalled(&self) -> bool {
        self.engine.is_some_and(|engine| {
            engine.heartbeat_age > HEARTBEAT_AGE_MAX && (engine.running > 0 || engine.waiting > 0)
        })
    }

    /// Why a part of the server has failed, if one has, and what to do.
    pub fn failed_part(&self) -> Option<&str> {
        self.parts.iter().find_map(|part| part.failure.as_deref())
    }
}

/// Refuses a request that the server cannot accept in this state.
pub fn refuse_unless_ready(status: &ServerStatus) -> Result<()> {
    match status {
        ServerStatus::Ready => Ok(()),
        ServerStatus::Loading => Err(Error::model_loading()),
        ServerStatus::Failed(reason) => Err(Error::model_failed(reason)),
        ServerStatus::Draining => {
            Err(Error::new(ErrorKind::Draining, "The server is shutting down; try another or try again.")
                .with_retry_after(Duration::from_secs(5)))
        }
    }
}
