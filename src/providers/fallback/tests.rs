//! Every policy against every failure, over scripted models.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use hearth_domain::{
    Caller, EmbedInput, EmbedInputType, EmbedRequest, EmbedResponse, GenerateEvent, GenerateRequest, ModelInfo, Prompt,
    RequestContext, documents::EmbeddingIdentity, usage::NoSink,
};
use parking_lot::Mutex;

use super::*;
use crate::providers::scripted::{ScriptedChat, ScriptedEmbedder, Step, say};

/// What a candidate does when it is asked, or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    Loading,
    LoadFailed,
    Absent,
    LongQueue,
    QueueFull,
    TooLong,
    NoMemory,
    /// Admitted, and out of memory in the first step.
    NoMemoryLater,
    Broken,
    TimesOut,
    BreakerOpen,
    CallersMistake,
    OverTheLimit,
    Internal,
}

use Condition::{
    Absent, Broken, CallersMistake, Internal, LoadFailed, Loading, LongQueue, NoMemory, NoMemoryLater, OverTheLimit,
    QueueFull, TimesOut, TooLong, Well,
};

impl Condition {
    fn refusal(self) -> Option<Error> {
        let error = |kind| Error::new(kind, format!("{self:?}"));
        Some(match self {
            QueueFull => error(ErrorKind::Overloaded),
            TooLong => Error::context_length_exceeded(9, 8, "messages"),
            NoMemory => error(ErrorKind::OutOfMemory),
            Broken => error(ErrorKind::UpstreamFailed),
            TimesOut => error(ErrorKind::UpstreamTimeout),
            Self::BreakerOpen => error(ErrorKind::BreakerOpen),
            CallersMistake => Error::invalid("messages", "CallersMistake"),
            OverTheLimit => error(ErrorKind::RateLimited),
            Internal => Error::internal(anyhow::anyhow!("Internal")),
            _ => return None,
        })
    }
}

fn scripted(id: &'static str, condition: Condition, asked: Arc<Mutex<Vec<&'static str>>>) -> Arc<dyn ChatModel> {
    Arc::new(ScriptedChat::new(id, move |request| {
        asked.lock().push(id);
        match condition.refusal() {
            Some(error) => Err(error),
            None if condition == NoMemoryLater => {
                Ok(vec![Step::Fail(Error::new(ErrorKind::OutOfMemory, "NoMemoryLater"))])
            }
            None => Ok(say(request, id)),
        }
    }))
}

fn local(condition: Condition, asked: &Arc<Mutex<Vec<&'static str>>>) -> Candidate<dyn ChatModel> {
    let place = LocalSlot::loading();
    match condition {
        Loading => {}
        LoadFailed => place.failed("LoadFailed".to_owned()),
        Absent => place.stays_empty(),
        _ => place.take(scripted("local", condition, asked.clone()), move || {
            (condition == LongQueue).then(|| Obstacle {
                reason: Reason::QueueWait,
                error: Error::new(ErrorKind::Overloaded, "LongQueue"),
                passes_by_waiting: true,
            })
        }),
    }
    Candidate::Local(place)
}

fn hosted(id: &'static str, condition: Condition, asked: &Arc<Mutex<Vec<&'static str>>>) -> Candidate<dyn ChatModel> {
    Candidate::Hosted { name: format!("up/{id}"), model: scripted(id, condition, asked.clone()) }
}

fn account(policy: Option<RoutingPolicy>, key: impl FnOnce(&mut Caller)) -> Arc<Account> {
    let mut caller = Caller::local();
    key(&mut caller);
    let opening = RequestContext {
        request_id: String::new(),
        route: String::new(),
        caller: Arc::new(caller),
        fairness_key: String::new(),
        policy,
        is_recorded: false,
        cache_use: hearth_domain::CacheUse::default(),
        is_local_only: false,
        session: None,
    };
    Account::open(Arc::new(NoSink), opening)
}

fn request(account: &Arc<Account>) -> GenerateRequest {
    GenerateRequest::new(account.clone(), Prompt::Text("Hi".to_owned()))
}

/// The text of the answer, or the error's message.
async fn outcome(model: &FallbackChat, account: &Arc<Account>) -> Result<String, String> {
    let mut events = model.generate(request(account)).await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    while let Some(event) = events.next().await {
        match event.map_err(|error| error.to_string())? {
            GenerateEvent::Delta { text: more, .. } => text.push_str(&more),
            GenerateEvent::Done { .. } => return Ok(text),
            _ => {}
        }
    }
    Err("ended early".to_owned())
}

