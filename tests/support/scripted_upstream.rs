//! An upstream of raw bytes: what it sends, in which pieces, and where it stops, is said for each connection in turn.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hearth::providers::hosted::{
    Affinity, ApiKey, BreakerSettings, Dialect, EngineSettings, ProbeSettings, Retries, Timeouts, Upstream,
    UpstreamSettings,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// What happens on one connection, once its request has been read.
#[derive(Clone, Debug)]
pub enum Act {
    Send(Vec<u8>),
    /// Nothing more, until the client closes.
    Stall,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: Value,
    pub body_bytes: usize,
}

pub struct ScriptedUpstream {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Received>>>,
    /// One message for each client that closed a stalled connection.
    left: mpsc::UnboundedReceiver<()>,
}

/// The key that clients are given.
pub const KEY: &str = "sk-very-secret-0123";

impl ScriptedUpstream {
    /// Serves one connection for each script; more are not accepted.
    pub async fn start(scripts: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (leaving, left) = mpsc::unbounded_channel();
        let received = requests.clone();
        tokio::spawn(async move {
            for script in scripts {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (received, leaving) = (received.clone(), leaving.clone());
                // Side by side, as servers do.
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    received.lock().unwrap().push(request);
                    for act in script {
                        match act {
                            Act::Send(bytes) => {
                                // A client that has left is noticed by who stalls.
                                if stream.write_all(&bytes).await.is_err() {
                                    break;
                                }
                                // The client's turn, so that pieces do not arrive as one.
                                for _ in 0..20 {
                                    tokio::task::yield_now().await;
                                }
                            }
                            Act::Stall => {
                                while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                                leaving.send(()).ok();
                            }
                        }
                    }
                    drop(stream.shutdown().await);
                });
            }
        });
        Self { address, requests, left }
    }

    pub fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }

    /// Resolves when a client has closed a connection that stalled.
    pub async fn was_left(&mut self) {
        self.left.recv().await.expect("the upstream runs");
    }

    /// Settings for a client of it, with little patience and short waits.
    pub fn settings(&self) -> UpstreamSettings {
        settings(&format!("http://{}/v1", self.address))
    }

    pub fn client(&self) -> Arc<Upstream> {
        Upstream::new(self.settings()).unwrap()
    }
}

/// An upstream at this address, with little patience and short waits.
pub fn settings(base_url: &str) -> UpstreamSettings {
    UpstreamSettings {
        name: "there".to_owned(),
        engines: vec![EngineSettings::at(base_url.parse().unwrap())],
        affinity: Affinity::default(),
        probe: ProbeSettings::none(),
        api_key: ApiKey::new(KEY),
        headers: vec![("x-team".to_owned(), "a".to_owned())],
        dialect: Dialect::Compatible,
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(5),
            idle: Duration::from_secs(5),
        },
        retries: Retries { max: 2, base: Duration::from_millis(1), longest: Duration::from_millis(2) },
        ca_file: None,
        breaker: BreakerSettings { failures: 100, rest: Duration::from_secs(3600) },
    }
}

async fn read_request(stream: &mut TcpStream) -> Received {
    let mut bytes = Vec::new();
    loop {
        let mut packet = [0; 4096];
        let read = stream.read(&mut packet).await.unwrap();
        assert!(read > 0, "the client closed before its request was whole");
        bytes.extend_from_slice(&packet[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.expect("bodies have a length");
        let body = &bytes[end + 4..];
        if body.len() == length {
            return Received { head, body: serde_json::from_slice(body).unwrap(), body_bytes: length };
        }
    }
}

/// The head of a stream that ends with its connection.
pub fn stream_head() -> Act {
    Act::Send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n".to_vec(),
    )
}

/// A whole answer that is not a stream.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &Value) -> Vec<Act> {
    let body = body.to_string();
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    vec![Act::Send(text.into_bytes())]
}

pub fn error(status: &str, headers: &[(&str, &str)], message: &str) -> Vec<Act> {
    let error = json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}});
    answer(status, headers, &error)
}

/// An event of the stream.
pub fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// A chunk that says `text` as the first choice.
pub fn word(text: &str) -> String {
    event(&json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}))
}

pub fn finish(reason: &str) -> String {
    event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
}

pub fn usage(prompt: impl Into<Value>, completion: impl Into<Value>) -> String {
    event(&json!({"choices": [], "usage": {"prompt_tokens": prompt.into(), "completion_tokens": completion.into()}}))
}

pub const DONE: &str = "data: [DONE]\n\n";

/// Each text as a packet of its own.
pub fn packets(texts: &[&str]) -> Vec<Act> {
    let texts = texts.iter().map(|text| Act::Send(text.as_bytes().to_vec()));
    std::iter::once(stream_head()).chain(texts).collect()
}

/// The usual answer: two words, their counts, and the end.
pub fn good() -> Vec<Act> {
    packets(&[&word("Hel"), &word("lo"), &finish("stop"), &usage(11, 2), DONE])
}
