//! What travels with a request: its context, which does not change, and the meter of what it uses, which all who work for it
//! share.

use std::{fmt, ops::Deref, sync::Arc};

use super::{
    Caller, RequestContext, RoutingPolicy,
    request_context::CacheUse,
    usage::{NoSink, ServedBy, UsageMeter, UsageRecord, UsageSink},
};

/// See the module. It stands for its meter wherever usage is recorded.
pub struct Account {
    context: RequestContext,
    meter: Arc<UsageMeter>,
}

impl Account {
    pub fn open(sink: Arc<dyn UsageSink>, context: RequestContext) -> Arc<Self> {
        Arc::new(Self { meter: UsageMeter::open(sink, context.clone()), context })
    }

    /// An account that is not recorded, for commands and tests.
    pub fn unrecorded() -> Arc<Self> {
        Self::open(Arc::new(NoSink), RequestContext::unrecorded())
    }

    /// The same request from here on, where it works on something that must stay on this machine. The usage is recorded in the
    /// same meter.
    #[must_use]
    pub fn kept_local(self: &Arc<Self>) -> Arc<Self> {
        let context = RequestContext { is_local_only: true, ..self.context.clone() };
        Arc::new(Self { context, meter: self.meter.clone() })
    }

    pub fn context(&self) -> &RequestContext {
        &self.context
    }

    pub fn meter(&self) -> &Arc<UsageMeter> {
        &self.meter
    }

    /// Appears as `x-request-id`, in the log span and in the receipt.
    pub fn request_id(&self) -> &str {
        &self.context.request_id
    }

    pub fn route(&self) -> &str {
        &self.context.route
    }

    pub fn caller(&self) -> &Arc<Caller> {
        &self.context.caller
    }

    /// Whose turn it is in fair queues, so that callers share them.
    pub fn fairness_key(&self) -> &str {
        &self.context.fairness_key
    }

    pub fn is_recorded(&self) -> bool {
        self.context.is_recorded
    }

    /// The routing policy that the request or its key asks for. What must stay on this machine overrides both.
    pub fn policy(&self) -> Option<RoutingPolicy> {
        self.context.policy()
    }

    /// The conversation that the request belongs to, as its client names it.
    pub fn session(&self) -> Option<&str> {
        self.context.session.as_deref()
    }

    /// How far the request uses the answer caches.
    pub fn cache_use(&self) -> CacheUse {
        self.context.cache_use
    }

    /// A model begins to work for the request. `model` is its name as it is served.
    pub fn begin_record(&self, model: &str, served_by: ServedBy) -> UsageRecord {
        self.meter.begin_record(model, served_by)
    }
}

impl Deref for Account {
    type Target = UsageMeter;

    fn deref(&self) -> &UsageMeter {
        &self.meter
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("context", &self.context).finish_non_exhaustive()
    }
}
