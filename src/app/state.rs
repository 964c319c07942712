//! What the server knows about its own state: what probes report, and what ends when it stops.

use std::time::{Duration, Instant};

use hearth_domain::part::PartReport;
use hearth_kernels::device::DeviceChoice;
use parking_lot::RwLock;

use crate::{
    engine::Engine,
    providers::{local::LocalChat, local_embedder::LocalEmbedder, local_reranker::LocalReranker},
    service::health::{EngineReport, Health, HealthReport, ServerStatus},
};

/// What the server knows about its own state.
#[derive(Debug)]
pub(super) struct ServerState {
    device_asked: DeviceChoice,
    started: Instant,
    inner: RwLock<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: ServerStatus,
    /// Where the chat model computes; empty before it is loaded.
    device_in_use: &'static str,
    engine: Option<Engine>,
    embedder: Option<LocalEmbedder>,
    reranker: Option<LocalReranker>,
    watched: Vec<Watched>,
}

/// Reports the state of some parts of the server.
struct Watched(Box<dyn Fn() -> Vec<PartReport> + Send + Sync>);

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watched").field(&self.0()).finish()
    }
}

impl Inner {
    fn watch(&mut self, parts: impl Fn() -> Vec<PartReport> + Send + Sync + 'static) {
        self.watched.push(Watched(Box::new(parts)));
    }

    fn status(&self) -> ServerStatus {
        let has_failed = |engine: &Engine| !engine.heartbeat().alive;
        if self.status == ServerStatus::Ready && self.engine.as_ref().is_some_and(has_failed) {
            return ServerStatus::Failed(
                "the engine has stopped; the log has the cause. Restart the server.".to_owned(),
            );
        }
        self.status.clone()
    }
}

impl ServerState {
    pub(super) fn new(device_asked: DeviceChoice) -> Self {
        let inner = Inner {
            status: ServerStatus::Loading,
            device_in_use: "",
            engine: None,
            embedder: None,
            reranker: None,
            watched: Vec::new(),
        };
        Self { device_asked, started: Instant::now(), inner: RwLock::new(inner) }
    }

    /// Readiness depends on these parts from now on.
    pub(super) fn watch(&self, parts: impl Fn() -> Vec<PartReport> + Send + Sync + 'static) {
        self.inner.write().watch(parts);
    }

    pub(super) fn set_chat(&self, chat: &LocalChat) {
        let mut inner = self.inner.write();
        let part = chat.engine().part().clone();
        inner.watch(move || vec![part.report()]);
        inner.engine = Some(chat.engine().clone());
        inner.device_in_use = chat.device();
    }

    pub(super) fn set_embedder(&self, embedder: LocalEmbedder) {
        let mut inner = self.inner.write();
        let part = embedder.part().clone();
        inner.watch(move || vec![part.report()]);
        inner.embedder = Some(embedder);
    }

    pub(super) fn set_reranker(&self, reranker: LocalReranker) {
        let mut inner = self.inner.write();
        let part = reranker.part().clone();
        inner.watch(move || vec![part.report()]);
        inner.reranker = Some(reranker);
    }

    pub(super) fn ready(&self) {
        let mut inner = self.inner.write();
        // A server that was told to stop while loading does not become ready.
        if inner.status == ServerStatus::Loading {
            inner.status = ServerStatus::Ready;
        }
    }

    /// The models could not be loaded, for this reason.
    pub(super) fn failed(&self, reason: String) {
        let mut inner = self.inner.write();
        if inner.status == ServerStatus::Loading {
            inner.status = ServerStatus::Failed(reason);
        }
    }

    /// Refuses new requests at once, and ends the running ones within the grace time.
    pub(super) async fn drain(&self, grace: Duration) {
        let (engine, embedder, reranker) = {
            let mut inner = self.inner.write();
            inner.status = ServerStatus::Draining;
            (inner.engine.clone(), inner.embedder.clone(), inner.reranker.clone())
        };
        let engine = async {
            if let Some(engine) = engine {
                engine.drain(grace).await;
            }
        };
        let embedder = async {
            if let Some(embedder) = embedder {
                embedder.drain(grace).await;
            }
        };
        let reranker = async {
            if let Some(reranker) = reranker {
                reranker.drain(grace).await;
            }
        };
        tokio::join!(engine, embedder, reranker);
    }
}

impl Health for ServerState {
    fn status(&self) -> ServerStatus {
        self.inner.read().status()
    }

    fn report(&self) -> HealthReport {
        let inner = self.inner.read();
        let engine = inner.engine.as_ref().map(|engine| {
            let (stats, heartbeat) = (engine.stats(), engine.heartbeat());
            EngineReport {
                heartbeat_age: heartbeat.since_last_turn,
                running: stats.running_sequences,
                waiting: stats.waiting_sequences,
                kv_blocks_total: stats.blocks_total,
                kv_blocks_used: stats.blocks_used,
            }
        });
        HealthReport {
            status: inner.status(),
            device_asked: self.device_asked.to_string(),
            device_in_use: inner.device_in_use.to_owned(),
            engine,
            parts: inner.watched.iter().flat_map(|watched| watched.0()).collect(),
            uptime: self.started.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, EngineConfig};
    use hearth_domain::part::Part;

    /// A model that is never asked.
    struct NoModel;

    impl engine::StepModel for NoModel {
        fn vocab_size(&self) -> usize {
            1
        }

        fn forward(&mut self, _: &hearth_models::batch::Batch) -> Result<Vec<f32>, engine::StepError> {
            Err(engine::StepError::Failed("there is no model".to_owned()))
        }
    }

    #[tokio::test]
    async fn a_server_whose_engine_has_ended_is_not_ready() {
        let state = ServerState::new(DeviceChoice::Cpu);
        let engine = Engine::start(Box::new(NoModel), EngineConfig::default()).expect("a valid configuration");
        state.inner.write().engine = Some(engine.clone());
        state.ready();
        assert_eq!(state.status(), ServerStatus::Ready);
        engine.drain(Duration::ZERO).await;
        assert!(matches!(state.status(), ServerStatus::Failed(_)), "{:?}", state.status());
        assert_eq!(state.report().status, state.status());
    }

    #[test]
    fn a_part_that_has_failed_is_reported_and_the_others_with_it() {
        let state = ServerState::new(DeviceChoice::Cpu);
        let parts = ["sound", "broken"].map(Part::new);
        let watched = parts.clone();
        state.watch(move || watched.iter().map(|part| part.report()).collect());
        state.ready();
        assert_eq!(state.report().failed_part(), None);
        while parts[1].panicked(&"asked to panic") {}
        let report = state.report();
        assert!(report.failed_part().is_some_and(|reason| reason.contains("broken")), "{report:?}");
        assert_eq!(report.parts.len(), 2);
        assert_eq!(report.status, ServerStatus::Ready, "requests that do without it are served");
        parts[1].works();
        assert_eq!(state.report().failed_part(), None);
    }
}
