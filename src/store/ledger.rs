//! The ledger: one row per request, and the totals of the rows. Repeated refusals share a row.
//!
//! All sums are of whole numbers. A row is written once and never changed.

use std::sync::Arc;

use uuid::Uuid;

use super::Result;
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

/// Sums of one caller's rows in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentBy {
    pub caller: String,
    pub micro_usd: u64,
    pub compute_us: u64,
}

/// The ledger of all callers.
pub trait LedgerRows {
    /// Adds rows, all or none, except those whose ids the ledger has. On success they are on the disk.
    fn add_ledger_rows(&self, rows: Arc<[LedgerRow]>) -> Result<()>;

    /// At most `limit` rows in the order in which they were written, after the first `skip`.
    fn ledger_rows(&self, skip: usize, limit: usize) -> Result<Vec<LedgerRow>>;

    /// The totals of all rows.
    fn ledger_totals(&self) -> Result<LedgerTotals>;

    /// The totals of a period's rows, in groups sorted by their keys.
    fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageGroup>>;

    /// What each caller has spent on requests that began at or after this time, in milliseconds since 1970.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn spent_since(&self, since_ms: i64) -> Result<Vec<SpentBy>>;
}
