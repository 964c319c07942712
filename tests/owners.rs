//! Two callers on one server: what is one's is not there for the other, nor for one who manages the server.
//!
//! Each refusal is held against the one for what never was, which must be the same but for the id.

use std::{path::Path, time::Duration};

use hearth::config::Settings;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{self, client::IntoClientRequest},
};

use crate::support::{
    api::{Form, file_form},
    cluster,
    running_server::{Running, hearth},
};

const GUIDE: &str = "# Guide\n\nAcme is run by Jo Doe. The pump stands in the cellar.";

/// Two callers, and one who manages the server.
struct House {
    server: Running,
    a: Client,
    b: Client,
    admin: Client,
    _data: tempfile::TempDir,
}

#[derive(Clone)]
struct Client {
    url: String,
    key: String,
    http: reqwest::Client,
}

/// A key of its own, made with the command.
fn key(data: &Path, caller: &str, scopes: &str) -> String {
    let made = hearth()
        .env("HEARTH_DATA_DIR", data)
        .envs(cluster::environment(data))
        .args(["keys", "create", "--caller", caller, "--scopes", scopes])
        .output()
        .expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned()
}

impl House {
    async fn open() -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let all = "chat,embed,documents";
        let keys = [("a", all), ("b", all), ("admin", "chat,embed,documents,admin")]
            .map(|(caller, scopes)| key(data.path(), caller, scopes));
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean.gguf");
        let data_dir = Some(data.path().to_owned());
        let server = Running::start(Settings { embedding_model: Some(model), data_dir, ..Settings::default() }).await;
        let [a, b, admin] = keys.map(|key| Client { url: server.url.clone(), key, http: server.client.clone() });
        Self { server, a, b, admin, _data: data }
    }

    /// Both others are refused what is A's, in the words for what never was.
    async fn refused(&self, method: Method, path: &str, body: Option<Value>, id: &str) {
        let never = "never_was";
        for other in [&self.b, &self.admin] {
            let (status, refused) = other.send(method.clone(), path, body.clone()).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {refused}");
            let of_none = body.as_ref().map(|body| serde_json::from_str(&body.to_string().replace(id, never)).unwrap());
            let none = other.send(method.clone(), &path.replace(id, never), of_none).await;
            assert_eq!((status, refused.to_string().replace(id, never)), (none.0, none.1.to_string()), "{path}");
        }
    }

    /// [`Self::refused`] for what has no body.
    async fn hidden(&self, methods: &[Method], path: &str, id: &str) {
        for method in methods {
            self.refused(method.clone(), path, None, id).await;
        }
    }

    /// Nothing of A's is in what the others are shown.
    async fn unlisted(&self, path: &str, list: &str) {
        assert_ne!(self.a.get(path).await.1[list], json!([]), "{path}");
        for other in [&self.b, &self.admin] {
            let (status, shown) = other.get(path).await;
            assert_eq!((status, &shown[list]), (StatusCode::OK, &json!([])), "{path}: {shown}");
        }
    }
}

