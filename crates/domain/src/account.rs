//! The account of one request: what it uses, recorded by everything that works on it.
//!
//! An [`Account`] is opened for each request whose caller is known and travels with the request. Each model that works
//! for the request gets a [`Leg`] of the account and adds its usage: the engine its share of every step, a hosted
//! upstream the tokens it reports. The account is settled when its last holder is dropped, however the request ended:
//! answered, refused, cancelled by a caller who left, or timed out. Settling, prices and limits are left to the
//! implementation of [`Books`].

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

use super::{Caller, Policy, Standing, Timings, Usage};
use crate::error::{Error, Result};

/// Where accounts are settled.
pub trait Books: Send + Sync {
    /// An account has been opened.
    fn opened(&self, _account: &Arc<Account>) {}

    /// Admits a request, before any work for it.
    ///
    /// # Errors
    /// If the caller or the server is over a limit, or has spent its budget.
    fn admit(&self, _account: &Account) -> Result<Place> {
        Ok(Place::default())
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
    fn reserve(&self, account: &Account, tokens: u64) -> Result<()>;

    /// What a leg costs, in millionths of a US dollar.
    fn price(&self, leg: &LegReceipt) -> u64;

    /// Ends the account. Called once per account; must not block.
    fn settle(&self, account: &Account, receipt: Receipt);

    /// Called when the process is about to exit: settles the accounts still open, with what they have used so far.
    fn close(&self) {}
}

/// Books that record nothing, for commands and tests.
#[derive(Clone, Copy, Debug)]
pub struct NoBooks;

impl Books for NoBooks {
    fn reserve(&self, _: &Account, _: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, _: &LegReceipt) -> u64 {
        0
    }

