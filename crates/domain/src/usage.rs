//! What one request uses, recorded by everything that works on it.
//!
//! A [`UsageMeter`] is opened for each request whose caller is known. Each model that works for the request gets a
//! [`UsageRecord`] of the meter and adds to it: the engine its share of every step, a hosted upstream the tokens it reports. The
//! meter is settled when its last holder is dropped, however the request ended: answered, refused, cancelled by a caller who
//! left, or timed out. Settling, prices and limits are left to the implementation of [`UsageSink`].

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

use super::{Caller, RequestContext, Standing, Timings, Usage};
use crate::error::{Error, Result};

/// Where meters are settled.
pub trait UsageSink: Send + Sync {
    /// A meter has been opened.
    fn opened(&self, _meter: &Arc<UsageMeter>) {}

    /// Admits a request, before any work for it.
    ///
    /// # Errors
    /// If the caller or the server is over a limit, or has spent its budget.
    fn admit(&self, _meter: &UsageMeter) -> Result<Permit> {
        Ok(Permit::default())
    }

    /// What is left of a caller's limits, or of the server's where those are tighter.
    fn allowance(&self, _caller: &Caller) -> Allowance {
        Allowance::default()
    }

    /// The limits of a caller and what is left of them now.
    fn standing(&self, caller: &Caller) -> Standing {
        Standing { limits: caller.limits, ..Standing::default() }
    }

    /// Reserves tokens for a request before it runs; what it actually used is settled at the end.
    ///
    /// # Errors
    /// If the caller has no tokens left.
    fn reserve(&self, meter: &UsageMeter, tokens: u64) -> Result<()>;

    /// What a model's work costs, in millionths of a US dollar.
    fn price(&self, usage: &ModelUsage) -> u64;

    /// Ends the meter. Called once per meter; must not block.
    fn settle(&self, meter: &UsageMeter, receipt: Receipt);

    /// Called when the process is about to exit: settles the meters still open, with what was used so far.
    fn close(&self) {}
}

/// A sink that records nothing, for commands and tests.
#[derive(Clone, Copy, Debug)]
pub struct NoSink;

impl UsageSink for NoSink {
    fn reserve(&self, _: &UsageMeter, _: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, _: &ModelUsage) -> u64 {
        0
    }

    fn settle(&self, _: &UsageMeter, _: Receipt) {}
}

/// A request's permit to run beside others, released on drop.
#[derive(Default)]
pub struct Permit(Option<Box<dyn Any + Send + Sync>>);

impl Permit {
    /// A permit whose release drops `what`.
    pub fn held_by(what: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(what)))
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("is_held", &self.0.is_some()).finish()
    }
}

/// What is left of the per-minute limits; `None` where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    pub requests: Option<Remaining>,
    pub tokens: Option<Remaining>,
}

/// What is left of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// The limit per minute.
    pub limit: u32,
    pub remaining: u32,
    /// Until the whole limit is available again.
    pub reset: Duration,
}

/// Which side served a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServedBy {
    /// This process, on `cpu`, `cuda` or `metal`.
    Local { device: String },
    /// The upstream of this name, and the engine that answered, where it has several.
    Upstream { name: String, engine: Option<String> },
    /// An answer served from a cache; the name of the cache.
    Cache(&'static str),
}

impl ServedBy {
    /// `local`, the upstream's name, or `cache`.
    pub fn name(&self) -> &str {
        match self {
            Self::Local { .. } => "local",
            Self::Upstream { name, .. } => name,
            Self::Cache(_) => "cache",
        }
    }

