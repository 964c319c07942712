//! What requests may use and what they used: limits before the work, prices and the ledger after it.

pub mod ledger;
pub mod limits;
pub mod prices;

use std::{
    collections::HashMap,
    ptr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use hearth_domain::{
    Caller, Standing,
    error::Result,
    usage::{Allowance, ModelUsage, Permit, Receipt, UsageMeter, UsageSink},
};
use parking_lot::{Condvar, Mutex};

use self::{
    ledger::Ledger,
    limits::{Limits, Now},
    prices::Prices,
};
use crate::store::StoreError;

/// The server's [`UsageSink`].
#[derive(Debug)]
pub struct Metering {
    prices: Arc<Prices>,
    ledger: Arc<Ledger>,
    limits: Limits,
    started: Instant,
    /// The open meters that will write a row, by address.
    open: Mutex<HashMap<usize, Weak<UsageMeter>>>,
    /// Signals that the last of them has written its row.
    none_open: Condvar,
}

/// How long [`UsageSink::close`] waits for meters that other threads are settling at that moment.
const CLOSING: Duration = Duration::from_millis(200);

/// Identifies a meter among all live ones.
fn address(request: &UsageMeter) -> usize {
    ptr::from_ref(request).addr()
}

impl Metering {
    pub fn new(prices: Arc<Prices>, ledger: Arc<Ledger>, limits: Limits) -> Self {
        Self { prices, ledger, limits, started: Instant::now(), open: Mutex::default(), none_open: Condvar::new() }
    }

    pub fn prices(&self) -> &Arc<Prices> {
        &self.prices
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Counts what other servers that share the store have spent, and divides the limits among the servers. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn read_cluster(&self) -> std::result::Result<(), StoreError> {
        let store = self.ledger.store();
        self.limits.count_replicas(&**store);
        self.limits.read_spending(&**store, self.now())
    }

    fn now(&self) -> Now {
        Now::since(self.started)
    }
}

impl UsageSink for Metering {
    fn opened(&self, request: &Arc<UsageMeter>) {
        if request.context().is_recorded {
            self.open.lock().insert(address(request), Arc::downgrade(request));
        }
    }

    fn admit(&self, request: &UsageMeter) -> Result<Permit> {
        self.limits.admit(&request.context().caller, self.now())
    }

    fn allowance(&self, caller: &Caller) -> Allowance {
        self.limits.allowance(caller, self.now())
    }

    fn standing(&self, caller: &Caller) -> Standing {
        self.limits.standing(caller, self.now())
    }

    fn reserve(&self, request: &UsageMeter, tokens: u64) -> Result<()> {
        self.limits.reserve(request, tokens, self.now())
    }

    fn price(&self, record: &ModelUsage) -> u64 {
        self.prices.of(record)
    }

    fn settle(&self, request: &UsageMeter, receipt: Receipt) {
        self.limits.settle(request, &receipt, self.now());
        if request.context().is_recorded {
            let row = ledger::row(request, &receipt);
            if request.is_over_limit() && receipt.models.is_empty() {
                self.ledger.record_refusal(row);
            } else {
                self.ledger.record(row);
            }
            let mut open = self.open.lock();
            open.remove(&address(request));
            if open.is_empty() {
                self.none_open.notify_all();
            }
        }
    }

    fn close(&self) {
        // Settling takes the lock, so the meters are collected first.
        let open: Vec<Arc<UsageMeter>> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        open.iter().for_each(|request| request.settle_early());
        drop(open);
        // A meter that could not be upgraded is being settled by the thread that dropped it.
        let until = Instant::now() + CLOSING;
        let mut open = self.open.lock();
        while !open.is_empty() && !self.none_open.wait_until(&mut open, until).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metering::limits::LimitSettings, store::Store};
    use hearth_domain::{Account, CacheUse, RequestContext, usage::ServedBy};

    fn opening(request_id: &str, is_recorded: bool) -> RequestContext {
        RequestContext {
            request_id: request_id.to_owned(),
            route: "POST /ask".to_owned(),
            caller: Arc::new(Caller::local()),
            fairness_key: String::new(),
            policy: None,
            is_recorded,
            cache_use: CacheUse::default(),
            is_local_only: false,
            session: None,
        }
    }

    #[test]
    fn closing_the_books_gives_every_open_account_its_row_and_no_account_two() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Store::open(directory.path()).unwrap()).unwrap();
        let limits = Limits::new(LimitSettings::default());
        let metering = Arc::new(Metering::new(Arc::default(), ledger.clone(), limits));
        let usage_sink: Arc<dyn UsageSink> = metering.clone();
        let open = |id: &str, is_recorded| Account::open(usage_sink.clone(), opening(id, is_recorded));
        drop(open("over", true));
        let (works, unrecorded) = (open("works", true), open("looks", false));
        let record = works.begin_record("m", ServedBy::Local { device: "cpu".to_owned() });
        record.set_prompt_tokens(7, 0);
        record.count_token();
        usage_sink.close();
        record.count_token();
        usage_sink.close();
        drop((works, record, unrecorded));
        assert!(metering.open.lock().is_empty());
        assert!(ledger.flush(Duration::from_secs(60)));
        let rows = ledger.store().ledger_rows(0, 9).unwrap();
        let said: Vec<_> = rows
            .iter()
            .map(|row| (&row.request_id[..], row.outcome.as_str(), row.prompt_tokens, row.completion_tokens))
            .collect();
        assert_eq!(said, [("over", "cancelled", 0, 0), ("works", "failed", 7, 1)]);
    }
}
