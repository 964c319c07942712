//! What callers have spent, from the ledger.

use rusqlite::params;

use super::{Result, Store};

/// Sums of one caller's rows in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentBy {
    pub caller: String,
    pub micro_usd: u64,
    pub compute_us: u64,
}

impl Store {
    /// What each caller has spent on requests that began at or after this time, in milliseconds since 1970.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn spent_since(&self, since_ms: i64) -> Result<Vec<SpentBy>> {
        self.read(|connection| {
            let mut statement = connection.prepare(
                "SELECT caller, sum(cost_micro_usd), sum(compute_us) FROM ledger WHERE began >= ?1 GROUP BY caller",
            )?;
            let rows = statement.query_map(params![since_ms], |row| {
                let sum = |index: usize| row.get::<_, i64>(index).map(|sum| u64::try_from(sum).unwrap_or(0));
                Ok(SpentBy { caller: row.get(0)?, micro_usd: sum(1)?, compute_us: sum(2)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LedgerRow;

    #[test]
    fn each_callers_rows_are_summed_from_their_time_on() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path()).expect("a new store");
        assert_eq!(store.spent_since(0).expect("readable"), []);
        let row = |(caller, began_ms, micro_usd): (&str, i64, u64)| LedgerRow {
            caller: caller.to_owned(),
            began_ms,
            cost_micro_usd: micro_usd,
            compute_us: micro_usd * 10,
            outcome: hearth_domain::usage::Outcome::Finished,
            ..LedgerRow::default()
        };
        let rows = [("a", 10, 1), ("a", 20, 2), ("b", 20, 4), ("a", 30, 8)].map(row);
        store.add_ledger_rows(rows.into()).expect("a store that can be written");
        let mut spent = store.spent_since(20).expect("readable");
        spent.sort_by(|one, other| one.caller.cmp(&other.caller));
        let by = |caller: &str, micro_usd| SpentBy { caller: caller.to_owned(), micro_usd, compute_us: micro_usd * 10 };
        assert_eq!(spent, [by("a", 10), by("b", 4)]);
    }
}