impl Client {
    async fn answer(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let answer = request.bearer_auth(&self.key).send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a text");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}{path}", self.url));
        self.answer(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    /// What must go well.
    async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert!(status.is_success(), "{path}: {answer}");
        answer
    }

    async fn form(&self, path: &str, form: Form) -> (StatusCode, Value) {
        self.answer(form.of(self.http.post(format!("{}{path}", self.url)))).await
    }

    async fn upload(&self, collection: &str, name: &str, text: &str) -> Value {
        let form = file_form(name, text.as_bytes()).text("collection", collection);
        let (status, document) = self.form("/api/v1/documents/upload", form).await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document
    }

    async fn file(&self, name: &str, text: &str) -> String {
        let form = file_form(name, text.as_bytes()).text("purpose", "assistants");
        let (status, file) = self.form("/v1/files", form).await;
        assert_eq!(status, StatusCode::OK, "{file}");
        id(&file, "id")
    }

    async fn until(&self, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..3000 {
            last = self.get(path).await.1;
            if is_so(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain at {path}: {last}");
    }

    /// The document is still there, whole and found.
    async fn still_has(&self, document: &str, collection: &str) {
        let path = format!("/api/v1/documents/{document}");
        self.until(&path, |document| document["status"] == "ready").await;
        let search = json!({"query": "Who runs Acme?", "collections": [collection], "min_similarity": 0, "wait": true});
        let found = self.ok("/api/v1/search", search).await;
        assert_eq!(found["passages"][0]["document_id"], json!(document), "{found}");
    }
}

fn id(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_else(|| panic!("it has no {key}: {object}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_another_are_not_there() {
    let house = House::open().await;
    let document = id(&house.a.upload("default", "guide.md", GUIDE).await, "document_id");
    house.a.still_has(&document, "default").await;
    let path = format!("/api/v1/documents/{document}");
    house.hidden(&[Method::GET, Method::DELETE], &path, &document).await;
    house.unlisted("/api/v1/documents", "documents").await;
    for path in ["/ask", "/ask/stream", "/api/v1/search", "/analysis", "/api/v1/chat", "/api/v1/chat/stream"] {
        let mut body = json!({"document_ids": [document]});
        let asked = match path {
            "/api/v1/search" => json!({"query": "Acme?"}),
            "/analysis" => json!({"company_name": "Acme", "question": "Who?"}),
            "/ask" | "/ask/stream" => json!({"question": "Acme?"}),
            _ => json!({"messages": [{"role": "user", "content": "Acme?"}]}),
        };
        body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
        house.refused(Method::POST, path, Some(body), &document).await;
    }
    // Each has a default collection of its own, in which the same bytes are a document of its own.
    let answer = house.b.ok("/ask", json!({"question": "Who runs Acme?", "min_similarity": 0})).await;
    assert_eq!(answer["sources"], json!([]), "{answer}");
    let theirs = id(&house.b.upload("default", "guide.md", GUIDE).await, "document_id");
    assert_ne!(theirs, document);
    house.b.still_has(&theirs, "default").await;
    let form = file_form("new.md", b"# New").text("replaces", &document);
    let (status, refused) = house.b.form("/api/v1/documents/upload", form).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");
    assert_eq!(house.b.send(Method::DELETE, &format!("/api/v1/documents/{theirs}"), None).await.0, StatusCode::OK);
    house.a.still_has(&document, "default").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_another_are_not_there() {
    let house = House::open().await;
    let document = id(&house.a.upload("notes", "guide.md", GUIDE).await, "document_id");
    let listed = house.a.get("/api/v1/collections").await.1;
    let collection = id(&listed["collections"][0], "id");
    for name in ["notes", &collection] {
        house.hidden(&[Method::DELETE], &format!("/api/v1/collections/{name}"), name).await;
        house.hidden(&[Method::GET], &format!("/api/v1/documents?collection={name}"), name).await;
        house.hidden(&[Method::POST], &format!("/api/v1/collections/{name}/reindex"), name).await;
        for (path, body) in [
            ("/ask", json!({"question": "Acme?", "collections": [name]})),
            ("/api/v1/search", json!({"query": "Acme?", "collections": [name]})),
            ("/api/v1/chat", json!({"messages": [{"role": "user", "content": "?"}], "collections": [name]})),
            ("/analysis", json!({"company_name": "Acme", "question": "Who?", "collections": [name]})),
        ] {
            house.refused(Method::POST, path, Some(body), name).await;
        }
    }
    house.unlisted("/api/v1/collections", "collections").await;
    // The name is free.
    house.b.upload("notes", "other.md", "# Other\n\nThe weather is fine.").await;
    let theirs = house.b.get("/api/v1/collections").await.1;
    assert_ne!(id(&theirs["collections"][0], "id"), collection);
    assert_eq!(house.b.send(Method::DELETE, "/api/v1/collections/notes", None).await.0, StatusCode::OK);
    house.a.still_has(&document, "notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_make_vectors_anew_are_told_to_their_owner_alone() {
    let house = House::open().await;
    let document = id(&house.a.upload("notes", "guide.md", GUIDE).await, "document_id");
    house.a.still_has(&document, "notes").await;
    let job = id(&house.a.ok("/api/v1/collections/notes/reindex", json!({})).await, "job_id");
    house.b.upload("notes", "other.md", "# Other").await;
    let path = format!("/api/v1/collections/notes/reindex/{job}");
    house.hidden(&[Method::GET], &path, &job).await;
    house.a.until(&path, |job| job["status"] == "done").await;
    house.hidden(&[Method::GET], &path, &job).await;
    house.a.still_has(&document, "notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_another_are_not_there() {
    let house = House::open().await;
    let file = house.a.file("guide.md", GUIDE).await;
    let path = format!("/v1/files/{file}");
    house.hidden(&[Method::GET, Method::DELETE], &path, &file).await;
    house.hidden(&[Method::GET], &format!("{path}/content"), &file).await;
    house.unlisted("/v1/files", "data").await;
    assert_eq!(house.a.get(&path).await.1["bytes"], json!(GUIDE.len()));
    assert_eq!(house.a.get(&format!("{path}/content")).await.1, json!(GUIDE));
}

#[tokio::test(flavor = "multi_thread")]
async fn vector_stores_of_another_are_not_there() {
    let house = House::open().await;
    let file = house.a.file("guide.md", GUIDE).await;
    let store = id(&house.a.ok("/v1/vector_stores", json!({"name": "mine"})).await, "id");
    let path = format!("/v1/vector_stores/{store}");
    let batch = id(&house.a.ok(&format!("{path}/file_batches"), json!({"file_ids": [file]})).await, "id");
    house.hidden(&[Method::GET, Method::DELETE], &path, &store).await;
    house.refused(Method::POST, &path, Some(json!({"name": "taken"})), &store).await;
    house.refused(Method::POST, &format!("{path}/search"), Some(json!({"query": "Acme?"})), &store).await;
    house.unlisted("/v1/vector_stores", "data").await;

    let files = format!("{path}/files");
    house.hidden(&[Method::GET], &files, &store).await;
    house.hidden(&[Method::GET, Method::DELETE], &format!("{files}/{file}"), &store).await;
    house.hidden(&[Method::GET], &format!("{files}/{file}/content"), &store).await;
    house.refused(Method::POST, &format!("{files}/{file}"), Some(json!({"attributes": {"a": 1}})), &store).await;
    let theirs = house.b.file("b.md", "# B").await;
    house.refused(Method::POST, &files, Some(json!({"file_id": theirs})), &store).await;
    let batches = format!("{path}/file_batches");
    house.refused(Method::POST, &batches, Some(json!({"file_ids": [theirs]})), &store).await;
    house.hidden(&[Method::GET], &format!("{batches}/{batch}"), &store).await;
    house.hidden(&[Method::GET], &format!("{batches}/{batch}/files"), &store).await;
    house.hidden(&[Method::POST], &format!("{batches}/{batch}/cancel"), &store).await;

    // Another's file in a vector store of one's own, and another's batch.
    house.refused(Method::POST, "/v1/vector_stores", Some(json!({"file_ids": [file]})), &file).await;
    for other in [&house.b, &house.admin] {
        let own = format!("/v1/vector_stores/{}", id(&other.ok("/v1/vector_stores", json!({})).await, "id"));
        let (status, refused) = other.post(&format!("{own}/files"), json!({"file_id": file})).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");
        let (status, refused) = other.post(&format!("{own}/file_batches"), json!({"file_ids": [file]})).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");
        assert_eq!(other.get(&format!("{own}/file_batches/{batch}")).await.0, StatusCode::NOT_FOUND);
        assert_eq!(other.get(&format!("{own}/files/{file}")).await.0, StatusCode::NOT_FOUND);
    }

    house.a.until(&format!("{batches}/{batch}"), |batch| batch["status"] == "completed").await;
    let found = house.a.ok(&format!("{path}/search"), json!({"query": "Who runs Acme?"})).await;
    assert_eq!((&found["data"][0]["file_id"], &found["data"][0]["attributes"]), (&json!(file), &json!({})), "{found}");
    assert_eq!(house.a.get(&path).await.1["name"], "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn analyses_of_another_are_not_there() {
    let house = House::open().await;
    let document = id(&house.a.upload("default", "guide.md", GUIDE).await, "document_id");
    let asked = json!({"company_name": "Acme", "question": "Who runs it?", "max_tokens": 8, "min_similarity": 0});
    let job = id(&house.a.ok("/analysis", asked).await, "job_id");
    let path = format!("/analysis/{job}");
    let follow = async |client: &Client| {
        let url = format!("{}{path}", client.url.replace("http://", "ws://"));
        let mut request = url.into_client_request().expect("an address");
        let bearer = format!("Bearer {}", client.key).parse().expect("a header");
        request.headers_mut().insert("authorization", bearer);
        connect_async(request).await
    };
    for ended in [false, true] {
        if ended {
            house.a.until(&path, |job| job["status"] == "done").await;
        }
        house.hidden(&[Method::GET, Method::DELETE], &path, &job).await;
        for other in [&house.b, &house.admin] {
            let refused = follow(other).await.expect_err("no WebSocket");
            assert!(matches!(refused, tungstenite::Error::Http(answer) if answer.status() == 404));
        }
        house.unlisted("/analysis", "jobs").await;
        follow(&house.a).await.expect("a WebSocket");
    }
    let done = house.a.get(&path).await.1;
    assert_eq!(done["result"]["sources"][0]["document_id"], json!(document), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_key_sees_anything() {
    let house = House::open().await;
    house.a.file("guide.md", GUIDE).await;
    for path in ["/v1/files", "/v1/vector_stores", "/api/v1/documents", "/api/v1/collections", "/analysis"] {
        let answer = house.server.client.get(format!("{}{path}", house.server.url)).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// How much of a prompt was cached is said in the answer, and would tell one caller what another has sent.
#[tokio::test]
async fn what_one_has_sent_is_not_in_the_prefix_cache_for_another() {
    let prompt = json!({"model": "tiny-chat", "max_tokens": 1, "messages": [
        {"role": "user", "content": "The diagnosis of patient 4711 is a broken arm, and the bill is 1200 crowns, to be paid by May."}
    ]});
    let house = House::open().await;
    let cached = async |client: &Client| {
        let answer = client.ok("/v1/chat/completions", prompt.clone()).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    assert_eq!(cached(&house.a).await, 0);
    assert!(cached(&house.a).await > 0, "one's own is found again");
    assert_eq!(cached(&house.b).await, 0);
    assert!(cached(&house.b).await > 0);
}
