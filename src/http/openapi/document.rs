//! The OpenAPI document, put together from the tables that the readers of requests go by.
//!
//! A request's schema is made of its field policies, so the document cannot promise a field that is refused.
//! Answers are described by their stable parts; everything else in them may grow.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{analysis, application, schemas, vector_stores};
use crate::http::scopes::is_public;
use crate::wire::policy::{CHAT, COMPLETION, EMBEDDINGS, FieldPolicy, GENERATION, Policy, RERANK};

/// The whole document. `tests/contract.rs` holds its paths against the router.
pub(super) fn document() -> Value {
    let paths = [application::paths(), analysis::paths(), vector_stores::paths()].into_iter().fold(paths(), merged);
    let paths = grouped(paths);
    let schemas = [application::schemas(), analysis::schemas(), vector_stores::schemas()];
    let schemas = schemas.into_iter().fold(schemas::all(), merged);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hearth",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's contract, served by models in this process. docs/API.md says what is honoured, \
                            what is accepted without effect, and what is refused.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {"Error": error_response("The request was refused or has failed.")},
        },
    })
}

/// Under which heading a path is shown: the first that it begins with.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Files and vector stores", &["/v1/files", "/v1/vector_stores"]),
    ("Documents and answers", &["/ask", "/api/v1/", "/analysis"]),
    ("Callers and cost", &["/v1/me", "/v1/usage", "/v1/quote", "/metrics"]),
    (
        "Models",
        &[
            "/v1/",
            "/chat/",
            "/completions",
            "/embeddings",
            "/models",
            "/rerank",
            "/generate",
            "/stream",
            "/tokenize",
            "/detokenize",
            "/apply-template",
        ],
    ),
    ("Server", &["/"]),
];

/// The operations with their headings, and without a lock where no key is asked for.
fn grouped(mut paths: Value) -> Value {
    for (path, operations) in paths.as_object_mut().into_iter().flatten() {
        let group = GROUPS.iter().find(|(_, begins)| begins.iter().any(|begin| path.starts_with(begin)));
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            // What is beside the operations is for all of them.
            if !matches!(&**method, "get" | "post" | "delete") {
                continue;
            }
            operation["tags"] = group.map(|(name, _)| *name).into_iter().collect();
            if is_public(path) {
                operation["security"] = json!([]);
            }
        }
    }
    paths
}

/// The members of both objects.
fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

/// A request's schema: honoured and ignored fields with their descriptions. Refused ones are left out; any field
/// that nobody knows is accepted.
pub(super) fn request(tables: &[&[FieldPolicy]], required: &[&str]) -> Value {
    let mut properties = Map::new();
    for field in tables.iter().copied().flatten() {
        let description = match field.policy {
            Policy::Honoured => field.note.to_owned(),
            Policy::Ignored => format!("Changes nothing. {}", field.note),
            Policy::Refused { .. } => continue,
        };
        // The tables' schemas are constants; one that did not parse would accept anything here and fail a test.
        let schema: Value = serde_json::from_str(field.schema).unwrap_or_else(|_| json!({}));
        let schema = if schema == json!({}) { schema } else { json!({"anyOf": [schema, {"type": "null"}]}) };
        let Value::Object(mut property) = schema else { continue };
        property.insert("description".to_owned(), json!(description));
        properties.insert(field.name.to_owned(), Value::Object(property));
    }
    // A required field has a value.
    for name in required {
        if let Some(inner) = properties.get(*name).and_then(|property| property["anyOf"].get(0)).cloned() {
            properties.insert((*name).to_owned(), inner);
        }
    }
    json!({"type": "object", "required": required, "properties": properties})
}

pub(super) fn chat_request() -> Value {
    request(&[GENERATION, CHAT], &["model", "messages"])
}

pub(super) fn completion_request() -> Value {
    request(&[GENERATION, COMPLETION], &["model", "prompt"])
}

pub(super) fn rerank_request() -> Value {
    request(&[RERANK], &["query", "documents"])
}

pub(super) fn embeddings_request() -> Value {
    request(&[EMBEDDINGS], &["model", "input"])
}

/// What a route answers when all is well.
pub(super) struct Answer {
    pub(super) description: &'static str,
    pub(super) content: Value,
}

pub(super) fn json_answer(description: &'static str, schema: &str) -> Answer {
    Answer { description, content: json!({"application/json": {"schema": reference(schema)}}) }
}

