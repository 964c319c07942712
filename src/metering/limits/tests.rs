//! Limits on a clock that the tests advance.

use super::*;
use crate::store::LedgerRow;
use hearth_domain::Account;
use hearth_domain::{
    RequestContext,
    error::{Error, ErrorKind},
    usage::{ModelUsage, NoSink, UsageSink},
};

/// Noon of a day in the middle of a month, plus this many seconds.
fn now(seconds: f64) -> Now {
    let since = Duration::from_secs_f64(seconds);
    Now { ns: since.as_nanos() as u64, wall: UNIX_EPOCH + Duration::from_secs(1_797_336_000) + since }
}

fn caller(id: &str, limits: CallerLimits) -> Arc<Caller> {
    Arc::new(Caller { id: id.to_owned(), limits, ..Caller::local() })
}

fn opening(caller: &Arc<Caller>) -> RequestContext {
    RequestContext {
        request_id: "req_1".to_owned(),
        route: "POST /v1/chat/completions".to_owned(),
        caller: caller.clone(),
        fairness_key: String::new(),
        policy: None,
        is_recorded: true,
        cache_use: hearth_domain::CacheUse::default(),
        is_local_only: false,
        session: None,
    }
}

/// The receipt of a request that used these tokens, this money and this time.
fn receipt(tokens: u64, micro_usd: u64, compute: Duration) -> Receipt {
    let record = ModelUsage {
        model: "m".to_owned(),
        served_by: ServedBy::Local { device: "cpu".to_owned() },
        prompt_tokens: tokens / 2,
        cached_tokens: 0,
        completion_tokens: tokens - tokens / 2,
        reasoning_tokens: 0,
        queue: Duration::ZERO,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        compute,
    };
    let empty = Account::open(Arc::new(NoSink), opening(&caller("nobody", CallerLimits::default()))).receipt();
    Receipt { models: vec![record], cost_micro_usd: micro_usd, latency: Duration::from_secs(4), ..empty }
}

/// A `UsageSink` on a stopped clock: limits without the rest of metering.
struct Frozen(Arc<Limits>, Now);

impl UsageSink for Frozen {
    fn admit(&self, account: &UsageMeter) -> Result<Permit> {
        self.0.admit(&account.context().caller, self.1)
    }

    fn reserve(&self, account: &UsageMeter, tokens: u64) -> Result<()> {
        self.0.reserve(account, tokens, self.1)
    }

    fn price(&self, _: &ModelUsage) -> u64 {
        0
    }

    fn settle(&self, account: &UsageMeter, receipt: Receipt) {
        self.0.settle(account, &receipt, self.1);
    }
}

fn account(limits: &Arc<Limits>, caller: &Arc<Caller>, now: Now) -> Arc<Account> {
    Account::open(Arc::new(Frozen(limits.clone(), now)), opening(caller))
}

/// The wait that the caller is told, rounded up.
fn milliseconds(error: &Error) -> u128 {
    error.retry_after().expect("a time to come back at").as_nanos().div_ceil(1_000_000)
}

#[test]
fn requests_a_minute_are_each_callers_own_and_the_servers_are_everybodys() {
    let settings = LimitSettings {
        server: CallerLimits { requests_per_minute: Some(5), ..CallerLimits::default() },
        caller: CallerLimits { requests_per_minute: Some(3), ..CallerLimits::default() },
    };
    let limits = Limits::new(settings);
    let (a, b) = (caller("a", CallerLimits::default()), caller("b", CallerLimits::default()));
    for _ in 0..3 {
        limits.admit(&a, now(0.0)).expect("within a's limit");
    }
    let error = limits.admit(&a, now(0.0)).expect_err("a's fourth");
    assert_eq!((error.kind(), milliseconds(&error)), (ErrorKind::RateLimited, 20_000));
    assert_eq!(error.message(), "Your limit of 3 requests a minute is reached. Try again in 20.00 s.");
    for _ in 0..2 {
        limits.admit(&b, now(0.0)).expect("within both limits");
    }
    let error = limits.admit(&b, now(0.0)).expect_err("the server's sixth");
    assert!(error.message().starts_with("This server's limit for all callers together"), "{error}");
    assert_eq!(milliseconds(&error), 12_000);
    let left = limits.allowance(&b, now(0.0)).requests.expect("a limit");
    assert_eq!((left.limit, left.remaining), (5, 0), "the nearer one is told");
    // The refusal took none of b's own requests: a third one is there when the server has room.
    limits.admit(&b, now(12.001)).expect("both have one");
}