    /// The engine of the upstream, where it has several.
    pub fn engine(&self) -> Option<&str> {
        match self {
            Self::Upstream { engine, .. } => engine.as_deref(),
            Self::Local { .. } | Self::Cache(_) => None,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Outcome {
    #[default]
    Finished,
    /// Not admitted, or an error of the caller's: a 4xx.
    Refused,
    Failed,
    /// The caller left, or cancelled it.
    Cancelled,
    TimedOut,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Finished, Self::Refused, Self::Failed, Self::Cancelled, Self::TimedOut];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

/// See the module.
pub struct UsageMeter {
    sink: Arc<dyn UsageSink>,
    context: RequestContext,
    began: SystemTime,
    clock: Instant,
    reserved: AtomicU64,
    bytes_out: AtomicU64,
    records: Mutex<Vec<Arc<UsageCounters>>>,
    facts: Mutex<Facts>,
    is_settled: AtomicBool,
    is_over_limit: AtomicBool,
    /// Released after the meter has been settled.
    permit: OnceLock<Permit>,
}

/// A value in a tool call's arguments that violates a part of the tool's schema. Both are dotted paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaViolation {
    /// In the answer, such as `choices.0.message.tool_calls.0.function.arguments.tags`.
    pub argument: String,
    /// In the request, such as `tools.0.function.parameters.properties.tags.uniqueItems`.
    pub rule: String,
}

/// What is stated of a request rather than counted.
#[derive(Clone, Debug, Default)]
struct Facts {
    fallback_reason: Option<String>,
    attempts: u32,
    cache: Option<&'static str>,
    unenforced: Vec<String>,
    violations: Vec<SchemaViolation>,
    outcome: Option<Outcome>,
    error_code: Option<String>,
}

impl UsageMeter {
    pub fn open(sink: Arc<dyn UsageSink>, context: RequestContext) -> Arc<Self> {
        let meter = Arc::new(Self {
            sink,
            context,
            began: SystemTime::now(),
            clock: Instant::now(),
            reserved: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            records: Mutex::default(),
            facts: Mutex::default(),
            is_settled: AtomicBool::new(false),
            is_over_limit: AtomicBool::new(false),
            permit: OnceLock::new(),
        });
        meter.sink.opened(&meter);
        meter
    }

    /// The request as it came.
    pub fn context(&self) -> &RequestContext {
        &self.context
    }

    /// Admits the request.
    ///
    /// # Errors
    /// If the caller or the server is over a limit, or has spent its budget.
    pub fn admit(&self) -> Result<()> {
        let permit = self.sink.admit(self).inspect_err(|_| self.is_over_limit.store(true, Relaxed))?;
        // A second call keeps the first permit.
        let _second = self.permit.set(permit);
        Ok(())
    }

    /// Whether [`Self::admit`] has admitted the request. A job's meter is not admitted: its request was.
    pub fn is_admitted(&self) -> bool {
        self.permit.get().is_some()
    }

    /// Reserves tokens before a model runs.
    ///
    /// # Errors
    /// If the caller has no tokens left.
    pub fn reserve(&self, tokens: u64) -> Result<()> {
        self.sink.reserve(self, tokens).inspect_err(|_| self.is_over_limit.store(true, Relaxed))?;
        self.reserved.fetch_add(tokens, Relaxed);
        Ok(())
    }

    /// Whether [`Self::admit`] or [`Self::reserve`] has refused the request.
    pub fn is_over_limit(&self) -> bool {
        self.is_over_limit.load(Relaxed)
    }

    /// The tokens reserved so far.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    /// A model begins to work for the request. `model` is its name as it is served.
    pub fn begin_record(self: &Arc<Self>, model: &str, served_by: ServedBy) -> UsageRecord {
        let served_by = Mutex::new(served_by);
        let figures = Arc::new(UsageCounters { model: model.to_owned(), served_by, ..UsageCounters::default() });
        self.records.lock().push(figures.clone());
        UsageRecord { figures, meter: Some(self.clone()) }
    }

    /// Another candidate than the first choice serves, for this reason.
    pub fn set_fallback_reason(&self, reason: impl Into<String>) {
        self.facts.lock().fallback_reason = Some(reason.into());
    }

    /// Counts one more upstream that has been tried.
    pub fn count_attempt(&self) {
        self.facts.lock().attempts += 1;
    }

    /// The answer came from this cache.
    pub fn set_cache(&self, cache: &'static str) {
        self.facts.lock().cache = Some(cache);
    }

    /// Adds parts of the request's schemas that the answer is not held to, by their paths in the request.
    pub fn add_unenforced(&self, paths: &[String]) {
        self.facts.lock().unenforced.extend_from_slice(paths);
    }

    pub fn unenforced(&self) -> Vec<String> {
        self.facts.lock().unenforced.clone()
    }

    /// Adds what the answer violates of those parts.
    pub fn add_violations(&self, violations: &[SchemaViolation]) {
        self.facts.lock().violations.extend_from_slice(violations);
    }

    pub fn violations(&self) -> Vec<SchemaViolation> {
        self.facts.lock().violations.clone()
    }

    /// Adds bytes of the request's text that left the machine.
    pub fn add_bytes_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    /// How the request ended. The first call counts: a failure is not made good by the last byte of the answer.
    pub fn set_outcome(&self, outcome: Outcome, error_code: Option<&str>) {
        let mut facts = self.facts.lock();
        if facts.outcome.is_none() {
            facts.outcome = Some(outcome);
            facts.error_code = error_code.map(str::to_owned);
        }
    }

    /// Settles the meter while the request may still be worked on, because the server stops. What is used afterwards is in no
    /// row.
    pub fn settle_early(&self) {
        self.set_outcome(Outcome::Failed, Some("draining"));
        self.settle();
    }

    fn settle(&self) {
        if !self.is_settled.swap(true, AcqRel) {
            self.sink.settle(self, self.receipt());
        }
    }

    /// What a model's work costs, in millionths of a US dollar.
    pub fn price(&self, usage: &ModelUsage) -> u64 {
        self.sink.price(usage)
    }

    /// What has been used so far.
    pub fn receipt(&self) -> Receipt {
        let models: Vec<ModelUsage> = self.records.lock().iter().map(|figures| figures.usage()).collect();
        let facts = self.facts.lock().clone();
        let cost_micro_usd = models.iter().map(|usage| self.price(usage)).sum();
        // A cached vector of the question is not an answer.
        let is_generated =
            |usage: &ModelUsage| usage.completion_tokens > 0 && !matches!(usage.served_by, ServedBy::Cache(_));
        let cache = facts.cache.filter(|_| !models.iter().any(is_generated));
        Receipt {
            models,
            fallback_reason: facts.fallback_reason,
            attempts: facts.attempts,
            cache,
            bytes_out: self.bytes_out.load(Relaxed),
            outcome: facts.outcome,
            error_code: facts.error_code,
            began: self.began,
            latency: self.clock.elapsed(),
            cost_micro_usd,
        }
    }
}

impl Drop for UsageMeter {
    /// No holder is left. Where none has said how the request ended, the caller left before.
    fn drop(&mut self) {
        self.set_outcome(Outcome::Cancelled, None);
        self.settle();
    }
}

impl fmt::Debug for UsageMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageMeter").field("context", &self.context).finish_non_exhaustive()
    }
}

