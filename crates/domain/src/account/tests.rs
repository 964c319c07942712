//! An account from opening to settlement, and what is counted on the way.

use super::*;

#[derive(Default)]
struct Recorded(Mutex<Vec<Receipt>>);

impl Books for Recorded {
    fn reserve(&self, _: &Account, _: u64) -> Result<()> {
        Ok(())
    }

    fn price(&self, leg: &LegReceipt) -> u64 {
        leg.completion_tokens
    }

    fn settle(&self, _: &Account, receipt: Receipt) {
        self.0.lock().push(receipt);
    }
}

fn open(books: &Arc<Recorded>) -> Arc<Account> {
    let opening = Opening {
        request_id: "r".into(),
        route: "POST /ask".into(),
        caller: Arc::new(Caller::local()),
        turn: String::new(),
        policy: Some(Policy::HostedFirst),
        is_recorded: true,
    };
    Account::open(books.clone(), opening)
}

#[test]
fn the_last_one_to_let_go_settles() {
    let books = Arc::new(Recorded::default());
    let account = open(&books);
    let leg = account.leg("m", ServedBy::Local { device: "cpu".into() });
    leg.generated();
    drop(account);
    assert!(books.0.lock().is_empty(), "the engine works still");
    leg.generated();
    leg.computed(Duration::from_millis(3));
    drop(leg);
    let receipts = books.0.lock();
    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].outcome, Some(Outcome::Cancelled), "nobody said how it ended");
    assert_eq!((receipts[0].completion_tokens(), receipts[0].cost_micro_usd), (2, 2));
    assert_eq!(receipts[0].compute(), Duration::from_millis(3));
}

#[test]
fn what_is_cut_off_is_settled_once_with_what_it_has_used() {
    let books = Arc::new(Recorded::default());
    let account = open(&books);
    let leg = account.leg("m", ServedBy::Local { device: "cpu".into() });
    leg.generated();
    account.cut_off();
    leg.generated();
    account.ended(Outcome::Finished, None);
    account.cut_off();
    drop((account, leg));
    let receipts = books.0.lock();
    let [receipt] = &receipts[..] else { panic!("{receipts:?}") };
    assert_eq!((receipt.outcome, receipt.error_code.as_deref()), (Some(Outcome::Failed), Some("draining")));
    assert_eq!(receipt.completion_tokens(), 1);
}

#[test]
fn an_answer_that_a_model_had_to_generate_is_not_from_a_cache() {
    let account = open(&Arc::new(Recorded::default()));
    account.leg("e", ServedBy::Cache("embedding")).prompt(3, 0);
    account.served_from_cache("embedding");
    assert_eq!(account.receipt().cache, Some("embedding"));
    account.leg("m", ServedBy::Local { device: "cpu".into() }).generated();
    assert_eq!(account.receipt().cache, None);
}

#[test]
fn the_first_word_about_the_end_counts_and_what_is_local_stays() {
    let books = Arc::new(Recorded::default());
    let account = open(&books);
    assert_eq!(account.policy(), Some(Policy::HostedFirst));
    account.keep_local();
    assert_eq!(account.policy(), Some(Policy::LocalOnly));
    account.ended(Outcome::Failed, Some("internal_error"));
    account.ended(Outcome::Finished, None);
    drop(account);
    assert_eq!(books.0.lock()[0].outcome, Some(Outcome::Failed));
}