#[test]
fn what_is_left_of_budgets_is_the_callers_own() {
    let budget = |micro_usd| Budget { micro_usd: Some(micro_usd), compute: None };
    let settings = LimitSettings {
        server: CallerLimits { daily: budget(100), ..CallerLimits::default() },
        caller: CallerLimits { daily: budget(1000), monthly: budget(5000), ..CallerLimits::default() },
    };
    let limits = Limits::new(settings);
    let caller = caller("a", CallerLimits::default());
    limits.meter("a", now(0.0)).spend(now(0.0).wall, Spent { micro_usd: 30, compute: Duration::ZERO });
    let standing = limits.standing(&caller, now(0.0));
    assert_eq!((standing.daily_left, standing.monthly_left), (budget(970), budget(4970)));
    limits.server.spend(now(0.0).wall, Spent { micro_usd: 300, compute: Duration::ZERO });
    assert_eq!(limits.standing(&caller, now(0.0)).daily_left, budget(970), "what others spend is not told");
    assert_eq!(limits.standing(&caller, now(0.0)).limits.monthly, budget(5000));
}

#[test]
fn a_caller_may_have_limits_of_its_own() {
    let settings = LimitSettings {
        caller: CallerLimits { requests_per_minute: Some(1), ..CallerLimits::default() },
        ..LimitSettings::default()
    };
    let limits = Limits::new(settings);
    let own = CallerLimits { requests_per_minute: Some(2), ..CallerLimits::default() };
    let caller = caller("a", own);
    assert_eq!(limits.allowance(&caller, now(0.0)).requests.map(|left| left.limit), Some(2));
    assert_eq!(limits.allowance(&caller, now(0.0)).tokens, None);
}

#[test]
fn a_place_is_given_back_when_the_account_is_settled() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let own = CallerLimits { concurrent_requests: Some(2), requests_per_minute: Some(100), ..CallerLimits::default() };
    let caller = caller("a", own);
    let [first, second, third] = [(); 3].map(|()| account(&limits, &caller, now(0.0)));
    first.admit().expect("a place");
    second.admit().expect("a place");
    let error = third.admit().expect_err("both are taken");
    assert_eq!((error.kind(), milliseconds(&error)), (ErrorKind::RateLimited, 1000), "{error}");
    let left = limits.allowance(&caller, now(0.0)).requests.expect("a limit");
    assert_eq!(left.remaining, 98, "who found no place used no request");
    let record = first.begin_record("m", ServedBy::Cache("exact"));
    drop(first);
    assert!(third.admit().is_err(), "somebody works for it still");
    drop(record);
    third.admit().expect("a place came back");
}

#[test]
fn how_long_requests_take_is_how_long_one_waits_for_a_place() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let caller = caller("a", CallerLimits { concurrent_requests: Some(2), ..CallerLimits::default() });
    let running = account(&limits, &caller, now(0.0));
    running.admit().expect("a place");
    // Requests take four seconds, so with two of them one ends every two.
    limits.settle(&running, &receipt(1, 0, Duration::ZERO), now(0.0));
    let _other = limits.admit(&caller, now(0.0)).expect("a place");
    let error = limits.admit(&caller, now(0.0)).expect_err("both are taken");
    assert_eq!(milliseconds(&error), 2000);
}

#[test]
fn tokens_are_set_aside_and_settled() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let caller = caller("a", CallerLimits { tokens_per_minute: Some(1000), ..CallerLimits::default() });
    let left = |now| limits.allowance(&caller, now).tokens.expect("a limit").remaining;

    let request = account(&limits, &caller, now(0.0));
    request.admit().expect("no limit on requests");
    request.reserve(600).expect("there are as many");
    assert_eq!(left(now(0.0)), 400);
    let other = account(&limits, &caller, now(0.0));
    let error = other.reserve(500).expect_err("there are 400");
    assert_eq!((error.kind(), milliseconds(&error)), (ErrorKind::TokensLimited, 6000));
    // The request used 100: the surplus comes back.
    limits.settle(&request, &receipt(100, 0, Duration::ZERO), now(0.0));
    assert_eq!(left(now(0.0)), 900);
    other.reserve(500).expect("there are as many now");
    // That one used 700: the rest is charged.
    limits.settle(&other, &receipt(700, 0, Duration::ZERO), now(0.0));
    assert_eq!(left(now(0.0)), 200);
    assert_eq!(left(now(24.0)), 600);

    // A cached answer costs no tokens.
    let again = account(&limits, &caller, now(60.0));
    again.reserve(500).expect("a minute later");
    let mut cached = receipt(400, 0, Duration::ZERO);
    cached.models[0].served_by = ServedBy::Cache("exact");
    limits.settle(&again, &cached, now(60.0));
    assert_eq!(left(now(60.0)), 1000);
}

