//! The ledger, and its sums by caller and day, which a batch of rows changes in the same statement. A batch that is sent again after its
//! answer was lost counts once.

use std::{borrow::Cow, sync::Arc};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use super::{PostgresStore, storable, values};
use crate::store::{GroupBy, LedgerRow, LedgerRows, LedgerTotals, Result, SpentBy, StoreError, UsageGroup, UsageQuery};
use hearth_domain::usage::Outcome;

const COLUMNS: &str = "request_id, caller, key_id, route, model, served_by, fallback_reason, attempts, cache, outcome, \
     error_code, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, queue_us, prefill_us, decode_us, \
     compute_us, latency_us, bytes_out, cost_micro_usd, began, repeats, row_id";

const DAY_MS: i64 = 86_400_000;

fn read_row(row: &Row) -> Result<LedgerRow> {
    let outcome: &str = row.get(9);
    let unknown = || {
        StoreError::Database(
            format!("a row of the ledger ended as {outcome:?}, which this version does not know").into(),
        )
    };
    let outcome = Outcome::ALL.into_iter().find(|known| known.as_str() == outcome).ok_or_else(unknown)?;
    let number = |column: usize| row.get::<_, i64>(column) as u64;
    Ok(LedgerRow {
        id: Some(row.get(24)),
        request_id: row.get(0),
        caller: row.get(1),
        key_id: row.get(2),
        route: row.get(3),
        model: row.get(4),
        served_by: row.get(5),
        fallback_reason: row.get(6),
        attempts: number(7) as u32,
        cache: row.get(8),
        outcome,
        error_code: row.get(10),
        prompt_tokens: number(11),
        cached_tokens: number(12),
        completion_tokens: number(13),
        reasoning_tokens: number(14),
        queue_us: number(15),
        prefill_us: number(16),
        decode_us: number(17),
        compute_us: number(18),
        latency_us: number(19),
        bytes_out: number(20),
        cost_micro_usd: number(21),
        began_ms: row.get(22),
        repeats: number(23),
    })
}

/// Columns whose sums are kept by caller, day and outcome, beside the number of requests.
const SUMMED: [&str; 8] = [
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "compute_us",
    "latency_us",
    "bytes_out",
    "cost_micro_usd",
];

/// The sums of rows that each stand for `requests` requests, in the order of the fields of [`LedgerTotals`].
fn sums(requests: &str) -> String {
    let by_outcome: String = ["finished", "refused", "failed", "cancelled", "timed_out"]
        .map(|outcome| format!(", coalesce(sum({requests}) FILTER (WHERE outcome = '{outcome}'), 0)::bigint"))
        .concat();
    let columns: String = SUMMED.map(|column| format!(", coalesce(sum({column}), 0)::bigint")).concat();
    format!("coalesce(sum({requests}), 0)::bigint{by_outcome}{columns}")
}

fn read_totals(row: &Row, first: usize) -> LedgerTotals {
    let number = |column: usize| row.get::<_, i64>(first + column) as u64;
    LedgerTotals {
        requests: number(0),
        finished: number(1),
        refused: number(2),
        failed: number(3),
        cancelled: number(4),
        timed_out: number(5),
        prompt_tokens: number(6),
        cached_tokens: number(7),
        completion_tokens: number(8),
        reasoning_tokens: number(9),
        compute_us: number(10),
        latency_us: number(11),
        bytes_out: number(12),
        cost_micro_usd: number(13),
    }
}

/// The expression of a group's key.
fn expression(group: GroupBy) -> &'static str {
    match group {
        GroupBy::Day => "to_char(to_timestamp(began / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
        GroupBy::Caller => "caller",
        GroupBy::Model => "model",
        GroupBy::Provider => "served_by",
    }
}

