//! What finding out who calls, limits and the ledger add to a request.
//!
//! The same request (a chat of one token from a script) goes to two routers of one process in turn: one with keys, limits
//! and a ledger on the disk, one without any. No socket is between, so that nothing else varies; the difference of the
//! quantiles is the overhead. `cargo bench --bench overhead -- [REQUESTS] [FILE.csv]`.

#[path = "../tests/support/scripted_server.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod scripted_server;

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use hearth::{
    metering::{
        Metering,
        limits::{LimitSettings, Limits, Now},
        prices::Prices,
    },
    providers::scripted::ScriptedChat,
    service::callers::CallerSettings,
};
use hearth_domain::{CallerLimits, usage::NoSink};
use scripted_server::ScriptedServer;

const REQUESTS_DEFAULT: usize = 20_000;
const WARM_UP: usize = 500;
const KEY: &str = "the-one-that-is-presented";
/// Keys that a server may have, each of which is compared.
const KEYS: usize = 64;

fn with_all() -> ScriptedServer {
    let keys = (1..KEYS).map(|number| format!("key-{number}")).chain([KEY.to_owned()]).collect();
    let callers = CallerSettings { api_keys: keys, ..CallerSettings::default() };
    let million = 1_000_000_000;
    let caller = CallerLimits {
        requests_per_minute: Some(million),
        tokens_per_minute: Some(million),
        concurrent_requests: Some(1000),
        ..CallerLimits::default()
    };
    let limits = LimitSettings { caller, ..LimitSettings::default() };
    ScriptedServer::with_books(ScriptedChat::saying("tiny", "A"), callers, |store, ledger| {
        let limits = Limits::open(limits, &**store, Now::since(Instant::now())).expect("a new ledger");
        let prices = Prices::default().with_compute_hour("scripted", 1_000_000);
        Arc::new(Metering::new(Arc::new(prices), ledger.clone(), limits))
    })
}

fn without() -> ScriptedServer {
    let chat = ScriptedChat::saying("tiny", "A");
    ScriptedServer::with_books(chat, CallerSettings::default(), |_, _| Arc::new(NoSink))
}

async fn timed(server: &ScriptedServer) -> Duration {
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"Hi"}]}"#;
    let request = Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {KEY}"))
        .body(Body::from(body))
        .expect("a valid request");
    let began = Instant::now();
    let answer = server.send(request).await;
    let took = began.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    took
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted[place.min(sorted.len() - 1)].as_secs_f64() * 1e6
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // cargo says `--bench`, which is no number and no file.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let requests = arguments.next().and_then(|number| number.parse().ok()).unwrap_or(REQUESTS_DEFAULT);
    let (all, none) = (with_all(), without());
    let mut took = [Vec::with_capacity(requests), Vec::with_capacity(requests)];
    for number in 0..requests + WARM_UP {
        // Who goes first changes, too.
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let duration = timed([&all, &none][side]).await;
            if number >= WARM_UP {
                took[side].push(duration);
            }
        }
    }
    if let Some(path) = arguments.next() {
        let mut csv = "with_ns,without_ns\n".to_owned();
        for (with, without) in took[0].iter().zip(&took[1]) {
            writeln!(csv, "{},{}", with.as_nanos(), without.as_nanos()).expect("memory");
        }
        std::fs::write(path, csv).expect("a writable file");
    }
    took.iter_mut().for_each(|durations| durations.sort_unstable());
    println!("{requests} requests each; microseconds");
    println!("{:>8} {:>10} {:>10} {:>10}", "", "with", "without", "apart");
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        let [with, without] = [quantile(&took[0], share), quantile(&took[1], share)];
        println!("{name:>8} {with:>10.1} {without:>10.1} {:>10.1}", with - without);
    }
}