#[test]
fn one_of_several_servers_admits_its_share_and_no_request_is_too_large_for_it_alone() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let own = CallerLimits {
        requests_per_minute: Some(8),
        tokens_per_minute: Some(1000),
        concurrent_requests: Some(3),
        ..CallerLimits::default()
    };
    let caller = caller("a", own);
    limits.replicas.store(4, Relaxed);
    let first = account(&limits, &caller, now(0.0));
    first.admit().expect("a place of three, of which each of four servers has one");
    assert!(account(&limits, &caller, now(0.0)).admit().is_err());
    first.reserve(600).expect("more than its share of 250, but not more than all have");
    let error = account(&limits, &caller, now(0.0)).reserve(1).expect_err("a debt of 350");
    assert_eq!((error.kind(), milliseconds(&error)), (ErrorKind::TokensLimited, 84_240));
    let error = account(&limits, &caller, now(600.0)).reserve(1001).expect_err("more than all have");
    assert_eq!(error.retry_after(), None);
    drop(first);
    account(&limits, &caller, now(600.0)).admit().expect("its second of two a minute");
}

#[test]
fn an_account_that_is_dropped_gives_back_what_it_set_aside() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let caller = caller("a", CallerLimits { tokens_per_minute: Some(1000), ..CallerLimits::default() });
    let request = account(&limits, &caller, now(0.0));
    request.admit().expect("no limit on requests");
    request.reserve(1000).expect("a full bucket");
    let record = request.begin_record("m", ServedBy::Local { device: "cpu".to_owned() });
    (0..30).for_each(|_| record.count_token());
    drop((request, record));
    assert_eq!(limits.allowance(&caller, now(0.0)).tokens.map(|left| left.remaining), Some(970));
}

#[test]
fn a_request_that_can_never_fit_is_told_so() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let caller = caller("a", CallerLimits { tokens_per_minute: Some(1000), ..CallerLimits::default() });
    let request = account(&limits, &caller, now(0.0));
    let error = request.reserve(1001).expect_err("a bucket holds 1000");
    assert!(error.is_lasting() && error.retry_after().is_none());
    assert!(error.message().contains("more than your limit of 1000 tokens a minute can ever hold"), "{error}");
    // Nor in parts: all parts belong to one request.
    request.reserve(600).expect("there are as many");
    let error = request.reserve(600).expect_err("1200 in all");
    assert!(error.is_lasting() && error.message().contains("1200"), "{error}");
}

#[test]
fn a_budget_that_is_spent_ends_admission_until_the_next_day() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let daily = Budget { micro_usd: Some(1_000_000), compute: None };
    let caller = caller("a", CallerLimits { daily, ..CallerLimits::default() });
    let request = account(&limits, &caller, now(0.0));
    request.admit().expect("nothing is spent");
    limits.settle(&request, &receipt(10, 1_000_000, Duration::ZERO), now(0.0));
    let error = limits.admit(&caller, now(0.0)).expect_err("a dollar is spent");
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert!(error.is_lasting());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(12 * 3600)), "from noon to midnight");
    let job = account(&limits, &caller, now(0.0));
    assert_eq!(job.reserve(1).expect_err("nor a job").kind(), ErrorKind::QuotaExceeded);
    limits.admit(&caller, now(12.0 * 3600.0)).expect("a new day");
}

