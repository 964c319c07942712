//! An upstream of several engines: which one is asked, what happens when one fails, and what the receipt says.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hearth::{
    config::Settings,
    providers::{
        ChatModel, Embedder,
        hosted::{
            Affinity, EngineSettings, HostedChat, HostedEmbedder, HostedKind, HostedModel, Retries, Upstream,
            UpstreamSettings,
        },
        local_embedder::EmbedderSettings,
        local_reranker::LocalReranker,
        scripted::ScriptedChat,
    },
    service::health::ServerStatus,
};
use hearth_domain::{
    Account, ChatPrompt, EmbedInput, EmbedInputType, EmbedRequest, GenerateRequest, Prompt,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind},
    usage::Receipt,
};
use hearth_kernels::device::DeviceChoice;
use serde_json::{Value, json};

use crate::support::{
    api::Api,
    running_server::{Running, hearth},
    scripted_server::{ListeningServer, ScriptedServer},
    scripted_upstream::{Act, ScriptedUpstream, answer, error, good, packets, settings, word},
};

/// An address where no server listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

fn at(engine: &ScriptedUpstream) -> String {
    format!("http://{}/v1", engine.address)
}

/// An upstream whose engines are named `0`, `1`, and so on.
fn pool(addresses: &[String], affinity: Affinity) -> UpstreamSettings {
    let engines = addresses.iter().enumerate().map(|(number, address)| EngineSettings {
        name: number.to_string(),
        ..EngineSettings::at(address.parse().unwrap())
    });
    UpstreamSettings { engines: engines.collect(), affinity, ..settings(&addresses[0]) }
}

fn chat(settings: UpstreamSettings) -> HostedChat {
    let upstream = Upstream::new(settings).unwrap();
    HostedChat::new(upstream, "theirs".to_owned(), HostedModel::chat("theirs").info("served"))
}

fn request(session: Option<&str>) -> GenerateRequest {
    let messages = vec![json!({"role": "user", "content": "Say hello."})];
    let prompt = ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() };
    GenerateRequest {
        session: session.map(ToOwned::to_owned),
        ..GenerateRequest::new(Account::unrecorded(), Prompt::Chat(prompt))
    }
}

async fn ask(model: &HostedChat, request: GenerateRequest) -> Result<Receipt, Error> {
    let account = request.account.clone();
    let mut events = model.generate(request).await?;
    while let Some(event) = events.next().await {
        event?;
    }
    Ok(account.receipt())
}

#[tokio::test]
async fn what_one_engine_fails_at_another_does_at_once() {
    let an_hour = [("retry-after", "3600")];
    // Fails before the first event, each in another way.
    let failures = [
        error("500 Oh", &[], "oh"),
        error("503 Busy", &an_hour, "busy"),
        error("429 Busy", &an_hour, "busy"),
        error("401 No", &[], "whose key?"),
        answer("404 No", &[], &json!({})),
        packets(&["data: {\"choices\": []}\n\n"]),
        packets(&["data: <html>\n\n"]),
    ];
    for failure in failures {
        let (ill, well) =
            (ScriptedUpstream::start(vec![failure]).await, ScriptedUpstream::start(vec![good(), good()]).await);
        let began = Instant::now();
        // Whichever is asked first.
        let model = chat(pool(&[at(&ill), at(&well)], Affinity::None));
        for _ in 0..2 {
            let receipt = ask(&model, request(None)).await.unwrap();
            assert_eq!(receipt.engine(), Some("1"), "{receipt:?}");
            assert_eq!(receipt.models.len(), 1, "two attempts are one model's work");
            if receipt.attempts == 2 {
                break;
            }
        }
        assert!(well.requests().len() + ill.requests().len() <= 3, "each is asked once, or the well one twice");
        assert!(began.elapsed() < Duration::from_secs(60), "no request waits for the hour");
    }
}

#[tokio::test]
async fn an_engine_that_cannot_be_reached_costs_no_attempt() {
    let well = ScriptedUpstream::start(vec![good()]).await;
    let addresses = [nowhere(), nowhere(), nowhere(), nowhere(), at(&well)];
    let mut settings = pool(&addresses, Affinity::Prefix);
    settings.retries = Retries { max: 0, ..settings.retries };
    let receipt = ask(&chat(settings), request(None)).await.unwrap();
    assert_eq!(receipt.engine(), Some("4"));
    let all_gone = &addresses[..3];
    let mut settings = pool(all_gone, Affinity::Prefix);
    settings.retries = Retries { max: 0, ..settings.retries };
    let asked = request(None);
    let account = asked.account.clone();
    let refused = ask(&chat(settings), asked).await.unwrap_err();
    assert_eq!((refused.kind(), account.receipt().attempts), (ErrorKind::UpstreamFailed, 3));
}

