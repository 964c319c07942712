//! The chat model that comes with Hearth, through the server: it guards the inference code as much as that serves it.

use std::path::Path;

use hearth::config::Settings;
use serde_json::{Value, json};

use crate::support::running_server::Running;

/// Of no document that the model was trained on.
const FIXED_TEXT: &str = "A server that keeps its models in memory answers at once. It reads the weights from a file when it \
    starts, and it does not need a network after that. If the file is damaged, the server says so and stops. Each request \
    waits in a queue until there is room for it, and a request that nobody waits for any more is dropped.";

/// What transformers gives for [`FIXED_TEXT`], in 32-bit floats of the dequantized weights
/// (`scripts/fixtures/perplexity.py`).
const PERPLEXITY: f64 = 79.55853;

async fn start() -> Running {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    Running::start(Settings {
        model: Some(models.join("hearth-chat.gguf")),
        accept_any_model: Some(true),
        ..Settings::default()
    })
    .await
}

async fn post(server: &Running, path: &str, body: Value) -> Value {
    let answer = server.client.post(format!("{}{path}", server.url)).json(&body).send().await.expect("an answer");
    answer.json().await.expect("JSON")
}

async fn answer(server: &Running, messages: Value) -> String {
    let body = json!({"model": "x", "messages": messages, "temperature": 0, "max_tokens": 100});
    let answer = post(server, "/v1/chat/completions", body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

fn over_passages(question: &str) -> Value {
    let passages = "[1] Velmora\nVelmora was founded in 1873. The mayor of Velmora is Tilda Brann.\n\n[2] Torvik\nTorvik was \
                    founded in 1920. The mayor of Torvik is Jon Hask.";
    json!([
        {"role": "system", "content": "You are Hearth, a helpful assistant. Answer from the context."},
        {"role": "user", "content": format!("Question: {question}\n\nContext:\n{passages}\n\nQuestion: {question}")},
    ])
}

#[tokio::test]
async fn the_perplexity_of_a_fixed_text_is_that_of_the_training_code() {
    let server = start().await;
    let body =
        json!({"model": "x", "prompt": FIXED_TEXT, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0});
    let answer = post(&server, "/v1/completions", body).await;
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().expect("a number") as usize;
    let logprobs = &answer["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("a list")[1..prompt_tokens];
    let mean = logprobs.iter().map(|value| value.as_f64().expect("a number")).sum::<f64>() / logprobs.len() as f64;
    let perplexity = (-mean).exp();
    assert!((perplexity / PERPLEXITY - 1.0).abs() < 0.01, "perplexity {perplexity}, expected {PERPLEXITY}");
}

#[tokio::test]
async fn the_chat_model_reads() {
    let server = start().await;
    for (question, expected) in [
        ("When was Velmora founded?", "1873"),
        ("Who is the mayor of Torvik?", "Jon Hask"),
        ("What is the population of Torvik?", "does not say"),
    ] {
        let answer = answer(&server, over_passages(question)).await;
        assert!(answer.contains(expected), "{question} {answer}");
    }
    let greeting = answer(&server, json!([{"role": "user", "content": "Hello"}])).await;
    assert!(greeting.to_lowercase().contains("hello"), "{greeting}");
}
