//! The ledger: one row per request, and the totals of the rows. Repeated refusals share a row.
//!
//! All sums are of whole numbers. A row is written once and never changed. A trigger adds each row to the totals, so that reading
//! them does not read the ledger.

use std::sync::Arc;

use rusqlite::{Row, params, params_from_iter, types::Type, types::Value as Sql};
use uuid::Uuid;

use super::{Result, Store};
use hearth_domain::usage::Outcome;

/// One request's row. Money is in millionths of a US dollar, durations in microseconds, times in milliseconds since
/// 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerRow {
    /// Made with the row, so that a row that is written twice counts once; the request's id may be its client's choice. Rows
    /// of older versions have none.
    pub id: Option<Uuid>,
    pub request_id: String,
    pub caller: String,
    pub key_id: Option<String>,
    pub route: String,
    /// The model that answered; empty if no model ran.
    pub model: String,
    /// `local`, an upstream's name, `cache`, or `none` if nothing served it.
    pub served_by: String,
    pub fallback_reason: Option<String>,
    pub attempts: u32,
    pub cache: Option<String>,
    pub outcome: Outcome,
    pub error_code: Option<String>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
    pub queue_us: u64,
    pub prefill_us: u64,
    pub decode_us: u64,
    pub compute_us: u64,
    pub latency_us: u64,
    pub bytes_out: u64,
    pub cost_micro_usd: u64,
    pub began_ms: i64,
    /// Further requests that were refused like this one soon after it, and have no rows of their own.
    pub repeats: u64,
}

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

/// The totals of a set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    pub requests: u64,
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
    pub compute_us: u64,
    pub latency_us: u64,
    pub bytes_out: u64,
    pub cost_micro_usd: u64,
}

impl LedgerTotals {
    pub fn add(&mut self, row: &LedgerRow) {
        let requests = 1 + row.repeats;
        self.requests += requests;
        let ended = match row.outcome {
            Outcome::Finished => &mut self.finished,
            Outcome::Refused => &mut self.refused,
            Outcome::Failed => &mut self.failed,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::TimedOut => &mut self.timed_out,
        };
        *ended += requests;
        self.prompt_tokens += row.prompt_tokens;
        self.cached_tokens += row.cached_tokens;
        self.completion_tokens += row.completion_tokens;
        self.reasoning_tokens += row.reasoning_tokens;
        self.compute_us += row.compute_us;
        self.latency_us += row.latency_us;
        self.bytes_out += row.bytes_out;
        self.cost_micro_usd += row.cost_micro_usd;
    }
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

/// What rows are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// A calendar day in UTC.
    Day,
    Caller,
    Model,
    /// The side that served.
    Provider,
}

impl GroupBy {
    pub const ALL: [Self; 4] = [Self::Day, Self::Caller, Self::Model, Self::Provider];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Caller => "caller",
            Self::Model => "model",
            Self::Provider => "provider",
        }
    }

    fn expression(self) -> &'static str {
        match self {
            Self::Day => "strftime('%Y-%m-%d', began / 1000, 'unixepoch')",
            Self::Caller => "caller",
            Self::Model => "model",
            Self::Provider => "served_by",
        }
    }
}

impl std::str::FromStr for GroupBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|group| group.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no group: day, caller, model or provider"))
    }
}

/// Which rows, and how they are grouped.
#[derive(Clone, Debug, Default)]
pub struct UsageQuery {
    /// From this millisecond, inclusive.
    pub from_ms: i64,
    /// Up to this one, exclusive.
    pub to_ms: i64,
    /// Only this caller's rows.
    pub caller: Option<String>,
    pub group_by: Vec<GroupBy>,
    /// At most this many groups.
    pub limit: usize,
}

/// The totals of rows with the same keys, in the order of [`UsageQuery::group_by`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroup {
    pub keys: Vec<String>,
    pub totals: LedgerTotals,
}

