//! The limits of requests: requests per minute, tokens per minute, concurrent requests, and spending per day and per
//! month, for each caller and for all callers together.
//!
//! A request is admitted before any work is done for it: budgets are checked first, since no short wait helps there,
//! then a permit for one concurrent request is taken, which the request holds until its meter is settled, then one of
//! the minute's requests. Before a model runs, an estimate of tokens is reserved; when the meter is settled, unused
//! tokens are given back, excess tokens are charged, and money and compute time are added to the day and the month. A
//! budget is checked against what has been settled: a running request runs to its end, so requests admitted earlier may
//! overrun the budget.
//!
//! Each of the servers that share a store admits its share of a minute's requests and tokens and of the concurrent requests: the limit
//! divided by the number of servers, and one at least. Budgets are counted together, as far as the ledger has been written.
//!
//! Nothing here reads a clock: each call is passed a [`Now`].

mod bucket;
mod meter;
mod refusal;
mod spending;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hearth_domain::{
    Budget, Caller, CallerLimits, Standing,
    error::Result,
    usage::{Allowance, Permit, Receipt, Remaining, ServedBy, UsageMeter},
};
use parking_lot::RwLock;

use self::{
    bucket::{Rate, Short},
    meter::{Meter, Running, remaining},
    refusal::Whose,
    spending::{Spent, beginnings},
};
use crate::store::{SpentBy, Store, StoreError};

/// Above this many callers, those with an idle meter are forgotten.
const SWEEP_AT: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// The limits of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimitSettings {
    /// For all callers together.
    pub server: CallerLimits,
    /// For each caller that has no limit of its own, separately.
    pub caller: CallerLimits,
}

/// An instant on both clocks: the monotonic one, for the minute, and the calendar's.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    ns: u64,
    wall: SystemTime,
}

impl Now {
    /// `started` must be the same in every call to the same [`Limits`].
    pub fn since(started: Instant) -> Self {
        Self { ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX), wall: SystemTime::now() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Limits {
    settings: LimitSettings,
    server: Arc<Meter>,
    callers: RwLock<Callers>,
    /// The servers that these limits are divided among.
    replicas: AtomicU32,
}

#[derive(Debug)]
struct Callers {
    by_id: HashMap<String, Arc<Meter>>,
    sweep_at: usize,
}

/// A caller or the server, and the limits that apply to it.
struct Party {
    whose: Whose,
    meter: Arc<Meter>,
    limits: CallerLimits,
    /// Tokens a minute of all servers together.
    tokens_of_all: Option<u32>,
}

impl Limits {
    /// Limits whose budgets start from what the store's ledger says was spent.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(settings: LimitSettings, store: &Store, now: Now) -> Result<Self, StoreError> {
        let limits = Self::new(settings);
        limits.read_spending(store, now)?;
        limits.count_replicas(store);
        Ok(limits)
    }

    /// Counts what the store's ledger says was spent, by this server or another.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn read_spending(&self, store: &Store, now: Now) -> Result<(), StoreError> {
        let (today, this_month) = beginnings(now.wall);
        let milliseconds =
            |instant: SystemTime| instant.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let mut spent: HashMap<String, (Spent, Spent)> = HashMap::new();
        for by in store.spent_since(milliseconds(this_month))? {
            spent.entry(by.caller.clone()).or_default().1 = Spent::from(&by);
        }
        for by in store.spent_since(milliseconds(today))? {
            spent.entry(by.caller.clone()).or_default().0 = Spent::from(&by);
        }
        let (mut all_today, mut all_this_month) = (Spent::default(), Spent::default());
        for (caller, (today, this_month)) in spent {
            self.meter(&caller, now).spent_at_least(now.wall, today, this_month);
            all_today.add(today);
            all_this_month.add(this_month);
        }
        self.server.spent_at_least(now.wall, all_today, all_this_month);
        Ok(())
    }

    /// Divides the limits among the servers that share the store.
    pub fn count_replicas(&self, store: &Store) {
        let replicas = store.cluster().map_or(1, |cluster| cluster.num_replicas());
        self.replicas.store(replicas.max(1), Relaxed);
    }