#[tokio::test]
async fn a_request_that_breaks_engines_does_not_break_all_of_them() {
    let mut engines = Vec::new();
    for _ in 0..5 {
        engines.push(ScriptedUpstream::start(vec![error("500 Oh", &[], "oh"); 3]).await);
    }
    let addresses: Vec<String> = engines.iter().map(at).collect();
    let mut settings = pool(&addresses, Affinity::None);
    settings.retries = Retries { max: 1, ..settings.retries };
    let refused = ask(&chat(settings), request(None)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::UpstreamFailed);
    assert_eq!(engines.iter().map(|engine| engine.requests().len()).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_callers_mistake_is_one_everywhere() {
    let engines = [
        ScriptedUpstream::start(vec![error("400 Bad", &[], "no such role")]).await,
        ScriptedUpstream::start(vec![error("400 Bad", &[], "no such role")]).await,
    ];
    let refused =
        ask(&chat(pool(&[at(&engines[0]), at(&engines[1])], Affinity::Prefix)), request(None)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidRequest);
    assert_eq!(engines.iter().map(|engine| engine.requests().len()).sum::<usize>(), 1);
}

#[tokio::test]
async fn a_conversation_stays_with_its_engine_and_others_share_them() {
    let engines = [ScriptedUpstream::start(vec![good(); 80]).await, ScriptedUpstream::start(vec![good(); 80]).await];
    let model = chat(pool(&[at(&engines[0]), at(&engines[1])], Affinity::Prefix));
    let mut used = std::collections::BTreeSet::new();
    for conversation in 0..20 {
        let name = format!("conversation {conversation}");
        let first = ask(&model, request(Some(&name))).await.unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&model, request(Some(&name))).await.unwrap().engine(), first.engine());
        }
        used.extend(first.engine().map(ToOwned::to_owned));
    }
    assert_eq!(used.len(), 2, "{used:?}");
    // The same prompts without names begin alike.
    let first = ask(&model, request(None)).await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&model, request(None)).await.unwrap().engine(), first.engine());
    }
}

#[tokio::test]
async fn a_busy_engine_is_passed_over() {
    let mut unending = packets(&[&word("Hel")]);
    unending.push(Act::Stall);
    let scripts = || vec![unending.clone(); 4];
    let engines = [ScriptedUpstream::start(scripts()).await, ScriptedUpstream::start(scripts()).await];
    let model = chat(pool(&[at(&engines[0]), at(&engines[1])], Affinity::Session));
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = model.generate(request(Some("one conversation"))).await.unwrap();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let mut loads = engines.each_ref().map(|engine| engine.requests().len());
    loads.sort_unstable();
    assert_eq!(loads, [1, 3], "three of four are more than the share of one in two, and one more");
}

#[tokio::test]
async fn an_engine_with_another_embedding_model_is_not_used() {
    let answer_of = |vector: Value| {
        let body = json!({"data": [{"index": 0, "embedding": vector}], "usage": {"prompt_tokens": 3}});
        answer("200 OK", &[], &body)
    };
    let (ours, others) = (json!([0.6, 0.8]), json!([0.8, 0.6]));
    let engines = [
        ScriptedUpstream::start(vec![answer_of(ours); 80]).await,
        ScriptedUpstream::start(vec![answer_of(others); 80]).await,
    ];
    let upstream = Upstream::new(pool(&[at(&engines[0]), at(&engines[1])], Affinity::None)).unwrap();
    let model = HostedModel { kind: HostedKind::Embedding, dimensions: Some(2), ..HostedModel::chat("e") };
    let identity = EmbeddingIdentity { name: "e".to_owned(), dimensions: 2 };
    let embedder = HostedEmbedder::new(upstream, "e".to_owned(), model.info("served"), identity);
    let mut vectors = Vec::new();
    for _ in 0..30 {
        let request = EmbedRequest {
            account: Account::unrecorded(),
            inputs: vec![EmbedInput::Text("a".to_owned())],
            input_type: EmbedInputType::Plain,
            dimensions: None,
            truncate: false,
            deadline: None,
        };
        let account = request.account.clone();
        vectors.extend(embedder.embed(request).await.unwrap().embeddings);
        assert_eq!(account.receipt().prompt_tokens(), 3, "the comparison is not charged to the caller");
    }
    assert!(vectors.windows(2).all(|pair| pair[0] == pair[1]), "{vectors:?}");
    let asked = engines.each_ref().map(|engine| engine.requests().len());
    assert!(asked.iter().all(|&count| count > 0) && asked.iter().sum::<usize>() > 31, "both were asked: {asked:?}");
}

