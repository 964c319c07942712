//! `/analysis` through the public boundary: from the question to the summary, followed live and late, cancelled, told
//! of by webhook, and gone on with after the process was killed.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use futures_util::StreamExt;
use hearth::{config::Settings, service::webhook::WebhookSecret};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use crate::support::{
    running_server::{Running, Served, hearth, model},
    scripted_server::eventually,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn embedding_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean.gguf")
}

fn settings() -> Settings {
    Settings { embedding_model: Some(embedding_model()), ..Settings::default() }
}

fn signing(allow_private: bool) -> Settings {
    Settings { webhook_secret: Some(SECRET.to_owned()), webhook_allow_private: Some(allow_private), ..settings() }
}

/// Of a server, wherever it runs.
#[derive(Clone)]
struct Api {
    url: String,
    client: reqwest::Client,
}

impl Api {
    fn of(server: &Running) -> Self {
        Self { url: server.url.clone(), client: server.client.clone() }
    }

    async fn upload(&self, filename: &str, content: &str) {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\r\n{content}\r\n--b--\r\n"
        );
        let request = self.client.post(format!("{}/api/v1/documents/upload", self.url));
        let request = request.header("content-type", "multipart/form-data; boundary=b").body(body);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("a text"));
    }

    async fn post(&self, extra: Value) -> (StatusCode, Value) {
        let mut body = json!({
            "company_name": "Acme", "question": "Who runs it? What does it sell?", "max_tokens": 16,
            "min_similarity": 0,
        });
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let answer = self.client.post(format!("{}/analysis", self.url)).json(&body).send().await.expect("an answer");
        (answer.status(), answer.json().await.expect("JSON"))
    }

    /// A job that was taken on.
    async fn begin(&self, extra: Value) -> String {
        let (status, job) = self.post(extra).await;
        assert_eq!((status, &job["status"]), (StatusCode::ACCEPTED, &json!("queued")), "{job}");
        job["job_id"].as_str().expect("an id").to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}/analysis{path}", self.url)).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    async fn cancel(&self, id: &str) -> Value {
        let answer = self.client.delete(format!("{}/analysis/{id}", self.url)).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    async fn connect(&self, id: &str, origin: Option<&str>) -> Result<Follower, tungstenite::Error> {
        let url = format!("{}/analysis/{id}", self.url.replace("http://", "ws://"));
        let mut request = url.into_client_request().expect("an address");
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().expect("a header"));
        }
        Ok(Follower(connect_async(request).await?.0))
    }

    async fn follow(&self, id: &str) -> Follower {
        self.connect(id, None).await.expect("a WebSocket")
    }
}

struct Follower(tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>);