/// One request under a policy: who answered with what, which candidates were asked in which order, and the reason in
/// the receipt.
async fn run(
    policy: RoutingPolicy,
    local_is: Condition,
    hosted_is: Condition,
) -> (Result<String, String>, Vec<&'static str>, Option<String>) {
    let asked = Arc::default();
    let candidates = vec![local(local_is, &asked), hosted("hosted", hosted_is, &asked)];
    let model = FallbackChat::new("name", candidates, Policies { server: policy, route: None });
    let account = account(None, |_| {});
    let outcome = outcome(&model, &account).await;
    let asked = asked.lock().clone();
    (outcome, asked, account.receipt().fallback_reason)
}

#[tokio::test]
async fn the_first_choice_serves_where_it_can() {
    for (policy, serves) in [
        (RoutingPolicy::LocalFirst, "local"),
        (RoutingPolicy::LocalOnly, "local"),
        (RoutingPolicy::HostedFirst, "hosted"),
        (RoutingPolicy::HostedOnly, "hosted"),
    ] {
        assert_eq!(run(policy, Well, Well).await, (Ok(serves.to_owned()), vec![serves], None), "{policy:?}");
    }
}

#[tokio::test]
async fn local_first_goes_out_where_the_local_side_cannot() {
    for (condition, reason, is_asked) in [
        (Loading, "not_ready", false),
        (LoadFailed, "not_ready", false),
        (Absent, "not_ready", false),
        (LongQueue, "queue_wait", false),
        (QueueFull, "queue_wait", true),
        (TooLong, "context_length", true),
        (NoMemory, "out_of_memory", true),
        (NoMemoryLater, "out_of_memory", true),
    ] {
        let asked = if is_asked { vec!["local", "hosted"] } else { vec!["hosted"] };
        let expected = (Ok("hosted".to_owned()), asked, Some(reason.to_owned()));
        assert_eq!(run(RoutingPolicy::LocalFirst, condition, Well).await, expected, "{condition:?}");
    }
}

#[tokio::test]
async fn hosted_first_comes_home_where_the_upstream_cannot() {
    for (condition, reason) in [
        (Broken, "upstream_error"),
        (TimesOut, "upstream_error"),
        (Condition::BreakerOpen, "breaker_open"),
        (TooLong, "context_length"),
    ] {
        let expected = (Ok("local".to_owned()), vec!["hosted", "local"], Some(reason.to_owned()));
        assert_eq!(run(RoutingPolicy::HostedFirst, Well, condition).await, expected, "{condition:?}");
    }
}

#[tokio::test]
async fn only_means_only() {
    for condition in [Loading, LoadFailed, Absent, QueueFull, TooLong, NoMemory, NoMemoryLater] {
        let (outcome, asked, reason) = run(RoutingPolicy::LocalOnly, condition, Well).await;
        assert!(outcome.is_err() && reason.is_none(), "{condition:?}");
        assert!(!asked.contains(&"hosted"), "{condition:?}: {asked:?}");
    }
    // With no other candidate, the request waits.
    assert_eq!(run(RoutingPolicy::LocalOnly, LongQueue, Well).await, (Ok("local".to_owned()), vec!["local"], None));
    for condition in [Broken, TimesOut, Condition::BreakerOpen, TooLong] {
        let (outcome, asked, reason) = run(RoutingPolicy::HostedOnly, Well, condition).await;
        assert!(outcome.is_err() && reason.is_none(), "{condition:?}");
        assert_eq!(asked, ["hosted"], "{condition:?}");
    }
}

#[tokio::test]
async fn a_mistake_of_the_callers_and_a_limit_are_nobody_elses_business() {
    for condition in [CallersMistake, OverTheLimit, Internal] {
        let (outcome, asked, reason) = run(RoutingPolicy::LocalFirst, condition, Well).await;
        assert!(outcome.is_err() && reason.is_none(), "{condition:?}");
        assert_eq!(asked, ["local"], "{condition:?}");
        let (outcome, asked, reason) = run(RoutingPolicy::HostedFirst, Well, condition).await;
        assert!(outcome.is_err() && reason.is_none(), "{condition:?}");
        assert_eq!(asked, ["hosted"], "{condition:?}");
    }
}