    /// Limits with nothing used yet.
    pub fn new(settings: LimitSettings) -> Self {
        let callers = Callers { by_id: HashMap::new(), sweep_at: SWEEP_AT.get() };
        Self { settings, server: Arc::default(), callers: RwLock::new(callers), replicas: AtomicU32::new(1) }
    }

    /// Admits a request; see the module for the order.
    ///
    /// # Errors
    /// If a budget is spent or a limit is reached; what was taken before that is given back.
    pub fn admit(&self, caller: &Caller, now: Now) -> Result<Permit> {
        let parties = self.parties(caller, now);
        for Party { whose, meter, limits, .. } in &parties {
            if let Some(used_up) = meter.used_up(now.wall, &limits.daily, &limits.monthly) {
                return Err(refusal::spent(*whose, &used_up));
            }
        }
        let mut places: Vec<Running> = Vec::with_capacity(parties.len());
        for Party { whose, meter, limits, .. } in &parties {
            let limit = limits.concurrent_requests;
            places.push(meter.enter(limit).map_err(|wait| refusal::busy(*whose, limit.unwrap_or(0), wait))?);
        }
        for (index, Party { whose, meter, limits, .. }) in parties.iter().enumerate() {
            let Some(rate) = Rate::of(limits.requests_per_minute) else { continue };
            if let Err(Short::Wait(wait)) = meter.requests.take(rate, 1, now.ns) {
                for before in &parties[..index] {
                    if let Some(rate) = Rate::of(before.limits.requests_per_minute) {
                        before.meter.requests.give_back(rate, 1);
                    }
                }
                return Err(refusal::requests(*whose, rate.per_minute(), wait));
            }
        }
        Ok(Permit::held_by(places))
    }

    /// Reserves tokens.
    ///
    /// # Errors
    /// If there are not enough now, or never will be.
    pub fn reserve(&self, request: &UsageMeter, tokens: u64, now: Now) -> Result<()> {
        let parties = self.parties(&request.context().caller, now);
        if !request.is_admitted() {
            // A job: its request was admitted long ago.
            for Party { whose, meter, limits, .. } in &parties {
                if let Some(used_up) = meter.used_up(now.wall, &limits.daily, &limits.monthly) {
                    return Err(refusal::spent(*whose, &used_up));
                }
            }
        }
        for (index, Party { whose, meter, limits, tokens_of_all }) in parties.iter().enumerate() {
            let Some(rate) = Rate::of(limits.tokens_per_minute) else { continue };
            let most = tokens_of_all.unwrap_or(rate.per_minute());
            // All of a request's reservations must fit together, or the caller would be told to wait in vain.
            let taken = match request.reserved().saturating_add(tokens) {
                all if all > u64::from(most) => Err(Short::TooLarge),
                _ => {
                    // What is more than this server's share is a debt, so that a request is not too large for being sent to one of many.
                    let share = tokens.min(u64::from(rate.per_minute()));
                    let taken = meter.tokens.take(rate, share, now.ns);
                    if taken.is_ok() && tokens > share {
                        meter.tokens.charge(rate, tokens - share, now.ns);
                    }
                    taken
                }
            };
            if let Err(short) = taken {
                for before in &parties[..index] {
                    if let Some(rate) = Rate::of(before.limits.tokens_per_minute) {
                        before.meter.tokens.give_back(rate, tokens);
                    }
                }
                return Err(refusal::tokens(*whose, most, request.reserved() + tokens, short));
            }
        }
        Ok(())
    }

    /// Records what a request has used and corrects its reservation. What a job uses without a reservation, such as a
    /// document's embeddings, counts against the budgets and not against the minute.
    pub fn settle(&self, request: &UsageMeter, receipt: &Receipt, now: Now) {
        let spent = Spent { micro_usd: receipt.cost_micro_usd, compute: receipt.compute() };
        let (is_admitted, reserved) = (request.is_admitted(), request.reserved());
        if !is_admitted && reserved == 0 && spent == Spent::default() {
            return;
        }
        let used: u64 = receipt
            .models
            .iter()
            .filter(|record| !matches!(record.served_by, ServedBy::Cache(_)))
            // An upstream reports these counts, and they may be anything.
            .fold(0, |sum: u64, record| {
                sum.saturating_add(record.prompt_tokens).saturating_add(record.completion_tokens)
            });
        for Party { meter, limits, .. } in self.parties(&request.context().caller, now) {
            meter.spend(now.wall, spent);
            if is_admitted {
                meter.took(receipt.latency);
            }
            let Some(rate) = Rate::of(limits.tokens_per_minute) else { continue };
            if reserved > used {
                meter.tokens.give_back(rate, reserved - used);
            } else if is_admitted || reserved > 0 {
                meter.tokens.charge(rate, used - reserved, now.ns);
            }
        }
    }

