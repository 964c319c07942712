//! The server killed at random instants while documents come, change and go.
//!
//! After each restart whatever was acknowledged holds: an uploaded document is searchable, whole and in its newest
//! version, a deleted one is gone, and nothing is half there. What was under way when the process died may have
//! happened or not. Graphs and their snapshots are made anew every few documents. `KILLS` sets how often, `KILL_SEED` what happens.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::running_server::{Served, hearth};

const KILLS_DEFAULT: u64 = 12;
/// Sections of a document, each a chunk.
const SECTIONS: usize = 4;
const DOCUMENTS_MAX: usize = 20;
/// Clients that change documents at the same time.
const CLIENTS: u64 = 3;

/// A document as its owner knows it.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    /// In its text and in no other's.
    word: String,
    /// Something was asked of it that has not been answered: it may be there or not.
    in_doubt: bool,
    /// Earlier versions, whose place it takes once it has been read.
    earlier: Vec<Known>,
}

/// What the clients know, by a number of their own.
#[derive(Debug, Default)]
struct Ledger {
    documents: Mutex<BTreeMap<u64, Known>>,
    deleted: Mutex<Vec<Known>>,
    next: AtomicU64,
}

#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
}

type Unanswered = reqwest::Error;

fn text(word: &str) -> String {
    (0..SECTIONS).map(|section| format!("# Part {section}\n\nSo says {word}.\n\n")).collect()
}

impl Client {
    async fn upload(&self, word: &str, replaces: Option<&str>) -> Result<Value, Unanswered> {
        let mut form = Form::new().part("file", Part::text(text(word)).file_name(format!("{word}.md")));
        if let Some(old) = replaces {
            form = form.text("replaces", old.to_owned());
        }
        let url = format!("{}/api/v1/documents/upload", self.url);
        self.http.post(url).multipart(form).send().await?.json().await
    }

    async fn delete(&self, id: &str) -> Result<Value, Unanswered> {
        self.http.delete(format!("{}/api/v1/documents/{id}", self.url)).send().await?.json().await
    }

    async fn reindex(&self) -> Result<Value, Unanswered> {
        self.http.post(format!("{}/api/v1/collections/default/reindex", self.url)).send().await?.json().await
    }

    async fn list(&self) -> Vec<Value> {
        let answer = self.http.get(format!("{}/api/v1/documents", self.url)).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        answer["documents"].as_array().expect("a list").clone()
    }

