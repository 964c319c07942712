//! Which request computes, which waits, and what is kept, with a scripted model that counts.

use std::{future::Future, pin::Pin, sync::Arc, task::Poll, time::Instant};

use futures_util::{StreamExt, future::poll_immediate};
use hearth_domain::{
    Account, Caller, ChatPrompt, GenerateEvent, Prompt, RequestContext, SamplingParams,
    error::{Error, ErrorKind},
    usage::{NoSink, ServedBy},
};
use serde_json::json;

use super::*;
use crate::providers::scripted::{ScriptedChat, Step, say};

const MIB: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn account(caller: &str) -> Arc<Account> {
    account_with(caller, CacheUse::Full)
}

fn account_with(caller: &str, cache_use: CacheUse) -> Arc<Account> {
    let context = RequestContext {
        request_id: "r".into(),
        route: "POST /v1/chat/completions".into(),
        caller: Arc::new(Caller { id: caller.into(), ..Caller::local() }),
        fairness_key: String::new(),
        policy: None,
        is_recorded: true,
        cache_use,
        is_local_only: false,
        session: None,
    };
    Account::open(Arc::new(NoSink), context)
}

fn request(account: &Arc<Account>, question: &str) -> GenerateRequest {
    let messages = vec![json!({"role": "user", "content": question})];
    GenerateRequest {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..GenerateRequest::new(
            account.clone(),
            Prompt::Chat(ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() }),
        )
    }
}

struct Setup {
    model: Arc<ScriptedChat>,
    cached: CachedChat,
}

fn cached(model: ScriptedChat, cache: ExactCache) -> Setup {
    let model = Arc::new(model);
    Setup { cached: CachedChat::new(model.clone(), cache), model }
}

fn hello() -> Setup {
    cached(ScriptedChat::saying("tiny", "Hello!"), ExactCache::new(MIB, HOUR))
}

impl Setup {
    async fn ask(&self, caller: &str, question: &str) -> Vec<GenerateEvent> {
        whole(self.cached.generate(request(&account(caller), question)).await.expect("an answer")).await
    }
}

async fn whole(events: GenerateStream) -> Vec<GenerateEvent> {
    events.map(|event| event.expect("no failure")).collect().await
}

/// What an answer says, without its timings.
fn said(events: &[GenerateEvent]) -> String {
    let mut events = events.to_vec();
    if let Some(GenerateEvent::Done { timings, .. }) = events.last_mut() {
        *timings = hearth_domain::Timings::default();
    }
    format!("{events:?}")
}

/// A request that has been polled once and is pending.
async fn waits<F: Future>(future: F) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(poll_immediate(&mut future).await.is_none(), "it should wait");
    future
}

#[tokio::test]
async fn the_same_request_is_answered_by_the_same_events_and_costs_nothing() {
    let setup = hello();
    let first = setup.ask("a", "?").await;
    let own = account("a");
    let second = whole(setup.cached.generate(request(&own, "?")).await.expect("an answer")).await;
    assert_eq!(said(&first), said(&second));
    assert_eq!(setup.model.started(), 1);
    let receipt = own.receipt();
    assert_eq!(receipt.cache, Some(EXACT));
    assert_eq!(receipt.models.len(), 1);
    assert_eq!(receipt.models[0].served_by, ServedBy::Cache(EXACT));
    assert_eq!((receipt.models[0].completion_tokens, receipt.compute()), (6, Duration::ZERO));
    assert_eq!(receipt.cost_micro_usd, 0);
}

#[tokio::test]
async fn nobody_gets_what_another_caller_asked() {
    let setup = hello();
    setup.ask("a", "?").await;
    setup.ask("b", "?").await;
    assert_eq!(setup.model.started(), 2);
}

#[tokio::test]
async fn what_may_differ_each_time_is_computed_each_time() {
    let setup = hello();
    for (temperature, seed, started) in [(1.0, None, 2), (1.0, Some(7), 3), (0.0, None, 4)] {
        for _ in 0..2 {
            let mut request = request(&account("a"), "?");
            request.sampling.temperature = temperature;
            request.sampling.seed = seed;
            whole(setup.cached.generate(request).await.expect("an answer")).await;
        }
        assert_eq!(setup.model.started(), started, "temperature {temperature}, seed {seed:?}");
    }
}