#[tokio::test]
async fn where_nobody_can_the_first_choice_has_the_word_and_the_others_are_named() {
    let (outcome, _, reason) = run(RoutingPolicy::LocalFirst, QueueFull, Broken).await;
    let said = "QueueFull Nobody else could serve; tried: local (queue_wait), up/hosted (upstream_error).";
    assert_eq!((outcome, reason), (Err(said.to_owned()), None));
    let (outcome, _, _) = run(RoutingPolicy::HostedFirst, Loading, Condition::BreakerOpen).await;
    let said = "BreakerOpen Nobody else could serve; tried: up/hosted (breaker_open), local (not_ready).";
    assert_eq!(outcome, Err(said.to_owned()));
    let (outcome, _, _) = run(RoutingPolicy::LocalFirst, NoMemoryLater, Broken).await;
    let said = "NoMemoryLater Nobody else could serve; tried: local (out_of_memory), up/hosted (upstream_error).";
    assert_eq!(outcome, Err(said.to_owned()));
}

#[tokio::test]
async fn a_long_queue_is_waited_in_after_all_where_nobody_else_serves() {
    assert_eq!(
        run(RoutingPolicy::LocalFirst, LongQueue, Broken).await,
        (Ok("local".to_owned()), vec!["hosted", "local"], None)
    );
}

#[tokio::test]
async fn several_upstreams_are_asked_in_their_order() {
    let asked = Arc::default();
    let candidates = vec![
        local(Loading, &asked),
        hosted("first", Condition::BreakerOpen, &asked),
        hosted("second", Broken, &asked),
        hosted("third", Well, &asked),
    ];
    let model = FallbackChat::new("name", candidates, Policies::default());
    let account = account(None, |_| {});
    assert_eq!(outcome(&model, &account).await, Ok("third".to_owned()));
    assert_eq!(*asked.lock(), ["first", "second", "third"]);
    assert_eq!(account.receipt().fallback_reason.as_deref(), Some("not_ready"), "why the first choice did not serve");
}

#[tokio::test]
async fn what_has_begun_is_never_begun_again() {
    let asked: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let breaks = ScriptedChat::new("local", |request| {
        let mut steps = say(request, "some words");
        steps.truncate(4);
        steps.push(Step::Fail(Error::new(ErrorKind::OutOfMemory, "too late")));
        Ok(steps)
    });
    let candidates = vec![
        Candidate::Local(LocalSlot::of(Arc::new(breaks) as Arc<dyn ChatModel>, || None)),
        hosted("hosted", Well, &asked),
    ];
    let model = FallbackChat::new("name", candidates, Policies::default());
    assert_eq!(outcome(&model, &account(None, |_| {})).await, Err("too late".to_owned()));
    assert!(asked.lock().is_empty());
}

#[tokio::test]
async fn dropping_the_answer_drops_the_candidates_stream() {
    let local = Arc::new(ScriptedChat::new("local", |request| {
        let mut steps = say(request, "words");
        steps.truncate(3);
        steps.push(Step::Hang);
        Ok(steps)
    }));
    let place = LocalSlot::of(local.clone() as Arc<dyn ChatModel>, || None);
    let candidates = vec![Candidate::Local(place), hosted("hosted", Well, &Arc::default())];
    let model = FallbackChat::new("name", candidates, Policies::default());
    let mut events = model.generate(request(&account(None, |_| {}))).await.expect("admitted");
    events.next().await.expect("an event").expect("no error");
    drop(events);
    assert_eq!((local.started(), local.cancelled()), (1, 1));
}

#[tokio::test]
async fn who_decides() {
    let asked = Arc::default();
    let candidates = || vec![local(Well, &asked), hosted("hosted", Well, &asked)];
    let say = |server, route, account: Arc<Account>| {
        let model = FallbackChat::new("name", candidates(), Policies { server, route });
        async move { outcome(&model, &account).await.expect("an answer") }
    };
    let (local_first, hosted_first) = (RoutingPolicy::LocalFirst, RoutingPolicy::HostedFirst);
    let nobody = || account(None, |_| {});
    assert_eq!(say(hosted_first, None, nobody()).await, "hosted", "the server");
    assert_eq!(say(local_first, Some(hosted_first), nobody()).await, "hosted", "the route over the server");
    let key = account(None, |caller| caller.policy = Some(local_first));
    assert_eq!(say(hosted_first, Some(hosted_first), key).await, "local", "the key over the route");
    let request = account(Some(hosted_first), |caller| caller.policy = Some(local_first));
    assert_eq!(say(local_first, None, request).await, "hosted", "the request over the key");
    let bound = account(Some(RoutingPolicy::HostedOnly), |caller| caller.local_only = true);
    assert_eq!(say(hosted_first, None, bound).await, "local", "what is local only over all");
    let reads_local_collection = account(Some(RoutingPolicy::HostedOnly), |_| {}).kept_local();
    assert_eq!(say(hosted_first, None, reads_local_collection).await, "local");
    let asks_to_go_out = account(Some(RoutingPolicy::HostedOnly), |_| {});
    assert_eq!(say(RoutingPolicy::LocalOnly, None, asks_to_go_out).await, "local", "a server that is local only");
}