    /// What a caller has left of its own limits or of the server's, whichever is less.
    pub fn allowance(&self, caller: &Caller, now: Now) -> Allowance {
        let parties = self.parties(caller, now);
        let least = |left: &dyn Fn(&Party) -> Option<Remaining>| {
            parties.iter().filter_map(left).min_by_key(|remaining| remaining.remaining)
        };
        Allowance {
            requests: least(&|party| {
                remaining(&party.meter.requests, Rate::of(party.limits.requests_per_minute), now.ns)
            }),
            tokens: least(&|party| remaining(&party.meter.tokens, Rate::of(party.limits.tokens_per_minute), now.ns)),
        }
    }

    /// A caller's limits, and what is left of them.
    pub fn standing(&self, caller: &Caller, now: Now) -> Standing {
        let [own, _server] = self.parties(caller, now);
        let (daily_left, monthly_left) = own.meter.left(now.wall, &own.limits.daily, &own.limits.monthly);
        Standing { limits: own.limits, allowance: self.allowance(caller, now), daily_left, monthly_left }
    }

    fn parties(&self, caller: &Caller, now: Now) -> [Party; 2] {
        let replicas = self.replicas.load(Relaxed);
        let all = or(caller.limits, self.settings.caller);
        let own = share(all, replicas);
        [
            Party {
                whose: Whose::Caller,
                meter: self.meter(&caller.id, now),
                limits: own,
                tokens_of_all: all.tokens_per_minute,
            },
            Party {
                whose: Whose::Server,
                meter: self.server.clone(),
                limits: share(self.settings.server, replicas),
                tokens_of_all: self.settings.server.tokens_per_minute,
            },
        ]
    }

    fn meter(&self, id: &str, now: Now) -> Arc<Meter> {
        if let Some(meter) = self.callers.read().by_id.get(id) {
            return meter.clone();
        }
        let mut callers = self.callers.write();
        if callers.by_id.len() >= callers.sweep_at {
            // A party in use holds its meter: one that only the map holds can be forgotten if it is idle.
            callers.by_id.retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_idle(now.ns, now.wall));
            callers.sweep_at = SWEEP_AT.get().max(2 * callers.by_id.len());
        }
        callers.by_id.entry(id.to_owned()).or_default().clone()
    }
}

/// What one of several equal servers admits of these limits.
fn share(limits: CallerLimits, replicas: u32) -> CallerLimits {
    let share = |limit: Option<u32>| limit.map(|limit| (limit / replicas).max(1));
    CallerLimits {
        requests_per_minute: share(limits.requests_per_minute),
        tokens_per_minute: share(limits.tokens_per_minute),
        concurrent_requests: share(limits.concurrent_requests),
        ..limits
    }
}

/// A caller's own limits, with `others` where it has none.
fn or(own: CallerLimits, others: CallerLimits) -> CallerLimits {
    let budget = |own: Budget, others: Budget| Budget {
        micro_usd: own.micro_usd.or(others.micro_usd),
        compute: own.compute.or(others.compute),
    };
    CallerLimits {
        requests_per_minute: own.requests_per_minute.or(others.requests_per_minute),
        tokens_per_minute: own.tokens_per_minute.or(others.tokens_per_minute),
        concurrent_requests: own.concurrent_requests.or(others.concurrent_requests),
        daily: budget(own.daily, others.daily),
        monthly: budget(own.monthly, others.monthly),
        storage: own.storage.or(others.storage),
    }
}

impl From<&SpentBy> for Spent {
    fn from(by: &SpentBy) -> Self {
        Self { micro_usd: by.micro_usd, compute: Duration::from_micros(by.compute_us) }
    }
}

#[cfg(test)]
mod tests;