/// Two servers, which say who they are, and one before them that has no model of its own.
struct Cluster {
    engines: [(ScriptedServer, ListeningServer); 2],
    front: Running,
}

impl Cluster {
    async fn start() -> Self {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank/bert");
        let engine = |says| {
            let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", says));
            let cpu = EmbedderSettings { name: "cross".to_owned(), device: DeviceChoice::Cpu, ..Default::default() };
            server.models.add_reranker(Arc::new(LocalReranker::load(&fixture, cpu).expect("it loads")), Vec::new());
            let listening = server.listen();
            (server, listening)
        };
        let engines = [engine("I am a."), engine("I am b.")];
        let [a, b] = engines.each_ref().map(|(_, listening)| listening.address);
        let settings: Settings = toml::from_str(&format!(
            "policy = \"hosted-only\"\n[[upstream]]\nname = \"pool\"\nkind = \"hearth\"\nhealth_interval = 0.01\n\
             breaker_failures = 1000\n\
             affinity = \"session\"\n\
             engines = [{{ base_url = \"http://{a}/v1\", name = \"a\" }}, {{ base_url = \"http://{b}/v1\", name = \"b\" }}]\n\
             [upstream.models]\nfar = \"tiny\"\n\
             vectors = {{ model = \"embed\", kind = \"embedding\", dimensions = 8 }}\n\
             relevance = {{ model = \"cross\", kind = \"rerank\" }}\n"
        ))
        .expect("settings");
        Self { engines, front: Running::start(settings).await }
    }

    async fn post(&self, path: &str, session: &str, body: &Value) -> reqwest::Response {
        let request = self.front.client.post(format!("{}{path}", self.front.url)).json(body);
        request.header("x-hearth-session", session).send().await.expect("an answer")
    }

    /// The engine that serves a conversation.
    async fn engine_of(&self, session: &str) -> String {
        let body = json!({"model": "far", "messages": [{"role": "user", "content": "Who are you?"}]});
        let answer = self.post("/v1/chat/completions", session, &body).await;
        let header = |answer: &reqwest::Response, name: &str| {
            answer.headers().get(name).map(|value| value.to_str().expect("a word").to_owned())
        };
        let (served_by, engine) = (header(&answer, "x-hearth-served-by"), header(&answer, "x-hearth-engine"));
        let body: Value = answer.json().await.expect("JSON");
        let engine = engine.unwrap_or_else(|| panic!("no engine served: {body}"));
        assert_eq!(body["choices"][0]["message"]["content"], format!("I am {engine}."));
        assert_eq!((&body["receipt"]["engine"], &body["receipt"]["served_by"]), (&json!(engine), &json!("pool")));
        assert_eq!(served_by.as_deref(), Some("pool"));
        engine
    }

    /// Waits until a conversation is served by this engine.
    async fn comes_to(&self, session: &str, engine: &str) {
        for _ in 0..2000 {
            if self.engine_of(session).await == engine {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{session} never comes to {engine}");
    }
}

#[tokio::test]
async fn a_server_before_others_keeps_conversations_together_and_lets_an_engine_go() {
    let mut cluster = Cluster::start().await;
    let home = cluster.engine_of("s").await;
    for _ in 0..3 {
        assert_eq!(cluster.engine_of("s").await, home);
    }
    let (index, other) = if home == "a" { (0, "b") } else { (1, "a") };
    // It says that it is about to stop: what is new goes elsewhere, and comes back when it is there again.
    *cluster.engines[index].0.health.status.lock() = ServerStatus::Draining;
    cluster.comes_to("s", other).await;
    *cluster.engines[index].0.health.status.lock() = ServerStatus::Ready;
    cluster.comes_to("s", &home).await;
    cluster.engines[index].1.stop();
    cluster.comes_to("s", other).await;
}

#[tokio::test]
async fn vectors_come_from_any_engine() {
    let cluster = Cluster::start().await;
    let mut used = std::collections::BTreeSet::new();
    for number in 0..40 {
        let body = json!({"model": "vectors", "input": format!("text {number}")});
        let answer = cluster.post("/v1/embeddings", "s", &body).await;
        assert_eq!(answer.status().as_u16(), 200);
        used.insert(answer.headers()["x-hearth-engine"].to_str().unwrap().to_owned());
    }
    assert_eq!(used.len(), 2, "{used:?}");
}

#[tokio::test]
async fn relevances_come_from_any_engine_and_not_from_one_if_they_must_stay_here() {
    let cluster = Cluster::start().await;
    let body = |model: &str| json!({"model": model, "query": "a cat", "documents": ["a cat sat", "rain", "a dog"]});
    let near = cluster.engines[0].0.post("/v1/rerank", body("cross")).await.json();
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = cluster.post("/v1/rerank", "s", &body("relevance")).await;
        used.insert(answer.headers()["x-hearth-engine"].to_str().unwrap().to_owned());
        let far: Value = answer.json().await.unwrap();
        assert_eq!(
            (&far["results"], &far["model"], &far["usage"]),
            (&near["results"], &json!("relevance"), &near["usage"])
        );
    }
    assert_eq!(used.len(), 2, "{used:?}");
    let request = cluster.front.client.post(format!("{}/v1/rerank", cluster.front.url)).json(&body("relevance"));
    let refused = request.header("x-hearth-policy", "local-only").send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 403);
}

