//! What requests may use and what they used: limits before, prices and the ledger after.

use crate::{
    domain::account::{Account, Books, LegReceipt, Receipt},
    error::Result,
};

/// The books of a server.
#[derive(Debug, Default)]
pub struct Metering {}

impl Books for Metering {
    fn reserve(&self, _account: &Account, _tokens: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, _leg: &LegReceipt) -> u64 {
        0
    }

    fn settle(&self, _account: &Account, _receipt: Receipt) {}
}
