//! What requests cost: the ledger's totals, and its rows grouped by day, caller, model and provider.

use std::{sync::Arc, time::Duration};

use hearth_domain::{
    Caller, Scope,
    error::{Error, ErrorKind, Result},
};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use serde_json::{Map, Value};

use super::jobs::blocking;
use crate::{
    metering::ledger::Ledger,
    store::{GroupBy, LedgerTotals, UsageGroup, UsageQuery},
    wire::{
        receipt::usd,
        spending::{MetricsSummary, Outcomes, UsageEntry, UsageFigures, UsageParameters, UsageReport},
    },
};

/// The reported period if the query has no start.
const DEFAULT_PERIOD: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The most groups in one answer; a query with more is refused.
pub const GROUPS_MAX: usize = 10_000;
/// How long a report waits for rows that have not been written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

#[expect(clippy::cast_precision_loss, reason = "exact below three hundred years of microseconds")]
fn average_ms(totals: &LedgerTotals) -> f64 {
    if totals.requests == 0 { 0.0 } else { (totals.latency_us as f64 / totals.requests as f64).round() / 1e3 }
}

#[expect(clippy::cast_precision_loss, reason = "exact below three hundred years of microseconds")]
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// The totals of the whole ledger.
///
/// # Errors
/// If the store that servers share cannot be read.
pub async fn summary(ledger: &Arc<Ledger>) -> Result<MetricsSummary> {
    let read = ledger.clone();
    let totals = blocking(move || read.totals_of_all(FLUSH_PATIENCE)).await?;
    Ok(MetricsSummary {
        total_cost_usd: usd(totals.cost_micro_usd),
        total_cost_micro_usd: totals.cost_micro_usd,
        total_requests: totals.requests,
        avg_latency_ms: average_ms(&totals),
        total_input_tokens: totals.prompt_tokens,
        total_cached_tokens: totals.cached_tokens,
        total_output_tokens: totals.completion_tokens,
        total_compute_seconds: seconds(totals.compute_us),
        total_bytes_out: totals.bytes_out,
        requests_by_outcome: Outcomes {
            finished: totals.finished,
            refused: totals.refused,
            failed: totals.failed,
            cancelled: totals.cancelled,
            timed_out: totals.timed_out,
        },
        ledger_rows_lost: ledger.lost(),
    })
}

/// The requested rows that the caller may see, grouped. Includes the rows of all requests that have ended.
///
/// # Errors
/// If a parameter makes no sense, or another caller's rows are requested without the scope `admin`.
pub async fn usage(ledger: &Arc<Ledger>, caller: &Caller, parameters: UsageParameters) -> Result<UsageReport> {
    let mut query = read(&parameters, Timestamp::now())?;
    if !caller.scopes.contains(&Scope::Admin) {
        if query.caller.as_ref().is_some_and(|asked| *asked != caller.id) {
            let message = "This key sees its own usage only: leave `caller` out, or use a key with the scope admin.";
            return Err(Error::new(ErrorKind::Forbidden, message).with_param("caller"));
        }
        query.caller = Some(caller.id.clone());
    }
    let ledger = ledger.clone();
    blocking(move || {
        ledger.flush(FLUSH_PATIENCE);
        report(&ledger, query)
    })
    .await?
}

/// [`usage`] without access checks, for commands that have the store itself.
///
/// # Errors
/// If a parameter makes no sense, or the store cannot be read.
pub fn usage_of_store(ledger: &Ledger, parameters: &UsageParameters) -> Result<UsageReport> {
    let query = read(parameters, Timestamp::now())?;
    report(ledger, query)?
}

/// The report on a query's rows; the inner error is the caller's.
fn report(ledger: &Ledger, query: UsageQuery) -> Result<Result<UsageReport>, crate::store::StoreError> {
    let groups = ledger.store().usage(&UsageQuery { limit: GROUPS_MAX + 1, ..query.clone() })?;
    if groups.len() > GROUPS_MAX {
        let message = format!("These are more than {GROUPS_MAX} groups: ask for a shorter time, or group by less.");
        return Ok(Err(Error::invalid("group_by", message).with_code("invalid_value")));
    }
    let total = ledger.store().usage(&UsageQuery { group_by: Vec::new(), limit: 1, ..query.clone() })?;
    let total = total.first().map(|group| group.totals).unwrap_or_default();
    let entry = |group: UsageGroup| UsageEntry {
        keys: query
            .group_by
            .iter()
            .zip(group.keys)
            .map(|(by, key)| (by.as_str().to_owned(), key.into()))
            .collect::<Map<String, Value>>(),
        figures: figures(&group.totals),
    };
    Ok(Ok(UsageReport {
        object: "usage",
        from: query.from_ms.div_euclid(1000),
        to: query.to_ms.div_euclid(1000),
        group_by: query.group_by.iter().map(|by| by.as_str()).collect(),
        data: groups.into_iter().map(entry).collect(),
        total: figures(&total),
    }))
}