/// One model's work for a request. Cheap to clone; the meter stays open while any clone exists.
#[derive(Clone, Debug, Default)]
pub struct UsageRecord {
    figures: Arc<UsageCounters>,
    /// `None` in a record that belongs to no request.
    meter: Option<Arc<UsageMeter>>,
}

#[derive(Debug)]
struct UsageCounters {
    model: String,
    served_by: Mutex<ServedBy>,
    compute_ns: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    reasoning_tokens: AtomicU64,
    queue_ns: AtomicU64,
    prefill_ns: AtomicU64,
    decode_ns: AtomicU64,
}

impl Default for UsageCounters {
    fn default() -> Self {
        Self {
            model: String::new(),
            served_by: Mutex::new(ServedBy::Cache("")),
            compute_ns: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            cached_tokens: AtomicU64::default(),
            completion_tokens: AtomicU64::default(),
            reasoning_tokens: AtomicU64::default(),
            queue_ns: AtomicU64::default(),
            prefill_ns: AtomicU64::default(),
            decode_ns: AtomicU64::default(),
        }
    }
}

/// Durations beyond five centuries saturate.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl UsageRecord {
    /// The meter that the record belongs to.
    pub fn meter(&self) -> Option<&Arc<UsageMeter>> {
        self.meter.as_ref()
    }

    /// Another engine than the one before does the work.
    pub fn set_served_by(&self, served_by: ServedBy) {
        *self.figures.served_by.lock() = served_by;
    }

    /// Adds a share of the device's time.
    pub fn record_compute(&self, share: Duration) {
        self.figures.compute_ns.fetch_add(nanoseconds(share), Relaxed);
    }

    /// Records the admitted prompt.
    pub fn set_prompt_tokens(&self, tokens: usize, cached: usize) {
        self.figures.prompt_tokens.store(tokens as u64, Relaxed);
        self.figures.cached_tokens.store(cached as u64, Relaxed);
    }

    /// Counts one more token of the answer.
    pub fn count_token(&self) {
        self.figures.completion_tokens.fetch_add(1, Relaxed);
    }

    /// Replaces the counts so far with the final ones.
    pub fn set_usage(&self, usage: &Usage) {
        self.set_prompt_tokens(usage.prompt_tokens, usage.cached_tokens);
        self.figures.completion_tokens.store(usage.completion_tokens as u64, Relaxed);
        self.figures.reasoning_tokens.store(usage.reasoning_tokens as u64, Relaxed);
    }

    /// Records where the time went. Compute is counted by [`UsageRecord::record_compute`] alone.
    pub fn set_timings(&self, timings: &Timings) {
        self.figures.queue_ns.store(nanoseconds(timings.queue), Relaxed);
        self.figures.prefill_ns.store(nanoseconds(timings.prefill), Relaxed);
        self.figures.decode_ns.store(nanoseconds(timings.decode), Relaxed);
    }
}

