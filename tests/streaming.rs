//! Streams: their framing, their errors, and what becomes of a client that goes away.

use std::time::Duration;

use axum::http::StatusCode;
use hearth::{
    http::HttpSettings,
    providers::scripted::{ScriptedChat, Step, say},
};
use hearth_domain::{
    FinishReason, GenerateEvent, Timings, Usage,
    error::{Error, ErrorKind},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::scripted_server::{ScriptedServer, eventually};

const CHAT: &str = "/v1/chat/completions";

fn streaming(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn delta(text: &str) -> Step {
    Step::Event(GenerateEvent::Delta { choice: 0, text: text.to_owned(), logprobs: Vec::new(), token_ids: Vec::new() })
}

fn finished(reason: FinishReason) -> Step {
    Step::Event(GenerateEvent::Finished { choice: 0, reason })
}

fn done() -> Step {
    Step::Event(GenerateEvent::Done { usage: Usage::default(), timings: Timings::default() })
}

/// The frames of a body, which must be framed to the letter.
#[track_caller]
fn frames(body: &str) -> Vec<&str> {
    let framed = body.strip_suffix("\n\n").unwrap_or_else(|| panic!("the last frame has no end: {body:?}"));
    framed.split("\n\n").map(|frame| frame.strip_prefix("data: ").unwrap_or(frame)).collect()
}

/// The JSON of each frame before `[DONE]`, which must be there.
#[track_caller]
fn chunks(body: &str) -> Vec<Value> {
    let frames = frames(body);
    let (last, chunks) = frames.split_last().expect("at least one frame");
    assert_eq!(*last, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_is_framed_to_the_letter() {
    let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", "Hi"));
    let answer = server.post(CHAT, streaming(json!({}))).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!((answer.header("cache-control"), answer.header("x-accel-buffering")), (Some("no-cache"), Some("no")));
    assert!(answer.header("x-request-id").is_some());
    let chunks = chunks(answer.text());
    let (id, created) = (&chunks[0]["id"], &chunks[0]["created"]);
    assert!(id.as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    let chunk = |choice: Value| {
        json!({
            "id": id, "object": "chat.completion.chunk", "created": created, "model": "tiny",
            "system_fingerprint": format!("fp_hearth_{}", env!("CARGO_PKG_VERSION")), "choices": [choice],
        })
    };
    let say =
        |content: &str| json!({"index": 0, "delta": {"content": content}, "logprobs": null, "finish_reason": null});
    let mut last = chunk(json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}));
    last["timings"] = chunks[3]["timings"].clone();
    last["receipt"] = chunks[3]["receipt"].clone();
    assert_eq!((&last["receipt"]["served_by"], &last["receipt"]["completion_tokens"]), (&json!("local"), &json!(2)));
    assert_eq!(last["timings"]["predicted_n"], 2);
    let opening =
        json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null});
    assert_eq!(chunks, [chunk(opening), chunk(say("H")), chunk(say("i")), last]);
}

#[tokio::test]
async fn usage_comes_last_and_is_null_before() {
    let server = ScriptedServer::hello();
    let answer = server.post(CHAT, streaming(json!({"n": 2, "stream_options": {"include_usage": true}}))).await;
    let chunks = chunks(answer.text());
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    for choice in 0..2 {
        let of_choice: Vec<_> = others.iter().filter(|chunk| chunk["choices"][0]["index"] == choice).collect();
        assert_eq!(of_choice[0]["choices"][0]["delta"]["role"], "assistant");
        let reasons: Vec<_> = of_choice.iter().map(|chunk| chunk["choices"][0]["finish_reason"].clone()).collect();
        let (reason, before) = reasons.split_last().unwrap();
        assert!(reason == "stop" && before.iter().all(Value::is_null));
    }
}

#[tokio::test]
async fn logprobs_and_token_ids_ride_with_their_text() {
    let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", "Hi"));
    let body = streaming(json!({"logprobs": true, "top_logprobs": 1, "return_token_ids": true}));
    let chunks = chunks(server.post(CHAT, body).await.text());
    let choice = &chunks[1]["choices"][0];
    assert_eq!(choice["token_ids"], json!([72]));
    assert_eq!(
        choice["logprobs"],
        json!({
            "content": [{
                "id": 72, "token": "H", "logprob": -0.5, "bytes": [72],
                "top_logprobs": [{"id": 72, "token": "H", "logprob": -0.5, "bytes": [72]}],
            }],
            "refusal": null,
        })
    );
}

#[tokio::test]
async fn tool_calls_and_thinking_are_deltas() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        let call = |id: Option<&str>, name: Option<&str>, arguments: &str| {
            let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
            Step::Event(GenerateEvent::ToolCall { choice: 0, call: 1, id, name, arguments: arguments.to_owned() })
        };
        let thinking = GenerateEvent::Reasoning { choice: 0, text: "Hm".to_owned() };
        Ok(vec![
            Step::Event(thinking),
            call(Some("call_9"), Some("f"), ""),
            call(None, None, "{}"),
            finished(FinishReason::ToolCalls),
            done(),
        ])
    }));
    let chunks = chunks(server.post(CHAT, streaming(json!({}))).await.text());
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": ""}),
            json!({"reasoning_content": "Hm"}),
            json!({"tool_calls": [{"index": 1, "id": "call_9", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
            json!({}),
        ]
    );
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn completions_stream_in_their_own_shape() {
    let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", "Hi"));
    let body = json!({
        "model": "tiny", "prompt": ["a", "b"], "stream": true, "logprobs": 0, "echo": true,
        "stream_options": {"include_usage": true},
    });
    let chunks = chunks(server.post("/v1/completions", body).await.text());
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(6)));
    for (choice, expected) in [(0, "aHi"), (1, "bHi")] {
        let of_choice = others.iter().map(|chunk| &chunk["choices"][0]).filter(|found| found["index"] == choice);
        let text: String = of_choice.clone().filter_map(|found| found["text"].as_str()).collect();
        let offsets: Vec<_> =
            of_choice.filter_map(|found| found["logprobs"]["text_offset"].get(0)).map(ToString::to_string).collect();
        assert_eq!((text.as_str(), offsets), (expected, vec!["0".to_owned(), "1".to_owned(), "2".to_owned()]));
    }
}

