//! A server without weights, in process or behind a real socket.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
    response::Response,
};
use hearth::{
    http::{AppState, HttpSettings},
    metering::{
        Metering,
        ledger::Ledger,
        limits::{LimitSettings, Limits, Now},
        prices::Prices,
    },
    providers::scripted::{ScriptedChat, ScriptedEmbedder},
    service::{
        analysis::Analyses,
        callers::{CallerSettings, Callers},
        documents::Documents,
        health::{EngineReport, Health, HealthReport, ServerStatus},
        models::Models,
        webhook::WebhookSettings,
    },
    store::Store,
};
use hearth_domain::{StorageQuota, part::PartReport, usage::UsageSink};
use hearth_kernels::index::GraphParameters;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tower::ServiceExt;

/// A health source that says what the test wants.
pub struct FixedHealth {
    pub status: Mutex<ServerStatus>,
    pub engine: Mutex<EngineReport>,
    pub parts: Mutex<Vec<PartReport>>,
}

impl Health for FixedHealth {
    fn status(&self) -> ServerStatus {
        self.status.lock().clone()
    }

    fn report(&self) -> HealthReport {
        HealthReport {
            status: self.status(),
            device_asked: "auto".to_owned(),
            device_in_use: "cpu".to_owned(),
            engine: Some(*self.engine.lock()),
            parts: self.parts.lock().clone(),
            uptime: Duration::from_secs(3),
        }
    }
}

pub struct ScriptedServer {
    pub router: Router,
    pub chat: Arc<ScriptedChat>,
    pub models: Arc<Models>,
    pub health: Arc<FixedHealth>,
    pub settings: Arc<HttpSettings>,
    pub ledger: Arc<Ledger>,
    pub callers: Arc<Callers>,
    _data: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("answers are UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The error object, which must be whole.
    #[track_caller]
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "`{key}` is missing: {}", self.text());
        }
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(error["code"].is_string() || error["code"].is_null());
        error
    }
}

impl ScriptedServer {
    /// Answers "Hello!" to everything.
    pub fn hello() -> Self {
        Self::new(ScriptedChat::saying("tiny", "Hello!"), HttpSettings::default(), false)
    }

    pub fn with_chat(chat: ScriptedChat) -> Self {
        Self::new(chat, HttpSettings::default(), false)
    }

    pub fn with_settings(settings: HttpSettings) -> Self {
        Self::new(ScriptedChat::saying("tiny", "Hello!"), settings, false)
    }

    /// Asks for keys or tokens as these settings say.
    pub fn with_callers(callers: CallerSettings) -> Self {
        Self::with_all(ScriptedChat::saying("tiny", "Hello!"), HttpSettings::default(), callers, false)
    }

    /// Over a data directory that is there already, with its keys.
    pub fn with_data(data: tempfile::TempDir, callers: CallerSettings) -> Self {
        let chat = ScriptedChat::saying("tiny", "Hello!");
        Self::over(data, chat, HttpSettings::default(), callers, false, usage_sink)
    }

    pub fn new(chat: ScriptedChat, settings: HttpSettings, accept_any_model: bool) -> Self {
        Self::with_all(chat, settings, CallerSettings::default(), accept_any_model)
    }

    pub fn with_all(
        chat: ScriptedChat,
        settings: HttpSettings,
        callers: CallerSettings,
        accept_any_model: bool,
    ) -> Self {
        Self::over(temporary(), chat, settings, callers, accept_any_model, usage_sink)
    }

    /// A server whose requests are written down, and limited, by this sink of usage.
    pub fn with_books(
        chat: ScriptedChat,
        callers: CallerSettings,
        usage_sink: impl FnOnce(&Arc<Store>, &Arc<Ledger>) -> Arc<dyn UsageSink>,
    ) -> Self {
        Self::over(temporary(), chat, HttpSettings::default(), callers, false, usage_sink)
    }