#[test]
fn the_servers_budget_is_spent_by_all() {
    let monthly = Budget { micro_usd: None, compute: Some(Duration::from_secs(10)) };
    let settings =
        LimitSettings { server: CallerLimits { monthly, ..CallerLimits::default() }, ..LimitSettings::default() };
    let limits = Arc::new(Limits::new(settings));
    for id in ["a", "b"] {
        let request = account(&limits, &caller(id, CallerLimits::default()), now(0.0));
        request.admit().expect("not spent yet");
        limits.settle(&request, &receipt(10, 0, Duration::from_secs(5)), now(0.0));
    }
    let error = limits.admit(&caller("c", CallerLimits::default()), now(0.0)).expect_err("spent by others");
    assert!(error.message().starts_with("This server's monthly budget of 10 seconds of compute time"), "{error}");
}

#[test]
fn what_a_job_uses_unasked_counts_for_budgets_and_not_for_the_minute() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let own = CallerLimits {
        tokens_per_minute: Some(1000),
        daily: Budget { micro_usd: None, compute: Some(Duration::from_secs(1)) },
        ..CallerLimits::default()
    };
    let caller = caller("a", own);
    let ingest = account(&limits, &caller, now(0.0));
    limits.settle(&ingest, &receipt(500_000, 0, Duration::from_secs(2)), now(0.0));
    assert_eq!(limits.allowance(&caller, now(0.0)).tokens.map(|left| left.remaining), Some(1000));
    assert!(limits.admit(&caller, now(0.0)).is_err());
}

#[test]
fn callers_who_have_nothing_to_be_remembered_are_forgotten() {
    let limits = Arc::new(Limits::new(LimitSettings::default()));
    let own = CallerLimits { requests_per_minute: Some(60), ..CallerLimits::default() };
    let spender = account(&limits, &caller("spender", own), now(0.0));
    limits.settle(&spender, &receipt(1, 5, Duration::ZERO), now(0.0));
    for number in 0..SWEEP_AT.get() - 1 {
        limits.admit(&caller(&number.to_string(), own), now(0.0)).expect("its first");
    }
    assert_eq!(limits.callers.read().by_id.len(), SWEEP_AT.get());
    limits.admit(&caller("late", own), now(61.0)).expect("its first");
    let callers = limits.callers.read();
    let mut left: Vec<_> = callers.by_id.keys().map(String::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["late", "spender"]);
}

#[test]
fn what_was_spent_before_a_restart_is_spent() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(directory.path()).expect("a new store");
    let spent = |hours_ago: i64, micro_usd| LedgerRow {
        caller: "a".to_owned(),
        began_ms: 1_797_336_000_000 - hours_ago * 3_600_000,
        cost_micro_usd: micro_usd,
        outcome: hearth_domain::usage::Outcome::Finished,
        ..LedgerRow::default()
    };
    // At noon of the 15th: today, yesterday, last month.
    store
        .add_ledger_rows([spent(1, 5), spent(20, 10), spent(24 * 20, 20)].into())
        .expect("a store that can be written");
    let limits = Limits::open(LimitSettings::default(), &*store, now(0.0)).expect("a store that can be read");
    let budget = |micro_usd| Budget { micro_usd: Some(micro_usd), compute: None };
    let admits = |daily, monthly| {
        limits.admit(&caller("a", CallerLimits { daily, monthly, ..CallerLimits::default() }), now(0.0))
    };
    admits(budget(6), budget(16)).expect("5 today, 15 this month");
    assert!(admits(budget(5), Budget::default()).is_err());
    assert!(admits(Budget::default(), budget(15)).is_err());
}

#[test]
fn what_an_upstream_claims_neither_overflows_nor_panics() {
    let per_minute = CallerLimits { tokens_per_minute: Some(100), ..CallerLimits::default() };
    let (limits, caller) = (Arc::new(Limits::new(LimitSettings::default())), caller("a", per_minute));
    let request = account(&limits, &caller, now(0.0));
    request.admit().expect("nothing has been used");
    let mut claimed = receipt(0, 0, Duration::ZERO);
    claimed.models[0].prompt_tokens = u64::MAX;
    claimed.models[0].completion_tokens = u64::MAX;
    claimed.models.push(claimed.models[0].clone());
    limits.settle(&request, &claimed, now(0.0));
    limits.settle(&request, &claimed, now(0.0));
    let next = account(&limits, &caller, now(1.0));
    next.admit().expect("requests are not limited");
    assert_eq!(next.reserve(1).expect_err("all of them are used").kind(), ErrorKind::TokensLimited);
}