    fn settle(&self, _: &Account, _: Receipt) {}
}

/// A request's place among the concurrent requests, released on drop.
#[derive(Default)]
pub struct Place(Option<Box<dyn Any + Send + Sync>>);

impl Place {
    /// A place whose release drops `what`.
    pub fn held_by(what: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(what)))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("is_held", &self.0.is_some()).finish()
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
    /// The upstream of this name.
    Upstream(String),
    /// An answer served from a cache; the name of the cache.
    Cache(&'static str),
}

impl ServedBy {
    /// `local`, the upstream's name, or `cache`.
    pub fn name(&self) -> &str {
        match self {
            Self::Local { .. } => "local",
            Self::Upstream(name) => name,
            Self::Cache(_) => "cache",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Finished,
    /// Not admitted, or an error of the caller's: a 4xx.
    Refused,
    Failed,
    /// The caller left, or cancelled it.
    Cancelled,
    TimedOut,
}

impl Outcome {
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

/// One request's account; see the module.
pub struct Account {
    books: Arc<dyn Books>,
    request_id: String,
    route: String,
    caller: Arc<Caller>,
    turn: String,
    policy: Option<Policy>,
    is_recorded: bool,
    began: SystemTime,
    clock: Instant,
    reserved: AtomicU64,
    bytes_out: AtomicU64,
    legs: Mutex<Vec<Arc<LegFigures>>>,
    facts: Mutex<Facts>,
    is_settled: AtomicBool,
    /// Released after the account has been settled.
    place: OnceLock<Place>,
}

/// Facts about a request that are stated rather than counted.
#[derive(Clone, Debug, Default)]
struct Facts {
    is_local_only: bool,
    fallback_reason: Option<String>,
    attempts: u32,
    cache: Option<&'static str>,
    cache_use: CacheUse,
    unenforced: Vec<String>,
    outcome: Option<Outcome>,
    error_code: Option<String>,
}

/// What [`Account::open`] needs to know about a request.
#[derive(Debug)]
pub struct Opening {
    pub request_id: String,
    /// `POST /v1/chat/completions`, or the kind of a job.
    pub route: String,
    pub caller: Arc<Caller>,
    /// The key of the request in fair queues: an API key, or the peer's address.
    pub turn: String,
    /// The routing policy that the request itself asks for.
    pub policy: Option<Policy>,
    /// Whether the request leaves a row in the ledger.
    pub is_recorded: bool,
}

impl Account {
    pub fn open(books: Arc<dyn Books>, opening: Opening) -> Arc<Self> {
        let Opening { request_id, route, caller, turn, policy, is_recorded } = opening;
        let account = Arc::new(Self {
            books,
            request_id,
            route,
            caller,
            turn,
            policy,
            is_recorded,
            began: SystemTime::now(),
            clock: Instant::now(),
            reserved: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            legs: Mutex::default(),
            facts: Mutex::default(),
            is_settled: AtomicBool::new(false),
            place: OnceLock::new(),
        });
        account.books.opened(&account);
        account
    }

    /// An account that is not recorded, for commands and tests.
    pub fn unrecorded() -> Arc<Self> {
        let opening = Opening {
            request_id: String::new(),
            route: String::new(),
            caller: Arc::new(Caller::local()),
            turn: String::new(),
            policy: None,
            is_recorded: false,
        };
        Self::open(Arc::new(NoBooks), opening)
    }

    /// Appears as `x-request-id`, in the log span and in the receipt.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    pub fn route(&self) -> &str {
        &self.route
    }

    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// The key by which callers share queues fairly.
    pub fn turn(&self) -> &str {
        &self.turn
    }

    pub fn is_recorded(&self) -> bool {
        self.is_recorded
    }

    /// The policy that the request or its key asks for. A request marked local-only stays local, even if it asks
    /// otherwise.
    pub fn policy(&self) -> Option<Policy> {
        if self.caller.local_only || self.facts.lock().is_local_only {
            return Some(Policy::LocalOnly);
        }
        self.policy.or(self.caller.policy)
    }

    /// From now on the request works on data that must stay on this machine, such as a collection's passages.
    pub fn keep_local(&self) {
        self.facts.lock().is_local_only = true;
    }

    /// Admits the request.
    ///
    /// # Errors
    /// If the caller or the server is over a limit, or has spent its budget.
    pub fn admit(&self) -> Result<()> {
        // A second call keeps the place that the first one got.
        let _second = self.place.set(self.books.admit(self)?);
        Ok(())
    }

    /// Whether [`Self::admit`] has admitted the request. Jobs are not asked: their requests were admitted.
    pub fn is_admitted(&self) -> bool {
        self.place.get().is_some()
    }

    /// Reserves tokens before a model runs.
    ///
    /// # Errors
    /// If the caller has no tokens left.
    pub fn reserve(&self, tokens: u64) -> Result<()> {
        self.books.reserve(self, tokens)?;
        self.reserved.fetch_add(tokens, Relaxed);
        Ok(())
    }

    /// Tokens reserved so far.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    /// Starts a model's work for the request. `model` is its served name.
    pub fn leg(self: &Arc<Self>, model: &str, served_by: ServedBy) -> Leg {
        let figures = Arc::new(LegFigures { model: model.to_owned(), served_by, ..LegFigures::default() });
        self.legs.lock().push(figures.clone());
        Leg { figures, account: Some(self.clone()) }
    }

    /// Records that a fallback serves the request, and why.
    pub fn fell_back(&self, reason: impl Into<String>) {
        self.facts.lock().fallback_reason = Some(reason.into());
    }

    /// Records one more attempt at an upstream.
    pub fn attempted(&self) {
        self.facts.lock().attempts += 1;
    }

    /// Records that the answer came from this cache.
    pub fn served_from_cache(&self, cache: &'static str) {
        self.facts.lock().cache = Some(cache);
    }

    /// Sets the request's cache use.
    pub fn use_caches(&self, cache_use: CacheUse) {
        self.facts.lock().cache_use = cache_use;
    }

    pub fn cache_use(&self) -> CacheUse {
        self.facts.lock().cache_use
    }

    /// Records the parts of the request's schemas that the answer is not held to, by their paths in the request.
    pub fn left_unenforced(&self, paths: &[String]) {
        self.facts.lock().unenforced.extend_from_slice(paths);
    }

    pub fn unenforced(&self) -> Vec<String> {
        self.facts.lock().unenforced.clone()
    }

    /// Adds bytes of the request's text that left the machine.
    pub fn sent_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }

    /// Records how the request ended. The first call wins: a failure is not undone when the body then finishes.
    pub fn ended(&self, outcome: Outcome, error_code: Option<&str>) {
        let mut facts = self.facts.lock();
        if facts.outcome.is_none() {
            facts.outcome = Some(outcome);
            facts.error_code = error_code.map(str::to_owned);
        }
    }

    /// Settles the account while the request may still be in progress, because the server is stopping and cuts it off.
    /// Usage after this call appears in no ledger row.
    pub fn cut_off(&self) {
        self.ended(Outcome::Failed, Some("draining"));
        self.settle();
    }

    fn settle(&self) {
        if !self.is_settled.swap(true, AcqRel) {
            self.books.settle(self, self.receipt());
        }
    }

    /// What a leg costs, in millionths of a US dollar.
    pub fn price(&self, leg: &LegReceipt) -> u64 {
        self.books.price(leg)
    }

    /// The receipt as of now.
    pub fn receipt(&self) -> Receipt {
        let legs: Vec<LegReceipt> = self.legs.lock().iter().map(|figures| figures.receipt()).collect();
        let facts = self.facts.lock().clone();
        let cost_micro_usd = legs.iter().map(|leg| self.price(leg)).sum();
        // An embedding served from a cache is not an answer yet.
        let is_generated = |leg: &LegReceipt| leg.completion_tokens > 0 && !matches!(leg.served_by, ServedBy::Cache(_));
        let cache = facts.cache.filter(|_| !legs.iter().any(is_generated));
        Receipt {
            legs,
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

impl Drop for Account {
    /// Runs when no worker holds the request any more. If no outcome was recorded, the caller left before there was
    /// one.
    fn drop(&mut self) {
        self.ended(Outcome::Cancelled, None);
        self.settle();
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("request_id", &self.request_id)
            .field("route", &self.route)
            .field("caller", &self.caller.id)
            .finish_non_exhaustive()
    }
}

/// One model's work for a request. Cheap to clone; the account stays open while any clone exists.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    figures: Arc<LegFigures>,
    /// `None` in a leg that belongs to no request.
    account: Option<Arc<Account>>,
}

#[derive(Debug)]
struct LegFigures {
    model: String,
    served_by: ServedBy,
    compute_ns: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    reasoning_tokens: AtomicU64,
    queue_ns: AtomicU64,
    prefill_ns: AtomicU64,
    decode_ns: AtomicU64,
}

impl Default for LegFigures {
    fn default() -> Self {
        Self {
            model: String::new(),
            served_by: ServedBy::Cache(""),
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

impl Leg {
    pub fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    /// Adds a share of the device's time.
    pub fn computed(&self, share: Duration) {
        self.figures.compute_ns.fetch_add(nanoseconds(share), Relaxed);
    }

    /// Records the admitted prompt.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.figures.prompt_tokens.store(tokens as u64, Relaxed);
        self.figures.cached_tokens.store(cached as u64, Relaxed);
    }

    /// Counts one more token of the answer.
    pub fn generated(&self) {
        self.figures.completion_tokens.fetch_add(1, Relaxed);
    }

    /// Replaces the counts so far with the final ones.
    pub fn used(&self, usage: &Usage) {
        self.prompt(usage.prompt_tokens, usage.cached_tokens);
        self.figures.completion_tokens.store(usage.completion_tokens as u64, Relaxed);
        self.figures.reasoning_tokens.store(usage.reasoning_tokens as u64, Relaxed);
    }

    /// Records where the time went. Compute is counted by [`Leg::computed`] alone.
    pub fn took(&self, timings: &Timings) {
        self.figures.queue_ns.store(nanoseconds(timings.queue), Relaxed);
        self.figures.prefill_ns.store(nanoseconds(timings.prefill), Relaxed);
        self.figures.decode_ns.store(nanoseconds(timings.decode), Relaxed);
    }
}

impl LegFigures {
    fn receipt(&self) -> LegReceipt {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let duration = |counter: &AtomicU64| Duration::from_nanos(counter.load(Relaxed));
        LegReceipt {
            model: self.model.clone(),
            served_by: self.served_by.clone(),
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
pub struct LegReceipt {
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
    pub legs: Vec<LegReceipt>,
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
    /// The leg that produced the answer: the last that generated tokens, else the last.
    pub fn main_leg(&self) -> Option<&LegReceipt> {
        self.legs.iter().rev().find(|leg| leg.completion_tokens > 0).or_else(|| self.legs.last())
    }

    /// Who gave the answer: `local`, an upstream's name or `cache`; `none` if there was no answer.
    pub fn served_by(&self) -> &str {
        let nobody = if self.cache.is_some() { "cache" } else { "none" };
        self.main_leg().map_or(nobody, |leg| leg.served_by.name())
    }

    pub fn compute(&self) -> Duration {
        self.legs.iter().map(|leg| leg.compute).sum()
    }

    pub fn prompt_tokens(&self) -> u64 {
        self.legs.iter().map(|leg| leg.prompt_tokens).sum()
    }

    pub fn completion_tokens(&self) -> u64 {
        self.legs.iter().map(|leg| leg.completion_tokens).sum()
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
