//! What goes on when threads are held: long texts hold their own pool, and nothing needs rayon's.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use futures_util::future::join_all;
use hearth::config::Settings;
use hearth_text::work::{LongTexts, SHORT_BYTES};
use serde_json::{Value, json};

use crate::support::running_server::Running;

/// Whatever is not answered by then never will be.
const IN_VAIN: Duration = Duration::from_secs(120);

fn bundled(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model)
}

/// The models that come with Hearth: 16 sequences over this vocabulary are sampled in parallel.
async fn server() -> Running {
    let rerank_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank/bert");
    Running::start(Settings {
        model: Some(bundled("hearth-chat.gguf")),
        embedding_model: Some(bundled("hearth-embed.gguf")),
        rerank_model: Some(rerank_model),
        parallel: Some(16),
        ..Settings::default()
    })
    .await
}

/// The pool is the process's own: where tests share a process, one of these runs at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Threads that wait until this is dropped.
struct Held {
    _release: Vec<Sender<()>>,
}

/// Gives away this many tasks that wait, and returns when each has a thread.
fn hold(tasks: usize, mut give: impl FnMut(Box<dyn FnOnce() + Send>)) -> Held {
    let (began, has_begun) = channel();
    let mut release = Vec::new();
    for _ in 0..tasks {
        let (sender, released): (Sender<()>, Receiver<()>) = channel();
        let began = began.clone();
        give(Box::new(move || {
            began.send(()).expect("the test waits for it");
            let _dropped = released.recv();
        }));
        release.push(sender);
    }
    for _ in 0..tasks {
        has_begun.recv().expect("a thread takes it");
    }
    Held { _release: release }
}

/// All choices of a streamed chat, to their ends.
async fn chat(server: &Running, choices: usize) {
    let request = json!({"stream": true, "n": choices, "max_tokens": 24, "ignore_eos": true, "temperature": 1});
    let answered = async {
        let answer = server.chat(request).await;
        let status = answer.status();
        (status, answer.text().await.expect("the stream ends"))
    };
    let (status, stream) = tokio::time::timeout(IN_VAIN, answered).await.expect("the chat is not held");
    assert_eq!(status, 200, "{stream}");
    assert_eq!(stream.matches(r#""finish_reason":"length""#).count(), choices, "{stream}");
    assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");
}

async fn post(server: &Running, path: &str, body: Value) -> (u16, Option<u64>, Value) {
    let answered = async {
        let answer = server.client.post(format!("{}{path}", server.url)).json(&body).send().await.expect("an answer");
        let wait = answer.headers().get("retry-after").and_then(|wait| wait.to_str().ok()?.parse().ok());
        (answer.status().as_u16(), wait, answer.json().await.expect("JSON"))
    };
    tokio::time::timeout(IN_VAIN, answered).await.expect("the request is not held")
}

/// Words that no two texts have in the same order, so that the embedding model has work.
fn words(bytes: usize) -> String {
    "the relief valve of unit 217 was replaced on Monday ".chars().cycle().take(bytes).collect()
}

fn embeddings(texts: usize, bytes: usize) -> Value {
    json!({"model": "hearth-embed", "input": vec![words(bytes); texts], "truncate": true})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_and_short_texts_go_on_while_long_texts_hold_their_pool() {
    let _alone = ALONE.lock().await;
    let server = server().await;
    let pool = LongTexts::shared().expect("the system has threads");
    let place = &*Box::leak(Box::new(pool.admit(1).expect("there is a place")));
    let held = hold(pool.num_threads(), |task| {
        tokio::spawn(place.run(1, move |_| {
            task();
            Ok(())
        }));
    });
    let long = tokio::spawn({
        let request = server.client.post(format!("{}/v1/embeddings", server.url)).json(&embeddings(8, 2 * SHORT_BYTES));
        async move { request.send().await.expect("an answer").status() }
    });

    chat(&server, 2).await;
    chat(&server, 16).await;
    let live = server.client.get(format!("{}/health/live", server.url)).send().await.expect("an answer");
    assert_eq!(live.status(), 200);
    let (status, _, answer) = post(&server, "/v1/embeddings", embeddings(8, 200)).await;
    assert_eq!(status, 200, "{answer}");
    assert!(!long.is_finished(), "its texts are long");

    // With every place taken the next long text is refused, and a short one is not.
    let mut places = Vec::new();
    while let Ok(place) = pool.admit(1) {
        places.push(place);
    }
    for (path, body) in [
        ("/v1/embeddings", embeddings(8, 2 * SHORT_BYTES)),
        ("/v1/rerank", json!({"query": "a fox", "documents": [words(2 * SHORT_BYTES)]})),
        ("/tokenize", json!({"content": words(2 * SHORT_BYTES)})),
        ("/v1/completions", json!({"model": "tiny", "prompt": words(2 * SHORT_BYTES)})),
    ] {
        let (status, wait, answer) = post(&server, path, body).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("overloaded")), "{path}: {answer}");
        assert!(wait.is_some_and(|seconds| seconds >= 1), "{path} says no time to wait");
    }
    let (status, _, answer) = post(&server, "/tokenize", json!({"content": words(100)})).await;
    assert_eq!(status, 200, "{answer}");

    drop(places);
    drop(held);
    let status = tokio::time::timeout(IN_VAIN, long).await.expect("the pool is free again").expect("no panic");
    assert_eq!(status, 200);
}

/// A caller who has left does not hold the pool for the rest of its texts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_texts_of_a_caller_who_left_are_not_read() {
    let _alone = ALONE.lock().await;
    let server = server().await;
    let pool = LongTexts::shared().expect("the system has threads");
    let place = &*Box::leak(Box::new(pool.admit(1).expect("there is a place")));
    let held = hold(pool.num_threads(), |task| {
        tokio::spawn(place.run(1, move |_| {
            task();
            Ok(())
        }));
    });
    let free = || {
        let places: Vec<_> = std::iter::from_fn(|| pool.admit(1).ok()).collect();
        places.len()
    };
    let before = free();
    let leaving: Vec<_> = (0..3)
        .map(|_| {
            let url = format!("{}/v1/embeddings", server.url);
            tokio::spawn(server.client.post(url).json(&embeddings(8, 2 * SHORT_BYTES)).send())
        })
        .collect();
    until("three requests are in the pool", || free() == before - 3).await;
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    join_all(leaving).await;
    until("their places are free though the pool is held", || free() == before).await;
    drop(held);
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(IN_VAIN, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_needs_rayons_own_threads() {
    let server = server().await;
    let held = hold(rayon::current_num_threads(), rayon::spawn);
    chat(&server, 16).await;
    let (status, _, answer) = post(&server, "/v1/embeddings", embeddings(8, 2 * SHORT_BYTES)).await;
    assert_eq!(status, 200, "{answer}");
    let rerank = json!({"query": "a fox", "documents": vec![words(2 * SHORT_BYTES); 8]});
    let (status, _, answer) = post(&server, "/v1/rerank", rerank).await;
    assert_eq!(status, 200, "{answer}");
    drop(held);
}