fn text_answer(description: &'static str, media_type: &str) -> Answer {
    let mut content = Map::new();
    content.insert(media_type.to_owned(), json!({"schema": {"type": "string"}}));
    Answer { description, content: Value::Object(content) }
}

/// A streamed answer beside the whole one.
fn streamed(mut answer: Answer, chunk: &str) -> Answer {
    answer.content["text/event-stream"] = json!({
        "schema": {
            "type": "string",
            "description": format!("Frames of `data: {{chunk}}`, each a {chunk}; comments while nothing happens; at the end \
                                    `data: [DONE]`. After a failure, one frame with an `error` ends the stream."),
        },
    });
    answer
}

pub(super) fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn error_response(description: &str) -> Value {
    let wait = json!({"schema": {"type": "string"}, "description": "On 429 and 503: when to come back."});
    json!({
        "description": description,
        "headers": {"Retry-After": wait, "retry-after-ms": wait, "x-request-id": {"schema": {"type": "string"}}},
        "content": {"application/json": {"schema": reference("Error")}},
    })
}

/// Those of the receipt are in answers to requests that leave a row in the ledger.
fn answer_headers() -> Value {
    let described = [
        ("x-request-id", "The client's own, if it sent a sane one."),
        ("x-hearth-served-by", "`local`, an upstream's name or `cache`; `none` where no model was needed."),
        ("x-hearth-model", "The model that answered."),
        ("x-hearth-fallback-reason", "Why another one than the first choice served."),
        ("x-hearth-attempts", "Upstreams tried."),
        ("x-hearth-cache", "The cache that had the answer."),
        ("x-hearth-queue-ms", "Not in a stream, whose last event has it."),
        ("x-hearth-compute-ms", "Not in a stream, whose last event has it."),
        ("x-hearth-cost-usd", "Not in a stream, whose last event has it."),
    ];
    let header = |(name, description): (&str, &str)| {
        (name.to_owned(), json!({"schema": {"type": "string"}, "description": description}))
    };
    Value::Object(described.into_iter().map(header).collect())
}

pub(super) fn get(id: &str, summary: &str, answer: Answer, errors: &[u16]) -> Value {
    operation(id, summary, answer, errors)
}

pub(super) fn post(id: &str, summary: &str, body: &str, answer: Answer, errors: &[u16]) -> Value {
    let mut operation = operation(id, summary, answer, errors);
    operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": reference(body)}}});
    operation
}

pub(super) fn operation(id: &str, summary: &str, answer: Answer, errors: &[u16]) -> Value {
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({
            "description": answer.description,
            "headers": answer_headers(),
            "content": answer.content,
        }),
    );
    // What a request's host and page may be refused with, on any route.
    let errors: BTreeSet<u16> = [400, 403].into_iter().chain(errors.iter().copied()).collect();
    for status in errors {
        responses.insert(status.to_string(), json!({"$ref": "#/components/responses/Error"}));
    }
    json!({"operationId": id, "summary": summary, "responses": responses})
}

/// Refusals of a route that takes a body and runs a model.
pub(super) const GENERATING: [u16; 9] = [400, 401, 404, 408, 413, 415, 500, 503, 504];
/// Of one that takes a body and only looks at text.
pub(super) const READING: [u16; 8] = [400, 401, 404, 408, 413, 415, 500, 503];

