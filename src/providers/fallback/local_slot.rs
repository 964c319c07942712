//! The slot of a local model, which may be filled after the first request for it arrives, or never.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;

use super::Reason;
use hearth_domain::error::{Error, ErrorKind};

/// Why a candidate should not be asked now.
#[derive(Debug)]
pub struct Obstacle {
    pub reason: Reason,
    /// What the caller is told if no other candidate can serve.
    pub error: Error,
    /// The candidate would serve eventually: if no other candidate does, it is asked after all.
    pub passes_by_waiting: bool,
}

/// What a local model reports before it is asked. Must return at once.
pub trait Readiness: Send + Sync {
    /// `None`: it may be asked.
    fn obstacle(&self) -> Option<Obstacle>;
}

impl<F: Fn() -> Option<Obstacle> + Send + Sync> Readiness for F {
    fn obstacle(&self) -> Option<Obstacle> {
        self()
    }
}

/// See the module's documentation.
pub struct LocalSlot<T: ?Sized> {
    taken: OnceLock<Taken<T>>,
    vacancy: Mutex<Vacancy>,
}

struct Taken<T: ?Sized> {
    model: Arc<T>,
    readiness: Box<dyn Readiness>,
}

/// Why there is no model.
#[derive(Clone, Debug)]
enum Vacancy {
    Loading,
    /// No local model is configured.
    Absent,
    Failed(String),
}

impl<T: ?Sized> std::fmt::Debug for LocalSlot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSlot")
            .field("is_taken", &self.taken.get().is_some())
            .field("vacancy", &self.vacancy)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> LocalSlot<T> {
    /// A model is being loaded.
    pub fn loading() -> Arc<Self> {
        Arc::new(Self { taken: OnceLock::new(), vacancy: Mutex::new(Vacancy::Loading) })
    }

    /// A slot with a loaded model.
    pub fn of(model: Arc<T>, readiness: impl Readiness + 'static) -> Arc<Self> {
        let place = Self::loading();
        place.take(model, readiness);
        place
    }

    /// The model has been loaded. The slot is filled once: a second call is ignored.
    pub fn take(&self, model: Arc<T>, readiness: impl Readiness + 'static) {
        let _already_taken = self.taken.set(Taken { model, readiness: Box::new(readiness) });
    }

    /// There will be no model.
    pub fn stays_empty(&self) {
        *self.vacancy.lock() = Vacancy::Absent;
    }

    /// Loading has failed, for this reason.
    pub fn failed(&self, reason: String) {
        *self.vacancy.lock() = Vacancy::Failed(reason);
    }

    pub fn model(&self) -> Option<&Arc<T>> {
        self.taken.get().map(|taken| &taken.model)
    }

    /// Whether the slot will always stay empty.
    pub fn is_absent(&self) -> bool {
        self.taken.get().is_none() && matches!(*self.vacancy.lock(), Vacancy::Absent)
    }

    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if let Some(taken) = self.taken.get() {
            return taken.readiness.obstacle();
        }
        let error = match &*self.vacancy.lock() {
            Vacancy::Loading => Error::model_loading(),
            Vacancy::Failed(reason) => Error::model_failed(reason),
            Vacancy::Absent => Error::new(
                ErrorKind::Unavailable,
                "This machine has no model for this request: start the server with one, or choose a policy that lets an \
                 upstream serve.",
            )
            .with_code("no_local_model")
            .with_retry_after(Duration::from_secs(60)),
        };
        Some(Obstacle { reason: Reason::NotReady, error, passes_by_waiting: false })
    }
}
