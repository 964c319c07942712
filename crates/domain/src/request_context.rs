//! What is known of a request when it comes, and does not change: who asks, for what, and how.

use std::sync::Arc;

use super::{Caller, RoutingPolicy};

/// See the module.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Appears as `x-request-id`, in the log span and in the receipt.
    pub request_id: String,
    /// `POST /v1/chat/completions`, or the kind of a job.
    pub route: String,
    pub caller: Arc<Caller>,
    /// Whose turn it is in fair queues: an API key, or the peer's address.
    pub fairness_key: String,
    /// The routing policy that the request itself asks for.
    pub policy: Option<RoutingPolicy>,
    pub cache_use: CacheUse,
    /// Whether the request leaves a row in the ledger.
    pub is_recorded: bool,
    /// What the request works on must stay on this machine, such as a collection's passages.
    pub is_local_only: bool,
    /// The conversation that the request belongs to, as its client names it: the requests of one are best served by one
    /// engine.
    pub session: Option<String>,
}

/// How far a request uses the answer caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheUse {
    #[default]
    Full,
    /// The answer is recomputed, and the new answer is stored.
    Refresh,
    /// Nothing is looked up and nothing is stored.
    Off,
}

impl RequestContext {
    /// The context of commands and tests: the local caller, and no row in the ledger.
    pub fn unrecorded() -> Self {
        Self {
            request_id: String::new(),
            route: String::new(),
            caller: Arc::new(Caller::local()),
            fairness_key: String::new(),
            policy: None,
            cache_use: CacheUse::default(),
            is_recorded: false,
            is_local_only: false,
            session: None,
        }
    }

    /// The routing policy that the request or its key asks for. What must stay on this machine overrides both.
    pub fn policy(&self) -> Option<RoutingPolicy> {
        if self.caller.local_only || self.is_local_only {
            return Some(RoutingPolicy::LocalOnly);
        }
        self.policy.or(self.caller.policy)
    }
}
