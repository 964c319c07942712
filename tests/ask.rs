//! Documents in, questions answered with sources: the application contract over a running server with the embedding
//! model that comes with Hearth and a chat model that says nothing of use.

use std::{path::Path, time::Duration};

use hearth::config::Settings;
use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::support::running_server::Running;

const OAKS: &str = "# Trees\n\n## Oak\n\nThe oak grows to a height of forty metres and lives for a thousand years.\n\n## Birch\n\nThe \
                    birch has white bark and is felled for firewood.\n";
const ENGINES: &str =
    "# Engines\n\nA steam engine turns the pressure of steam into motion. James Watt improved it in 1769.\n";

fn settings() -> Settings {
    let embedder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf");
    Settings { embedding_model: Some(embedder), ..Settings::default() }
}

async fn server() -> Running {
    Running::start(settings()).await
}

impl Running {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.expect("an answer");
        (answer.status(), answer.json().await.expect("JSON"))
    }

    async fn upload_form(&self, form: Form) -> (StatusCode, Value) {
        let url = format!("{}/api/v1/documents/upload", self.url);
        let answer = self.client.post(url).multipart(form).send().await.expect("an answer");
        (answer.status(), answer.json().await.expect("JSON"))
    }

    /// The id of a document that is to be read.
    async fn upload(&self, name: &str, bytes: impl Into<Vec<u8>>) -> String {
        let form = Form::new().part("file", Part::bytes(bytes.into()).file_name(name.to_owned()));
        let (status, document) = self.upload_form(form).await;
        assert_eq!(status, 200, "{document}");
        document["document_id"].as_str().expect("an id").to_owned()
    }

    /// The document when it is no longer being read.
    async fn settled(&self, id: &str) -> Value {
        for _ in 0..2000 {
            let (status, document) = self.call(Method::GET, &format!("/api/v1/documents/{id}"), None).await;
            assert_eq!(status, 200, "{document}");
            if document["status"] != "processing" {
                return document;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{id} is still being read");
    }

    async fn titles(&self, body: Value) -> Vec<String> {
        let (status, answer) = self.call(Method::POST, "/api/v1/search", Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        let passages = answer["passages"].as_array().expect("passages").iter();
        passages.map(|passage| passage["title"].as_str().expect("a title").to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_from_the_passages_that_are_near() {
    let server = server().await;
    let trees = server.upload("trees.md", OAKS).await;
    server.upload("engines.md", ENGINES).await;
    let question = json!({
        "question": "How high does an oak grow?", "grounding": "free", "wait": true, "max_tokens": 8, "confidence": true,
    });
    let (status, answer) = server.call(Method::POST, "/ask", Some(question)).await;
    assert_eq!(status, 200, "{answer}");
    let first = &answer["sources"][0];
    assert_eq!((&first["title"], &first["document_id"]), (&json!("Trees > Oak"), &json!(trees)), "{answer}");
    assert!(first["similarity_score"].as_f64().expect("a number") > 0.3);
    assert!(first["content_preview"].as_str().expect("a text").contains("forty metres"));
    assert!(answer["tokens_used"].as_u64().expect("a count") > 20, "the context is in the prompt");
    let rated = answer["confidence"].as_f64().expect("a rating");
    assert!((0.0..=1.0).contains(&rated) && answer["confidence_is_rated"] == true, "{answer}");
    for key in ["answer", "model"] {
        assert!(answer[key].is_string(), "{key}: {answer}");
    }
    let question = json!({"question": "How high does an oak grow?", "grounding": "free", "include_sources": false, "max_tokens": 4});
    let (_, answer) = server.call(Method::POST, "/ask", Some(question)).await;
    assert!(answer.get("sources").is_none() && answer.get("confidence").is_none(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_its_sources_first_and_its_usage_last() {
    let server = server().await;
    let id = server.upload("trees.md", OAKS).await;
    for (path, body, first) in [
        (
            "/ask/stream",
            json!({"question": "What is a birch felled for?", "grounding": "free", "wait": 60, "max_tokens": 8}),
            "sources",
        ),
        (
            "/api/v1/chat/stream",
            json!({
                "messages": [{"role": "user", "content": "What is a birch felled for?"}],
                "grounding": "free", "temperature": 0, "max_tokens": 8,
            }),
            "citations",
        ),
    ] {
        let answer = server.client.post(format!("{}{path}", server.url)).json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
        let text = answer.text().await.expect("UTF-8");
        let frames: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|frame| serde_json::from_str(frame.strip_prefix("data: ").expect("a frame")).expect("JSON"))
            .collect();
        assert_eq!(frames[0][first][0]["document_id"], json!(id), "{text}");
        let (last, tokens) = frames[1..].split_last().expect("a last frame");
        assert!(tokens.iter().all(|frame| frame["token"].is_string()) && !tokens.is_empty(), "{text}");
        assert_eq!(last["done"], true);
        assert_eq!(last[first], frames[0][first]);
        assert!(last["usage"]["completion_tokens"].as_u64().expect("a count") > 0 && last["timings"].is_object());
    }
}

/// The answer as it stands, without marks and the white space between its parts.
fn quoted(answer: &Value) -> Vec<String> {
    let text = answer["answer"].as_str().expect("a text");
    text.lines().map(|line| line.rsplit_once(" [").expect("a mark").0.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_model_is_not_asked_to_write_and_sentences_are_quoted() {
    let server = server().await;
    let trees = server.upload("trees.md", OAKS).await;
    server.upload("engines.md", ENGINES).await;
    let question = "Who improved the steam engine in 1769?";
    let body = json!({"question": question, "wait": true, "confidence": true});
    let (status, answer) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!((status.as_u16(), &answer["grounding"]), (200, &json!("extract")), "{answer}");
    let sentences = quoted(&answer);
    assert!(sentences.contains(&"James Watt improved it in 1769.".to_owned()), "{answer}");
    assert!(sentences.len() <= 3 && sentences.iter().all(|sentence| ENGINES.contains(sentence)), "{answer}");
    assert_eq!(answer["sources"].as_array().map(Vec::len), Some(1), "only what is cited: {answer}");
    assert_eq!(answer["sources"][0]["filename"], "engines.md");
    let confidence = answer["confidence"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&confidence) && answer["confidence_is_rated"] == true, "{answer}");
    assert_eq!((&answer["model"], answer.get("unsupported")), (&json!("hearth-embed"), None), "{answer}");
    assert!(answer["usage"]["prompt_tokens"].as_u64().expect("a count") > 0, "embedding is counted: {answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(
        (&answer["receipt"]["grounding"], &answer["receipt"]["model"]),
        (&json!("extract"), &json!("hearth-embed"))
    );
    let head = server.client.post(format!("{}/ask", server.url)).json(&json!({"question": question})).send().await;
    assert_eq!(head.expect("an answer").headers()["x-hearth-grounding"], "extract");

    // The same in a conversation and as a stream.
    let body = json!({"messages": [{"role": "user", "content": question}]});
    let (_, chat) = server.call(Method::POST, "/api/v1/chat", Some(body)).await;
    assert_eq!((&chat["response"], &chat["grounding"]), (&answer["answer"], &json!("extract")), "{chat}");
    assert_eq!(chat["citations"].as_array().map(Vec::len), Some(1), "{chat}");
    let body = json!({"question": question});
    let stream = server.client.post(format!("{}/ask/stream", server.url)).json(&body).send().await.expect("an answer");
    let text = stream.text().await.expect("UTF-8");
    let frames = text.split_terminator("\n\n").map(|frame| serde_json::from_str::<Value>(&frame[6..]).expect("JSON"));
    let frames: Vec<Value> = frames.collect();
    let said: String = frames.iter().filter_map(|frame| frame["token"].as_str()).collect();
    assert_eq!(json!(said), answer["answer"]);
    assert_eq!(frames.last().expect("a last frame")["grounding"], "extract");

    // Near enough to be found, not near enough to be an answer.
    let body = json!({"question": "What do trees cost in Norway?", "min_similarity": 0.0, "confidence": true});
    let (_, answer) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!(answer["answer"], "The knowledge base holds nothing on this question.");
    assert_eq!((&answer["sources"], &answer["confidence"]), (&json!([]), &json!(0.0)), "{answer}");

    let body = json!({"question": "How high does an oak grow?", "grounding": "strict"});
    let (status, error) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("grounding")), "{error}");
    let body = json!({"question": "How high does an oak grow?", "document_ids": [trees], "grounding": "extract"});
    let (_, answer) = server.call(Method::POST, "/ask", Some(body)).await;
    assert!(quoted(&answer)[0].contains("forty metres"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_chooses_can_only_quote() {
    let server = server().await;
    server.upload("trees.md", OAKS).await;
    for question in ["How high does an oak grow?", "What is a birch felled for?", "How long does an oak live?"] {
        let body = json!({"question": question, "grounding": "quote", "wait": true, "min_similarity": 0.0});
        let (status, answer) = server.call(Method::POST, "/ask", Some(body)).await;
        assert_eq!((status.as_u16(), &answer["grounding"], &answer["model"]), (200, &json!("quote"), &json!("tiny")));
        // The model's weights are random: it may choose any sentences, or none.
        if answer["answer"] == "The knowledge base holds nothing on this question." {
            assert_eq!(answer["sources"], json!([]), "{answer}");
        } else {
            assert!(quoted(&answer).iter().all(|sentence| OAKS.contains(sentence)), "{answer}");
        }
        assert!(answer["usage"]["completion_tokens"].as_u64().expect("a count") > 0, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_writes_is_held_against_the_passages() {
    let server = server().await;
    server.upload("trees.md", OAKS).await;
    let body = json!({"question": "How high does an oak grow?", "grounding": "free", "wait": true, "max_tokens": 40});
    let (status, answer) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!((status.as_u16(), &answer["grounding"]), (200, &json!("free")), "{answer}");
    let text = answer["answer"].as_str().expect("a text");
    // Random weights write nothing of use.
    let unsupported = answer["unsupported"].as_array().expect("what was found");
    let has_words = text.chars().any(char::is_alphanumeric);
    assert_eq!(unsupported.is_empty(), !has_words, "{answer}");
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "use_rag": false, "max_tokens": 4});
    let (_, answer) = server.call(Method::POST, "/api/v1/chat", Some(body)).await;
    assert!(answer.get("grounding").is_none() && answer.get("unsupported").is_none(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_without_a_chat_model() {
    let server = Running::start_with(settings(), |config| config.model = None).await;
    server.upload("trees.md", OAKS).await;
    let body = json!({"question": "How high does an oak grow?", "wait": true});
    let (status, answer) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!((status.as_u16(), &answer["grounding"]), (200, &json!("extract")), "{answer}");
    assert!(quoted(&answer)[0].contains("forty metres"), "{answer}");
    for grounding in ["quote", "free"] {
        let body = json!({"question": "How high does an oak grow?", "grounding": grounding});
        let (status, error) = server.call(Method::POST, "/ask", Some(body)).await;
        assert_eq!((status.as_u16(), &error["error"]["code"]), (404, &json!("model_not_found")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_near_is_the_fixed_answer_and_no_model_is_asked() {
    let server = server().await;
    let id = server.upload("trees.md", OAKS).await;
    server.settled(&id).await;
    let question = json!({"question": "zxqv 77 wkjh?", "min_similarity": 0.9, "confidence": true});
    let (status, answer) = server.call(Method::POST, "/ask", Some(question)).await;
    assert_eq!(status, 200);
    assert_eq!(answer["answer"], "The knowledge base holds nothing on this question.");
    assert_eq!(
        (&answer["sources"], &answer["tokens_used"], &answer["confidence"]),
        (&json!([]), &json!(0), &json!(0.0))
    );
    let chat = json!({"messages": [{"role": "user", "content": "zxqv?"}], "min_similarity": 0.9});
    let (_, answer) = server.call(Method::POST, "/api/v1/chat", Some(chat)).await;
    assert_eq!(answer["response"], "The knowledge base holds nothing on this question.");
    let chat = json!({"messages": [{"role": "user", "content": "zxqv?"}], "use_rag": false, "max_tokens": 4});
    let (_, answer) = server.call(Method::POST, "/api/v1/chat", Some(chat)).await;
    assert_ne!(answer["tokens_used"], 0, "without documents the model is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ask_while_documents_are_being_read_waits_or_is_a_409() {
    // Without an embedding model nothing is read, so that the document stays as it is.
    let server = Running::start(Settings::default()).await;
    server.upload("trees.md", OAKS).await;
    for wait in [json!(null), json!(0), json!(0.05)] {
        let answer = server
            .client
            .post(format!("{}/ask", server.url))
            .json(&json!({"question": "?", "wait": wait}))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 409);
        let headers = answer.headers();
        assert!(headers["retry-after"] == "2" && headers["x-should-retry"] == "true");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["code"], "indexing", "{body}");
    }
    let (status, answer) = server.call(Method::POST, "/ask", Some(json!({"question": "?", "wait": false}))).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &json!("no_embedding_model")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_document_is_found_no_more() {
    let server = server().await;
    let id = server.upload("trees.md", OAKS).await;
    let query = json!({"query": "white bark", "wait": true});
    assert!(server.titles(query.clone()).await.contains(&"Trees > Birch".to_owned()));
    let (status, deleted) = server.call(Method::DELETE, &format!("/api/v1/documents/{id}"), None).await;
    assert_eq!((status.as_u16(), &deleted["deleted"]), (200, &json!(true)));
    assert!(server.titles(query).await.is_empty());
    for method in [Method::GET, Method::DELETE] {
        let (status, error) = server.call(method, &format!("/api/v1/documents/{id}"), None).await;
        assert_eq!((status.as_u16(), &error["error"]["code"]), (404, &json!("not_found")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_are_one_document_and_a_new_version_takes_the_old_ones_place() {
    let server = server().await;
    let first = server.upload("trees.md", OAKS).await;
    assert_eq!(server.upload("copy.md", OAKS).await, first);
    server.settled(&first).await;
    let changed = OAKS.replace("forty", "fifty");
    let form = Form::new().text("replaces", first.clone()).part("file", Part::text(changed).file_name("trees.md"));
    let (_, second) = server.upload_form(form).await;
    let second = server.settled(second["document_id"].as_str().expect("an id")).await;
    assert_eq!(second["status"], "ready", "{second}");
    let (_, list) = server.call(Method::GET, "/api/v1/documents", None).await;
    assert_eq!((&list["total"], &list["documents"][0]["document_id"]), (&json!(1), &second["document_id"]));
    let query = json!({"query": "How high is an oak?", "top_k": 1});
    let (_, found) = server.call(Method::POST, "/api/v1/search", Some(query)).await;
    assert!(found["passages"][0]["text"].as_str().expect("a text").contains("fifty"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_documents_and_collections_narrow_a_search() {
    let server = server().await;
    for (name, text, collection, year) in [
        ("trees.md", OAKS, "nature", 2020),
        ("engines.md", ENGINES, "machines", 2024),
        ("more.md", "# Pine\n\nThe pine keeps its needles in winter.\n", "nature", 2024),
    ] {
        let form = Form::new()
            .text("collection", collection)
            .text("attributes", json!({"year": year}).to_string())
            .part("file", Part::text(text).file_name(name));
        let (status, document) = server.upload_form(form).await;
        assert_eq!((status.as_u16(), &document["attributes"]["year"]), (200, &json!(year)));
    }
    let found = async |extra: Value| {
        let mut body = json!({"query": "trees and engines", "wait": true, "min_similarity": 0.0, "top_k": 20});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let mut titles = server.titles(body).await;
        titles.sort();
        titles
    };
    let all = found(json!({"collections": ["nature", "machines"]})).await;
    assert_eq!(all, ["Engines", "Pine", "Trees > Birch", "Trees > Oak"]);
    assert_eq!(found(json!({"collections": "machines"})).await, ["Engines"]);
    let new = json!({"type": "gte", "key": "year", "value": 2024});
    assert_eq!(found(json!({"collections": ["nature", "machines"], "filters": new})).await, ["Engines", "Pine"]);
    let (_, list) = server.call(Method::GET, "/api/v1/documents?collection=machines", None).await;
    let engines = &list["documents"][0]["document_id"];
    assert_eq!(found(json!({"document_ids": [engines]})).await, ["Engines"]);
    for mode in ["dense", "lexical", "fused"] {
        let titles = found(json!({"collections": ["nature"], "query": "needles in winter", "search_mode": mode})).await;
        assert!(titles.contains(&"Pine".to_owned()), "{mode}");
    }
    let (status, error) =
        server.call(Method::POST, "/api/v1/search", Some(json!({"query": "x", "collections": ["none"]}))).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (404, &json!("not_found")), "{error}");
    let (status, _) = server.call(Method::DELETE, "/api/v1/collections/nature", None).await;
    assert_eq!(status, 200);
    let (_, list) = server.call(Method::GET, "/api/v1/collections", None).await;
    assert_eq!(list["collections"].as_array().expect("a list").len(), 1, "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_fail_alone_and_say_why() {
    let server = server().await;
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("empty.txt", Vec::new(), "empty"),
        ("empty.pdf", Vec::new(), "empty"),
        ("spaces.md", b"  \n\n \t\n".to_vec(), "no text"),
        ("broken.pdf", b"%PDF-1.7\nnothing of a PDF follows".to_vec(), "damaged"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01".to_vec(), "not supported"),
        ("broken.docx", b"PK\x03\x04nothing of an archive follows".to_vec(), ""),
    ];
    for (name, bytes, reason) in cases {
        let document = server.settled(&server.upload(name, bytes).await).await;
        assert_eq!(document["status"], "failed", "{document}");
        let message = document["error"]["message"].as_str().expect("a reason");
        assert!(message.contains(reason) && !message.is_empty(), "{name}: {message}");
        assert!(matches!(document["error"]["code"].as_str(), Some("invalid_file" | "unsupported_file")), "{document}");
    }
    // What is not UTF-8 and what has the wrong extension is read for what it is.
    let latin = server.upload("latin.txt", b"Der Br\xfcckenbau in K\xf6ln begann im Fr\xfchling.".to_vec()).await;
    assert_eq!(server.settled(&latin).await["status"], "ready");
    let wrong = server
        .upload("really-text.pdf", b"This is plain text about the harbour, whatever its name says.".to_vec())
        .await;
    assert_eq!(server.settled(&wrong).await["status"], "ready");
    let found = json!({"query": "Br\u{fc}ckenbau K\u{f6}ln", "search_mode": "lexical", "min_similarity": 0.0});
    assert_eq!(server.titles(found).await, ["latin.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_are_none_are_refused_and_leave_nothing() {
    let server = Running::start(Settings { upload_limit_mib: Some(1), ..settings() }).await;
    let large = Form::new().part("file", Part::bytes(vec![b'a'; 3 << 20]).file_name("large.txt"));
    let (status, error) = server.upload_form(large).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (413, &json!("payload_too_large")));
    let (status, error) = server.upload_form(Form::new().text("collection", "x")).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("file")), "{error}");
    let form = Form::new().text("attributes", "[1]").part("file", Part::text("text").file_name("a.txt"));
    let (status, error) = server.upload_form(form).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("attributes")), "{error}");
    let form = Form::new().text("replaces", "file-none").part("file", Part::text("text").file_name("a.txt"));
    assert_eq!(server.upload_form(form).await.0, 404);
    let (status, error) = server.call(Method::POST, "/api/v1/documents/upload", Some(json!({"file": "x"}))).await;
    assert_eq!(status, 415, "{error}");
    let (_, list) = server.call(Method::GET, "/api/v1/documents", None).await;
    assert_eq!(list["total"], 0, "{list}");
    // A path climbs nowhere: it is a name.
    let form = Form::new().part("file", Part::text("Some text.").file_name("../../../etc/passwd"));
    let (status, document) = server.upload_form(form).await;
    assert_eq!((status.as_u16(), &document["filename"]), (200, &json!("etc/passwd")));
}

#[tokio::test(flavor = "multi_thread")]
async fn generate_answers_a_prompt() {
    let server = server().await;
    let body = json!({"prompt": "What is Hearth?", "max_tokens": 5, "temperature": 0});
    let (status, answer) = server.call(Method::POST, "/generate", Some(body.clone())).await;
    assert_eq!(status, 200, "{answer}");
    let stream = server.client.post(format!("{}/stream", server.url)).json(&body).send().await.expect("an answer");
    let text = stream.text().await.expect("UTF-8");
    let frames = text.split_terminator("\n\n").map(|frame| serde_json::from_str::<Value>(&frame[6..]).expect("JSON"));
    let frames: Vec<Value> = frames.collect();
    let said: String = frames.iter().filter_map(|frame| frame["token"].as_str()).collect();
    assert_eq!(json!(said), answer["output"]);
    assert_eq!(frames.last().expect("a last frame")["done"], true);
    for (body, param) in
        [(json!({}), "prompt"), (json!({"prompt": ""}), "prompt"), (json!({"prompt": "x", "n": 2}), "n")]
    {
        let (status, error) = server.call(Method::POST, "/generate", Some(body)).await;
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!(param)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reranked_passages_are_in_the_order_of_the_rerank_models_scores() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank/bert");
    let server = Running::start(Settings { rerank_model: Some(model), ..settings() }).await;
    server.upload("trees.md", OAKS).await;
    server.upload("engines.md", ENGINES).await;
    let query = "Which trees are there, and which engines?";
    let body = json!({"query": query, "wait": true, "min_similarity": 0.0, "rerank": true, "top_k": 3});
    let (status, answer) = server.call(Method::POST, "/api/v1/search", Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    let passages = answer["passages"].as_array().expect("passages");
    let scores: Vec<f64> = passages.iter().map(|passage| passage["rerank_score"].as_f64().expect("a score")).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{answer}");
    // They are what the route gives for the same texts.
    let texts: Vec<&Value> = passages.iter().map(|passage| &passage["text"]).collect();
    let body = json!({"query": query, "documents": texts});
    let (_, ranking) = server.call(Method::POST, "/v1/rerank", Some(body)).await;
    let ranked: Vec<f64> = ranking["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|one| one["relevance_score"].as_f64().expect("a score"))
        .collect();
    assert!(scores.iter().zip(&ranked).all(|(a, b)| (a - b).abs() < 1e-5), "{scores:?} {ranked:?}");
    // Without such a model it is a mistake of the caller's.
    let server = Running::start(settings()).await;
    server.upload("trees.md", OAKS).await;
    let body = json!({"question": "How high is an oak?", "wait": true, "rerank": true});
    let (status, error) = server.call(Method::POST, "/ask", Some(body)).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("rerank")), "{error}");
}
