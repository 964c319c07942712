//! Probes: whether each of an upstream's engines is well, asked from time to time at its health route.
//!
//! An engine that says it is not, as servers do that are starting or about to stop, gets no new requests while another
//! is well, and keeps those that it has. One that cannot be reached gets none either. A late answer may only mean load,
//! so it takes several in a row to count. Upstreams of one engine are not probed: there is no choice.

use std::{sync::Weak, time::Duration};

use hearth_domain::error::sentence;

use super::engine::RemoteEngine;

/// Late answers in a row that mean that an engine is not well.
const LATE_MAX: u32 = 3;
/// How long an answer is waited for. Longer than a connection usually is, which tells the two apart.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where and how often engines are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Such as `/health`, beside `/v1`. `None`: engines are not asked.
    pub path: Option<String>,
    pub interval: Duration,
}

impl ProbeSettings {
    pub const INTERVAL: Duration = Duration::from_secs(2);

    /// No probes.
    pub fn none() -> Self {
        Self { path: None, interval: Self::INTERVAL }
    }
}

/// What a probe found.
enum Finding {
    Well,
    /// And why.
    Unwell(String),
    Late,
}

/// Asks an engine as long as it exists.
pub(super) async fn keep_asking(engine: Weak<RemoteEngine>, path: String, interval: Duration) {
    let mut late = 0;
    while let Some(engine) = engine.upgrade() {
        let finding = ask(&engine, &path).await;
        late = if matches!(finding, Finding::Late) { late + 1 } else { 0 };
        match finding {
            Finding::Well => engine.set_well(true, ""),
            Finding::Unwell(found) => engine.set_well(false, &found),
            Finding::Late if late >= LATE_MAX => engine.set_well(false, "no answer in time"),
            Finding::Late => {}
        }
        drop(engine);
        tokio::time::sleep(interval).await;
    }
}

async fn ask(engine: &RemoteEngine, path: &str) -> Finding {
    match engine.client().get(engine.url_beside(path)).timeout(PATIENCE).send().await {
        // Any other answer, even that there is no such route, comes from a server that runs.
        Ok(answer) if answer.status().is_server_error() => Finding::Unwell(format!("status {}", answer.status())),
        Ok(_) => Finding::Well,
        Err(error) if error.is_timeout() && !error.is_connect() => Finding::Late,
        // The address may hold a secret.
        Err(error) => Finding::Unwell(sentence(&anyhow::Error::new(error.without_url()))),
    }
}