/// A column of a batch, as an array.
fn column<'r, T>(rows: &'r [LedgerRow], of: impl Fn(&'r LedgerRow) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

impl LedgerRows for PostgresStore {
    fn add_ledger_rows(&self, rows: Arc<[LedgerRow]>) -> Result<()> {
        let texts: [Vec<Option<Cow<'_, str>>>; 10] = [
            column(&rows, |row| Some(storable(&row.request_id))),
            column(&rows, |row| Some(storable(&row.caller))),
            column(&rows, |row| row.key_id.as_deref().map(storable)),
            column(&rows, |row| Some(storable(&row.route))),
            column(&rows, |row| Some(storable(&row.model))),
            column(&rows, |row| Some(storable(&row.served_by))),
            column(&rows, |row| row.fallback_reason.as_deref().map(storable)),
            column(&rows, |row| row.cache.as_deref().map(storable)),
            column(&rows, |row| Some(row.outcome.as_str().into())),
            column(&rows, |row| row.error_code.as_deref().map(storable)),
        ];
        let numbers = [
            column(&rows, |row| i64::from(row.attempts)),
            column(&rows, |row| row.prompt_tokens as i64),
            column(&rows, |row| row.cached_tokens as i64),
            column(&rows, |row| row.completion_tokens as i64),
            column(&rows, |row| row.reasoning_tokens as i64),
            column(&rows, |row| row.queue_us as i64),
            column(&rows, |row| row.prefill_us as i64),
            column(&rows, |row| row.decode_us as i64),
            column(&rows, |row| row.compute_us as i64),
            column(&rows, |row| row.latency_us as i64),
            column(&rows, |row| row.bytes_out as i64),
            column(&rows, |row| row.cost_micro_usd as i64),
            column(&rows, |row| row.began_ms),
            column(&rows, |row| row.repeats as i64),
        ];
        let ids = column(&rows, |row| row.id.unwrap_or_else(Uuid::now_v7));
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = Vec::new();
        parameters.extend(texts.iter().map(|texts| (texts as &(dyn ToSql + Sync), Type::TEXT_ARRAY)));
        parameters.extend(numbers.iter().map(|numbers| (numbers as &(dyn ToSql + Sync), Type::INT8_ARRAY)));
        parameters.push((&ids, Type::UUID_ARRAY));
        let places: Vec<String> = (1..=parameters.len()).map(|number| format!("${number}")).collect();
        let sums = SUMMED.map(|column| format!("sum({column})")).join(", ");
        let adds = SUMMED.map(|column| format!("{column} = spent.{column} + excluded.{column}")).join(", ");
        // Sorted, so that two servers lock the rows of sums in one order.
        let sql = format!(
            "WITH added AS (
                INSERT INTO ledger (request_id, caller, key_id, route, model, served_by, fallback_reason, cache, outcome, error_code,
                    attempts, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, queue_us, prefill_us, decode_us,
                    compute_us, latency_us, bytes_out, cost_micro_usd, began, repeats, row_id)
                SELECT * FROM unnest({}) ON CONFLICT (row_id) DO NOTHING RETURNING *
             )
             INSERT INTO spent (caller, day, outcome, requests, {})
             SELECT caller, floor(began / {DAY_MS}.0)::bigint, outcome, sum(1 + repeats), {sums} FROM added GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
             ON CONFLICT (caller, day, outcome) DO UPDATE SET requests = spent.requests + excluded.requests, {adds}",
            places.join(", "),
            SUMMED.join(", "),
        );
        self.write(async |transaction| {
            transaction.execute_typed(&sql, &parameters).await?;
            Ok(())
        })
    }

    fn ledger_rows(&self, skip: usize, limit: usize) -> Result<Vec<LedgerRow>> {
        self.read(async |client| {
            let sql = format!("SELECT {COLUMNS} FROM ledger ORDER BY number LIMIT $1 OFFSET $2");
            let rows = client.query_typed(&sql, values![INT8 limit as i64, INT8 skip as i64]).await?;
            rows.iter().map(read_row).collect()
        })
    }

    fn ledger_totals(&self) -> Result<LedgerTotals> {
        self.read(async |client| {
            let rows = client.query_typed(&format!("SELECT {} FROM spent", sums("requests")), &[]).await?;
            Ok(read_totals(&rows[0], 0))
        })
    }

    fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>> {
        let keys: Vec<&str> = query.group_by.iter().map(|group| expression(*group)).collect();
        let columns: String = keys.iter().map(|key| format!("{key}, ")).collect();
        let mut sql = format!(
            "SELECT {columns}{} FROM ledger WHERE began >= $1 AND began < $2 AND ($3 IS NULL OR caller = $3)",
            sums("1 + repeats")
        );
        if !keys.is_empty() {
            let numbers = (1..=keys.len()).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
            sql.push_str(&format!(" GROUP BY {numbers} ORDER BY {numbers}"));
        }
        sql.push_str(" LIMIT $4");
        self.read(async |client| {
            let parameters = values![INT8 query.from_ms, INT8 query.to_ms, TEXT query.caller, INT8 query.limit as i64];
            let rows = client.query_typed(&sql, parameters).await?;
            let group = |row: &Row| UsageGroup {
                keys: (0..keys.len()).map(|column| row.get(column)).collect(),
                totals: read_totals(row, keys.len()),
            };
            Ok(rows.iter().map(group).collect())
        })
    }

    fn spent_since(&self, since_ms: i64) -> Result<Vec<SpentBy>> {
        // Whole days are summed already.
        let first_day = since_ms.div_euclid(DAY_MS) + i64::from(since_ms.rem_euclid(DAY_MS) > 0);
        let whole_days = first_day * DAY_MS;
        self.read(async |client| {
            let sql = "SELECT caller, sum(cost_micro_usd)::bigint, sum(compute_us)::bigint FROM (
                    SELECT caller, cost_micro_usd, compute_us FROM spent WHERE day >= $2
                    UNION ALL
                    SELECT caller, cost_micro_usd, compute_us FROM ledger WHERE began >= $1 AND began < $3) AS sums
                 GROUP BY caller";
            let rows = client.query_typed(sql, values![INT8 since_ms, INT8 first_day, INT8 whole_days]).await?;
            let spent = |row: &Row| SpentBy {
                caller: row.get(0),
                micro_usd: row.get::<_, i64>(1) as u64,
                compute_us: row.get::<_, i64>(2) as u64,
            };
            Ok(rows.iter().map(spent).collect())
        })
    }
}
