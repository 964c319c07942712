//! Which side serves, a local model or a hosted one, and which candidate comes next when the first cannot.
//!
//! A request's policy sets the order in which its model's candidates are asked ([`Policies`]). The choice is made
//! before the first byte of the answer and never changes after it: a candidate that reports an obstacle beforehand
//! ([`Readiness`]) is not asked, one that refuses for a reason that another may not share ([`Reason`]) is followed by
//! the next, and a caller's mistake ends the search, since every candidate would refuse it. A request that must stay on
//! this machine never reaches a hosted candidate, not even to ask whether it could serve.
//!
//! What a hosted candidate does to reach its upstream (timeouts, retries, breaker) is left to `providers/hosted`.

mod chat;
mod description;
mod embedder;
mod local_slot;
mod reranker;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hearth_domain::{
    Account, RoutingPolicy,
    error::{Error, ErrorKind, Result},
};

pub use self::{
    chat::FallbackChat,
    embedder::FallbackEmbedder,
    local_slot::{LocalSlot, Obstacle, Readiness},
    reranker::FallbackReranker,
};
use super::{ChatModel, Embedder, Reranker};

/// Why another candidate than the first choice served. Recorded in the account and reported in the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The local model is still loading, could not be loaded, is not configured, or has failed.
    NotReady,
    /// The local queue is full, or its wait is longer than the server's limit.
    QueueWait,
    /// The prompt does not fit into the candidate's context.
    ContextLength,
    /// The local device has no room for the request.
    OutOfMemory,
    /// The upstream could not be reached, failed, or rejected the server itself.
    UpstreamError,
    /// The upstream's breaker is open after repeated failures.
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

    /// As written in the ledger and in receipts.
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

    /// A reason that another candidate may not share. `None` for an error that every candidate would give, or that is
    /// the caller's own fault: then no other candidate is asked.
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

/// Which machine a candidate runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    Hosted,
}

/// One of the candidates for a served name.
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

    /// The model, if it is loaded now.
    fn model(&self) -> Option<Arc<T>> {
        match self {
            Self::Local(place) => place.model().cloned(),
            Self::Hosted { model, .. } => Some(model.clone()),
        }
    }
}

/// The precedence of policies. What must stay on this machine stays, whatever the other policies say: by the server's
/// own `local-only`, by the caller, by the request or by a collection that it reads. After that the request decides,
/// then its key, then the route, then the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policies {
    pub server: RoutingPolicy,
    pub route: Option<RoutingPolicy>,
}

impl Policies {
    pub fn of(self, account: &Account) -> RoutingPolicy {
        if self.server == RoutingPolicy::LocalOnly {
            return RoutingPolicy::LocalOnly;
        }
        account.policy().or(self.route).unwrap_or(self.server)
    }

    /// The candidates that may serve, the first choice first. Candidates of one side keep their order.
    fn order<T: ?Sized>(self, candidates: &[Candidate<T>], account: &Account) -> Result<Vec<Candidate<T>>> {
        let policy = self.of(account);
        let of_side = |side| candidates.iter().filter(move |candidate| candidate.side() == side).cloned();
        let ordered: Vec<Candidate<T>> = match policy {
            RoutingPolicy::LocalFirst => of_side(Side::Local).chain(of_side(Side::Hosted)).collect(),
            RoutingPolicy::LocalOnly => of_side(Side::Local).collect(),
            RoutingPolicy::HostedFirst => of_side(Side::Hosted).chain(of_side(Side::Local)).collect(),
            RoutingPolicy::HostedOnly => of_side(Side::Hosted).collect(),
        };
        match policy {
            RoutingPolicy::LocalOnly if ordered.is_empty() => Err(Error::new(
                ErrorKind::Forbidden,
                "This model is served by an upstream only, and the request must stay on this machine. Name a model that \
                 this machine runs; GET /v1/models lists them.",
            )
            .with_param("model")
            .with_code("local_only")),
            RoutingPolicy::HostedOnly if ordered.is_empty() => Err(Error::invalid(
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

/// The error when no candidate could serve: the first choice's, with the other candidates that were tried.
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

/// A request's search through its candidates.
struct Search<T: ?Sized> {
    left: std::collections::VecDeque<Candidate<T>>,
    /// The first choice, which would serve eventually if no other candidate does so sooner.
    patient: Option<Candidate<T>>,
    failures: Vec<Failure>,
}

impl<T: ?Sized> Search<T> {
    fn new(ordered: Vec<Candidate<T>>) -> Self {
        Self { left: ordered.into(), patient: None, failures: Vec::new() }
    }

    /// The next candidate to ask.
    fn next(&mut self) -> Option<(Candidate<T>, Arc<T>)> {
        while let Some(candidate) = self.left.pop_front() {
            let Candidate::Local(place) = &candidate else {
                let model = candidate.model()?;
                return Some((candidate, model));
            };
            match place.obstacle() {
                None => {}
                // With no other candidate left, the request waits.
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

    /// Handles a candidate's refusal: returns the error if the search ends with it.
    fn refused(&mut self, candidate: &Candidate<T>, error: Error) -> Result<()> {
        match Reason::of(candidate.side(), &error) {
            Some(reason) => {
                self.failed(candidate, reason, error);
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Records which candidate serves, and why if it was not the first choice.
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

/// Counter by `reason`: requests that another candidate than the first choice served.
pub const FALLBACKS_TOTAL: &str = "hearth_fallbacks_total";

/// Registers each metric's help text.
pub fn describe_metrics() {
    metrics::describe_counter!(FALLBACKS_TOTAL, "Requests that another candidate than the first choice served.");
}
