//! What `/metrics` says after known work: a process of its own, because its recorder is the process's.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde_json::json;

use crate::support::running_server::{Served, hearth};

fn serve() -> (Served, String) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut child = hearth()
        .args(["serve", "--port", "0", "--offline", "--ctx-size", "1024", "-a", "tiny", "-m"])
        .arg(fixtures.join("tiny-chat.gguf"))
        .arg("--embedding-model")
        .arg(fixtures.join("embeddings/bert-mean"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address").to_owned();
    (Served(child), url.trim_end_matches(['.', ',', '/']).to_owned())
}

/// The value of a metric without labels, or of its `_count` or `_sum`.
fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn known_work_is_counted_and_every_metric_has_its_help() {
    let (_served, url) = serve();
    let client = reqwest::Client::new();
    let get = async |path: &str| client.get(format!("{url}{path}")).send().await;
    for _ in 0..2000 {
        if get("/health/ready").await.is_ok_and(|answer| answer.status().is_success()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let post = async |path: &str, body: serde_json::Value| {
        let answer = client.post(format!("{url}{path}")).json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json::<serde_json::Value>().await.expect("JSON")
    };
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "What is Hearth?"}],
                      "max_tokens": 5, "ignore_eos": true});
    let usage = post("/v1/chat/completions", chat).await["usage"].clone();
    let embedded = post("/v1/embeddings", json!({"model": "bert-mean", "input": ["one text", "another"]})).await;

    let embedded_tokens = embedded["usage"]["prompt_tokens"].as_f64().expect("a number");
    let expected = [
        ("hearth_prompt_tokens_total", usage["prompt_tokens"].as_f64().expect("a number")),
        ("hearth_generated_tokens_total", 5.0),
        ("hearth_time_to_first_token_seconds_count", 1.0),
        ("hearth_inter_token_seconds_count", 4.0),
        ("hearth_queue_seconds_count", 1.0),
        ("hearth_prefill_seconds_count", 1.0),
        ("hearth_decode_seconds_count", 1.0),
        ("hearth_requests_running", 0.0),
        ("hearth_requests_waiting", 0.0),
        ("hearth_kv_blocks_used", 0.0),
        ("hearth_embedded_texts_total", 2.0),
        ("hearth_embedded_tokens_total", embedded_tokens),
        ("hearth_embedding_queue_seconds_count", 1.0),
        ("hearth_embedding_texts_open", 0.0),
    ];
    // The counts are published when a loop comes round, which may be just after its answer.
    let mut text = String::new();
    for _ in 0..1000 {
        let asked = client.get(format!("{url}/metrics")).header("accept", "text/plain; version=0.0.4, */*;q=0.1");
        text = asked.send().await.expect("an answer").text().await.expect("text");
        if expected.iter().all(|(name, expected)| value(&text, name) == Some(*expected)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (name, expected) in expected {
        assert_eq!(value(&text, name), Some(expected), "{name} in\n{text}");
    }
    for kind in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = kind.split(' ').next().expect("a name");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no line of help");
    }
}
