//! Clients that change documents, what they know of them, and the server that they speak to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::machine::{command, spawn};
use crate::support::running_server::Served;

/// Sections of a document, each a chunk.
pub const SECTIONS: usize = 4;
const DOCUMENTS_MAX: usize = 20;
/// Clients that change documents at the same time.
const CLIENTS: u64 = 3;

/// A document as its owner knows it.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: String,
    /// In its text and in no other's.
    pub word: String,
    /// Something was asked of it that has not been answered: it may be there or not.
    pub in_doubt: bool,
    /// Earlier versions, whose place it takes once it has been read.
    pub earlier: Vec<Known>,
}

/// What the clients know.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// By a number of their own.
    pub documents: BTreeMap<u64, Known>,
    /// Deleted since the last check.
    pub deleted: Vec<Known>,
    /// Ids that were seen to be gone once, and never come back.
    pub gone: BTreeSet<String>,
    pub next: u64,
}

pub type Shared = Arc<Mutex<Knowledge>>;

/// A client of a server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    pub url: String,
}

type Unanswered = reqwest::Error;

pub fn text(word: &str) -> String {
    (0..SECTIONS).map(|section| format!("# Part {section}\n\nSo says {word}.\n\n")).collect()
}

impl Client {
    async fn upload(&self, word: &str, replaces: Option<&str>) -> Result<String, Unanswered> {
        let mut form = Form::new().part("file", Part::text(text(word)).file_name(format!("{word}.md")));
        if let Some(old) = replaces {
            form = form.text("replaces", old.to_owned());
        }
        let url = format!("{}/api/v1/documents/upload", self.url);
        let answer: Value = self.http.post(url).multipart(form).send().await?.json().await?;
        Ok(answer["document_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned())
    }

    async fn delete(&self, id: &str) -> Result<(), Unanswered> {
        let url = format!("{}/api/v1/documents/{id}", self.url);
        let answer: Value = self.http.delete(url).send().await?.json().await?;
        assert_eq!(answer["deleted"], true, "{answer}");
        Ok(())
    }

    async fn reindex(&self) -> Result<(), Unanswered> {
        let url = format!("{}/api/v1/collections/default/reindex", self.url);
        let answer: Value = self.http.post(url).send().await?.json().await?;
        assert!(answer["error"].is_null(), "{answer}");
        Ok(())
    }

    pub async fn list(&self) -> Vec<Value> {
        let answer = self.http.get(format!("{}/api/v1/documents", self.url)).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        answer["documents"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// Ids and lengths of the files that are there, the newest first.
    pub async fn files(&self) -> Vec<(String, u64)> {
        let url = format!("{}/v1/files?limit=10000", self.url);
        let answer: Value = self.http.get(url).send().await.expect("an answer").json().await.expect("JSON");
        let files = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let file = |file: &Value| Some((file["id"].as_str()?.to_owned(), file["bytes"].as_u64()?));
        files.iter().map(|object| file(object).unwrap_or_else(|| panic!("{object}"))).collect()
    }

    /// The bytes of a document as they were sent.
    pub async fn content(&self, id: &str) -> String {
        let answer = self.http.get(format!("{}/v1/files/{id}/content", self.url)).send().await.expect("an answer");
        answer.text().await.expect("a body")
    }

    /// Ids of the documents in which a word is found, by word and by meaning, and how many passages there are.
    pub async fn found(&self, word: &str) -> (Vec<String>, usize) {
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

    /// Whether the server answers with this key; without one it must let anybody in.
    pub async fn lets_in(&self, key: Option<&str>) -> bool {
        let request = self.http.get(format!("{}/v1/models", self.url));
        let request = key.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
        request.send().await.expect("an answer").status().is_success()
    }

    async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/health/ready", self.url)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

fn serve(data: &Path) -> Command {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut command = command(data, &["serve", "--port", "0", "--offline", "--threads", "1"]);
    // So few chunks make a graph that its building, and the writing of its snapshot, is always under way.
    command.args(["--graph-min", "12", "--models-dir"]).arg(fixtures.join("no-models"));
    command.arg("--embedding-model").arg(fixtures.join("embeddings/bert-mean")).stderr(Stdio::null());
    command
}

/// A server on a data directory, which may be about to fail.
pub fn launch(data: &Path) -> Served {
    spawn(serve(data))
}

/// A server on a data directory, once it serves; what it said on standard error if it ends before.
pub async fn try_start(data: &Path) -> Result<(Served, Client), String> {
    let mut command = serve(data);
    command.args(["--log", "warn"]).stderr(Stdio::piped());
    let mut server = spawn(command);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let mut said = BufReader::new(server.0.stderr.take().expect("a pipe"));
    if line.is_empty() {
        return Err(std::io::read_to_string(said).expect("UTF-8"));
    }
    // Read to the end, so that it never waits until somebody does.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let url = line.split_whitespace().last().unwrap_or_default().to_owned();
    let client = Client { http: reqwest::Client::new(), url };
    for _ in 0..4000 {
        if client.is_ready().await {
            return Ok((server, client));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the server does not come up");
}

pub async fn start(data: &Path, context: &str) -> (Served, Client) {
    try_start(data).await.unwrap_or_else(|said| panic!("{context}: the server does not start: {said}"))
}

/// Clients that change documents until each has done its number of changes or the server answers no more.
pub fn disturb(client: &Client, knowledge: &Shared, changes: u64, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let disturb = |seed| tokio::spawn(change(client.clone(), knowledge.clone(), changes, StdRng::seed_from_u64(seed)));
    (0..CLIENTS).map(|_| disturb(random.random())).collect()
}

pub async fn all(clients: Vec<JoinHandle<()>>) {
    for client in clients {
        client.await.expect("no answer was a surprise");
    }
}

async fn change(client: Client, knowledge: Shared, changes: u64, mut random: StdRng) {
    for _ in 0..changes {
        let (number, picked) = {
            let mut knowledge = knowledge.lock();
            knowledge.next += 1;
            let documents = &mut knowledge.documents;
            let free: Vec<u64> = documents.iter().filter(|(_, known)| !known.in_doubt).map(|(key, _)| *key).collect();
            let picked = (!free.is_empty()).then(|| free[random.random_range(0..free.len())]);
            let draw: f64 = random.random();
            // Enough of them, and rather one fewer.
            let picked = picked.filter(|_| draw < 0.5 || documents.len() > DOCUMENTS_MAX);
            if let Some(known) = picked.and_then(|key| documents.get_mut(&key)) {
                known.in_doubt = true;
            }
            (knowledge.next, picked.map(|key| (key, knowledge.documents[&key].clone())))
        };
        // Words of one length have as many tokens, and their documents as many chunks.
        let word = format!("zq{number:06}x");
        let outcome = match picked {
            Some((key, known)) if random.random_bool(0.5) => client.delete(&known.id).await.map(|()| {
                let mut knowledge = knowledge.lock();
                knowledge.documents.remove(&key);
                knowledge.deleted.push(known);
            }),
            Some((key, known)) => client.upload(&word, Some(&known.id)).await.map(|id| {
                let documents = &mut knowledge.lock().documents;
                documents.remove(&key);
                let mut earlier = known.earlier.clone();
                earlier.push(known);
                documents.insert(number, Known { id, word, in_doubt: false, earlier });
            }),
            None if random.random_bool(0.1) => client.reindex().await,
            None => client.upload(&word, None).await.map(|id| {
                let known = Known { id, word, in_doubt: false, earlier: Vec::new() };
                knowledge.lock().documents.insert(number, known);
            }),
        };
        if outcome.is_err() {
            return;
        }
    }
}
