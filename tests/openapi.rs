//! The OpenAPI document against the router and against what the routes really answer.

use axum::body::Body;
use serde_json::{Value, json};

use crate::support::scripted_server::ScriptedServer;

async fn document(server: &ScriptedServer) -> Value {
    server.get("/openapi.json").await.json()
}

#[tokio::test]
async fn operations_have_headings_and_locks_only_where_keys_are_asked_for() {
    let document = ScriptedServer::hello().get("/openapi.json").await.json();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let is_public =
            path == "/" || path.starts_with("/health") || path.starts_with("/docs") || path == "/openapi.json";
        for operation in ["get", "post", "delete"].iter().filter_map(|method| operations.get(method)) {
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{path}");
            assert_eq!(operation.get("security").is_some(), is_public, "{path}");
        }
    }
}

#[tokio::test]
async fn every_operation_has_its_route() {
    let server = ScriptedServer::hello();
    let document = document(&server).await;
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path =
            path.split('/').map(|part| if part.starts_with('{') { "none" } else { part }).collect::<Vec<_>>().join("/");
        for method in methods.as_object().expect("operations by method").keys() {
            let request = axum::http::Request::builder().method(method.to_uppercase().as_str()).uri(&path);
            let answer = server.send(request.body(Body::empty()).expect("a request")).await;
            let text = answer.text();
            assert!(!text.contains("No such route") && !text.contains("does not take"), "{method} {path}: {text}");
            operations += 1;
        }
    }
    assert!(operations > 50);
}

#[tokio::test]
async fn every_reference_resolves() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document(&ScriptedServer::hello()).await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
    }
}

#[tokio::test]
async fn every_schema_compiles() {
    let document = document(&ScriptedServer::hello()).await;
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        let root = json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
        jsonschema::validator_for(&root).unwrap_or_else(|error| panic!("{name}: {error} in {schema}"));
    }
}

#[tokio::test]
async fn answers_and_refusals_are_what_the_document_says() {
    let server = ScriptedServer::hello();
    let document = document(&server).await;
    let validate = |schema: &str, answer: &Value| {
        let root = json!({"$ref": format!("#/components/schemas/{schema}"), "components": document["components"]});
        let validator = jsonschema::validator_for(&root).expect("the schema compiles");
        let problems: Vec<String> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{schema}: {problems:?} in {answer}");
    };
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"model": "tiny", "messages": messages});
    validate("ChatRequest", &chat);
    validate("ChatCompletion", &server.post("/v1/chat/completions", chat.clone()).await.json());
    let mut streaming = chat;
    streaming["stream"] = json!(true);
    let stream = server.post("/v1/chat/completions", streaming).await;
    let frames: Vec<&str> = stream.text().lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(frames.last(), Some(&"[DONE]"));
    for frame in &frames[..frames.len() - 1] {
        validate("ChatCompletionChunk", &serde_json::from_str(frame).expect("a frame is JSON"));
    }
    let prompt = json!({"model": "tiny", "prompt": "Hi"});
    validate("Completion", &server.post("/v1/completions", prompt).await.json());
    validate("Embeddings", &server.post("/v1/embeddings", json!({"model": "embed", "input": "Hi"})).await.json());
    validate("MetricsSummary", &server.get("/metrics").await.json());
    validate("UsageReport", &server.get("/v1/usage?group_by=day,caller,model,provider").await.json());
    validate("ModelList", &server.get("/v1/models").await.json());
    validate("Me", &server.get("/v1/me").await.json());
    validate("Model", &server.get("/v1/models/tiny").await.json());
    validate("TokenizeResponse", &server.post("/tokenize", json!({"content": "Hi"})).await.json());
    validate("DetokenizeResponse", &server.post("/detokenize", json!({"tokens": [1]})).await.json());
    validate("ApplyTemplateResponse", &server.post("/apply-template", json!({"messages": messages})).await.json());
    for (path, schema) in [
        ("/health", "Health"),
        ("/health/live", "Liveness"),
        ("/health/ready", "Health"),
        ("/health/deep", "DeepHealth"),
    ] {
        validate(schema, &server.get(path).await.json());
    }
    for (path, body) in [
        ("/v1/chat/completions", json!({})),
        ("/v1/completions", json!({"model": "tiny", "prompt": 7})),
        ("/v1/embeddings", json!({"model": "none", "input": "x"})),
        ("/no/such/route", json!({})),
    ] {
        validate("Error", &server.post(path, body).await.json());
    }
}
