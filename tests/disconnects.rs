//! Requests that end before their answer does: deadlines, clients that leave or do not read, and a server that
//! is told to stop.
//!
//! What is endless here takes thousands of tokens, so that a short deadline passes well before, however fast the
//! machine.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use hearth::config::Settings;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::support::running_server::{Running, endless, is_idle};

/// Choices of [`many_endless`].
const CHOICES: usize = 32;

/// `endless` several times over.
fn many_endless() -> Value {
    let mut request = endless();
    request["n"] = json!(CHOICES);
    request
}

async fn one_at_a_time() -> Running {
    Running::start(Settings { parallel: Some(1), max_queue: Some(8), ..Settings::default() }).await
}

/// A deadline, in seconds, that passes while the request is in the queue, whoever runs: a reader that falls behind
/// for a moment, as any may on a busy machine, lets others have its place.
const AT_ONCE: f64 = 1e-6;

/// Holds the one place, mostly, until it is dropped.
async fn hold(server: &Running) -> JoinSet<reqwest::Result<reqwest::Response>> {
    let mut request = many_endless();
    request["stream"] = json!(false);
    let mut held = JoinSet::new();
    held.spawn(server.chat_request(request).send());
    server.until("it runs", |health| health["engine"]["running"] == 1).await;
    held
}