    /// Ids of the documents in which a word is found, by word and by meaning, and how many passages there are.
    async fn found(&self, word: &str) -> (Vec<String>, usize) {
        let query = format!("So says {word}.");
        let mut ids = Vec::new();
        let mut passages = 0;
        for mode in ["lexical", "dense"] {
            let body = json!({"query": query, "search_mode": mode, "min_similarity": 0.0, "top_k": 50, "wait": true});
            let answer =
                self.http.post(format!("{}/api/v1/search", self.url)).json(&body).send().await.expect("an answer");
            let answer: Value = answer.json().await.expect("JSON");
            let hits = answer["passages"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
            let named = hits.iter().filter(|hit| hit["text"].as_str().is_some_and(|text| text.contains(word)));
            let named: Vec<&Value> = named.collect();
            if mode == "lexical" {
                passages = named.len();
            }
            ids.extend(named.iter().filter_map(|hit| hit["document_id"].as_str().map(str::to_owned)));
        }
        ids.sort();
        ids.dedup();
        (ids, passages)
    }
}

async fn start(data: &TempDir) -> (Served, Client) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut command = hearth();
    command
        // So few chunks make a graph that its building, and the writing of its snapshot, is always under way.
        .args(["serve", "--port", "0", "--offline", "--threads", "1", "--graph-min", "12", "--models-dir"])
        .arg(fixtures.join("no-models"))
        .arg("--embedding-model")
        .arg(fixtures.join("embeddings/bert-mean"))
        .env("HEARTH_DATA_DIR", data.path())
        .stderr(Stdio::null());
    let mut server = Served(command.spawn().expect("it starts"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().last().unwrap_or_default().to_owned();
    let client = Client { http: reqwest::Client::new(), url };
    for _ in 0..2000 {
        let answer = client.http.get(format!("{}/health/ready", client.url)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return (server, client);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the server does not come up again");
}

/// Changes documents until the server answers no more.
async fn disturb(client: Client, ledger: Arc<Ledger>, mut random: StdRng) {
    loop {
        let number = ledger.next.fetch_add(1, Ordering::Relaxed);
        // Words of one length have as many tokens, and their documents as many chunks.
        let word = format!("zq{number:06}x");
        let picked = {
            let mut documents = ledger.documents.lock();
            let free: Vec<u64> = documents.iter().filter(|(_, known)| !known.in_doubt).map(|(key, _)| *key).collect();
            let picked = (!free.is_empty()).then(|| free[random.random_range(0..free.len())]);
            let draw: f64 = random.random();
            // Enough of them, and rather one fewer.
            let picked = picked.filter(|_| draw < 0.5 || documents.len() > DOCUMENTS_MAX);
            if let Some(known) = picked.and_then(|key| documents.get_mut(&key)) {
                known.in_doubt = true;
            }
            picked.map(|key| (key, documents[&key].clone()))
        };
        let outcome = match picked {
            Some((key, known)) if random.random_bool(0.5) => client.delete(&known.id).await.map(|_| {
                ledger.documents.lock().remove(&key);
                ledger.deleted.lock().push(known);
            }),
            Some((key, known)) => client.upload(&word, Some(&known.id)).await.map(|answer| {
                let id = answer["document_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
                let mut documents = ledger.documents.lock();
                documents.remove(&key);
                let mut earlier = known.earlier.clone();
                earlier.push(known);
                documents.insert(number, Known { id, word, in_doubt: false, earlier });
            }),
            None if random.random_bool(0.1) => client.reindex().await.map(drop),
            None => client.upload(&word, None).await.map(|answer| {
                let id = answer["document_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
                ledger.documents.lock().insert(number, Known { id, word, in_doubt: false, earlier: Vec::new() });
            }),
        };
        if outcome.is_err() {
            return;
        }
    }
}

/// Everything that was acknowledged holds, and everything that is there is whole.
async fn check(client: &Client, ledger: &Ledger, context: &str) {
    // A search that waits returns when all is read.
    client.found("nothing").await;
    let listed = client.list().await;
    for document in &listed {
        assert_eq!(document["status"], "ready", "{context}: {document}");
        assert_eq!(document["chunks"], SECTIONS, "{context}: half a document: {document}");
    }
    let is_listed = |id: &str| listed.iter().any(|document| document["document_id"] == id);
    let known: Vec<(u64, Known)> = ledger.documents.lock().clone().into_iter().collect();
    for (key, known) in known {
        let (ids, passages) = client.found(&known.word).await;
        if known.in_doubt && !is_listed(&known.id) {
            // What became of its earlier versions is not known either.
            assert!(ids.is_empty(), "{context}: {known:?} is gone and is found");
            ledger.documents.lock().remove(&key);
            continue;
        }
        assert!(is_listed(&known.id), "{context}: {known:?} is lost");
        assert_eq!((ids, passages), (vec![known.id.clone()], SECTIONS), "{context}: {known:?}");
        ledger.deleted.lock().extend(known.earlier.clone());
        if let Some(known) = ledger.documents.lock().get_mut(&key) {
            known.in_doubt = false;
            known.earlier.clear();
        }
    }
    let deleted = std::mem::take(&mut *ledger.deleted.lock());
    for known in deleted {
        assert!(!is_listed(&known.id), "{context}: {known:?} was deleted and is there");
        assert!(client.found(&known.word).await.0.is_empty(), "{context}: {known:?} was deleted and is found");
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a test goes on is no setting of the server")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_there() {
    let (kills, seed) = (setting("KILLS", KILLS_DEFAULT), setting("KILL_SEED", 1));
    let mut random = StdRng::seed_from_u64(seed);
    let data = tempfile::tempdir().expect("a temporary directory");
    let ledger = Arc::new(Ledger::default());
    for kill in 0..kills {
        let (server, client) = start(&data).await;
        check(&client, &ledger, &format!("seed {seed}, after kill {kill}")).await;
        let clients = (0..CLIENTS)
            .map(|_| tokio::spawn(disturb(client.clone(), ledger.clone(), StdRng::seed_from_u64(random.random()))));
        let clients: Vec<_> = clients.collect();
        tokio::time::sleep(Duration::from_micros(random.random_range(1_000..150_000))).await;
        // SIGKILL.
        drop(server);
        for client in clients {
            client.await.expect("no answer was a surprise");
        }
    }
    let (_server, client) = start(&data).await;
    check(&client, &ledger, &format!("seed {seed}, at the end")).await;
    assert!(ledger.next.load(Ordering::Relaxed) > kills, "something was under way");
    let snapshots = std::fs::read_dir(data.path().join("index")).expect("a folder of snapshots");
    assert!(snapshots.count() > 0, "graphs were built");
}