impl Follower {
    /// The next event, or how the connection was closed.
    async fn next(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            match self.0.next().await.expect("a close comes before the end").expect("the connection holds") {
                Message::Text(text) => return Ok(serde_json::from_str(&text).expect("an event is JSON")),
                Message::Close(frame) => return Err(frame),
                _ => {}
            }
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await.unwrap_or_else(|close| panic!("closed before `{kind}`: {close:?}"));
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// All events to the end of a job.
    async fn all(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(event) => events.push(event),
                Err(close) => {
                    assert_eq!(close.map(|frame| u16::from(frame.code)), Some(1000));
                    return events;
                }
            }
        }
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    // How long documents are read and how often a text is said is a matter of time.
    kinds.retain(|kind| *kind != "waiting_for_documents");
    kinds.dedup();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_becomes_a_summary_and_all_that_was_said_can_be_heard_late() {
    let server = Running::start(settings()).await;
    let api = Api::of(&server);
    api.upload("acme.md", "# Acme\n\nAcme is run by Jo Doe.\n\n# Products\n\nAcme sells pumps and valves.").await;
    api.upload("weather.md", "# Weather\n\nIt rains.").await;
    let id = api.begin(json!({"top_k": 3})).await;

    let live = api.follow(&id).await.all().await;
    assert_eq!(kinds(&live), ["started", "searching", "passages", "generating", "text", "done"], "{live:?}");
    let numbers: Vec<_> = live.iter().map(|event| event["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (0..live.len() as u64).collect::<Vec<_>>());
    let queries: Vec<_> = live.iter().filter_map(|event| event["query"].as_str()).collect();
    assert_eq!(queries[1..3], ["Acme Who runs it?", "Acme What does it sell?"]);

    let late = api.follow(&id).await.all().await;
    assert_eq!(late, live);
    let job = api.get(&format!("/{id}")).await;
    assert_eq!((&job["status"], &job["attempts"], &job["error"]), (&json!("done"), &json!(1), &Value::Null));
    assert_eq!(job["events"].as_array().expect("events"), &live[..live.len() - 1]);
    let result = &job["result"];
    assert_eq!(result, &live[live.len() - 1]["result"]);
    let said: String = live.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(result["summary"], said);
    let sources = result["sources"].as_array().expect("sources");
    assert!(!sources.is_empty() && sources.len() <= 3, "{sources:?}");
    for source in sources {
        assert!(
            source["title"].is_string() && source["content_preview"].is_string() && source["document_id"].is_string()
        );
        assert!((0.0..=1.0).contains(&source["similarity_score"].as_f64().expect("a number")));
    }
    assert!((0.0..=1.0).contains(&result["confidence"].as_f64().expect("a number")), "{result}");
    assert!(result["tokens_used"].as_u64() > Some(0) && result["model"] == "tiny", "{result}");

    let document = api.client.get(format!("{}/openapi.json", api.url)).send().await.expect("an answer");
    let document: Value = document.json().await.expect("JSON");
    let schema = json!({"$ref": "#/components/schemas/AnalysisJob", "components": document["components"]});
    let validator = jsonschema::validator_for(&schema).expect("the schema compiles");
    let problems: Vec<String> = validator.iter_errors(&job).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:?}");

    // Nothing is near enough: the fixed sentence, without a generation.
    let none = api.begin(json!({"min_similarity": 1, "collections": "default"})).await;
    let events = api.follow(&none).await.all().await;
    assert!(!kinds(&events).contains(&"generating"), "{events:?}");
    let result = &events[events.len() - 1]["result"];
    assert_eq!((&result["sources"], &result["confidence"]), (&json!([]), &json!(0.0)));
    let listed = api.get("?limit=1").await;
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(1));
    assert_eq!((&listed["jobs"][0]["job_id"], listed["jobs"][0].get("events")), (&json!(none), None));
    assert_eq!(api.get("").await["jobs"][1]["job_id"], json!(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_worked_at_is_refused() {
    let server = Running::start(settings()).await;
    let api = Api::of(&server);
    for (extra, status, param) in [
        (json!({"company_name": ""}), 400, "company_name"),
        (json!({"company_name": null}), 400, "company_name"),
        (json!({"company_name": "a".repeat(201)}), 400, "company_name"),
        (json!({"question": "a".repeat(2001)}), 400, "question"),
        (json!({"question": ["?"]}), 400, "question"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"model": "none"}), 404, "model"),
        (json!({"webhook_url": "https://example.com/hook"}), 400, "webhook_url"),
    ] {
        let (found, body) = api.post(extra.clone()).await;
        assert_eq!((found.as_u16(), &body["error"]["param"]), (status, &json!(param)), "{extra}: {body}");
    }
    let (status, body) = api.post(json!({"collections": ["nowhere"]})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("not_found")), "{body}");
    for id in ["job_none", "..%2f", "%00"] {
        let path = format!("/{id}");
        assert_eq!(api.get(&path).await["error"]["code"], "not_found", "{id}");
        assert_eq!(api.cancel(id).await["error"]["code"], "not_found", "{id}");
        let refused = api.connect(id, None).await.err().expect("no WebSocket");
        assert!(matches!(refused, tungstenite::Error::Http(answer) if answer.status() == 404), "{id}");
    }
    for limit in ["0", "101", "x"] {
        assert_eq!(api.get(&format!("?limit={limit}")).await["error"]["param"], "limit");
    }
    // A document's job is none of this route's.
    let without = Running::start(Settings::default()).await;
    let (status, body) = Api::of(&without).post(json!({})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("no_embedding_model")), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_go_to_public_addresses_and_from_a_server_that_signs_and_may_connect() {
    let url = |url: &str| json!({"webhook_url": url});
    let server = Running::start(signing(false)).await;
    let api = Api::of(&server);
    for private in [
        "http://127.0.0.1:9/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/",
        "http://localhost/",
    ] {
        let (status, body) = api.post(url(private)).await;
        assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!("webhook_url")), "{private}");
        assert!(body["error"]["message"].as_str().is_some_and(|said| said.contains("--webhook-allow-private")));
    }
    for wrong in ["ftp://example.com/", "https://me@example.com/", "example.com", ""] {
        assert_eq!(api.post(url(wrong)).await.0, 400, "{wrong}");
    }
    let offline = Running::start(Settings { offline: Some(true), ..signing(true) }).await;
    let (status, body) = Api::of(&offline).post(url("https://example.com/")).await;
    assert_eq!(status, 400);
    assert!(body["error"]["message"].as_str().is_some_and(|said| said.contains("--offline")), "{body}");
}