impl Store {
    /// Adds rows, all or none, except those whose ids the ledger has. On success they are on the disk.
    pub fn add_ledger_rows(&self, rows: Arc<[LedgerRow]>) -> Result<()> {
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

    /// At most `limit` rows in the order in which they were written, after the first `skip`.
    pub fn ledger_rows(&self, skip: usize, limit: usize) -> Result<Vec<LedgerRow>> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM ledger ORDER BY id LIMIT {limit} OFFSET {skip}");
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map([], read_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The totals of all rows.
    pub fn ledger_totals(&self) -> Result<LedgerTotals> {
        self.read(|connection| Ok(connection.query_row("SELECT * FROM ledger_totals", [], |row| read_totals(row, 0))?))
    }

    /// The totals of a period's rows, in groups sorted by their keys.
    pub fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>> {
        let keys: Vec<&str> = query.group_by.iter().map(|group| group.expression()).collect();
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn row(caller: &str, model: &str, day: i64, cost_micro_usd: u64) -> LedgerRow {
        LedgerRow {
            caller: caller.to_owned(),
            model: model.to_owned(),
            served_by: "local".to_owned(),
            id: Some(Uuid::now_v7()),
            outcome: Outcome::Finished,
            prompt_tokens: 7,
            cost_micro_usd,
            began_ms: day * DAY_MS + 5,
            ..LedgerRow::default()
        }
    }

    #[test]
    fn rows_are_added_up_by_what_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.ledger_totals().unwrap(), LedgerTotals::default());
        let cancelled = LedgerRow { outcome: Outcome::Cancelled, ..row("a", "m", 1, 0) };
        let refused = LedgerRow { outcome: Outcome::Refused, repeats: 6, ..row("a", "m", 1, 0) };
        let rows = vec![row("a", "m", 0, 1), row("a", "n", 1, 2), row("b", "m", 1, 4), cancelled, refused];
        let mut expected = LedgerTotals::default();
        rows.iter().for_each(|row| expected.add(row));
        store.add_ledger_rows(rows.clone().into()).unwrap();
        assert_eq!(store.ledger_rows(0, 10).unwrap(), rows);
        assert_eq!(store.ledger_totals().unwrap(), expected);
        store.add_ledger_rows(rows.clone().into()).unwrap();
        assert_eq!(store.ledger_rows(0, 10).unwrap(), rows, "rows that are handed over twice count once");
        assert_eq!(store.ledger_totals().unwrap(), expected);
        assert_eq!((expected.requests, expected.finished, expected.cancelled, expected.cost_micro_usd), (11, 3, 1, 7));
        assert_eq!(expected.refused, 7, "one and its repeats");

        let all = UsageQuery { to_ms: 10 * DAY_MS, limit: 10, ..UsageQuery::default() };
        let costs = |query: &UsageQuery| {
            let groups = store.usage(query).unwrap();
            groups.into_iter().map(|group| (group.keys.join(" "), group.totals.cost_micro_usd)).collect::<Vec<_>>()
        };
        let expect =
            |wanted: &[(&str, u64)]| wanted.iter().map(|&(keys, cost)| (keys.to_owned(), cost)).collect::<Vec<_>>();
        assert_eq!(costs(&all), expect(&[("", 7)]), "without groups there is one");
        assert_eq!(store.usage(&all).unwrap()[0].totals, expected, "the rows' sums are those that the trigger keeps");
        let by = |group_by: &[GroupBy]| UsageQuery { group_by: group_by.to_vec(), ..all.clone() };
        assert_eq!(costs(&by(&[GroupBy::Day])), expect(&[("1970-01-01", 1), ("1970-01-02", 6)]));
        assert_eq!(costs(&by(&[GroupBy::Caller, GroupBy::Model])), expect(&[("a m", 1), ("a n", 2), ("b m", 4)]));
        assert_eq!(
            costs(&UsageQuery { caller: Some("a".into()), ..by(&[GroupBy::Provider]) }),
            expect(&[("local", 3)])
        );
        assert_eq!(costs(&UsageQuery { from_ms: DAY_MS, ..by(&[GroupBy::Model]) }), expect(&[("m", 4), ("n", 2)]));
        assert_eq!(costs(&UsageQuery { limit: 1, ..by(&[GroupBy::Day]) }).len(), 1);
    }
}
