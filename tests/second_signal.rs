//! A server that is told to stop a second time, while it generates: what its requests used is in the ledger.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use hearth::store::{LedgerRow, Store};
use serde_json::json;
use tempfile::TempDir;

use crate::support::running_server::{Served, hearth, model, readiness_becomes};

const STREAMS: usize = 4;

async fn start(data: &Path) -> (Served, String) {
    let mut command = hearth();
    command.args(["serve", "--port", "0", "--offline", "--models-dir", "no-models", "-a", "tiny", "--threads", "1"]);
    // All choices of all streams run at once.
    command.args(["-np", "128", "--ctx-size", "1024", "--grace", "600", "--log", "warn", "-m"]).arg(model());
    let mut server =
        Served(command.env("HEARTH_DATA_DIR", data).stderr(Stdio::piped()).spawn().expect("the binary starts"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().last().unwrap_or_default().to_owned();
    readiness_becomes(&url, 200).await;
    (server, url)
}

/// The id of a stream that goes on for longer than the test, and the answer, of which a part has come.
async fn stream(url: &str) -> (String, reqwest::Response) {
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "ignore_eos": true,
        "max_tokens": 900, "n": 32,
    });
    let request = reqwest::Client::new().post(format!("{url}/v1/chat/completions")).json(&body);
    let mut answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let id = answer.headers()["x-request-id"].to_str().expect("an id").to_owned();
    assert!(answer.chunk().await.expect("the stream is not cut").is_some());
    (id, answer)
}

fn rows(data: &Path) -> Vec<LedgerRow> {
    Store::open(data).expect("the store opens").ledger_rows(0, 100).expect("the ledger is readable")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_writes_down_what_it_cuts_off() {
    let data = TempDir::new().expect("a temporary directory");
    let (mut server, url) = start(data.path()).await;
    let mut ids = Vec::new();
    let mut readers = Vec::new();
    let mut unread = Vec::new();
    for number in 0..STREAMS {
        let (id, answer) = stream(&url).await;
        ids.push(id);
        // A stream that is not read cannot be told its end.
        if number % 2 == 0 {
            readers.push(tokio::spawn(answer.text()));
        } else {
            unread.push(answer);
        }
    }
    server.terminate();
    readiness_becomes(&url, 503).await;
    assert_eq!(server.0.try_wait().expect("a child"), None, "there is grace left");
    server.terminate();
    let (status, said) = server.ended();
    assert_eq!(status.code(), Some(1));
    assert!(!said.contains("request refused"), "a probe during the drain is no warning: {said}");
    for reader in readers {
        // It ends with an error, or is cut.
        let text = reader.await.expect("no panic").unwrap_or_default();
        assert!(!text.contains("[DONE]"));
    }

    let mut rows = rows(data.path());
    rows.sort_by_key(|row| ids.iter().position(|id| *id == row.request_id));
    assert_eq!(rows.iter().map(|row| &row.request_id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    for row in &rows {
        assert_eq!((row.outcome.as_str(), row.error_code.as_deref()), ("failed", Some("draining")), "{row:?}");
        assert!(row.prompt_tokens > 0 && row.completion_tokens > 0 && row.compute_us > 0, "{row:?}");
    }
    drop(unread);
    // The next server begins with them.
    let (_server, url) = start(data.path()).await;
    let metrics = reqwest::Client::new().get(format!("{url}/metrics")).header("accept", "application/json");
    let metrics: serde_json::Value = metrics.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(metrics["total_requests"], STREAMS);
}
