//! A meter from its opening to its settlement, and what is counted on the way.

use super::*;
use crate::{Account, CacheUse, RequestContext, RoutingPolicy};

#[derive(Default)]
struct Recorded(Mutex<Vec<Receipt>>);

impl UsageSink for Recorded {
    fn reserve(&self, _: &UsageMeter, _: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, record: &ModelUsage) -> u64 {
        record.completion_tokens
    }

    fn settle(&self, _: &UsageMeter, receipt: Receipt) {
        self.0.lock().push(receipt);
    }
}

fn open(usage_sink: &Arc<Recorded>) -> Arc<Account> {
    let context = RequestContext {
        request_id: "r".into(),
        route: "POST /ask".into(),
        caller: Arc::new(Caller::local()),
        fairness_key: String::new(),
        policy: Some(RoutingPolicy::HostedFirst),
        cache_use: CacheUse::default(),
        is_recorded: true,
        is_local_only: false,
        session: None,
    };
    Account::open(usage_sink.clone(), context)
}

#[test]
fn the_last_one_to_let_go_settles() {
    let usage_sink = Arc::new(Recorded::default());
    let account = open(&usage_sink);
    let record = account.begin_record("m", ServedBy::Local { device: "cpu".into() });
    record.count_token();
    drop(account);
    assert!(usage_sink.0.lock().is_empty(), "the engine works still");
    record.count_token();
    record.record_compute(Duration::from_millis(3));
    drop(record);
    let receipts = usage_sink.0.lock();
    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].outcome, Some(Outcome::Cancelled), "nobody said how it ended");
    assert_eq!((receipts[0].completion_tokens(), receipts[0].cost_micro_usd), (2, 2));
    assert_eq!(receipts[0].compute(), Duration::from_millis(3));
}

#[test]
fn what_is_cut_off_is_settled_once_with_what_it_has_used() {
    let usage_sink = Arc::new(Recorded::default());
    let account = open(&usage_sink);
    let record = account.begin_record("m", ServedBy::Local { device: "cpu".into() });
    record.count_token();
    account.settle_early();
    record.count_token();
    account.set_outcome(Outcome::Finished, None);
    account.settle_early();
    drop((account, record));
    let receipts = usage_sink.0.lock();
    let [receipt] = &receipts[..] else { panic!("{receipts:?}") };
    assert_eq!((receipt.outcome, receipt.error_code.as_deref()), (Some(Outcome::Failed), Some("draining")));
    assert_eq!(receipt.completion_tokens(), 1);
}

#[test]
fn an_answer_that_a_model_had_to_generate_is_not_from_a_cache() {
    let account = open(&Arc::new(Recorded::default()));
    account.begin_record("e", ServedBy::Cache("embedding")).set_prompt_tokens(3, 0);
    account.set_cache("embedding");
    assert_eq!(account.receipt().cache, Some("embedding"));
    account.begin_record("m", ServedBy::Local { device: "cpu".into() }).count_token();
    assert_eq!(account.receipt().cache, None);
}

#[test]
fn the_first_word_about_the_end_counts_and_what_is_local_stays() {
    let usage_sink = Arc::new(Recorded::default());
    let account = open(&usage_sink);
    assert_eq!(account.policy(), Some(RoutingPolicy::HostedFirst));
    let kept = account.kept_local();
    assert_eq!((kept.policy(), account.policy()), (Some(RoutingPolicy::LocalOnly), Some(RoutingPolicy::HostedFirst)));
    kept.begin_record("m", ServedBy::Cache("")).count_token();
    drop(kept);
    assert_eq!(account.receipt().completion_tokens(), 1, "one meter");
    account.set_outcome(Outcome::Failed, Some("internal_error"));
    account.set_outcome(Outcome::Finished, None);
    drop(account);
    assert_eq!(usage_sink.0.lock()[0].outcome, Some(Outcome::Failed));
}
