//! Which side serves: a local model or a hosted one, and who comes next where the first cannot.
//!
//! A request's policy says in which order the candidates of its model are asked ([`Policies`]). It is decided before the
//! first byte of the answer and never after it: a candidate that says beforehand that it cannot ([`Readiness`]) is not
//! asked, one that refuses for a reason that another does not share ([`Reason`]) is followed by the next, and a mistake
//! of the caller's own ends the matter, since every candidate would call it one. What must stay on this machine never
//! meets a hosted candidate, not even the question whether it could.
//!
//! What a hosted candidate does to reach its upstream (time limits, retries, breaker) is its own business.

mod chat;
mod embedder;
mod local_slot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hearth_domain::{
    Account, Policy,
    error::{Error, ErrorKind, Result},
};

pub use self::{
    chat::FallbackChat,
    embedder::FallbackEmbedder,
    local_slot::{LocalSlot, Obstacle, Readiness},
};
use super::{ChatModel, Embedder};

/// Why another candidate than the first choice served. Written down in the account and told in the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The local model is still loading, could not be loaded, is not there, or has failed.
    NotReady,
    /// The local queue is full, or the wait in it longer than the server's limit.
    QueueWait,
    /// The prompt does not fit into the candidate's context.
    ContextLength,
    /// The local device has no room for the request.
    OutOfMemory,
    /// The upstream could not be reached, failed, or refused the server itself.
    UpstreamError,
    /// The upstream failed so often that it is not asked for now.
    BreakerOpen,
}

impl Reason {
    pub const ALL: [Self; 6] = [
        Self::NotReady,
        Self::QueueWait,
        Self::ContextLength,
        Self::OutOfMemory,
        Self::UpstreamError,
        Self::BreakerOpen,
    ];

    /// As it stands in the ledger and in receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::QueueWait => "queue_wait",
            Self::ContextLength => "context_length",
            Self::OutOfMemory => "out_of_memory",
            Self::UpstreamError => "upstream_error",
            Self::BreakerOpen => "breaker_open",
        }
    }

    /// What another candidate may not meet. `None` for what every candidate would say, or what is nobody's fault but
    /// the caller's: no one else is asked then.
    fn of(side: Side, error: &Error) -> Option<Self> {
        match (side, error.kind()) {
            (_, ErrorKind::ContextLengthExceeded) => Some(Self::ContextLength),
            (Side::Local, ErrorKind::Unavailable | ErrorKind::ModelLoading | ErrorKind::ModelFailed) => {
                Some(Self::NotReady)
            }
            (Side::Hosted, ErrorKind::BreakerOpen) => Some(Self::BreakerOpen),
            (Side::Local, ErrorKind::Overloaded) => Some(Self::QueueWait),
            (Side::Local, ErrorKind::OutOfMemory) => Some(Self::OutOfMemory),
            (
                Side::Hosted,
                ErrorKind::UpstreamFailed
                | ErrorKind::UpstreamTimeout
                | ErrorKind::Unavailable
                | ErrorKind::Overloaded
                | ErrorKind::OutOfMemory,
            ) => Some(Self::UpstreamError),
            _ => None,
        }
    }
}

/// Whose machine a candidate works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    Hosted,
}

/// One of those that can serve a name.
pub enum Candidate<T: ?Sized> {
    Local(Arc<LocalSlot<T>>),
    Hosted {
        /// `upstream/model`, for errors and the log.
        name: String,
        model: Arc<T>,
    },
}

impl<T: ?Sized> Clone for Candidate<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Local(place) => Self::Local(place.clone()),
            Self::Hosted { name, model } => Self::Hosted { name: name.clone(), model: model.clone() },
        }
    }
}

impl<T: ?Sized> std::fmt::Debug for Candidate<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl<T: ?Sized> Candidate<T> {
    fn side(&self) -> Side {
        match self {
            Self::Local(_) => Side::Local,
            Self::Hosted { .. } => Side::Hosted,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Local(_) => "local",
            Self::Hosted { name, .. } => name,
        }
    }

    /// The model, if there is one now.
    fn model(&self) -> Option<Arc<T>> {
        match self {
            Self::Local(place) => place.model().cloned(),
            Self::Hosted { model, .. } => Some(model.clone()),
        }
    }
}

/// Who decides which side serves. What must stay on this machine stays, whoever else says otherwise: by the server's own
/// `local-only`, by the caller, by the request or by a collection that it reads. Then the request decides, then its key,
/// then the route, then the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policies {
    pub server: Policy,
    pub route: Option<Policy>,
}

impl Policies {
    pub fn of(self, account: &Account) -> Policy {
        if self.server == Policy::LocalOnly {
            return Policy::LocalOnly;
        }
        account.policy().or(self.route).unwrap_or(self.server)
    }

