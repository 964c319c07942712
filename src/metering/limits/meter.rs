//! What one party uses: a caller, or all of them together.

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

/// What whoever finds all places taken is told to wait, before it is known how long requests take.
const WAIT_UNKNOWN: Duration = Duration::from_secs(1);
/// The bounds of what they are told afterwards.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Each request changes the mean by this part of the difference.
const MEAN_OVER: u64 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub requests: Bucket,
    pub tokens: Bucket,
    running: AtomicUsize,
    /// How long requests took of late, in nanoseconds; 0 before the first.
    mean_latency: AtomicU64,
    spending: Mutex<Spending>,
}

impl Meter {
    /// A place among `limit` that run at the same time.
    ///
    /// # Errors
    /// If all are taken: when one may come free.
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

    /// A request that had a place took this long.
    pub fn took(&self, latency: Duration) {
        let latest = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        let next = |mean: u64| if mean == 0 { latest } else { mean - mean / MEAN_OVER + latest / MEAN_OVER };
        self.mean_latency.fetch_update(Relaxed, Relaxed, |mean| Some(next(mean))).expect("there is always a mean");
    }

    pub fn spend(&self, now: SystemTime, spent: Spent) {
        self.spending.lock().add(now, spent);
    }

    /// What was spent in the day and in the month that `now` is in, before the server started.
    pub fn spend_before(&self, now: SystemTime, today: Spent, this_month: Spent) {
        self.spending.lock().add_both(now, today, this_month);
    }

    /// What is left of these budgets; `None` of what has no limit.
    pub fn left(&self, now: SystemTime, daily: &Budget, monthly: &Budget) -> (Budget, Budget) {
        self.spending.lock().left(now, daily, monthly)
    }

    pub fn used_up(&self, now: SystemTime, daily: &Budget, monthly: &Budget) -> Option<UsedUp> {
        self.spending.lock().used_up(now, daily, monthly)
    }

    /// Whether it is as a new one would be, but for a mean that nobody needs.
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

/// A place among those that run; see [`Meter::enter`].
#[derive(Debug)]
pub(super) struct Running(Arc<Meter>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, AcqRel);
    }
}
