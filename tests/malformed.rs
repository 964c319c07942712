//! Requests that nobody should send: whatever comes in, what goes out is the contract's error, and the next
//! request is served.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use hearth::{
    http::HttpSettings,
    providers::scripted::{ScriptedChat, Step},
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::scripted_server::{ScriptedServer, eventually};

const ROUTES: [&str; 6] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"];

/// A valid body for each route, rich in fields to spoil.
fn valid_body(route: &str) -> Value {
    let message =
        json!([{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}]);
    match route {
        "/v1/chat/completions" => json!({
            "model": "tiny", "messages": message, "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["z"],
            "logprobs": true, "top_logprobs": 2, "logit_bias": {"5": 1}, "seed": 7, "stream": false,
            "stream_options": {"include_usage": true}, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "chat_template_kwargs": {"a": 1}, "user": "u",
        }),
        "/v1/completions" => json!({
            "model": "tiny", "prompt": ["a", [1, 2]], "max_tokens": 1, "echo": true, "logprobs": 1, "stop": "z", "best_of": 1,
            "guided_regex": "a+", "stop_token_ids": [1, 2], "timeout": 5,
        }),
        "/v1/embeddings" => json!({
            "model": "embed", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 4, "input_type": "query",
            "truncate": true,
        }),
        "/tokenize" => json!({"content": ["a", 5], "add_special": true, "parse_special": true, "with_pieces": true}),
        "/detokenize" => json!({"tokens": [1, 2, 3]}),
        _ => json!({"messages": message, "tools": [], "add_generation_prompt": true}),
    }
}

fn random_value(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(5000)),
        json!("\u{1F525}\u{202E}"),
        json!([]),
        json!({}),
        json!([null]),
        json!({"type": "object"}),
        json!("tiny"),
        json!(4_294_967_296_u64),
    ];
    match rng.random_range(0..10) {
        0 if depth > 0 => (0..rng.random_range(0..4)).map(|_| random_value(rng, depth - 1)).collect(),
        1 if depth > 0 => {
            let keys = ["type", "role", "content", "function", "name", "text", "model", "x"];
            let pairs = (0..rng.random_range(0..4)).map(|_| {
                let key = (*keys.choose(rng).expect("keys")).to_owned();
                (key, random_value(rng, depth - 1))
            });
            Value::Object(pairs.collect())
        }
        _ => strange.choose(rng).expect("values").clone(),
    }
}

/// Replaces, removes or adds somewhere within a value.
fn spoil(value: &mut Value, rng: &mut ChaCha8Rng) {
    match value {
        Value::Object(map) if !map.is_empty() && rng.random_bool(0.8) => {
            let index = rng.random_range(0..map.len());
            let key = map.keys().nth(index).expect("in range").clone();
            match rng.random_range(0..6) {
                0 => {
                    map.remove(&key);
                }
                1 => {
                    map.insert(format!("{key}\u{e9}\r\n"), random_value(rng, 2));
                }
                _ => spoil(map.get_mut(&key).expect("present"), rng),
            }
        }
        Value::Array(items) if !items.is_empty() && rng.random_bool(0.8) => {
            let index = rng.random_range(0..items.len());
            spoil(&mut items[index], rng);
        }
        other => *other = random_value(rng, 3),
    }
}

fn malformed(route: &str, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut body = valid_body(route);
    for _ in 0..rng.random_range(1..4) {
        spoil(&mut body, rng);
    }
    let mut bytes = body.to_string().into_bytes();
    match rng.random_range(0..20) {
        0 => bytes.truncate(rng.random_range(0..=bytes.len())),
        1 => {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        2 => bytes = (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
        3 => {
            let depth = rng.random_range(1..5000);
            let (open, close) = if rng.random() { ("[", "]") } else { ("{\"messages\":", "}") };
            bytes = format!("{}1{}", open.repeat(depth), close.repeat(depth)).into_bytes();
        }
        4 => bytes.extend_from_slice(b"{}"),
        _ => {}
    }
    bytes
}

#[tokio::test]
async fn ten_thousand_malformed_bodies_are_answered_in_the_contracts_words() {
    let server = ScriptedServer::hello();
    let mut rng = ChaCha8Rng::seed_from_u64(0x4865_6172_7468);
    let mut refused = 0;
    for round in 0..10_000 {
        let route = ROUTES[round % ROUTES.len()];
        let body = malformed(route, &mut rng);
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        let answer = server.post_bytes(route, body).await;
        if answer.status.is_success() {
            continue;
        }
        assert!(answer.status.is_client_error(), "round {round}, {route}: {} for {shown}", answer.status);
        answer.error();
        refused += 1;
    }
    assert!(refused > 4_000, "only {refused} were refused: the bodies are hardly malformed");
    assert_eq!(server.chat.started(), server.chat.completed());
    for route in ROUTES {
        assert_eq!(server.post(route, valid_body(route)).await.status, StatusCode::OK, "{route}");
    }
}

#[tokio::test]
async fn huge_fields_and_many_fields_are_refused_or_served_and_never_reflected_whole() {
    let server = ScriptedServer::hello();
    let long = "y".repeat(1_000_000);
    let many: serde_json::Map<String, Value> = (0..50_000).map(|index| (format!("field{index}"), json!(1))).collect();
    for body in [
        json!({"model": long, "messages": [{"role": "user", "content": "x"}]}),
        json!({"model": "tiny", "messages": [{"role": long, "content": "x"}]}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": long}}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tool_choice": long}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "logit_bias": {long.clone(): 1}}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stop_token_ids": [long]}),
        Value::Object(many.clone()),
    ] {
        let answer = server.post("/v1/chat/completions", body).await;
        assert!(answer.status.is_client_error(), "{}", answer.status);
        answer.error();
        assert!(answer.body.len() < 2_000, "an answer of {} bytes", answer.body.len());
    }
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().unwrap().extend(many);
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.header("x-hearth-ignored").is_some_and(|names| names.len() <= 1024));
}

