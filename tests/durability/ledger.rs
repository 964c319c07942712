//! The ledger of a server that is killed, and of one that is stopped.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use hearth::store::Store;
use serde_json::json;
use tempfile::TempDir;

use crate::support::running_server::{Served, hearth};

/// Who is killed loses the rows of no more than this.
const BOUND: Duration = Duration::from_secs(1);

async fn start(data: &TempDir) -> (Served, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean");
    let mut command = hearth();
    command.args(["serve", "--port", "0", "--offline", "--threads", "1", "--embedding-model"]).arg(model);
    command.args(["--models-dir", "tests/fixtures/no-models"]);
    command.env("HEARTH_DATA_DIR", data.path()).stderr(Stdio::null());
    let mut server = Served(command.spawn().expect("it starts"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().last().unwrap_or_default().to_owned();
    for _ in 0..4000 {
        if reqwest::get(format!("{url}/health/ready")).await.is_ok_and(|answer| answer.status().is_success()) {
            return (server, url);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the server does not come up");
}

/// Embeds a text again and again for this long; when each answer was there.
async fn embed_for(url: &str, period: Duration) -> Vec<(String, Instant)> {
    let client = reqwest::Client::new();
    let began = Instant::now();
    let mut answered = Vec::new();
    while began.elapsed() < period {
        let body = json!({"model": "bert-mean", "input": format!("text {}", answered.len())});
        let answer = client.post(format!("{url}/v1/embeddings")).json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        let id = answer.headers()["x-request-id"].to_str().expect("an id").to_owned();
        answer.bytes().await.expect("a body");
        answered.push((id, Instant::now()));
    }
    answered
}

fn rows(data: &TempDir) -> Vec<String> {
    let store = Store::open(data.path()).expect("the store opens");
    let rows = store.ledger_rows(0, 1_000_000).expect("the ledger is readable");
    rows.into_iter().map(|row| row.request_id).collect()
}

#[tokio::test]
async fn a_kill_loses_the_rows_of_a_second_at_most() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (mut server, url) = start(&data).await;
    let answered = embed_for(&url, 2 * BOUND).await;
    let killed = Instant::now();
    server.0.kill().expect("it runs");
    drop(server);
    let rows = rows(&data);
    let early = answered.iter().filter(|(_, at)| killed.duration_since(*at) > BOUND);
    let missing: Vec<_> = early.clone().filter(|(id, _)| !rows.contains(id)).collect();
    assert!(early.count() > 0 && missing.is_empty(), "{} rows of {}: {missing:?}", rows.len(), answered.len());
}

#[cfg(unix)]
#[tokio::test]
async fn a_stop_loses_none() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (mut server, url) = start(&data).await;
    let answered = embed_for(&url, Duration::from_millis(300)).await;
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert!(server.0.wait().expect("it ends").success());
    assert_eq!(rows(&data), answered.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
}