impl UsageCounters {
    fn usage(&self) -> ModelUsage {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let duration = |counter: &AtomicU64| Duration::from_nanos(counter.load(Relaxed));
        ModelUsage {
            model: self.model.clone(),
            served_by: self.served_by.lock().clone(),
            prompt_tokens: count(&self.prompt_tokens),
            cached_tokens: count(&self.cached_tokens),
            completion_tokens: count(&self.completion_tokens),
            reasoning_tokens: count(&self.reasoning_tokens),
            queue: duration(&self.queue_ns),
            prefill: duration(&self.prefill_ns),
            decode: duration(&self.decode_ns),
            compute: duration(&self.compute_ns),
        }
    }
}

/// What one model did for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelUsage {
    pub model: String,
    pub served_by: ServedBy,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    pub compute: Duration,
}

/// What a request used and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// In the order in which they began.
    pub models: Vec<ModelUsage>,
    pub fallback_reason: Option<String>,
    /// Upstreams tried, each retry counted.
    pub attempts: u32,
    pub cache: Option<&'static str>,
    pub bytes_out: u64,
    /// `None` while the request runs.
    pub outcome: Option<Outcome>,
    pub error_code: Option<String>,
    pub began: SystemTime,
    pub latency: Duration,
    pub cost_micro_usd: u64,
}

impl Receipt {
    /// The model that produced the answer: the last that generated tokens, else the last.
    pub fn main_model(&self) -> Option<&ModelUsage> {
        self.models.iter().rev().find(|usage| usage.completion_tokens > 0).or_else(|| self.models.last())
    }

    /// Who gave the answer: `local`, an upstream's name or `cache`; `none` if there was no answer.
    pub fn served_by(&self) -> &str {
        let without_model = if self.cache.is_some() { "cache" } else { "none" };
        self.main_model().map_or(without_model, |usage| usage.served_by.name())
    }

    /// Which engine of an upstream gave the answer, where the upstream has several.
    pub fn engine(&self) -> Option<&str> {
        self.main_model()?.served_by.engine()
    }

    pub fn compute(&self) -> Duration {
        self.models.iter().map(|usage| usage.compute).sum()
    }

    pub fn prompt_tokens(&self) -> u64 {
        self.models.iter().map(|usage| usage.prompt_tokens).sum()
    }

    pub fn completion_tokens(&self) -> u64 {
        self.models.iter().map(|usage| usage.completion_tokens).sum()
    }

    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens() + self.completion_tokens()
    }
}

impl From<&Error> for Outcome {
    fn from(error: &Error) -> Self {
        use crate::error::ErrorKind;

        match error.kind() {
            ErrorKind::DeadlineExceeded | ErrorKind::RequestTimeout | ErrorKind::UpstreamTimeout => Self::TimedOut,
            ErrorKind::Overloaded
            | ErrorKind::Unavailable
            | ErrorKind::ModelLoading
            | ErrorKind::ModelFailed
            | ErrorKind::BreakerOpen
            | ErrorKind::Draining
            | ErrorKind::OutOfMemory
            | ErrorKind::UpstreamFailed
            | ErrorKind::Internal => Self::Failed,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests;