fn paths() -> Value {
    let chat = post(
        "createChatCompletion",
        "Answer a conversation",
        "ChatRequest",
        streamed(json_answer("The answer.", "ChatCompletion"), "ChatCompletionChunk"),
        &GENERATING,
    );
    let completion = post(
        "createCompletion",
        "Continue a prompt",
        "CompletionRequest",
        streamed(json_answer("The continuation.", "Completion"), "Completion"),
        &GENERATING,
    );
    let embeddings = post(
        "createEmbeddings",
        "Vectors of texts",
        "EmbeddingsRequest",
        json_answer("One vector per input, in their order.", "Embeddings"),
        &GENERATING,
    );
    let rerank = |id| {
        let answer = json_answer("The documents, most relevant first.", "Ranking");
        post(id, "Order documents by how well they answer a query", "RerankRequest", answer, &GENERATING)
    };
    // The same operation under another path needs a name of its own.
    let again = |operation: &Value, id: &str| {
        let mut operation = operation.clone();
        operation["operationId"] = id.into();
        operation
    };
    let models = get("listModels", "What is served", json_answer("The models.", "ModelList"), &[401]);
    let mut model = get("retrieveModel", "One model", json_answer("The model.", "Model"), &[401, 404]);
    model["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}]);
    let mut docs_file = get("docsFile", "A part of the pages", text_answer("The file.", "*/*"), &[404]);
    docs_file["parameters"] = json!([{"name": "file", "in": "path", "required": true, "schema": {"type": "string"}}]);
    let docs_redirect = json!({
        "operationId": "docsRedirect",
        "summary": "To the pages",
        "responses": {"308": {"description": "They are at /docs/."}},
    });
    let mut summary = json_answer("The sums of the whole ledger, or Prometheus' text.", "MetricsSummary");
    summary.content["text/plain"] = json!({"schema": {"type": "string"}});
    let metrics = get(
        "metrics",
        "What all requests came to; metrics for Prometheus where `Accept` names `text/plain` or OpenMetrics",
        summary,
        &[401, 403],
    );
    let report = json_answer("One entry for each group, and the sum of all.", "UsageReport");
    let mut usage = get(
        "usage",
        "What requests came to, of the caller's own or, for administrators, all",
        report,
        &[400, 401, 403],
    );
    let parameter = |name: &str, description: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}, "description": description});
    usage["parameters"] = json!([
        parameter("from", "A date, a time as RFC 3339 writes it, or Unix seconds. Default: 30 days before `to`."),
        parameter("to", "The same; a date is counted in. Default: now."),
        parameter("group_by", "`day`, `caller`, `model` and `provider`, with commas. Default `day`."),
        parameter("caller", "Of this caller only; any but oneself needs the scope `admin`."),
    ]);
    let health = |id, summary| get(id, summary, json_answer("How it is.", "Health"), &[503]);
    let mut paths = json!({
        "/chat/completions": {"post": again(&chat, "chatCompletionWithoutPrefix")},
        "/completions": {"post": again(&completion, "completionWithoutPrefix")},
        "/embeddings": {"post": again(&embeddings, "embeddingsWithoutPrefix")},
        "/models": {"get": again(&models, "modelsWithoutPrefix")},
        "/models/{id}": {"get": again(&model, "modelWithoutPrefix")},
    });
    let others = json!({
        "/v1/chat/completions": {"post": chat},
        "/v1/completions": {"post": completion},
        "/v1/embeddings": {"post": embeddings},
        "/v1/rerank": {"post": rerank("createRerank")},
        "/rerank": {"post": rerank("rerank")},
        "/v1/quote": {"post": post("quote", "What a chat completion or a completion would take, without running it",
            "QuoteRequest", json_answer("What each side that could serve it says.", "Quote"), &READING)},
        "/v1/models": {"get": models},
        "/v1/models/{id}": {"get": model},
        "/tokenize": {"post": post("tokenize", "Token ids of a text", "TokenizeRequest",
            json_answer("The tokens.", "Tokens"), &READING)},
        "/detokenize": {"post": post("detokenize", "The text of token ids", "DetokenizeRequest",
            json_answer("The text.", "Content"), &READING)},
        "/apply-template": {"post": post("applyTemplate", "The prompt that a conversation becomes", "ApplyTemplateRequest",
            json_answer("The prompt.", "PromptText"), &READING)},
        "/health": {"get": health("health", "Does it serve, and what?")},
        "/health/live": {"get": health("live", "Does the process answer?")},
        "/health/ready": {"get": health("ready", "Are the models loaded?")},
        "/health/deep": {"get": health("deep", "The engine's heartbeat, its device and its cache")},
        "/metrics": {"get": metrics},
        "/v1/usage": {"get": usage},
        "/v1/me": {"get": get("me", "Who a request is taken for, and what that caller may do", json_answer("The caller.", "Me"), &[401])},
        "/": {"get": get("greeting", "What answers here", text_answer("A line, or a page.", "text/plain"), &[])},
        "/openapi.json": {"get": get("openapi", "This document", json_answer("The document.", "AnyObject"), &[])},
        "/docs": {"get": docs_redirect},
        "/docs/": {"get": get("docs", "This document as pages", text_answer("The page.", "text/html"), &[])},
        "/docs/{file}": {"get": docs_file},
    });
    if let (Some(paths), Value::Object(others)) = (paths.as_object_mut(), others) {
        paths.extend(others);
    }
    paths
}