#[tokio::test]
async fn a_side_that_a_model_does_not_have_is_refused_by_name() {
    let asked = Arc::default();
    let model = FallbackChat::new("name", vec![hosted("hosted", Well, &asked)], Policies::default());
    let error = model.generate(request(&account(Some(RoutingPolicy::LocalOnly), |_| {}))).await.err().expect("refused");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Forbidden, Some("local_only")));
    assert!(asked.lock().is_empty());
    let model = FallbackChat::new("name", vec![local(Well, &asked)], Policies::default());
    let error =
        model.generate(request(&account(Some(RoutingPolicy::HostedOnly), |_| {}))).await.err().expect("refused");
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidRequest, Some("no_hosted_model")));
}

#[tokio::test]
async fn a_model_has_one_name_whoever_serves_and_each_candidate_its_own() {
    let place = LocalSlot::loading();
    let hosted = Arc::new(ScriptedChat::saying("big-model", "hosted"));
    let candidates = vec![
        Candidate::Local(place.clone()),
        Candidate::Hosted { name: "up/big-model".to_owned(), model: hosted.clone() as Arc<dyn ChatModel> },
    ];
    let model = FallbackChat::new("name", candidates, Policies::default());
    assert_eq!(model.info().id, "name");
    let account = account(None, |_| {});
    assert_eq!(outcome(&model, &account).await, Ok("hosted".to_owned()));
    assert_eq!(hosted.requests().len(), 1);
    let local = Arc::new(ScriptedChat::saying("file", "local"));
    place.take(local.clone(), || None);
    assert_eq!(model.info().id, "name");
    assert_eq!(outcome(&model, &account).await, Ok("local".to_owned()));
    assert_eq!(local.requests().len(), 1);
}

/// An embedder that counts, and answers with altered scripted vectors.
struct Counting {
    inner: ScriptedEmbedder,
    asked: AtomicUsize,
    change: fn(&mut Vec<f32>),
}