#[tokio::test]
async fn a_request_may_keep_out_of_the_cache_or_have_it_made_anew() {
    let setup = hello();
    let ask = async |cache_use| {
        let account = account_with("a", cache_use);
        whole(setup.cached.generate(request(&account, "?")).await.expect("an answer")).await;
        setup.model.started()
    };
    assert_eq!(ask(CacheUse::Off).await, 1);
    assert_eq!(ask(CacheUse::Full).await, 2, "nothing was kept");
    assert_eq!(ask(CacheUse::Refresh).await, 3);
    assert_eq!(ask(CacheUse::Full).await, 3, "what was made anew is kept");
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_wait_for_one() {
    let setup = hello();
    let (first, second, third) = (account("a"), account("a"), account("a"));
    let mut leading = setup.cached.generate(request(&first, "?")).await.expect("an answer");
    let live = leading.next().await.expect("an event").expect("no failure");
    assert!(matches!(live, GenerateEvent::Prefilled { .. }), "the leader's caller sees it as it comes");
    let second_waits = waits(setup.cached.generate(request(&second, "?"))).await;
    let third_waits = waits(setup.cached.generate(request(&third, "?"))).await;
    // A different question is no reason to wait.
    setup.ask("a", "what else?").await;
    let rest = whole(leading).await;
    let second_events = whole(second_waits.await.expect("an answer")).await;
    let third_events = whole(third_waits.await.expect("an answer")).await;
    assert_eq!(said(&second_events[1..]), said(&rest));
    assert_eq!(said(&third_events), said(&second_events));
    assert_eq!(setup.model.started(), 2);
    assert_eq!((first.receipt().cache, second.receipt().cache), (None, Some(EXACT)));
}

#[tokio::test]
async fn when_the_first_leaves_another_takes_over() {
    let setup = hello();
    let leading = setup.cached.generate(request(&account("a"), "?")).await.expect("an answer");
    let second = waits(setup.cached.generate(request(&account("a"), "?"))).await;
    let third = waits(setup.cached.generate(request(&account("a"), "?"))).await;
    drop(leading);
    assert_eq!(setup.model.cancelled(), 1);
    let leading = second.await.expect("it computes now");
    assert_eq!(setup.model.started(), 2);
    let third = waits(third).await;
    whole(leading).await;
    whole(third.await.expect("an answer")).await;
    assert_eq!((setup.model.started(), setup.model.completed()), (2, 1));
}

#[tokio::test]
async fn when_the_first_fails_another_takes_over_and_failures_are_not_kept() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let model = ScriptedChat::new("tiny", move |request| {
        let mut steps = say(request, "Hello!");
        match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => return Err(Error::new(ErrorKind::Overloaded, "full")),
            1 => steps.splice(3.., [Step::Fail(Error::new(ErrorKind::UpstreamFailed, "gone"))]).for_each(drop),
            _ => {}
        }
        Ok(steps)
    });
    let setup = cached(model, ExactCache::new(MIB, HOUR));
    let refused = setup.cached.generate(request(&account("a"), "?")).await;
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Overloaded));
    let leading = setup.cached.generate(request(&account("a"), "?")).await.expect("let in");
    let second = waits(setup.cached.generate(request(&account("a"), "?"))).await;
    let events: Vec<_> = leading.collect().await;
    assert!(events.last().is_some_and(Result::is_err));
    assert_eq!(whole(second.await.expect("it computes now")).await.len(), 9);
    assert_eq!(setup.ask("a", "?").await.len(), 9);
    assert_eq!(setup.model.started(), 2, "one failed on its way, one was kept");
}

#[tokio::test]
async fn nobody_waits_past_the_deadline_or_for_one_who_stands_still() {
    let hang = ScriptedChat::new("tiny", |_| Ok(vec![Step::Hang]));
    let setup = cached(hang, ExactCache::new(MIB, HOUR).with_patience(Duration::ZERO));
    let _leading = setup.cached.generate(request(&account("a"), "?")).await.expect("let in");
    let late = GenerateRequest { deadline: Some(Instant::now()), ..request(&account("a"), "?") };
    let error = setup.cached.generate(late).await.err().expect("its time is over");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let _alone = setup.cached.generate(request(&account("a"), "?")).await.expect("it computes for itself");
    assert_eq!(setup.model.started(), 2);
}

#[tokio::test]
async fn what_is_old_or_does_not_fit_is_computed_again() {
    let old = cached(ScriptedChat::saying("tiny", "Hello!"), ExactCache::new(MIB, Duration::from_nanos(1)));
    old.ask("a", "?").await;
    old.ask("a", "?").await;
    assert_eq!(old.model.started(), 2);
    // One answer takes more than a quarter of the room.
    let small = cached(ScriptedChat::saying("tiny", "Hello!"), ExactCache::new(2000, HOUR));
    let leading = small.cached.generate(request(&account("a"), "?")).await.expect("let in");
    let second = waits(small.cached.generate(request(&account("a"), "?"))).await;
    whole(leading).await;
    whole(second.await.expect("it computes for itself")).await;
    assert_eq!(small.model.started(), 2);
}

#[tokio::test]
async fn the_limit_holds_in_bytes() {
    let setup = cached(ScriptedChat::saying("tiny", "Hello!"), ExactCache::new(16_000, HOUR));
    for question in 0..100 {
        setup.ask("a", &question.to_string()).await;
    }
    let held = setup.cached.cache.answers.bytes();
    assert!(held > 0 && held <= 16_000, "{held}");
    assert!(setup.cached.cache.flights_are_over());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_are_one() {
    let setup = Arc::new(hello());
    let asking: Vec<_> = (0..64)
        .map(|_| {
            let setup = setup.clone();
            tokio::spawn(async move { setup.ask("a", "?").await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.expect("no panic").len(), 9);
    }
    assert_eq!(setup.model.started(), 1);
    assert!(setup.cached.cache.flights_are_over());
}

#[tokio::test]
async fn a_dropped_waiter_leaves_nothing_behind() {
    let setup = hello();
    let leading = setup.cached.generate(request(&account("a"), "?")).await.expect("let in");
    let own = account("a");
    let mut waiting = waits(setup.cached.generate(request(&own, "?"))).await;
    let polled = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
    assert!(polled);
    drop(waiting);
    assert_eq!(Arc::strong_count(&own), 1);
    whole(leading).await;
    assert!(setup.cached.cache.flights_are_over());
}