    fn over(
        data: tempfile::TempDir,
        chat: ScriptedChat,
        settings: HttpSettings,
        callers: CallerSettings,
        accept_any_model: bool,
        usage_sink: impl FnOnce(&Arc<Store>, &Arc<Ledger>) -> Arc<dyn UsageSink>,
    ) -> Self {
        let chat = Arc::new(chat);
        let models = Models::new(accept_any_model);
        models.add_chat(chat.clone(), vec!["alias".to_owned(), "org/tiny".to_owned()]);
        models.add_embedder(Arc::new(ScriptedEmbedder::new("embed")), Vec::new());
        let engine = EngineReport {
            heartbeat_age: Duration::ZERO,
            running: 1,
            waiting: 0,
            kv_blocks_total: 64,
            kv_blocks_used: 3,
        };
        let health = Arc::new(FixedHealth {
            status: Mutex::new(ServerStatus::Ready),
            engine: Mutex::new(engine),
            parts: Mutex::default(),
        });
        let settings = Arc::new(settings);
        let models = Arc::new(models);
        let store = Store::open(data.path()).expect("a new store");
        let callers = Callers::with_settings(store.clone(), &callers).expect("usable settings");
        let ledger = Ledger::open(store.clone()).expect("a new ledger");
        let usage_sink = usage_sink(&store, &ledger);
        let documents = Documents::new(
            store,
            GraphParameters::default(),
            callers.clone(),
            usage_sink.clone(),
            StorageQuota::default(),
        );
        let router = hearth::http::router(AppState {
            analyses: Analyses::new(documents.clone(), models.clone(), WebhookSettings::default()),
            models: models.clone(),
            documents,
            callers: callers.clone(),
            usage_sink,
            ledger: ledger.clone(),
            health: health.clone(),
            metrics: None,
            settings: settings.clone(),
        });
        Self { router, chat, models, health, settings, ledger, callers, _data: data }
    }

    /// Sends a request; one without a host names the one that tests without a socket stand for.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.respond(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the body ends").to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// The same, with a body that has not been read.
    pub fn respond(&self, mut request: Request<Body>) -> impl Future<Output = Response> + Send + use<> {
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
        let answer = self.router.clone().oneshot(request);
        async { answer.await.expect("a router does not fail") }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).expect("a valid request")).await
    }

    /// A GET, or a POST of this body, with a key or token.
    pub async fn with_key(&self, key: &str, path: &str, body: Option<Value>) -> Answer {
        let request = match body {
            Some(_) => Request::post(path),
            None => Request::get(path),
        };
        let request =
            request.header("authorization", format!("Bearer {key}")).header("content-type", "application/json");
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request.body(body).expect("a valid request")).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body))
            .expect("a valid request");
        self.send(request).await
    }

    /// The same router behind a socket.
    pub fn listen(&self) -> ListeningServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = self.router.clone();
        let settings = self.settings.clone();
        let task = tokio::spawn(async move {
            let shutdown = async move {
                drop(stopped.await);
            };
            hearth::http::serve(listener, router, &settings, shutdown).await
        });
        ListeningServer { address, stop: Some(stop), task }
    }
}

/// A sink of usage without limits.
fn usage_sink(store: &Arc<Store>, ledger: &Arc<Ledger>) -> Arc<dyn UsageSink> {
    let limits = Limits::open(LimitSettings::default(), &**store, Now::since(Instant::now())).expect("no limits");
    let prices = Prices::default().with_compute_hour("scripted", 3_600_000_000);
    Arc::new(Metering::new(Arc::new(prices), ledger.clone(), limits))
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub struct ListeningServer {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl ListeningServer {
    /// Begins the shutdown.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The server may have stopped by itself.
            let _ = stop.send(());
        }
    }

    /// Sends raw bytes and reads until the server closes.
    pub async fn exchange(&self, bytes: &[u8]) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(self.address).await.expect("the server listens");
        // The server may close while this writes; what it said before is what counts.
        drop(socket.write_all(bytes).await);
        let mut answer = Vec::new();
        drop(socket.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Waits until a condition holds, checking as the runtime turns.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
