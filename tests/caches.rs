//! Answers that were given before, over a running server: by what they are marked, and when they are no longer given.

use std::path::Path;

use hearth::config::Settings;
use serde_json::{Value, json};

use crate::support::running_server::Running;

fn settings() -> Settings {
    let embedder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf");
    Settings { embedding_model: Some(embedder), ..Settings::default() }
}

/// What is computed takes time, and says so.
#[track_caller]
fn was_computed(answer: &Value) -> bool {
    answer["timings"]["prompt_ms"].as_f64().unwrap_or_else(|| panic!("no timings: {answer}")) > 0.0
}

async fn post(server: &Running, path: &str, cache_control: &str, body: &Value) -> Value {
    let request = server.client.post(format!("{}{path}", server.url)).header("cache-control", cache_control);
    let answer = request.json(body).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{path}: {}", answer.text().await.expect("a text"));
    answer.json().await.expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_answered_from_memory_unless_it_says_otherwise() {
    let settings = Settings { response_cache_mib: Some(1), embedding_cache_mib: Some(1), ..settings() };
    let server = Running::start(settings).await;
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "What is Hearth?"}], "max_tokens": 6,
                      "temperature": 0});
    let path = "/v1/chat/completions";
    let first = post(&server, path, "max-age=60", &chat).await;
    assert!(was_computed(&first));
    let again = post(&server, path, "max-age=60", &chat).await;
    assert!(!was_computed(&again));
    assert_eq!(again["choices"], first["choices"]);
    assert_eq!(again["usage"]["completion_tokens"], first["usage"]["completion_tokens"]);
    assert_ne!(again["id"], first["id"], "it is another answer");
    assert!(was_computed(&post(&server, path, "No-Cache", &chat).await));
    assert!(was_computed(&post(&server, path, "max-age=0, no-store", &chat).await));
    let mut warm = chat.clone();
    warm["temperature"] = json!(0.5);
    for _ in 0..2 {
        assert!(was_computed(&post(&server, path, "", &warm).await), "what may differ each time is computed each time");
    }

    let embed = |input: Value| json!({"model": "hearth-embed", "input": input});
    let one = post(&server, "/v1/embeddings", "", &embed(json!(["one text", "another one"]))).await;
    let other = post(&server, "/v1/embeddings", "", &embed(json!(["a third", "another one", "one text"]))).await;
    let plain =
        post(&server, "/v1/embeddings", "no-store", &embed(json!(["a third", "another one", "one text"]))).await;
    assert_eq!(other["usage"], plain["usage"]);
    assert_eq!(
        (&other["data"][1]["embedding"], &other["data"][2]["embedding"]),
        (&one["data"][1]["embedding"], &one["data"][0]["embedding"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_documents_is_kept_until_they_change() {
    let server = Running::start(Settings { semantic_cache: Some(0.97), ..settings() }).await;
    let upload = async |name: &str, text: &str| {
        let part = reqwest::multipart::Part::bytes(text.as_bytes().to_vec()).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new().part("file", part);
        let request = server.client.post(format!("{}/api/v1/documents/upload", server.url)).multipart(form);
        let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        answer["document_id"].as_str().expect("an id").to_owned()
    };
    let ask = async |question: &str| {
        let body = json!({"question": question, "grounding": "free", "wait": true, "max_tokens": 6});
        post(&server, "/ask", "", &body).await
    };
    upload("trees.md", "# Oak\n\nThe oak grows to a height of forty metres and lives for a thousand years.\n").await;
    let question = "How high does an oak grow?";
    let first = ask(question).await;
    assert!(was_computed(&first));
    let again = ask(question).await;
    assert!(!was_computed(&again));
    assert_eq!((&again["answer"], &again["sources"]), (&first["answer"], &first["sources"]));
    assert!(was_computed(&ask("How long does an oak live?").await), "another question");

    let birch =
        upload("birch.md", "# Birch\n\nThe birch grows to a height of twenty metres, half of what an oak does.\n")
            .await;
    assert!(was_computed(&ask(question).await), "there is more to answer from");
    assert!(!was_computed(&ask(question).await));
    let delete = server.client.delete(format!("{}/api/v1/documents/{birch}", server.url));
    assert!(delete.send().await.expect("an answer").status().is_success());
    let last = ask(question).await;
    assert!(was_computed(&last), "what it was answered from is gone");
    assert_eq!(last["sources"], first["sources"]);
}