/// What a receiver of webhooks got, and its answers.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(HeaderMap, String)>>>);

impl Receiver {
    /// Answers 500 to the first message, and is content with the rest.
    async fn start() -> (Self, String) {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook?key=1", listener.local_addr().expect("an address"));
        let got = receiver.0.clone();
        let hook = async move |headers: HeaderMap, body: String| {
            let mut got = got.lock();
            got.push((headers, body));
            if got.len() == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(hook))).await });
        (receiver, url)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_signed_and_sent_again_until_it_is_taken() {
    let server = Running::start(signing(true)).await;
    let api = Api::of(&server);
    api.upload("acme.md", "# Acme\n\nAcme is run by Jo Doe.").await;
    let (receiver, url) = Receiver::start().await;
    let id = api.begin(json!({"webhook_url": url})).await;
    eventually("the message was sent again", || receiver.0.lock().len() == 2).await;
    let got = receiver.0.lock().clone();
    let secret: WebhookSecret = SECRET.parse().expect("a secret");
    let text = |headers: &HeaderMap, name: &str| headers[name].to_str().expect("text").to_owned();
    for (headers, body) in &got {
        let timestamp: i64 = text(headers, "webhook-timestamp").parse().expect("seconds");
        let signature = secret.sign(&text(headers, "webhook-id"), timestamp, body);
        assert_eq!(text(headers, "webhook-signature"), signature);
        assert_eq!(text(headers, "content-type"), "application/json");
    }
    assert_eq!(got[0].0["webhook-id"], got[1].0["webhook-id"]);
    assert_eq!(got[0].1, got[1].1);
    let message: Value = serde_json::from_str(&got[1].1).expect("JSON");
    assert_eq!(message["type"], "analysis.completed");
    assert!(message["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{message}");
    assert_eq!(message["data"], api.get(&format!("/{id}")).await);

    let late = api.begin(json!({"webhook_url": url, "timeout": 0.001})).await;
    let events = api.follow(&late).await.all().await;
    assert!(kinds(&events).ends_with(&["attempt_failed", "failed"]), "{events:?}");
    eventually("the failure was told", || receiver.0.lock().len() == 3).await;
    let message: Value = serde_json::from_str(&receiver.0.lock()[2].1).expect("JSON");
    assert_eq!((&message["type"], &message["data"]["status"]), (&json!("analysis.failed"), &json!("failed")));
    assert!(message["data"]["error"].as_str().is_some_and(|said| said.contains("deadline")), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_says_nothing_of_what_is_to_stay_on_this_machine() {
    let server = Running::start(signing(true)).await;
    let api = Api::of(&server);
    let stores = format!("{}/v1/vector_stores", api.url);
    let made =
        api.client.post(stores).json(&json!({"name": "secret", "metadata": {"local_only": "true"}})).send().await;
    assert_eq!(made.expect("an answer").status(), 200);
    let (receiver, url) = Receiver::start().await;
    let id = api.begin(json!({"webhook_url": url, "collections": ["secret"]})).await;
    eventually("the message was sent again", || receiver.0.lock().len() == 2).await;
    let body = receiver.0.lock()[1].1.clone();
    let message: Value = serde_json::from_str(&body).expect("JSON");
    let job = api.get(&format!("/{id}")).await;
    let at = |key: &str| job[key].clone();
    let data = json!({
        "job_id": id, "status": "done", "created_at": at("created_at"), "updated_at": at("updated_at"), "local_only": true
    });
    assert_eq!((&message["type"], &message["data"]), (&json!("analysis.completed"), &data));
    assert!(!body.contains("Acme") && job["question"] == "Who runs it? What does it sell?", "{body}");
}

/// A reader of documents that goes on for as long as a file is there.
#[cfg(unix)]
struct SlowReader(tempfile::TempDir);

#[cfg(unix)]
impl SlowReader {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().expect("a temporary directory");
        let (flag, program) = (dir.path().join("flag"), dir.path().join("reader"));
        std::fs::write(&flag, "").expect("a file");
        std::fs::write(&program, format!("#!/bin/sh\nwhile [ -e '{}' ]; do sleep 0.05; done\n", flag.display()))
            .expect("a file");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("our own file");
        Self(dir)
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("reader")
    }
}

#[cfg(all(unix, feature = "pdf"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_and_told_of_and_a_follower_hears_that_the_server_stops() {
    let reader = SlowReader::new();
    let mut server =
        Running::start_with(signing(true), |config| config.documents.reader = Some(reader.program())).await;
    let api = Api::of(&server);
    let (receiver, url) = Receiver::start().await;
    // It is never read, so that an analysis waits.
    api.upload("slow.pdf", "%PDF-1.4\nslow").await;
    let id = api.begin(json!({"webhook_url": url})).await;
    let mut follower = api.follow(&id).await;
    assert_eq!(follower.until("waiting_for_documents").await["number"], 1);
    assert_eq!(api.get(&format!("/{id}")).await["status"], "running");
    let other_page = api.connect(&id, Some("https://elsewhere.example")).await.err().expect("no WebSocket");
    assert!(matches!(other_page, tungstenite::Error::Http(answer) if answer.status() == 403));
    assert!(api.connect(&id, Some(&server.url)).await.is_ok(), "a page of the server's own");

    let cancelled = api.cancel(&id).await;
    assert_eq!((&cancelled["status"], &cancelled["result"]), (&json!("cancelled"), &Value::Null));
    assert_eq!(follower.all().await, [json!({"number": 2, "type": "cancelled"})]);
    assert_eq!(api.cancel(&id).await, cancelled, "what has ended stays as it is");
    eventually("the message was sent", || !receiver.0.lock().is_empty()).await;
    let message: Value = serde_json::from_str(&receiver.0.lock()[0].1).expect("JSON");
    assert_eq!((&message["type"], &message["data"]["status"]), (&json!("analysis.cancelled"), &json!("cancelled")));

    let id = api.begin(json!({})).await;
    let mut follower = api.follow(&id).await;
    follower.until("waiting_for_documents").await;
    server.stop();
    let closed = follower.next().await.expect_err("nothing more is said");
    assert_eq!(closed.map(|frame| u16::from(frame.code)), Some(1001));
    drop(reader);
}

/// `hearth serve` in a process of its own, and its address, once it is ready.
async fn serve(data: &Path) -> (Served, Api) {
    let mut child = hearth()
        .args(["serve", "--port", "0", "--offline", "--models-dir", "no-models", "-a", "tiny", "--ctx-size", "1024"])
        .args(["--log", "error", "--embedding-model"])
        .arg(embedding_model())
        .arg("-m")
        .arg(model())
        .env("HEARTH_DATA_DIR", data)
        .spawn()
        .expect("the binary starts");
    let stdout = child.stdout.take().expect("a pipe");
    let served = Served(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address").to_owned();
    let api = Api { url, client: reqwest::Client::new() };
    for _ in 0..4000 {
        let ready = api.client.get(format!("{}/health/ready", api.url)).send().await;
        if ready.is_ok_and(|answer| answer.status() == 200) {
            return (served, api);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the server does not come up");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_what_they_said_survive_kill_9() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (mut served, api) = serve(data.path()).await;
    api.upload("acme.md", "# Acme\n\nAcme is run by Jo Doe.").await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(api.begin(json!({"max_tokens": 500})).await);
    }
    api.follow(&ids[0]).await.until("searching").await;
    let before = api.get(&format!("/{}", ids[0])).await["events"].clone();
    let before = before.as_array().expect("events");
    // On Unix, this is SIGKILL.
    served.0.kill().expect("it runs");
    served.0.wait().expect("it ends");

    let (_served, api) = serve(data.path()).await;
    for id in &ids {
        let events = api.follow(id).await.all().await;
        assert_eq!(events[events.len() - 1]["type"], "done", "{events:?}");
        let numbers: Vec<_> = events.iter().filter_map(|event| event["number"].as_u64()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        if *id == ids[0] {
            assert_eq!(&events[..before.len()], before);
        }
        let starts = events.iter().filter(|event| event["type"] == "started").count();
        // An attempt may be cut off before its first word.
        assert!(api.get(&format!("/{id}")).await["attempts"].as_u64() >= Some(starts as u64));
    }
}
