//! `hearth serve` over a real, tiny model: in this process, or as a process of its own. With a PostgreSQL for tests, two servers share it
//! behind a balancer, and consecutive requests reach different ones.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use hearth::{
    app::Server,
    config::{Config, Settings},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::cluster;

/// The model: a vocabulary of bytes and a few words, and a context of 1024 tokens.
pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-chat.gguf")
}

/// A server in this process; it is told to stop when this is dropped.
pub struct Running {
    pub url: String,
    pub client: reqwest::Client,
    /// The addresses of the servers themselves.
    pub servers: Vec<String>,
    stop: Vec<oneshot::Sender<()>>,
    _data: Vec<tempfile::TempDir>,
    pub served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn start(settings: Settings) -> Self {
        Self::start_with(settings, |_| {}).await
    }

    /// `change` may set what no flag sets.
    pub async fn start_with(settings: Settings, change: impl FnOnce(&mut Config)) -> Self {
        let running = Self::launch(settings, change);
        for server in &running.servers {
            running.until_at(server, "the models are loaded", |health| health["status"] == "ok").await;
        }
        running
    }

    /// A server whose models may never be loaded.
    pub fn launch(settings: Settings, change: impl FnOnce(&mut Config)) -> Self {
        let nowhere = std::env::temp_dir().join("hearth-no-models-here");
        let data = tempfile::tempdir().expect("a temporary directory");
        let settings = settings.or(Settings {
            model: Some(model()),
            alias: Some(vec!["tiny".to_owned()]),
            models_dir: Some(nowhere),
            data_dir: Some(data.path().to_owned()),
            port: Some(0),
            ctx_size: Some(1024),
            ..Settings::default()
        });
        let mut config = Config::load(settings).expect("valid settings");
        config.documents.reader = Some(env!("CARGO_BIN_EXE_hearth").into());
        config.shared = cluster::database(&config.data_dir);
        if config.shared.is_some() {
            config.callers.key_secret_file = Some(config.data_dir.join("keys.secret"));
        }
        change(&mut config);
        let mut data = vec![data];
        let mut configs = vec![config.clone()];
        if config.shared.is_some() {
            let second = tempfile::tempdir().expect("a temporary directory");
            configs.push(Config { data_dir: second.path().to_owned(), ..config });
            data.push(second);
        }
        let (mut addresses, mut stop, mut served) = (Vec::new(), Vec::new(), Vec::new());
        for config in configs {
            let server = Server::bind(config).expect("a free port");
            addresses.push(server.address().expect("an address"));
            let (told, stopped) = oneshot::channel();
            stop.push(told);
            served.push(tokio::spawn(server.run(async {
                let _told_or_dropped = stopped.await;
            })));
        }
        let served = tokio::spawn(async {
            for served in served {
                served.await.expect("no panic")?;
            }
            Ok(())
        });
        let url = |address: &std::net::SocketAddr| format!("http://{address}");
        let servers: Vec<String> = addresses.iter().map(url).collect();
        let (address, client) = match addresses[..] {
            [one] => (one, reqwest::Client::new()),
            // A connection for each request, so that the balancer sends the next one elsewhere.
            _ => {
                let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
                (cluster::balance(addresses), client)
            }
        };
        Self { url: url(&address), client, servers, stop, _data: data, served }
    }

    /// Asks for the server's state until it is as expected.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.until_at(&self.url, what, is_so).await
    }

    async fn until_at(&self, url: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..2000 {
            if let Ok(answer) = self.client.get(format!("{url}/health/deep")).send().await {
                last = answer.json().await.unwrap_or_default();
                if is_so(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited in vain until {what}: {last}");
    }

    pub fn chat_request(&self, extra: Value) -> reqwest::RequestBuilder {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "What is Hearth?"}]});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        self.client.post(format!("{}/v1/chat/completions", self.url)).json(&body)
    }

    pub async fn chat(&self, extra: Value) -> reqwest::Response {
        self.chat_request(extra).send().await.expect("an answer")
    }

    pub fn stop(&mut self) {
        self.stop.clear();
    }
}

pub fn is_idle(health: &Value) -> bool {
    let engine = &health["engine"];
    engine["running"] == 0 && engine["waiting"] == 0 && engine["kv_blocks_used"] == 0
}

/// A stream that only the context ends.
pub fn endless() -> Value {
    json!({"stream": true, "ignore_eos": true, "max_tokens": 900})
}

/// The binary, whose words are read. Each has a data directory of its own.
pub fn hearth() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(uuid::Uuid::new_v4().to_string());
    command.env_remove("HEARTH_MODEL").env("HEARTH_DATA_DIR", data).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process that ends with the test.
pub struct Served(pub Child);

impl Served {
    /// Waits for its end; how it ended, and what it said on standard error, which must be a pipe.
    pub fn ended(&mut self) -> (ExitStatus, String) {
        let said = std::io::read_to_string(self.0.stderr.take().expect("a pipe")).expect("UTF-8");
        (self.0.wait().expect("it ends"), said)
    }
}

#[cfg(unix)]
impl Served {
    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }
}

/// Waits until readiness answers with this status.
pub async fn readiness_becomes(url: &str, status: u16) {
    for _ in 0..4000 {
        if reqwest::get(format!("{url}/health/ready")).await.is_ok_and(|answer| answer.status() == status) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the server's readiness does not become {status}");
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed by then.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