/// What a slow client meets; the timeouts are short so that the test is.
fn impatient() -> ScriptedServer {
    ScriptedServer::with_settings(HttpSettings {
        header_read_timeout: Duration::from_millis(200),
        request_body_timeout: Duration::from_millis(200),
        ..HttpSettings::default()
    })
}

const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn slow_clients_are_shown_the_door() {
    let server = impatient();
    let listening = server.listen();
    for beginning in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\n",
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{",
    ] {
        // Reading to the end returns only because the server closes.
        let answer = listening.exchange(beginning.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{beginning:?}: {answer}");
        if beginning.starts_with("POST") {
            assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
        }
    }
    assert!(listening.exchange(LIVE).await.contains("200 OK"));
}

#[tokio::test]
async fn a_header_that_drips_in_is_cut_off() {
    let server = impatient();
    let listening = server.listen();
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    socket.write_all(b"GET /health/live HTTP/1.1\r\n").await.unwrap();
    let (mut reading, mut writing) = socket.split();
    let mut received = Vec::new();
    let drip = async {
        loop {
            if writing.write_all(b"x-drip: 1\r\n").await.is_err() {
                return std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = drip => {}
        read = reading.read_to_end(&mut received) => drop(read),
    }
    assert!(!String::from_utf8_lossy(&received).contains("200 OK"));
    assert!(listening.exchange(LIVE).await.contains("200 OK"));
}

#[tokio::test]
async fn raw_abuse_leaves_the_server_serving() {
    let server = ScriptedServer::with_settings(HttpSettings { body_limit_bytes: 1 << 20, ..HttpSettings::default() });
    let listening = server.listen();
    let huge_header = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-big: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    for bytes in [
        b"\x00\x01\x02\x03\r\n\r\n".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        huge_header.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let answer = listening.exchange(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert!(listening.exchange(LIVE).await.contains("200 OK"));
    }
    let large_header = format!(
        "GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-big: {}\r\n\r\n",
        "y".repeat(70 << 10)
    );
    let answer = listening.exchange(large_header.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("request_header_fields_too_large"), "{answer}");
    let body = vec![b' '; 3 << 20];
    let head = format!(
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = listening.exchange(&[head.as_bytes(), &body].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let server = ScriptedServer::with_settings(HttpSettings { max_connections: 2, ..HttpSettings::default() });
    let listening = server.listen();
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(listening.address).await.unwrap();
        socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut byte = [0];
        socket.read_exact(&mut byte).await.unwrap();
        held.push(socket);
    }
    assert!(!listening.exchange(LIVE).await.contains("200 OK"));
    drop(held);
    let mut served = false;
    for _ in 0..500 {
        served = listening.exchange(LIVE).await.contains("200 OK");
        if served {
            break;
        }
    }
    assert!(served, "places are given back");
}

#[tokio::test]
async fn large_bodies_share_a_room_and_small_ones_need_none() {
    const MIB: usize = 1 << 20;
    let chat = ScriptedChat::new("tiny", |_| Ok(vec![Step::Hang]));
    // Room for two bodies of the largest size; of each body the first megabyte is not counted.
    let settings = HttpSettings { body_limit_bytes: 2 * MIB, ..HttpSettings::default() };
    let server = ScriptedServer::new(chat, settings, false);
    let body = |bytes: usize| {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": ""}]});
        let frame = body.to_string().len();
        body["messages"][0]["content"] = "x".repeat(bytes - frame).into();
        body.to_string().into_bytes()
    };
    let mut held = Vec::new();
    let hold = async |held: &mut Vec<_>, bytes: usize| {
        let request = Request::post(ROUTES[0]).header("content-type", "application/json").body(Body::from(body(bytes)));
        let before = server.chat.started();
        held.push(tokio::spawn(server.respond(request.expect("a valid request"))));
        eventually("it is in work", || server.chat.started() == before + 1).await;
    };
    for _ in 0..4 {
        hold(&mut held, 2 * MIB).await;
    }
    let refused = server.post_bytes(ROUTES[0], body(2 * MIB)).await;
    assert_eq!((refused.status, &refused.error()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("overloaded")));
    assert!(refused.header("retry-after").is_some());
    hold(&mut held, MIB).await;
    assert_eq!(server.post_bytes(ROUTES[0], body(2 * MIB + 1)).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    held[0].abort();
    eventually("its room is free", || server.chat.cancelled() == 1).await;
    hold(&mut held, 2 * MIB).await;
    held.iter().for_each(tokio::task::JoinHandle::abort);
}
