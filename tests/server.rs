//! The whole server over a real, tiny model: clients that vanish, full queues, shutdown, broken files.

use std::{
    io::{BufRead, BufReader},
    process::Command,
};

use futures_util::{StreamExt, future::join_all};
use hearth::config::Settings;
use serde_json::{Value, json};

use crate::support::running_server::{Running, Served, endless, hearth, is_idle, model};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_that_vanish_leave_nothing_behind() {
    let server = Running::start(Settings { parallel: Some(16), ..Settings::default() }).await;
    let streams = join_all((0..100).map(|_| server.chat(endless()))).await;
    let mut streams = streams.into_iter().map(reqwest::Response::bytes_stream).collect::<Vec<_>>();
    assert!(streams[0].next().await.is_some_and(|part| part.is_ok()), "the first stream speaks");
    drop(streams);
    server.until("nothing runs and every block is free", is_idle).await;
    assert_eq!(server.chat(json!({"max_tokens": 4})).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let server = Running::start(Settings { parallel: Some(1), max_queue: Some(1), ..Settings::default() }).await;
    let held = [server.chat(endless()).await, server.chat(endless()).await];
    let refused = server.chat(endless()).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after") && refused.headers().contains_key("retry-after-ms"));
    let body: Value = refused.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "overloaded");
    drop(held);
    server.until("the queue is empty", is_idle).await;
    assert_eq!(server.chat(json!({"max_tokens": 2})).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_text_in_any_company() {
    let server = Running::start(Settings::default()).await;
    let text = async |seed: u64| {
        let answer = server.chat(json!({"seed": seed, "max_tokens": 24, "temperature": 1.2})).await;
        let body: Value = answer.json().await.expect("JSON");
        body["choices"][0]["message"]["content"].clone()
    };
    let together = join_all((0..8).map(&text)).await;
    for (seed, expected) in together.iter().enumerate() {
        assert_eq!(&text(seed as u64).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_runs_and_refuses_the_rest() {
    let mut server = Running::start(Settings { grace: Some(60.0), ..Settings::default() }).await;
    let mut running = server.chat(endless()).await.bytes_stream();
    assert!(running.next().await.is_some());
    server.stop();
    server.until("it drains", |health| health["status"] != "ok").await;
    let mut rest = Vec::new();
    while let Some(part) = running.next().await {
        rest.extend_from_slice(&part.expect("the stream is not cut"));
    }
    assert!(String::from_utf8_lossy(&rest).ends_with("data: [DONE]\n\n"), "the stream ended by itself");
    server.served.await.expect("the server's task").expect("the server ends well");
}

#[cfg(unix)]
#[test]
fn sigterm_ends_the_process_with_status_0() {
    let mut child = hearth()
        .args(["serve", "--port", "0", "--offline", "--models-dir", "no-models", "-np", "2", "-m"])
        .arg(model())
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert!(line.starts_with("Hearth is listening on http://127.0.0.1:"), "{line}");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// A server in a process of its own with a stream that goes on, whose first part has been read.
#[cfg(unix)]
async fn serving_a_stream(grace: &str) -> (Served, String, reqwest::Response) {
    let mut child = hearth()
        .args(["serve", "--port", "0", "--offline", "--models-dir", "no-models", "-np", "1", "-a", "tiny"])
        .args(["--log", "error", "--ctx-size", "1024", "--grace", grace, "-m"])
        .arg(model())
        .spawn()
        .expect("the binary starts");
    let stdout = child.stdout.take().expect("a pipe");
    let child = Served(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address").to_owned();
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "ignore_eos": true,
        "max_tokens": 900, "n": 128,
    });
    for _ in 0..2000 {
        let request = reqwest::Client::new().post(format!("{url}/v1/chat/completions")).json(&body);
        match request.send().await {
            Ok(mut answer) if answer.status() == 200 => {
                assert!(answer.chunk().await.expect("the stream is not cut").is_some());
                return (child, url, answer);
            }
            // It still loads.
            _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    panic!("the server does not come up");
}

#[cfg(unix)]
fn terminate(child: &Served) {
    let killed = Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_beyond_the_grace_ends_streams_with_an_error_and_the_process_with_status_0() {
    let (mut child, _, answer) = serving_a_stream("0.2").await;
    terminate(&child);
    let text = answer.text().await.expect("the stream is not cut");
    assert!(text.contains("\"code\":\"draining\"") && !text.contains("[DONE]"));
    let (status, said) = child.ended();
    assert!(status.success(), "{said}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_does_not_wait_for_the_grace() {
    let (mut child, url, answer) = serving_a_stream("600").await;
    terminate(&child);
    // The first one has been noticed when the server says so.
    let client = reqwest::Client::new();
    loop {
        let health = client.get(format!("{url}/health")).send().await.expect("an answer");
        if health.status() == 503 {
            break;
        }
        tokio::task::yield_now().await;
    }
    terminate(&child);
    let (status, said) = child.ended();
    assert!(status.code() == Some(1) && said.starts_with("hearth: told to stop a second time"), "{said}");
    drop(answer);
}

#[test]
fn a_broken_model_file_is_one_sentence_and_status_1() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let whole = std::fs::read(model()).expect("the fixture");
    let mut flipped = whole.clone();
    for at in (24..4000).step_by(97) {
        flipped[at] ^= 0x55;
    }
    let cases: [(&str, &[u8]); 4] =
        [("short", &whole[..whole.len() / 2]), ("flipped", &flipped), ("empty", b""), ("text", b"<html>404</html>")];
    for (name, bytes) in cases {
        let path = dir.path().join(format!("{name}.gguf"));
        std::fs::write(&path, bytes).expect("a writable directory");
        let ran = hearth()
            .args(["chat", "--models-dir", "no-models", "-m"])
            .arg(&path)
            .arg("Hello")
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("hearth: ") && !said.contains("panicked"), "{name}: {said}");
    }
}