#[tokio::test]
async fn an_error_before_the_first_event_is_a_status_and_after_it_a_frame() {
    let refused = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        Err(Error::new(ErrorKind::Overloaded, "The queue is full."))
    }));
    assert_eq!(refused.post(CHAT, streaming(json!({}))).await.status, StatusCode::SERVICE_UNAVAILABLE);

    let broken = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        Ok(vec![delta("Hi"), Step::Fail(Error::new(ErrorKind::OutOfMemory, "No memory is left."))])
    }));
    let answer = broken.post(CHAT, streaming(json!({}))).await;
    let frames = frames(answer.text());
    let last: Value = serde_json::from_str(frames.last().unwrap()).unwrap();
    assert_eq!(
        last,
        json!({"error": {"message": "No memory is left.", "type": "server_error", "param": null, "code": "out_of_memory"}})
    );
    assert!(!answer.text().contains("[DONE]") && !answer.text().contains("\"finish_reason\":\""));

    let cut_off = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| Ok(vec![delta("Hi")])));
    let answer = cut_off.post(CHAT, streaming(json!({}))).await;
    assert!(answer.text().contains("\"code\":\"internal_error\"") && !answer.text().contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_comments() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        Ok(vec![Step::Wait(Duration::from_secs(25)), delta("Hi"), finished(FinishReason::Stop), done()])
    }));
    let answer = server.post(CHAT, streaming(json!({}))).await;
    assert!(answer.text().starts_with(": ping\n\n: ping\n\ndata: {"), "{}", answer.text());
    assert_eq!(answer.text().matches(": ping\n\n").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_within_a_stream_is_an_error_frame() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| Ok(vec![delta("Hi"), Step::Hang])));
    let answer = server.post(CHAT, streaming(json!({"timeout": 3}))).await;
    assert!(answer.text().contains("\"code\":\"deadline_exceeded\""));
    assert_eq!(server.chat.cancelled(), 1);
}