fn figures(totals: &LedgerTotals) -> UsageFigures {
    UsageFigures {
        requests: totals.requests,
        finished: totals.finished,
        refused: totals.refused,
        failed: totals.failed,
        cancelled: totals.cancelled,
        timed_out: totals.timed_out,
        prompt_tokens: totals.prompt_tokens,
        cached_tokens: totals.cached_tokens,
        completion_tokens: totals.completion_tokens,
        reasoning_tokens: totals.reasoning_tokens,
        avg_latency_ms: average_ms(totals),
        compute_seconds: seconds(totals.compute_us),
        bytes_out: totals.bytes_out,
        cost_usd: usd(totals.cost_micro_usd),
        cost_micro_usd: totals.cost_micro_usd,
    }
}

fn read(parameters: &UsageParameters, now: Timestamp) -> Result<UsageQuery> {
    let to = match &parameters.to {
        Some(text) => moment("to", text, true)?,
        // Includes requests that end at this moment.
        None => now + SignedDuration::from_secs(1),
    };
    let from = match &parameters.from {
        Some(text) => moment("from", text, false)?,
        None => to.saturating_sub(DEFAULT_PERIOD).unwrap_or(Timestamp::MIN),
    };
    if from >= to {
        let message = format!("`from` ({from}) must be before `to` ({to}).");
        return Err(Error::invalid("from", message).with_code("invalid_value"));
    }
    let mut group_by = Vec::new();
    for name in parameters.group_by.as_deref().unwrap_or("day").split(',').map(str::trim) {
        let group: GroupBy =
            name.parse().map_err(|reason| Error::invalid("group_by", reason).with_code("invalid_value"))?;
        if !group_by.contains(&group) {
            group_by.push(group);
        }
    }
    let (from_ms, to_ms) = (from.as_millisecond(), to.as_millisecond());
    Ok(UsageQuery { from_ms, to_ms, caller: parameters.caller.clone(), group_by, limit: 0 })
}

/// A date (its first moment in UTC, or its last), an RFC 3339 time, or Unix seconds.
fn moment(name: &str, text: &str, end_of_day: bool) -> Result<Timestamp> {
    let found = if let Ok(seconds) = text.parse::<i64>() {
        Timestamp::from_second(seconds).ok()
    } else if let Ok(date) = text.parse::<civil::Date>()
        && !text.contains(['T', 't', ' '])
    {
        let date = if end_of_day { date.tomorrow().unwrap_or(date) } else { date };
        date.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).ok()
    } else {
        text.parse().ok()
    };
    found.ok_or_else(|| {
        let shown: String = text.chars().take(60).collect();
        let message = format!("`{name}` is {shown:?}: write 2026-01-31, 2026-01-31T12:00:00Z or Unix seconds.");
        Error::invalid(name, message).with_code("invalid_value")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(from: &str, to: &str, group_by: &str) -> UsageParameters {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        UsageParameters { from: text(from), to: text(to), group_by: text(group_by), caller: None }
    }

    #[test]
    fn times_are_dates_moments_or_seconds_and_a_date_is_counted_in() {
        let now = Timestamp::from_second(100 * 24 * 3600).unwrap();
        let times = |from: &str, to: &str| {
            let query = read(&parameters(from, to, ""), now).unwrap();
            (query.from_ms / 1000, query.to_ms / 1000)
        };
        assert_eq!(times("1970-01-02", "1970-01-02"), (86_400, 172_800));
        assert_eq!(times("1970-01-02T00:00:01Z", "86500"), (86_401, 86_500));
        assert_eq!(times("", ""), (70 * 86_400 + 1, 100 * 86_400 + 1));
        for (from, to, group_by, param) in [
            ("yesterday", "", "", "from"),
            ("5", "4", "", "from"),
            ("", "1970-13-01", "", "to"),
            ("", "", "day,hour", "group_by"),
        ] {
            let error = read(&parameters(from, to, group_by), now).unwrap_err();
            assert_eq!(error.param(), Some(param), "{error}");
        }
        assert_eq!(
            read(&parameters("", "", "model, day,model"), now).unwrap().group_by,
            [GroupBy::Model, GroupBy::Day]
        );
    }
}
