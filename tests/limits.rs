//! Limits from the callers' side: what is refused, what the answer says, and what comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use futures_util::future::join_all;
use hearth::{
    http::HttpSettings,
    metering::{
        Metering,
        limits::{LimitSettings, Limits, Now},
        prices::Prices,
    },
    providers::scripted::{ScriptedChat, Step, say},
    service::callers::CallerSettings,
};
use hearth_domain::{Budget, CallerLimits, error::Error};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::scripted_server::{Answer, ScriptedServer, eventually};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "one-key-for-all";

fn server(chat: ScriptedChat, caller: CallerLimits) -> ScriptedServer {
    let limits = LimitSettings { caller, ..LimitSettings::default() };
    let callers = CallerSettings { api_keys: vec![KEY.to_owned()], ..CallerSettings::default() };
    ScriptedServer::with_books(chat, callers, |store, ledger| {
        let limits = Limits::open(limits, &**store, Now::since(Instant::now())).expect("the ledger can be read");
        Arc::new(Metering::new(Arc::new(Prices::default()), ledger.clone(), limits))
    })
}

fn hello(caller: CallerLimits) -> ScriptedServer {
    server(ScriptedChat::saying("tiny", "Hello!"), caller)
}

fn body(max_tokens: u32) -> Value {
    json!({"model": "tiny", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hi"}]})
}

fn request(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .expect("a valid request")
}

async fn post(server: &ScriptedServer, path: &str, body: &Value) -> Answer {
    server.send(request(path, body)).await
}

#[track_caller]
fn number(answer: &Answer, header: &str) -> u64 {
    let value = answer.header(header).unwrap_or_else(|| panic!("no {header}: {:?}", answer.headers));
    value.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_clients_on_one_key_get_the_limit_and_no_more_than_the_burst_beside() {
    const LIMIT: u32 = 100;
    let server = Arc::new(hello(CallerLimits { requests_per_minute: Some(LIMIT), ..CallerLimits::default() }));
    let began = Instant::now();
    let clients = (0..64).map(|_| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut statuses = Vec::new();
            for _ in 0..8 {
                statuses.push(post(&server, CHAT, &body(4)).await.status.as_u16());
            }
            statuses
        })
    });
    let statuses: Vec<u16> =
        join_all(clients).await.into_iter().flat_map(|client| client.expect("no client panics")).collect();
    let came_in = began.elapsed().as_secs_f64() / 60.0 * f64::from(LIMIT);
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(served >= LIMIT as usize, "the burst is the caller's: {served}");
    assert!(served as f64 <= f64::from(LIMIT) + came_in, "{served} served, {came_in} came in");
    assert_eq!(server.chat.started(), served, "what is refused reaches no model");
}

#[tokio::test]
async fn an_answer_says_what_is_left_and_a_refusal_when_to_come_back() {
    let server =
        hello(CallerLimits { requests_per_minute: Some(2), tokens_per_minute: Some(1000), ..CallerLimits::default() });
    let first = post(&server, CHAT, &body(4)).await;
    assert_eq!(first.status, 200);
    assert_eq!(
        (number(&first, "x-ratelimit-limit-requests"), number(&first, "x-ratelimit-remaining-requests")),
        (2, 1)
    );
    assert_eq!(number(&first, "x-ratelimit-limit-tokens"), 1000);
    assert!(number(&first, "x-ratelimit-remaining-tokens") < 1000);
    assert!(first.header("x-ratelimit-reset-requests").is_some_and(|reset| reset.ends_with('s')));
    assert!(first.header("x-ratelimit-reset-tokens").is_some());
    post(&server, CHAT, &body(4)).await;

    let refused = post(&server, CHAT, &body(4)).await;
    assert_eq!(refused.status, 429);
    let error = refused.error();
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    let wait = number(&refused, "retry-after-ms");
    assert!((29_000..=30_000).contains(&wait), "one of two a minute: {wait}");
    assert_eq!(number(&refused, "retry-after"), wait.div_ceil(1000));
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);

    // Reading is free, and says the same.
    let models = server
        .send(Request::get("/v1/models").header("x-api-key", KEY).body(Body::empty()).expect("a valid request"))
        .await;
    assert_eq!(models.status, 200);
    assert_eq!(number(&models, "x-ratelimit-remaining-requests"), 0);
    let counted = post(&server, "/tokenize", &json!({"content": "a"})).await;
    assert_eq!(counted.status, 429, "{}", counted.text());
}