fn raw_post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn a_hundred_clients_that_vanish_leave_nothing_running() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| Ok(vec![delta("Hi"), Step::Hang])));
    let listening = server.listen();
    let mut clients = Vec::new();
    for index in 0..100 {
        let mut socket = TcpStream::connect(listening.address).await.unwrap();
        // Every other one waits for a whole answer: its generation must end as well.
        let body = streaming(json!({"stream": index % 2 == 0}));
        socket.write_all(&raw_post(CHAT, &body)).await.unwrap();
        clients.push(socket);
    }
    eventually("all have begun", || server.chat.started() == 100).await;
    for socket in clients.iter_mut().step_by(2) {
        let mut byte = [0];
        socket.read_exact(&mut byte).await.unwrap();
    }
    drop(clients);
    eventually("all have been cancelled", || server.chat.cancelled() == 100).await;
}

#[tokio::test]
async fn shutdown_lets_running_streams_end_and_takes_no_new_ones() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |request| {
        let mut steps = say(request, "Hi");
        steps.insert(2, Step::Wait(Duration::from_millis(300)));
        Ok(steps)
    }));
    let mut listening = server.listen();
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    socket.write_all(&raw_post(CHAT, &streaming(json!({})))).await.unwrap();
    eventually("it has begun", || server.chat.started() == 1).await;
    listening.stop();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("data: [DONE]"), "{text}");
    listening.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(listening.address).await.is_err());
}

#[tokio::test]
async fn shutdown_ends_a_stream_that_outlasts_the_grace_time() {
    let chat = ScriptedChat::new("tiny", |_| Ok(vec![delta("Hi"), Step::Hang]));
    let settings = HttpSettings { shutdown_grace: Duration::from_millis(50), ..HttpSettings::default() };
    let server = ScriptedServer::new(chat, settings, false);
    let mut listening = server.listen();
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    socket.write_all(&raw_post(CHAT, &streaming(json!({})))).await.unwrap();
    eventually("it has begun", || server.chat.started() == 1).await;
    listening.stop();
    listening.task.await.unwrap().unwrap();
    eventually("it has been cancelled", || server.chat.cancelled() == 1).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = ScriptedServer::hello();
    let listening = server.listen();
    let mut bytes = raw_post(CHAT, &json!({"model": "none", "messages": [{"role": "user", "content": "x"}]}));
    bytes.extend(raw_post("/tokenize", &json!({"content": "a"})));
    bytes.extend(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let answers = listening.exchange(&bytes).await;
    let places = ["404 Not Found", "{\"tokens\":[97]}", "{\"status\":\"ok\"}"].map(|text| answers.find(text).unwrap());
    assert!(places.is_sorted(), "{answers}");
}

#[tokio::test]
async fn tls_serves_with_the_files_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = hearth::http::TlsSettings {
        certificate: folder.path().join("cert.pem"),
        private_key: folder.path().join("key.pem"),
    };
    std::fs::write(&tls.certificate, issued.cert.pem()).unwrap();
    std::fs::write(&tls.private_key, issued.signing_key.serialize_pem()).unwrap();
    let server = ScriptedServer::with_settings(HttpSettings { tls: Some(tls), ..HttpSettings::default() });
    let listening = server.listen();
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(issued.cert.pem().as_bytes()).unwrap()])
        .resolve("localhost", listening.address)
        .no_proxy()
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/v1/models", listening.address.port());
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert!(answer.text().await.unwrap().contains("tiny"));
}
