//! The ledger: what rows add up to.

use uuid::Uuid;

use super::*;
use hearth_domain::usage::Outcome;

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
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
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
    assert_eq!(costs(&UsageQuery { caller: Some("a".into()), ..by(&[GroupBy::Provider]) }), expect(&[("local", 3)]));
    assert_eq!(costs(&UsageQuery { from_ms: DAY_MS, ..by(&[GroupBy::Model]) }), expect(&[("m", 4), ("n", 2)]));
    assert_eq!(costs(&UsageQuery { limit: 1, ..by(&[GroupBy::Day]) }).len(), 1);
}

#[test]
fn each_callers_rows_are_summed_from_their_time_on() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    assert_eq!(store.spent_since(0).expect("readable"), []);
    let row = |(caller, began_ms, micro_usd): (&str, i64, u64)| LedgerRow {
        caller: caller.to_owned(),
        began_ms,
        cost_micro_usd: micro_usd,
        compute_us: micro_usd * 10,
        outcome: Outcome::Finished,
        ..LedgerRow::default()
    };
    let rows = [("a", 10, 1), ("a", 20, 2), ("b", 20, 4), ("a", 30, 8)].map(row);
    store.add_ledger_rows(rows.into()).expect("a store that can be written");
    let mut spent = store.spent_since(20).expect("readable");
    spent.sort_by(|one, other| one.caller.cmp(&other.caller));
    let by = |caller: &str, micro_usd| SpentBy { caller: caller.to_owned(), micro_usd, compute_us: micro_usd * 10 };
    assert_eq!(spent, [by("a", 10), by("b", 4)]);
}