impl Counting {
    fn new(change: fn(&mut Vec<f32>)) -> Arc<Self> {
        Arc::new(Self { inner: ScriptedEmbedder::new("embed"), asked: AtomicUsize::new(0), change })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Embedder for Counting {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn identity(&self) -> EmbeddingIdentity {
        self.inner.identity()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut answer = self.inner.embed(request).await?;
            answer.embeddings.iter_mut().for_each(self.change);
            Ok(answer)
        }
        .boxed()
    }
}

fn texts(account: &Arc<Account>) -> EmbedRequest {
    EmbedRequest {
        account: account.clone(),
        inputs: vec![EmbedInput::Text("Hi".to_owned())],
        input_type: EmbedInputType::Plain,
        dimensions: None,
        truncate: false,
        deadline: None,
    }
}

/// A local candidate, which refuses while the flag says so, and a hosted one.
fn embedder(hosted: &Arc<Counting>, is_busy: &Arc<AtomicUsize>) -> FallbackEmbedder {
    let is_busy = is_busy.clone();
    let place = LocalSlot::of(Counting::new(|_| {}) as Arc<dyn Embedder>, move || {
        (is_busy.load(Ordering::SeqCst) > 0).then(|| Obstacle {
            reason: Reason::QueueWait,
            error: Error::new(ErrorKind::Overloaded, "busy"),
            passes_by_waiting: false,
        })
    });
    let hosted = Candidate::Hosted { name: "up/embed".to_owned(), model: hosted.clone() as Arc<dyn Embedder> };
    FallbackEmbedder::new("name", vec![Candidate::Local(place), hosted], Policies::default())
}

#[tokio::test]
async fn an_embedding_falls_back_to_the_same_model_which_is_verified_once() {
    let hosted = Counting::new(|_| {});
    let is_busy = Arc::new(AtomicUsize::new(0));
    let model = embedder(&hosted, &is_busy);
    model.learn().await.expect("the local model is there");
    let account = account(None, |_| {});
    let ours = model.embed(texts(&account)).await.expect("local").embeddings;
    assert_eq!((hosted.asked(), account.receipt().fallback_reason), (0, None));
    is_busy.store(1, Ordering::SeqCst);
    let theirs = model.embed(texts(&account)).await.expect("hosted").embeddings;
    assert_eq!(ours, theirs);
    assert_eq!((hosted.asked(), account.receipt().fallback_reason.as_deref()), (2, Some("queue_wait")));
    model.embed(texts(&account)).await.expect("hosted");
    assert_eq!(hosted.asked(), 3, "the probe is sent once");
    let mut queries = texts(&account);
    queries.input_type = EmbedInputType::Query;
    model.embed(queries).await.expect("hosted");
    assert_eq!(hosted.asked(), 5, "queries may have a prefix of their own");
}

#[tokio::test]
async fn another_vector_space_is_an_error() {
    let shorter: fn(&mut Vec<f32>) = |vector| vector.truncate(4);
    let turned: fn(&mut Vec<f32>) = |vector| vector.reverse();
    let longer: fn(&mut Vec<f32>) = |vector| vector.iter_mut().for_each(|value| *value *= 3.0);
    let nothing: fn(&mut Vec<f32>) = |vector| vector.fill(0.0);
    for (change, says) in [(shorter, "4 dimensions"), (turned, "cosine"), (longer, "3.00 times"), (nothing, "NaN")] {
        let hosted = Counting::new(change);
        let model = embedder(&hosted, &Arc::new(AtomicUsize::new(1)));
        model.learn().await.expect("the local model is there");
        let account = account(Some(RoutingPolicy::HostedOnly), |_| {});
        for _ in 0..2 {
            let error = model.embed(texts(&account)).await.expect_err("another model");
            assert_eq!(error.code(), Some("embedding_model_differs"));
            assert!(error.message().contains(says), "{error}");
            assert_eq!(hosted.asked(), 1, "the verdict is remembered");
        }
        let error = model.embed(texts(&self::account(None, |_| {}))).await.expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::Overloaded, "the first choice has the word: {error}");
    }
}

#[tokio::test]
async fn without_a_comparison_an_upstream_does_not_stand_in() {
    let hosted = Counting::new(|_| {});
    let candidates: Vec<Candidate<dyn Embedder>> = vec![
        Candidate::Local(LocalSlot::loading()),
        Candidate::Hosted { name: "up/embed".to_owned(), model: hosted.clone() },
    ];
    let model = FallbackEmbedder::new("name", candidates, Policies::default());
    let error = model.embed(texts(&account(Some(RoutingPolicy::HostedOnly), |_| {}))).await.expect_err("not verified");
    assert_eq!((error.code(), hosted.asked()), (Some("embedding_not_verified"), 0));
}

#[tokio::test]
async fn without_a_local_model_one_upstream_embeds_and_its_identity_counts() {
    let (first, second) = (Counting::new(|_| {}), Counting::new(|_| {}));
    let place = LocalSlot::<dyn Embedder>::loading();
    place.stays_empty();
    let candidates: Vec<Candidate<dyn Embedder>> = vec![
        Candidate::Local(place),
        Candidate::Hosted { name: "up/one".to_owned(), model: first.clone() },
        Candidate::Hosted { name: "up/two".to_owned(), model: second.clone() },
    ];
    let model = FallbackEmbedder::new("name", candidates, Policies::default());
    model.embed(texts(&account(None, |_| {}))).await.expect("an answer");
    assert_eq!((first.asked(), second.asked()), (1, 0));
    assert_eq!(model.identity().name, "embed");
    let error = model.embed(texts(&account(None, |caller| caller.local_only = true))).await.expect_err("nobody");
    assert_eq!(error.code(), Some("no_local_model"));
    assert_eq!((first.asked(), second.asked()), (1, 0));
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: BTreeSet<&str> = Reason::ALL.into_iter().map(Reason::as_str).collect();
    assert_eq!(names.len(), Reason::ALL.len());
}
