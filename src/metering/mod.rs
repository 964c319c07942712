//! What requests may use and what they used: limits before, prices and the ledger after.

pub mod ledger;
pub mod limits;
pub mod prices;

use std::{sync::Arc, time::Instant};

use self::{
    ledger::Ledger,
    limits::{Limits, Now},
    prices::Prices,
};
use crate::{
    domain::{
        Caller,
        account::{Account, Allowance, Books, LegReceipt, Place, Receipt},
    },
    error::Result,
};

/// The books of a server.
#[derive(Debug)]
pub struct Metering {
    prices: Arc<Prices>,
    ledger: Arc<Ledger>,
    limits: Limits,
    started: Instant,
}

impl Metering {
    pub fn new(prices: Arc<Prices>, ledger: Arc<Ledger>, limits: Limits) -> Self {
        Self { prices, ledger, limits, started: Instant::now() }
    }

    pub fn prices(&self) -> &Arc<Prices> {
        &self.prices
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn now(&self) -> Now {
        Now::since(self.started)
    }
}

impl Books for Metering {
    fn admit(&self, account: &Account) -> Result<Place> {
        self.limits.admit(account.caller(), self.now())
    }

    fn allowance(&self, caller: &Caller) -> Allowance {
        self.limits.allowance(caller, self.now())
    }

    fn reserve(&self, account: &Account, tokens: u64) -> Result<()> {
        self.limits.reserve(account, tokens, self.now())
    }

    fn price(&self, leg: &LegReceipt) -> u64 {
        self.prices.of(leg)
    }

    fn settle(&self, account: &Account, receipt: Receipt) {
        self.limits.settle(account, &receipt, self.now());
        if account.is_recorded() {
            self.ledger.record(ledger::row(account, &receipt));
        }
    }
}
