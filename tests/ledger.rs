//! What requests leave in the ledger: how each ended, its receipt, and the sums of all.

use std::time::Duration;

use axum::{body::Body, http::Request};
use futures_util::StreamExt;
use hearth::{
    providers::scripted::{ScriptedChat, Step, say},
    store::{GroupBy, LedgerTotals, UsageQuery},
};
use hearth_domain::error::{Error, ErrorKind};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::scripted_server::{ScriptedServer, eventually};

const CHAT: &str = "/v1/chat/completions";

fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

fn request(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .expect("a valid request")
}

/// Says two characters and then does this.
fn then(step: fn() -> Step) -> ScriptedServer {
    ScriptedServer::with_chat(ScriptedChat::new("tiny", move |request| {
        let mut steps: Vec<Step> = say(request, "Hi").into_iter().take(3).collect();
        steps.push(step());
        Ok(steps)
    }))
}

/// The sums once this many requests have ended.
async fn after(server: &ScriptedServer, requests: u64) -> LedgerTotals {
    eventually("the requests have their rows", || server.ledger.totals().requests == requests).await;
    server.ledger.totals()
}

fn outcomes(totals: &LedgerTotals) -> [u64; 5] {
    [totals.finished, totals.refused, totals.failed, totals.cancelled, totals.timed_out]
}

/// Codes of the rows' errors are not in any sum: they are read where the rows are.
fn error_codes(server: &ScriptedServer) -> Vec<Option<String>> {
    assert!(server.ledger.flush(Duration::from_secs(20)));
    let rows = server.ledger.store().ledger_rows(0, 100).expect("the store is readable");
    rows.into_iter().map(|row| row.error_code).collect()
}

#[tokio::test]
async fn a_finished_request_leaves_a_row_with_what_its_receipt_says() {
    let server = ScriptedServer::hello();
    let whole = server.post(CHAT, chat(&json!({}))).await;
    let receipt = whole.json()["receipt"].clone();
    assert_eq!(
        [whole.header("x-hearth-served-by"), whole.header("x-hearth-model"), whole.header("x-hearth-attempts")],
        [Some("local"), Some("tiny"), Some("0")]
    );
    // A millisecond of this machine costs a thousandth of a dollar here.
    assert_eq!(
        [whole.header("x-hearth-compute-ms"), whole.header("x-hearth-cost-usd")],
        [Some("30"), Some("0.030000")]
    );
    assert_eq!(whole.header("x-hearth-cache"), None);
    assert_eq!(receipt["cost_micro_usd"], 30_000);
    assert_eq!((&receipt["served_by"], &receipt["fallback_reason"]), (&json!("local"), &Value::Null));
    assert_eq!(receipt["request_id"], whole.header("x-request-id").expect("an id"));

    let stream = server.post(CHAT, chat(&json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    assert_eq!(stream.header("x-hearth-served-by"), Some("local"), "known at admission");
    assert_eq!(stream.header("x-hearth-cost-usd"), None, "not known yet");
    let frames: Vec<Value> =
        stream.text().lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let with_receipt: Vec<&Value> = frames.iter().filter(|frame| frame.get("receipt").is_some()).collect();
    assert!(with_receipt.iter().all(|frame| frame.get("timings").is_some()) && with_receipt.len() == 2);
    let keys = |receipt: &Value| receipt.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&with_receipt[1]["receipt"]), keys(&receipt), "one shape");

    let completion = server.post("/v1/completions", json!({"model": "tiny", "prompt": "Hi"})).await.json();
    let embeddings = server.post("/v1/embeddings", json!({"model": "embed", "input": "Hi"})).await;
    assert_eq!(embeddings.header("x-hearth-model"), Some("embed"));
    let generated = server.post("/generate", json!({"prompt": "Hi"})).await.json();
    for answer in [&completion, &embeddings.json(), &generated] {
        assert_eq!(keys(&answer["receipt"]), keys(&receipt));
    }
    let totals = after(&server, 5).await;
    assert_eq!(outcomes(&totals), [5, 0, 0, 0, 0]);
    assert_eq!((totals.completion_tokens, totals.cost_micro_usd, totals.compute_us), (4 * 6, 4 * 30_000, 4 * 30_000));
    let summary = server.get("/metrics").await.json();
    assert_eq!((&summary["total_requests"], &summary["total_cost_usd"]), (&json!(5), &json!(0.12)));
    assert_eq!(summary["total_output_tokens"], 24);
    let usage = server.get("/v1/usage?group_by=model,provider").await.json();
    let entries: Vec<Value> = usage["data"].as_array().expect("entries").clone();
    let named = |entry: &Value| json!([entry["model"], entry["provider"], entry["requests"]]);
    assert_eq!(
        entries.iter().map(named).collect::<Vec<_>>(),
        [json!(["embed", "local", 1]), json!(["tiny", "local", 4])]
    );
    assert_eq!(usage["total"]["cost_micro_usd"], 120_000);
    let request = Request::get("/v1/usage?group_by=model,provider").header("accept", "text/csv");
    let table = server.send(request.body(Body::empty()).expect("a valid request")).await;
    assert_eq!(table.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert_eq!(table.text().lines().count(), entries.len() + 1, "{}", table.text());
    assert!(table.text().starts_with("model,provider,requests,"), "{}", table.text());
    assert_eq!(error_codes(&server), [None, None, None, None, None]);
}

#[tokio::test]
async fn refusals_are_rows_with_their_codes() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        Err(Error::new(ErrorKind::Overloaded, "The queue is full."))
    }));
    assert_eq!(server.post(CHAT, json!({"model": "tiny"})).await.status, 400);
    assert_eq!(server.post(CHAT, chat(&json!({"model": "none"}))).await.status, 404);
    let full = server.post(CHAT, chat(&json!({}))).await;
    assert_eq!((full.status.as_u16(), full.header("x-hearth-served-by")), (503, Some("none")));
    assert_eq!(server.get("/v1/models").await.status, 200);
    assert_eq!(outcomes(&after(&server, 3).await), [0, 2, 1, 0, 0], "what only looks leaves no row");
    let codes = error_codes(&server);
    assert_eq!(codes[1..], [Some("model_not_found".to_owned()), Some("overloaded".to_owned())]);
}