    /// Those who may serve, the first choice first. Candidates of one side keep their order.
    fn order<T: ?Sized>(self, candidates: &[Candidate<T>], account: &Account) -> Result<Vec<Candidate<T>>> {
        let policy = self.of(account);
        let of_side = |side| candidates.iter().filter(move |candidate| candidate.side() == side).cloned();
        let ordered: Vec<Candidate<T>> = match policy {
            Policy::LocalFirst => of_side(Side::Local).chain(of_side(Side::Hosted)).collect(),
            Policy::LocalOnly => of_side(Side::Local).collect(),
            Policy::HostedFirst => of_side(Side::Hosted).chain(of_side(Side::Local)).collect(),
            Policy::HostedOnly => of_side(Side::Hosted).collect(),
        };
        match policy {
            Policy::LocalOnly if ordered.is_empty() => Err(Error::new(
                ErrorKind::Forbidden,
                "This model is served by an upstream only, and the request must stay on this machine. Name a model that \
                 this machine runs; GET /v1/models lists them.",
            )
            .with_param("model")
            .with_code("local_only")),
            Policy::HostedOnly if ordered.is_empty() => Err(Error::invalid(
                "model",
                "The policy hosted-only leaves nobody to serve this model: no upstream is set up for it. Choose another \
                 policy or another model.",
            )
            .with_code("no_hosted_model")),
            _ => Ok(ordered),
        }
    }
}

/// A candidate that could not serve.
struct Failure {
    candidate: String,
    reason: Reason,
    error: Error,
}

/// The end where nobody could serve: what the first choice said, and who else was tried.
fn give_up(mut failures: Vec<Failure>) -> Error {
    if failures.is_empty() {
        return Error::internal(anyhow::anyhow!("a model without candidates"));
    }
    let tried: Vec<String> =
        failures.iter().map(|failure| format!("{} ({})", failure.candidate, failure.reason.as_str())).collect();
    let first = failures.swap_remove(0).error;
    if tried.len() == 1 {
        first
    } else {
        first.with_note(&format!("Nobody else could serve; tried: {}.", tried.join(", ")))
    }
}

/// A request on its way through its candidates.
struct Search<T: ?Sized> {
    left: std::collections::VecDeque<Candidate<T>>,
    /// The first choice, which would serve if nobody did so sooner.
    patient: Option<Candidate<T>>,
    failures: Vec<Failure>,
}

impl<T: ?Sized> Search<T> {
    fn new(ordered: Vec<Candidate<T>>) -> Self {
        Self { left: ordered.into(), patient: None, failures: Vec::new() }
    }

    /// The next one to ask.
    fn next(&mut self) -> Option<(Candidate<T>, Arc<T>)> {
        while let Some(candidate) = self.left.pop_front() {
            let Candidate::Local(place) = &candidate else {
                let model = candidate.model()?;
                return Some((candidate, model));
            };
            match place.obstacle() {
                None => {}
                // Whoever has nobody else to go to waits.
                Some(obstacle) if obstacle.passes_by_waiting && self.left.is_empty() => {}
                Some(Obstacle { reason, error, passes_by_waiting }) => {
                    if passes_by_waiting {
                        self.patient = Some(candidate.clone());
                    }
                    self.failed(&candidate, reason, error);
                    continue;
                }
            }
            if let Some(model) = candidate.model() {
                return Some((candidate, model));
            }
        }
        let patient = self.patient.take()?;
        let model = patient.model()?;
        Some((patient, model))
    }

    fn failed(&mut self, candidate: &Candidate<T>, reason: Reason, error: Error) {
        tracing::debug!(candidate = candidate.name(), reason = reason.as_str(), "does not serve: {error}");
        self.failures.push(Failure { candidate: candidate.name().to_owned(), reason, error });
    }

    /// What became of a candidate that was asked: an error is handed back if it is the request's last word.
    fn refused(&mut self, candidate: &Candidate<T>, error: Error) -> Result<()> {
        match Reason::of(candidate.side(), &error) {
            Some(reason) => {
                self.failed(candidate, reason, error);
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Writes down that this one serves, and why if it was not the first choice.
    fn serves(&self, candidate: &Candidate<T>, account: &Account) {
        if let Some(first) = self.failures.first()
            && first.candidate != candidate.name()
        {
            account.set_fallback_reason(first.reason.as_str());
            metrics::counter!(FALLBACKS_TOTAL, "reason" => first.reason.as_str()).increment(1);
            tracing::info!(
                request_id = account.request_id(),
                reason = first.reason.as_str(),
                serves = candidate.name(),
                "another than the first choice serves"
            );
        }
    }

    fn is_exhausted(&self) -> bool {
        self.left.is_empty() && self.patient.is_none()
    }
}

/// Counter by `reason`: requests that another than the first choice served.
pub const FALLBACKS_TOTAL: &str = "hearth_fallbacks_total";

/// Gives each metric its line of help.
pub fn describe_metrics() {
    metrics::describe_counter!(FALLBACKS_TOTAL, "Requests that another candidate than the first choice served.");
}