/// A server with the embedding model that is committed, and a tiny chat model.
async fn with_embedder(more: &str) -> Running {
    let settings: Settings = toml::from_str(more).expect("settings");
    let embedding_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf");
    Running::start(Settings { embedding_model: Some(embedding_model), ..settings }).await
}

/// The prompts' tokens in a server's ledger.
async fn tokens(server: &Running) -> u64 {
    Api(server).get("/metrics").await.1["total_input_tokens"].as_u64().expect("a count")
}

#[tokio::test]
async fn documents_are_embedded_by_other_servers_unless_they_must_stay_here() {
    let engines = [with_embedder("").await, with_embedder("").await];
    let [a, b] = engines.each_ref().map(|engine| &engine.url);
    let front = with_embedder(&format!(
        "[[upstream]]\nname = \"pool\"\nkind = \"hearth\"\nengines = [\"{a}/v1\", \"{b}/v1\"]\n[upstream.models]\n\
         vectors = {{ model = \"hearth-embed\", kind = \"embedding\", dimensions = 384 }}\n\
         [[route]]\nname = \"embed\"\ntargets = [\"local\", \"pool/vectors\"]\npolicy = \"hosted-first\"\n\
         documents = true\n"
    ))
    .await;
    let api = Api(&front);
    let text = |about: &str| {
        let sentence =
            |number: usize| format!("## Part {number}\n\nThe {about} number {number} was painted in green.\n\n");
        (0..400).map(sentence).collect::<String>()
    };
    let read = async |name: &str, about: &str, metadata: Value, policy: &str| {
        let file = api.upload(&format!("{name}.md"), text(about).as_bytes()).await;
        let body = json!({"name": name, "file_ids": [file["id"]], "metadata": metadata});
        let request = front.client.post(format!("{}/v1/vector_stores", front.url)).json(&body);
        let answer = request.header("x-hearth-policy", policy).send().await.expect("an answer");
        let store: Value = answer.json().await.expect("JSON");
        let path = format!("/v1/vector_stores/{}", store["id"].as_str().expect("an id"));
        let is_read = |store: &Value| store["file_counts"]["in_progress"] == 0;
        let store = api.until(&path, is_read).await;
        assert_eq!(store["file_counts"]["completed"], 1, "{store}");
        let found = api.ok(&format!("{path}/search"), json!({"query": format!("the {about} number 7")})).await;
        assert!(found["data"][0]["content"][0]["text"].as_str().is_some_and(|text| text.contains(about)), "{found}");
    };
    read("open", "boat", json!({}), "local-first").await;
    let used = [tokens(&engines[0]).await, tokens(&engines[1]).await];
    assert!(used.iter().all(|&tokens| tokens > 1000), "both engines embed: {used:?}");
    read("closed", "house", json!({"local_only": "true"}), "local-first").await;
    read("of a request", "tower", json!({}), "local-only").await;
    assert_eq!([tokens(&engines[0]).await, tokens(&engines[1]).await], used, "they stayed here");
}

#[test]
fn the_doctor_asks_every_engine() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let server = ScriptedServer::hello();
    let well = server.listen();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let config = folder.path().join("hearth.toml");
    let (address, closed) = (well.address, nowhere());
    let text = format!(
        "[[upstream]]\nname = \"pool\"\nkind = \"hearth\"\nmodels = [\"tiny\", \"absent\"]\n\
         engines = [\"http://{address}/v1\", {{ base_url = \"{closed}\", name = \"gone\" }}]\n"
    );
    std::fs::write(&config, text).expect("a writable directory");
    let mut command = hearth();
    let doctor = command.arg("doctor").arg("--config").arg(&config).arg("--models-dir").arg(folder.path());
    let output = doctor.output().expect("the binary runs");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.contains("pool, engine 1: lists 2 models in ") && said.contains("not absent"), "{said}");
    assert!(said.contains("problem          upstream: pool, engine gone: "), "{said}");
    assert!(!said.contains("models:"), "a server with upstreams needs no model of its own: {said}");
    assert_eq!(output.status.code(), Some(1));
}