#[tokio::test]
async fn a_failure_is_one_within_a_stream_and_before_it() {
    let server = then(|| Step::Fail(Error::internal(anyhow::anyhow!("a fault"))));
    assert_eq!(server.post(CHAT, chat(&json!({}))).await.status, 500);
    assert_eq!(server.post(CHAT, chat(&json!({"stream": true}))).await.status, 200);
    assert_eq!(server.post("/stream", json!({"prompt": "Hi"})).await.status, 200);
    let totals = after(&server, 3).await;
    assert_eq!(outcomes(&totals), [0, 0, 3, 0, 0]);
    assert_eq!(totals.completion_tokens, 6, "what was generated before counts");
    assert_eq!(error_codes(&server), vec![Some("internal_error".to_owned()); 3]);
}

#[tokio::test]
async fn a_deadline_is_one_within_a_stream_and_before_it() {
    let server = then(|| Step::Hang);
    let late = json!({"timeout": 0.05});
    assert_eq!(server.post(CHAT, chat(&late)).await.status, 504);
    let mut late = chat(&late);
    late["stream"] = json!(true);
    assert_eq!(server.post(CHAT, late).await.status, 200);
    assert_eq!(outcomes(&after(&server, 2).await), [0, 0, 0, 0, 2]);
    assert_eq!(error_codes(&server), vec![Some("deadline_exceeded".to_owned()); 2]);
}

#[tokio::test]
async fn a_caller_who_leaves_has_cancelled_before_the_answer_and_within_it() {
    let server = then(|| Step::Hang);
    let waiting = tokio::spawn(server.respond(request(CHAT, &chat(&json!({})))));
    eventually("it runs", || server.chat.started() == 1).await;
    waiting.abort();
    after(&server, 1).await;
    let streaming = server.respond(request(CHAT, &chat(&json!({"stream": true})))).await;
    let mut body = streaming.into_body().into_data_stream();
    assert!(body.next().await.is_some(), "it has begun");
    drop(body);
    let unread = server.respond(request(CHAT, &chat(&json!({"stream": true})))).await;
    drop(unread);
    let totals = after(&server, 3).await;
    assert_eq!(outcomes(&totals), [0, 0, 0, 3, 0]);
    assert_eq!(error_codes(&server), [None, None, None]);
}

#[tokio::test]
async fn a_caller_who_leaves_at_the_last_frame_has_had_the_answer() {
    let server = ScriptedServer::hello();
    let streaming = server.respond(request(CHAT, &chat(&json!({"stream": true})))).await;
    let mut body = streaming.into_body();
    loop {
        let frame = body.frame().await.expect("there is a last frame").expect("it can be read");
        if frame.into_data().expect("data").ends_with(b"data: [DONE]\n\n") {
            break;
        }
    }
    drop(body);
    assert_eq!(outcomes(&after(&server, 1).await), [1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn usage_says_what_is_wrong_with_what_is_asked() {
    let server = ScriptedServer::hello();
    for (query, param) in [("group_by=hour", "group_by"), ("from=tomorrow", "from"), ("from=2&to=1", "from")] {
        let answer = server.get(&format!("/v1/usage?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.error()["param"].as_str()), (400, Some(param)), "{query}");
    }
    let query = UsageQuery { to_ms: i64::MAX, group_by: GroupBy::ALL.to_vec(), limit: 10, ..UsageQuery::default() };
    assert!(server.ledger.store().usage(&query).expect("the store is readable").is_empty());
}
