//! The OpenAPI document against the router and against what the routes really answer.

use hearth::wire::policy::{
    self, ANALYSIS, APP_CHAT, APP_GENERATE, ASK, CHAT, COMPLETION, EMBEDDINGS, GENERATION, LOOKUP, RERANK, SEARCH,
};
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
async fn every_route_is_in_the_document_and_nothing_else() {
    let document = document(&ScriptedServer::hello()).await;
    let source = include_str!("../src/http/mod.rs");
    let mut routes: Vec<(String, &str)> = source
        .split(".route(")
        .skip(1)
        .flat_map(|route| {
            let path = route.split('"').nth(1).expect("a route has a path").replace("{*", "{");
            let handlers = route.split(".method_not_allowed_fallback").next().unwrap_or_default();
            let methods =
                ["get", "post", "delete"].into_iter().filter(|method| handlers.contains(&format!("{method}(")));
            methods.map(move |method| (path.clone(), method)).collect::<Vec<_>>()
        })
        .collect();
    let mut described: Vec<(String, &str)> = document["paths"]
        .as_object()
        .expect("paths is an object")
        .iter()
        .flat_map(|(path, operations)| {
            let methods = operations.as_object().expect("operations by method").keys();
            methods.map(|method| (path.clone(), method.as_str()))
        })
        .collect();
    routes.sort();
    described.sort();
    assert!(routes.len() > 15, "the router's page is read: {routes:?}");
    assert_eq!(described, routes);
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

#[test]
fn the_tables_schemas_are_json() {
    let stores = [
        policy::FILE_UPLOAD,
        policy::VECTOR_STORE_CREATE,
        policy::VECTOR_STORE_UPDATE,
        policy::VECTOR_STORE_FILE,
        policy::VECTOR_STORE_FILE_UPDATE,
        policy::FILE_BATCH,
        policy::VECTOR_STORE_SEARCH,
    ];
    let of_documents = [LOOKUP, ASK, APP_CHAT, APP_GENERATE, SEARCH, ANALYSIS];
    let generating = [GENERATION, CHAT, COMPLETION, EMBEDDINGS, RERANK];
    for field in generating.into_iter().chain(of_documents).chain(stores).flatten() {
        serde_json::from_str::<Value>(field.schema).unwrap_or_else(|error| panic!("{}: {error}", field.name));
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
    validate("Tokens", &server.post("/tokenize", json!({"content": "Hi"})).await.json());
    validate("Content", &server.post("/detokenize", json!({"tokens": [1]})).await.json());
    validate("PromptText", &server.post("/apply-template", json!({"messages": messages})).await.json());
    for path in ["/health", "/health/live", "/health/ready", "/health/deep"] {
        validate("Health", &server.get(path).await.json());
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
