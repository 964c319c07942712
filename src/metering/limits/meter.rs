//! The usage of one party: a caller, or all callers together.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use super::{
    bucket::{Bucket, Rate},
    spending::{Spending, Spent, UsedUp},
};
use hearth_domain::{Budget, usage::Remaining};

/// The wait suggested when all permits are taken and no request's latency is known yet.
const WAIT_UNKNOWN: Duration = Duration::from_secs(1);
/// The bounds of the suggested wait once latencies are known.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Each request moves the mean by this fraction of the difference.
const MEAN_OVER: u64 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub requests: Bucket,
    pub tokens: Bucket,
    running: AtomicUsize,
    /// The recent mean latency of requests, in nanoseconds; 0 before the first.
    mean_latency: AtomicU64,
    spending: Mutex<Spending>,
}

impl Meter {
    /// Takes one of `limit` concurrent places.
    ///
    /// # Errors
    /// If all are taken: when one may become free.
    pub fn enter(self: &Arc<Self>, limit: Option<u32>) -> Result<Running, Duration> {
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        self.running
            .fetch_update(AcqRel, Acquire, |running| (running < limit).then_some(running + 1))
            .map(|_| Running(self.clone()))
            .map_err(|_| match self.mean_latency.load(Relaxed) {
                0 => WAIT_UNKNOWN,
                mean => Duration::from_nanos(mean / limit.max(1) as u64).clamp(WAIT.0, WAIT.1),
            })
    }

    /// Records the latency of a request that held a place.
    pub fn took(&self, latency: Duration) {
        let latest = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        let next = |mean: u64| if mean == 0 { latest } else { mean - mean / MEAN_OVER + latest / MEAN_OVER };
        self.mean_latency.fetch_update(Relaxed, Relaxed, |mean| Some(next(mean))).expect("there is always a mean");
    }

    pub fn spend(&self, now: SystemTime, spent: Spent) {
        self.spending.lock().add(now, spent);
    }

    /// Counts at least what the ledger says was spent in the day and in the month that contain `now`.
    pub fn spent_at_least(&self, now: SystemTime, today: Spent, this_month: Spent) {
        self.spending.lock().at_least(now, today, this_month);
    }

    /// What is left of these budgets; `None` for an absent limit.
    pub fn left(&self, now: SystemTime, daily: &Budget, monthly: &Budget) -> (Budget, Budget) {
        self.spending.lock().left(now, daily, monthly)
    }

    pub fn used_up(&self, now: SystemTime, daily: &Budget, monthly: &Budget) -> Option<UsedUp> {
        self.spending.lock().used_up(now, daily, monthly)
    }

    /// Whether this meter equals a new one, apart from the mean latency, which is not worth keeping.
    pub fn is_idle(&self, now_ns: u64, now: SystemTime) -> bool {
        self.running.load(Acquire) == 0
            && [&self.requests, &self.tokens].into_iter().all(|bucket| bucket.reset(now_ns).is_zero())
            && self.spending.lock().is_empty(now)
    }
}

/// What is left in a bucket.
pub(super) fn remaining(bucket: &Bucket, rate: Option<Rate>, now_ns: u64) -> Option<Remaining> {
    let rate = rate?;
    Some(Remaining { limit: rate.per_minute(), remaining: bucket.remaining(rate, now_ns), reset: bucket.reset(now_ns) })
}

/// A place among the running requests; see [`Meter::enter`].
#[derive(Debug)]
pub(super) struct Running(Arc<Meter>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, AcqRel);
    }
}
