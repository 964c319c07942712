//! `/v1/rerank` over a tiny cross-encoder of the fixtures.

use std::{path::Path, sync::Arc};

use axum::http::StatusCode;
use hearth::providers::{local_embedder::EmbedderSettings, local_reranker::LocalReranker};
use hearth_kernels::device::DeviceChoice;
use serde_json::{Value, json};

use crate::support::scripted_server::ScriptedServer;

fn server() -> ScriptedServer {
    let server = ScriptedServer::hello();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank/bert");
    let settings =
        EmbedderSettings { name: "cross".to_owned(), device: DeviceChoice::Cpu, ..EmbedderSettings::default() };
    let reranker = LocalReranker::load(&path, settings).expect("the fixture loads");
    server.models.add_reranker(Arc::new(reranker), Vec::new());
    server
}

/// The first query's pairs of the fixture: passages and their logits.
fn reference() -> (String, Vec<(String, f64)>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank/bert.json");
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(path).expect("committed")).expect("the fixture is valid");
    let query = cases[0]["query"].as_str().expect("a text").to_owned();
    let pairs = cases.iter().filter(|case| case["query"] == query.as_str());
    let pair = |case: &Value| {
        (case["passage"].as_str().expect("a text").to_owned(), case["logit"].as_f64().expect("a number"))
    };
    let pairs = pairs.map(pair).collect();
    (query, pairs)
}

#[tokio::test]
async fn documents_come_in_the_order_of_the_reference_logits() {
    let server = server();
    let (query, pairs) = reference();
    let mut expected: Vec<usize> = (0..pairs.len()).collect();
    expected.sort_by(|a, b| pairs[*b].1.total_cmp(&pairs[*a].1));
    let documents: Vec<&String> = pairs.iter().map(|(passage, _)| passage).collect();
    let body = json!({"model": "cross", "query": query, "documents": documents});
    for path in ["/v1/rerank", "/rerank"] {
        let answer = server.post(path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let answer = answer.json();
        assert_eq!(answer["model"], "cross");
        let results = answer["results"].as_array().expect("results");
        let order: Vec<usize> =
            results.iter().map(|result| result["index"].as_u64().expect("a place") as usize).collect();
        assert_eq!(order, expected);
        for result in results {
            let score = result["relevance_score"].as_f64().expect("a number");
            let logit = pairs[result["index"].as_u64().expect("a place") as usize].1;
            assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-4);
            assert!(result.get("document").is_none());
        }
        assert!(answer["usage"]["total_tokens"].as_u64().expect("a count") > 0);
    }
    let mut short = body;
    short["top_n"] = 2.into();
    short["return_documents"] = true.into();
    short["documents"][expected[0]] = json!({"text": pairs[expected[0]].0});
    let answer = server.post("/v1/rerank", short).await.json();
    assert_eq!(answer["results"].as_array().expect("results").len(), 2);
    assert_eq!(answer["results"][0]["document"]["text"], pairs[expected[0]].0.as_str());
    let model = server.get("/v1/models/cross").await.json();
    assert_eq!((&model["capabilities"]["rerank"], &model["capabilities"]["embeddings"]), (&json!(true), &json!(false)));
}

#[tokio::test]
async fn mistakes_are_named() {
    let server = server();
    for (body, param) in [
        (json!({"documents": ["a"]}), "query"),
        (json!({"query": " ", "documents": ["a"]}), "query"),
        (json!({"query": "water ".repeat(60), "documents": ["a"]}), "query"),
        (json!({"query": "a"}), "documents"),
        (json!({"query": "a", "documents": []}), "documents"),
        (json!({"query": "a", "documents": "b"}), "documents"),
        (json!({"query": "a", "documents": ["b", 7]}), "documents[1]"),
        (json!({"query": "a", "documents": [{"title": "b"}]}), "documents[0].text"),
        (json!({"query": "a", "documents": ["b"], "top_n": 0}), "top_n"),
        (json!({"query": "a", "documents": ["b"], "model": "tiny"}), "model"),
    ] {
        let answer = server.post("/v1/rerank", body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{body}: {}", answer.text());
    }
    let without = ScriptedServer::hello().post("/v1/rerank", json!({"query": "a", "documents": ["b"]})).await;
    assert_eq!(without.status, StatusCode::NOT_FOUND, "{}", without.text());
    assert_eq!(without.json()["error"]["code"], "model_not_found");
}
