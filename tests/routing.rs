//! Which side serves, as callers of the HTTP routes see it.

use std::{
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use hearth::{
    config::Settings,
    providers::{
        ChatModel,
        fallback::{Candidate, FallbackChat, LocalSlot, Policies},
        scripted::ScriptedChat,
    },
    service::health::ServerStatus,
};
use hearth_domain::RoutingPolicy;
use serde_json::{Value, json};

use crate::support::{
    running_server::Running,
    scripted_server::{Answer, ScriptedServer},
};

/// A server whose model `both` is served here and elsewhere.
struct Routed {
    server: ScriptedServer,
    hosted: Arc<ScriptedChat>,
    place: Arc<LocalSlot<dyn ChatModel>>,
}

fn routed() -> Routed {
    let server = ScriptedServer::hello();
    let hosted = Arc::new(ScriptedChat::saying("big", "From afar."));
    let place = LocalSlot::loading();
    let candidates = vec![
        Candidate::Local(place.clone()),
        Candidate::Hosted { name: "up/big".to_owned(), model: hosted.clone() as Arc<dyn ChatModel> },
    ];
    server
        .models
        .add_hosted_chat(Arc::new(FallbackChat::new("both", candidates, Policies::default())), vec!["auto".to_owned()]);
    Routed { server, hosted, place }
}

impl Routed {
    async fn ask(&self, model: &str, policy: Option<&str>) -> Answer {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        let mut request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        if let Some(policy) = policy {
            request = request.header("x-hearth-policy", policy);
        }
        self.server.send(request.body(Body::from(body.to_string())).expect("a valid request")).await
    }

    fn local_is_loaded(&self) {
        self.place.take(Arc::new(ScriptedChat::saying("file", "From here.")), || None);
    }
}

fn said(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn the_header_decides_for_one_request() {
    let routed = routed();
    routed.local_is_loaded();
    for (policy, expected) in [
        (None, "From here."),
        (Some("local-first"), "From here."),
        (Some("local-only"), "From here."),
        (Some(" hosted-first "), "From afar."),
        (Some("hosted-only"), "From afar."),
    ] {
        assert_eq!(said(&routed.ask("both", policy).await), expected, "{policy:?}");
    }
}

#[tokio::test]
async fn a_policy_that_is_none_is_refused_with_those_that_are() {
    let routed = routed();
    for wrong in ["", "cloud", "LOCAL-ONLY", "local-only, hosted-only", "ü"] {
        let answer = routed.ask("both", Some(wrong)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong:?}: {}", answer.text());
        let error = answer.error();
        assert_eq!((&error["param"], &error["code"]), (&json!("x-hearth-policy"), &json!("invalid_value")));
        let message = error["message"].as_str().expect("a message");
        assert!(RoutingPolicy::ALL.iter().all(|policy| message.contains(policy.as_str())), "{message}");
    }
    assert_eq!(routed.hosted.started(), 0);
}

#[tokio::test]
async fn what_an_upstream_may_serve_is_served_while_the_local_model_loads_and_after_it_failed() {
    let routed = routed();
    for status in [ServerStatus::Loading, ServerStatus::Failed("no room".to_owned())] {
        *routed.server.health.status.lock() = status;
        assert_eq!(said(&routed.ask("both", None).await), "From afar.");
        assert_eq!(said(&routed.ask("auto", Some("hosted-only")).await), "From afar.");
        let stays = routed.ask("both", Some("local-only")).await;
        assert_eq!((stays.status, &stays.error()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("model_loading")));
        assert_eq!(routed.ask("tiny", None).await.status, StatusCode::SERVICE_UNAVAILABLE, "it is local only");
        assert_eq!(routed.server.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    *routed.server.health.status.lock() = ServerStatus::Draining;
    assert_eq!(routed.ask("both", None).await.error()["code"], "draining");
    assert_eq!(routed.hosted.started(), 4);
}

#[tokio::test]
async fn an_answer_has_the_name_that_was_asked_for_and_its_place_in_the_list() {
    let routed = routed();
    let far = routed.ask("both", None).await.json();
    routed.local_is_loaded();
    let near = routed.ask("auto", None).await.json();
    assert_eq!((&far["model"], &near["model"]), (&json!("both"), &json!("both")));
    let models = routed.server.get("/v1/models").await.json();
    let ids: Vec<_> = models["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("both")), "{ids:?}");
}

/// An upstream that counts who connects, and hangs up.
fn counting_upstream() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    (url, connections)
}

/// A local chat model `tiny` and a local embedding model, each with an upstream beside it, and names that only the
/// upstream has.
fn with_upstream(url: &str, more: &str) -> Settings {
    let text = format!(
        "{more}\n[[upstream]]\nname = \"up\"\nbase_url = {url:?}\nmax_retries = 0\n[upstream.models]\n\
         tiny = \"big\"\nfar = \"big\"\nvectors = {{ model = \"e\", kind = \"embedding\", dimensions = 384 }}\n\
         [[route]]\nname = \"embed\"\ntargets = [\"local\", \"up/vectors\"]\n"
    );
    let settings: Settings = toml::from_str(&text).expect("settings");
    let embedding_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf");
    Settings { embedding_model: Some(embedding_model), ..settings }
}

async fn post(server: &Running, path: &str, policy: &str, body: Value) -> (StatusCode, Value) {
    let request = server.client.post(format!("{}{path}", server.url)).header("x-hearth-policy", policy).json(&body);
    let answer = request.send().await.expect("an answer");
    (StatusCode::from_u16(answer.status().as_u16()).expect("a status"), answer.json().await.expect("JSON"))
}

/// Every way to a model; each answers or refuses, and none may reach the upstream.
async fn everything(server: &Running, policy: &str) {
    let messages = |text: &str| json!([{"role": "user", "content": text}]);
    let long = "word ".repeat(3000);
    for (path, body, expected) in [
        ("/v1/chat/completions", json!({"model": "tiny", "messages": messages("Hi"), "max_tokens": 3}), 200),
        ("/v1/chat/completions", json!({"model": "tiny", "messages": messages(&long)}), 400),
        ("/v1/completions", json!({"model": "tiny", "prompt": "Hi", "max_tokens": 3}), 200),
        ("/v1/embeddings", json!({"model": "embed", "input": "Hi"}), 200),
        ("/v1/embeddings", json!({"model": "embed", "input": long}), 400),
        ("/v1/rerank", json!({"model": "tiny", "query": "a", "documents": ["b"]}), 400),
        ("/v1/quote", json!({"model": "tiny", "messages": messages("Hi")}), 200),
        ("/generate", json!({"prompt": "Hi", "model": "tiny"}), 200),
    ] {
        let (status, answer) = post(server, path, policy, body).await;
        assert_eq!(status.as_u16(), expected, "{path}: {answer}");
    }
}

#[tokio::test]
async fn what_is_to_stay_on_this_machine_reaches_no_upstream() {
    let (url, connections) = counting_upstream();
    let server = Running::start(with_upstream(&url, "")).await;
    everything(&server, "local-only").await;
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "far", "messages": [{"role": "user", "content": "Hi"}]})),
        ("/v1/embeddings", json!({"model": "vectors", "input": "Hi"})),
    ] {
        let (status, answer) = post(&server, path, "local-only", body).await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::FORBIDDEN, &json!("local_only")), "{answer}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3});
    let (status, answer) = post(&server, "/v1/chat/completions", "hosted-only", body.clone()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{answer}");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "the upstream is there, and would have been asked");
    let (status, answer) = post(&server, "/v1/chat/completions", "hosted-first", body).await;
    assert_eq!((status, connections.load(Ordering::SeqCst)), (StatusCode::OK, 2), "{answer}");
}

#[tokio::test]
async fn a_server_that_is_local_only_asks_nobody_whatever_a_request_says() {
    let (url, connections) = counting_upstream();
    let server = Running::start(with_upstream(&url, "policy = \"local-only\"")).await;
    for policy in RoutingPolicy::ALL {
        everything(&server, policy.as_str()).await;
    }
    let body = json!({"model": "far", "messages": [{"role": "user", "content": "Hi"}]});
    let (status, _) = post(&server, "/v1/chat/completions", "hosted-only", body).await;
    assert_eq!((status, connections.load(Ordering::SeqCst)), (StatusCode::NOT_FOUND, 0));
}

#[tokio::test]
async fn a_server_whose_local_model_cannot_be_loaded_serves_what_its_upstream_has_and_says_so() {
    let upstream = ScriptedServer::hello();
    let mut upstream = upstream.listen();
    let data = tempfile::tempdir().expect("a temporary directory");
    let broken = data.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF, or so it says").expect("a writable directory");
    let settings: Settings = toml::from_str(&format!(
        "[[upstream]]\nname = \"up\"\nbase_url = \"http://{}/v1\"\nmodels = {{ far = \"tiny\" }}\n",
        upstream.address
    ))
    .expect("settings");
    let settings = Settings { model: Some(broken), alias: Some(vec!["near".to_owned()]), ..settings };
    let server = Running::launch(settings, |_| {});
    let health = server.until("loading has failed", |health| health["status"] == "failed").await;
    let told = health["reason"].as_str().expect("a reason");
    assert!(
        told.contains("log") && !told.contains("broken") && !told.contains('/'),
        "a stranger learns no path: {told}"
    );
    for model in ["far", "near", "broken"] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        let (status, answer) = post(&server, "/v1/chat/completions", "local-first", body.clone()).await;
        assert_eq!(
            (status, &answer["choices"][0]["message"]["content"]),
            (StatusCode::OK, &json!("Hello!")),
            "{answer}"
        );
        let (status, answer) = post(&server, "/v1/chat/completions", "local-only", body).await;
        assert!(status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    }
    let ready = server.client.get(format!("{}/health/ready", server.url)).send().await.expect("an answer");
    assert_eq!(ready.status().as_u16(), 503);
    upstream.stop();
}