/// The error of a stream's last frame. No end is made up for the choices that it cut short.
#[track_caller]
fn error_at_the_end(text: &str) -> Value {
    assert!(!text.contains("[DONE]") && text.matches("\"finish_reason\":\"").count() < CHOICES);
    let last = text.trim_end().rsplit("\n\n").next().and_then(|frame| frame.strip_prefix("data: "));
    let frame: Value = serde_json::from_str(last.expect("a frame")).expect("JSON");
    for key in ["message", "type", "param", "code"] {
        assert!(frame["error"].get(key).is_some(), "`{key}` is missing: {frame}");
    }
    frame["error"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_in_the_queue_is_a_504() {
    let server = one_at_a_time().await;
    let held = hold(&server).await;
    let late = server.chat(json!({"timeout": AT_ONCE})).await;
    assert_eq!(late.status(), 504);
    assert_eq!(late.headers()["x-should-retry"], "false");
    let body: Value = late.json().await.expect("JSON");
    let message = body["error"]["message"].as_str().expect("a message");
    assert_eq!(
        body,
        json!({"error": {"message": message, "type": "server_error", "param": null, "code": "deadline_exceeded"}})
    );
    // A stream that waits has its status already. Should it get the place for a moment, it does not end in time.
    let mut request = many_endless();
    request["timeout"] = json!(0.1);
    let late = server.chat(request).await;
    assert_eq!(late.status(), 200);
    assert_eq!(error_at_the_end(&late.text().await.expect("UTF-8"))["code"], "deadline_exceeded");
    drop(held);
    server.until("nothing is left", is_idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_in_mid_stream_is_an_error_frame() {
    let server = one_at_a_time().await;
    let mut request = many_endless();
    request["timeout"] = json!(0.5);
    let answer = server.chat(request).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(error_at_the_end(&answer.text().await.expect("UTF-8"))["code"], "deadline_exceeded");
    server.until("nothing is left", is_idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_in_the_queue_free_their_places() {
    let server = one_at_a_time().await;
    let held = hold(&server).await;
    // Those that stream hold an answer already, those that do not a connection only.
    let streams = join_all((0..4).map(|_| server.chat(endless()))).await;
    let whole: Vec<_> = (0..4)
        .map(|_| {
            let mut request = endless();
            request["stream"] = json!(false);
            tokio::spawn(server.chat_request(request).send())
        })
        .collect();
    let waiting = |health: &Value| health["engine"]["waiting"].as_u64().expect("a number");
    // The first request's other choices wait as well.
    server.until("all wait", |health| waiting(health) == CHOICES as u64 - 1 + 8).await;
    assert_eq!(server.chat(json!({})).await.status(), 503, "the queue is full");
    drop(streams);
    whole.iter().for_each(tokio::task::JoinHandle::abort);
    server.until("their places are free", |health| waiting(health) < CHOICES as u64).await;
    let late = server.chat(json!({"timeout": AT_ONCE})).await;
    assert_eq!(late.status(), 504, "there is a place in the queue again");
    drop(held);
    server.until("nothing is left", is_idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_while_its_prompt_is_computed_frees_its_blocks() {
    let server = Running::start(Settings { batch_size: Some(16), ..Settings::default() }).await;
    let prompt = "Word ".repeat(150);
    for _ in 0..5 {
        let body = json!({"messages": [{"role": "user", "content": prompt}], "stream": true, "ignore_eos": true});
        let answer = server.chat(body).await;
        assert_eq!(answer.status(), 200);
        server.until("it has its blocks", |health| health["engine"]["kv_blocks_used"] != 0).await;
        drop(answer);
        server.until("nothing is left", is_idle).await;
    }
}

/// A client with small buffers that sends a request and reads nothing.
async fn stalled_reader(server: &Running, body: &Value) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = server.url.strip_prefix("http://").expect("plain HTTP").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("the server listens");
    let body = body.to_string();
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    stream
}

/// More bytes than the buffers of two sockets hold.
fn voluminous() -> Value {
    json!({
        "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "ignore_eos": true,
        "max_tokens": 900, "logprobs": true, "top_logprobs": 20, "return_token_ids": true, "n": 8,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_stops_nobody_else_and_is_not_computed_ahead() {
    let settings = Settings { parallel: Some(1), ..Settings::default() };
    let server = Running::start_with(settings, |config| config.http.write_timeout = Duration::from_secs(3600)).await;
    let mut stalled = stalled_reader(&server, &voluminous()).await;
    server.until("it runs", |health| health["engine"]["running"] == 1).await;
    // There is one place. These get it when the stalled one's buffers are full, and could not before.
    for _ in 0..3 {
        assert_eq!(server.chat(json!({"max_tokens": 4})).await.status(), 200);
    }
    // All that it has said lies in buffers of a fixed size, and the rest has not been computed.
    let health = server.until("the engine has published", |health| health["engine"]["waiting"] != 0).await;
    assert_eq!(health["status"], "ok");
    let mut answer = Vec::new();
    stalled.read_to_end(&mut answer).await.expect("the whole answer");
    let answer = String::from_utf8(answer).expect("UTF-8");
    assert!(answer.contains("data: [DONE]"), "it goes on where it stopped");
    for choice in 0..8 {
        let choice = format!("\"choices\":[{{\"index\":{choice},");
        let tokens = answer.lines().filter(|line| line.contains(&choice) && line.contains("\"token_ids\":[")).count();
        assert!(tokens > 0, "{choice}");
    }
    server.until("nothing is left", is_idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_for_too_long_is_dropped() {
    let settings = Settings { parallel: Some(1), ..Settings::default() };
    let server = Running::start_with(settings, |config| config.http.write_timeout = Duration::from_millis(100)).await;
    let stalled = stalled_reader(&server, &voluminous()).await;
    server.until("it runs", |health| health["engine"]["running"] == 1).await;
    server.until("its place and blocks are free", is_idle).await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_beyond_its_grace_ends_streams_with_an_error_and_leaves_the_stalled() {
    let mut server = Running::start(Settings { grace: Some(0.2), parallel: Some(2), ..Settings::default() }).await;
    let mut stream = server.chat(many_endless()).await.bytes_stream();
    let mut text = stream.next().await.expect("a frame").expect("the stream is not cut").to_vec();
    let stalled = stalled_reader(&server, &voluminous()).await;
    server.until("both run", |health| health["engine"]["running"] == 2).await;
    server.stop();
    while let Some(part) = stream.next().await {
        text.extend_from_slice(&part.expect("the stream is not cut"));
    }
    assert_eq!(error_at_the_end(std::str::from_utf8(&text).expect("UTF-8"))["code"], "draining");
    server.served.await.expect("the server's task").expect("the server ends well");
    drop(stalled);
}
