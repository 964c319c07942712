//! What requests may use and what they used: limits before, prices and the ledger after.

pub mod ledger;
pub mod prices;

use std::sync::Arc;

use self::{ledger::Ledger, prices::Prices};
use crate::{
    domain::account::{Account, Books, LegReceipt, Receipt},
    error::Result,
};

/// The books of a server.
#[derive(Debug)]
pub struct Metering {
    prices: Arc<Prices>,
    ledger: Arc<Ledger>,
}

impl Metering {
    pub fn new(prices: Arc<Prices>, ledger: Arc<Ledger>) -> Self {
        Self { prices, ledger }
    }

    pub fn prices(&self) -> &Arc<Prices> {
        &self.prices
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Books for Metering {
    fn reserve(&self, _account: &Account, _tokens: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, leg: &LegReceipt) -> u64 {
        self.prices.of(leg)
    }

    fn settle(&self, account: &Account, receipt: Receipt) {
        if account.is_recorded() {
            self.ledger.record(ledger::row(account, &receipt));
        }
    }
}
