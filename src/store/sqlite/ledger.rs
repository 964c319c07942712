//! The ledger. A trigger adds each row to the totals, so that reading them does not read the ledger.

use std::sync::Arc;

use rusqlite::{Row, params, params_from_iter, types::Type, types::Value as Sql};
use uuid::Uuid;

use super::SqliteStore;
use crate::store::{GroupBy, LedgerRow, LedgerRows, LedgerTotals, Result, SpentBy, UsageGroup, UsageQuery};
use hearth_domain::usage::Outcome;

const COLUMNS: &str = "request_id, caller, key_id, route, model, served_by, fallback_reason, attempts, cache, outcome, \
     error_code, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, queue_us, prefill_us, decode_us, \
     compute_us, latency_us, bytes_out, cost_micro_usd, began, repeats, row_id";

fn read_row(row: &Row<'_>) -> rusqlite::Result<LedgerRow> {
    let outcome: String = row.get(9)?;
    let unknown = || format!("a row of the ledger ended as {outcome:?}, which this version does not know").into();
    let known = Outcome::ALL.into_iter().find(|known| known.as_str() == outcome);
    let outcome = known.ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(9, Type::Text, unknown()))?;
    Ok(LedgerRow {
        id: row.get::<_, Option<[u8; 16]>>(24)?.map(Uuid::from_bytes),
        request_id: row.get(0)?,
        caller: row.get(1)?,
        key_id: row.get(2)?,
        route: row.get(3)?,
        model: row.get(4)?,
        served_by: row.get(5)?,
        fallback_reason: row.get(6)?,
        attempts: row.get(7)?,
        cache: row.get(8)?,
        outcome,
        error_code: row.get(10)?,
        prompt_tokens: row.get(11)?,
        cached_tokens: row.get(12)?,
        completion_tokens: row.get(13)?,
        reasoning_tokens: row.get(14)?,
        queue_us: row.get(15)?,
        prefill_us: row.get(16)?,
        decode_us: row.get(17)?,
        compute_us: row.get(18)?,
        latency_us: row.get(19)?,
        bytes_out: row.get(20)?,
        cost_micro_usd: row.get(21)?,
        began_ms: row.get(22)?,
        repeats: row.get(23)?,
    })
}

/// In the order of the fields of [`LedgerTotals`], as [`super::schema`]'s trigger adds them up.
const SUMS: &str = "sum(1 + repeats), sum((1 + repeats) * (outcome = 'finished')), sum((1 + repeats) * (outcome = 'refused')), \
     sum((1 + repeats) * (outcome = 'failed')), sum((1 + repeats) * (outcome = 'cancelled')), \
     sum((1 + repeats) * (outcome = 'timed_out')), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), \
     sum(reasoning_tokens), sum(compute_us), sum(latency_us), sum(bytes_out), sum(cost_micro_usd)";

fn read_totals(row: &Row<'_>, first: usize) -> rusqlite::Result<LedgerTotals> {
    // The sum of no rows is NULL.
    let number = |column: usize| row.get::<_, Option<u64>>(first + column).map(Option::unwrap_or_default);
    Ok(LedgerTotals {
        requests: number(0)?,
        finished: number(1)?,
        refused: number(2)?,
        failed: number(3)?,
        cancelled: number(4)?,
        timed_out: number(5)?,
        prompt_tokens: number(6)?,
        cached_tokens: number(7)?,
        completion_tokens: number(8)?,
        reasoning_tokens: number(9)?,
        compute_us: number(10)?,
        latency_us: number(11)?,
        bytes_out: number(12)?,
        cost_micro_usd: number(13)?,
    })
}

/// The column or expression of a group's key.
fn expression(group: GroupBy) -> &'static str {
    match group {
        GroupBy::Day => "strftime('%Y-%m-%d', began / 1000, 'unixepoch')",
        GroupBy::Caller => "caller",
        GroupBy::Model => "model",
        GroupBy::Provider => "served_by",
    }
}

impl LedgerRows for SqliteStore {
    fn add_ledger_rows(&self, rows: Arc<[LedgerRow]>) -> Result<()> {
        self.write(move |transaction| {
            let places = ["?"; 25].join(", ");
            let insert = format!("INSERT INTO ledger ({COLUMNS}) VALUES ({places}) ON CONFLICT (row_id) DO NOTHING");
            let mut insert = transaction.prepare(&insert)?;
            for row in rows.iter() {
                insert.execute(params![
                    row.request_id,
                    row.caller,
                    row.key_id,
                    row.route,
                    row.model,
                    row.served_by,
                    row.fallback_reason,
                    row.attempts,
                    row.cache,
                    row.outcome.as_str(),
                    row.error_code,
                    row.prompt_tokens,
                    row.cached_tokens,
                    row.completion_tokens,
                    row.reasoning_tokens,
                    row.queue_us,
                    row.prefill_us,
                    row.decode_us,
                    row.compute_us,
                    row.latency_us,
                    row.bytes_out,
                    row.cost_micro_usd,
                    row.began_ms,
                    row.repeats,
                    row.id.map(Uuid::into_bytes),
                ])?;
            }
            Ok(())
        })
    }

    fn ledger_rows(&self, skip: usize, limit: usize) -> Result<Vec<LedgerRow>> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM ledger ORDER BY id LIMIT {limit} OFFSET {skip}");
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map([], read_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn ledger_totals(&self) -> Result<LedgerTotals> {
        self.read(|connection| Ok(connection.query_row("SELECT * FROM ledger_totals", [], |row| read_totals(row, 0))?))
    }

    fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>> {
        let keys: Vec<&str> = query.group_by.iter().map(|group| expression(*group)).collect();
        let numbers: Vec<String> = (1..=keys.len()).map(|number| number.to_string()).collect();
        let columns: String = keys.iter().map(|key| format!("{key}, ")).collect();
        let mut parameters = vec![Sql::Integer(query.from_ms), Sql::Integer(query.to_ms)];
        let mut sql = format!("SELECT {columns}{SUMS} FROM ledger WHERE began >= ? AND began < ?");
        if let Some(caller) = &query.caller {
            sql.push_str(" AND caller = ?");
            parameters.push(Sql::Text(caller.clone()));
        }
        if !keys.is_empty() {
            let numbers = numbers.join(", ");
            sql.push_str(&format!(" GROUP BY {numbers} ORDER BY {numbers}"));
        }
        sql.push_str(&format!(" LIMIT {}", query.limit));
        self.read(|connection| {
            let mut statement = connection.prepare(&sql)?;
            let groups = statement.query_map(params_from_iter(parameters), |row| {
                let keys = (0..keys.len()).map(|column| row.get(column)).collect::<rusqlite::Result<_>>()?;
                Ok(UsageGroup { totals: read_totals(row, numbers.len())?, keys })
            })?;
            Ok(groups.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn spent_since(&self, since_ms: i64) -> Result<Vec<SpentBy>> {
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