#[tokio::test]
async fn tokens_are_set_aside_by_the_longest_answer_and_settled_by_the_real_one() {
    let server = hello(CallerLimits { tokens_per_minute: Some(1000), ..CallerLimits::default() });
    // Twelve requests of 300 each, one after the other: each gives back what it did not use.
    for turn in 0..12 {
        let answer = post(&server, CHAT, &body(300)).await;
        assert_eq!(answer.status, 200, "{turn}: {}", answer.text());
    }
    let used = post(&server, CHAT, &body(1)).await.json()["usage"]["total_tokens"].as_u64().expect("a count");
    let left = number(&post(&server, CHAT, &body(1)).await, "x-ratelimit-remaining-tokens");
    assert!(left < 1000 - 12 * used, "what was used is gone: {left}");

    let refused = post(&server, CHAT, &body(990)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.error()["type"], "tokens");
    assert_eq!(refused.header("x-should-retry"), Some("true"));

    let never = post(&server, CHAT, &body(1001)).await;
    assert_eq!(never.status, 429);
    assert_eq!(never.error()["code"], "rate_limit_exceeded");
    assert!(never.error()["message"].as_str().is_some_and(|text| text.contains("can ever hold")), "{}", never.text());
    assert_eq!((never.header("x-should-retry"), never.header("retry-after")), (Some("false"), None));

    let embedded = post(&server, "/v1/embeddings", &json!({"model": "embed", "input": "a".repeat(5000)})).await;
    assert_eq!((embedded.status.as_u16(), &embedded.error()["type"]), (429, &json!("tokens")));
}

#[tokio::test]
async fn whatever_fails_gives_its_tokens_back() {
    let chat = ScriptedChat::new("tiny", |_| Err(Error::context_length_exceeded(9, 8, "messages")));
    let server = server(chat, CallerLimits { tokens_per_minute: Some(1000), ..CallerLimits::default() });
    for _ in 0..3 {
        let answer = post(&server, CHAT, &body(900)).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_place_comes_back_when_its_caller_leaves() {
    let chat = ScriptedChat::new("tiny", |request| {
        let mut steps = say(request, "Hello!");
        steps.truncate(3);
        steps.push(Step::Hang);
        Ok(steps)
    });
    let server = server(chat, CallerLimits { concurrent_requests: Some(1), ..CallerLimits::default() });
    let mut streamed = body(100);
    streamed["stream"] = json!(true);
    let response = server.respond(request(CHAT, &streamed)).await;
    assert_eq!(response.status(), 200);
    let mut open = response.into_body();
    open.frame().await.expect("a first frame").expect("which is whole");

    let refused = post(&server, CHAT, &streamed).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.error()["type"], "requests");
    assert!(refused.error()["message"].as_str().is_some_and(|text| text.contains("at the same time")));
    assert!(number(&refused, "retry-after-ms") > 0);

    drop(open);
    eventually("the stream's end", || server.chat.cancelled() == 1).await;
    let next = server.respond(request(CHAT, &streamed)).await;
    assert_eq!(next.status(), 200, "its place is free again");
}

#[tokio::test]
async fn a_spent_budget_is_no_matter_of_waiting() {
    // The scripted model's answers take 30 ms of compute each.
    let daily = Budget { micro_usd: None, compute: Some(Duration::from_millis(50)) };
    let server = hello(CallerLimits { daily, ..CallerLimits::default() });
    for _ in 0..2 {
        assert_eq!(post(&server, CHAT, &body(4)).await.status, 200);
    }
    let refused = post(&server, CHAT, &body(4)).await;
    assert_eq!(refused.status, 429);
    let error = refused.error();
    assert_eq!((&error["type"], &error["code"]), (&json!("insufficient_quota"), &json!("insufficient_quota")));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!((1..=86_400).contains(&number(&refused, "retry-after")));
    assert_eq!(refused.header("x-ratelimit-limit-requests"), None, "there is no such limit");
}

#[tokio::test]
async fn pages_from_elsewhere_may_read_the_headers() {
    let settings = HttpSettings { cors_origins: vec!["https://example.com".to_owned()], ..HttpSettings::default() };
    let server = ScriptedServer::with_settings(settings);
    let request = Request::get("/v1/models").header("origin", "https://example.com").body(Body::empty());
    let answer = server.send(request.expect("a valid request")).await;
    let exposed = answer.header("access-control-expose-headers").expect("a list");
    for name in ["retry-after-ms", "x-should-retry", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests"] {
        assert!(exposed.contains(name), "{exposed}");
    }
}
