//! Servers that share a PostgreSQL database: what is done at one holds at the other, and neither a killed server nor a database that ends
//! loses anything. Without `HEARTH_TEST_POSTGRES` there is no database to share, and these tests do nothing.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hearth::{config::Settings, store::KeyTable};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::{
    api::{Api, file_form},
    cluster,
    running_server::{Running, Served, hearth, model, readiness_becomes},
};

/// A killed server loses the rows of no more than this.
const BOUND: Duration = Duration::from_secs(1);

fn embedding_model() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean.gguf")
}

async fn two_servers(settings: Settings) -> Option<Running> {
    if cluster::postgres().is_none() {
        eprintln!("left out: HEARTH_TEST_POSTGRES names no server");
        return None;
    }
    let server = Running::start(Settings { embedding_model: Some(embedding_model()), ..settings }).await;
    assert_eq!(server.servers.len(), 2);
    Some(server)
}

async fn get(url: String) -> Value {
    reqwest::get(url).await.expect("an answer").json().await.expect("JSON")
}

#[tokio::test]
async fn an_upload_at_one_is_found_at_the_other_when_its_status_says_so() {
    let Some(server) = two_servers(Settings::default()).await else { return };
    let [one, other] = [&server.servers[0], &server.servers[1]];
    for number in 0..8 {
        let text = format!("# Pumps\n\nPump number {number} stands in the cellar called quebec{number}.");
        let form = file_form(&format!("{number}.md"), text.as_bytes());
        let answer =
            form.of(server.client.post(format!("{one}/api/v1/documents/upload"))).send().await.expect("an answer");
        let document: Value = answer.json().await.expect("JSON");
        let id = document["document_id"].as_str().unwrap_or_else(|| panic!("{document}"));
        loop {
            let state = get(format!("{other}/api/v1/documents/{id}")).await;
            if state["status"] == "ready" {
                break;
            }
            assert_eq!(state["status"], "processing", "{state}");
        }
        for (mode, query) in [("dense", text.clone()), ("lexical", format!("quebec{number}"))] {
            let body = json!({"query": query, "search_mode": mode, "top_k": 20, "min_similarity": 0.0});
            let found =
                server.client.post(format!("{other}/api/v1/search")).json(&body).send().await.expect("an answer");
            let found: Value = found.json().await.expect("JSON");
            let passages = found["passages"].as_array().expect("passages");
            assert!(passages.iter().any(|passage| passage["document_id"] == id), "{mode}: {found}");
        }
    }
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_at_either() {
    let Some(server) = two_servers(Settings::default()).await else { return };
    let api = Api(&server);
    api.post_form("/api/v1/documents/upload", file_form("a.md", b"# Pumps\n\nThe pump stands in the cellar.")).await;
    let body = json!({"company_name": "Acme", "question": "Where is the pump?", "max_tokens": 16});
    let (_, job) = api.post("/analysis", body).await;
    let id = job["job_id"].as_str().unwrap_or_else(|| panic!("{job}")).to_owned();
    let mut told = Vec::new();
    for url in &server.servers {
        let address = format!("{}/analysis/{id}", url.replace("http://", "ws://"));
        let (mut socket, _) = tokio_tungstenite::connect_async(address).await.expect("a WebSocket");
        let mut events = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let tokio_tungstenite::tungstenite::Message::Text(text) = message {
                events.push(serde_json::from_str::<Value>(&text).expect("JSON"));
            }
        }
        assert_eq!(events.last().expect("events")["type"], "done", "{events:?}");
        told.push(events);
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_both_within_a_second() {
    let data = tempfile::tempdir().expect("a directory");
    let Some(shared) = cluster::database(data.path()) else { return };
    let key = make_key(data.path());
    let settings = Settings { data_dir: Some(data.path().to_owned()), ..Settings::default() };
    let server = two_servers(settings).await.expect("a database");
    let ask = async |url: &str| {
        let asked = server.client.get(format!("{url}/v1/models")).bearer_auth(&key).send().await;
        asked.expect("an answer").status().as_u16()
    };
    let statuses = async || [ask(&server.servers[0]).await, ask(&server.servers[1]).await];
    assert_eq!(statuses().await, [200, 200]);
    let without = server.client.get(format!("{}/v1/models", server.servers[1])).send().await.expect("an answer");
    assert_eq!(without.status(), 401);
    let id = &key[.."hk_0123456789abcdef".len()];
    let revoked = {
        let (shared, id) = (shared, id.to_owned());
        tokio::task::spawn_blocking(move || KeyTable::connect(&shared).and_then(|table| table.revoke(&id)))
    };
    assert!(revoked.await.expect("no panic").expect("the database answers"));
    let since = Instant::now();
    while statuses().await != [401, 401] {
        assert!(since.elapsed() < Duration::from_secs(1), "a revoked key is accepted");
    }
}

fn make_key(data: &Path) -> String {
    let mut command = hearth();
    command.env("HEARTH_DATA_DIR", data).envs(cluster::environment(data)).args(["keys", "create"]);
    let made = command.output().expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned()
}

/// A PostgreSQL of this test's own, which may be killed.
struct Database(TempDir, String);

impl Database {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = script("start", directory.path());
        Self(directory, url.lines().last().unwrap_or_default().to_owned())
    }

    fn crash_and_start(&self) {
        script("restart", self.0.path());
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        script("stop", self.0.path());
    }
}

fn script(command: &str, directory: &Path) -> String {
    let run = Command::new("scripts/postgres.sh").arg(command).arg(directory).output().expect("bash");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("UTF-8")
}

/// A server as a process, which is killed and started again.
struct Replica {
    data: TempDir,
    database: String,
    process: Served,
    /// `None` while it is down.
    url: Arc<Mutex<Option<String>>>,
}

impl Replica {
    async fn start(database: &str) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let (process, url) = Self::launch(&data, database).await;
        Self { data, database: database.to_owned(), process, url: Arc::new(Mutex::new(Some(url))) }
    }

    async fn launch(data: &TempDir, database: &str) -> (Served, String) {
        let mut command = hearth();
        command.args(["serve", "--port", "0", "--threads", "1", "--alias", "tiny", "-m"]).arg(model());
        command.args(["--models-dir", "tests/fixtures/no-models", "--embedding-model"]).arg(embedding_model());
        command.env("HEARTH_DATA_DIR", data.path()).env("HEARTH_STORE_URL", database).stderr(Stdio::null());
        let mut process = Served(command.spawn().expect("it starts"));
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let url = line.split_whitespace().last().unwrap_or_default().to_owned();
        readiness_becomes(&url, 200).await;
        (process, url)
    }

    async fn kill_and_start(&mut self) -> Instant {
        let killed = Instant::now();
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("it ends");
        *self.url.lock() = None;
        let (process, url) = Self::launch(&self.data, &self.database).await;
        self.process = process;
        *self.url.lock() = Some(url);
        killed
    }
}

/// Sends a request to one server after the other until one accepts it; returns which, and the answer with its request's id.
async fn insist(
    urls: &[Arc<Mutex<Option<String>>>; 2],
    request: impl Fn(&str) -> reqwest::RequestBuilder,
) -> (usize, String, Value) {
    for attempt in 0.. {
        let at = attempt % 2;
        let url = urls[at].lock().clone();
        if let Some(url) = url
            && let Ok(answer) = request(&url).send().await
            && answer.status().is_success()
        {
            let id = answer.headers()["x-request-id"].to_str().expect("an id").to_owned();
            if let Ok(body) = answer.json().await {
                return (at, id, body);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("it insists")
}

#[expect(clippy::disallowed_methods, reason = "how long a test goes on is no setting of the server")]
fn count(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// What the clients were told was done.
#[derive(Default)]
struct Acknowledged {
    /// Ids of documents, and their texts.
    documents: BTreeMap<String, String>,
    /// Ids of requests, where, and when the answer was there.
    requests: Vec<(String, usize, Instant)>,
}

/// `HEARTH_KILLS` and `HEARTH_RESTARTS` say how often servers and the database are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_servers_and_a_killed_database_lose_nothing_and_do_nothing_twice() {
    if cluster::postgres().is_none() {
        return;
    }
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let database = tokio::task::spawn_blocking(Database::start).await.expect("PostgreSQL starts");
    let url = format!("{}/postgres", database.1);
    let mut replicas = [Replica::start(&url).await, Replica::start(&url).await];
    let urls = [replicas[0].url.clone(), replicas[1].url.clone()];
    let (stop, stopping) = watch::channel(false);
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let uploads = {
        let (urls, stopping, acknowledged) = (urls.clone(), stopping.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            for number in 0.. {
                if *stopping.borrow() {
                    break;
                }
                let text = format!("# Pumps\n\nPump {number} stands in the cellar called quebec{number}.");
                let upload = |url: &str| {
                    let form = file_form(&format!("{number}.md"), text.as_bytes());
                    form.of(client.post(format!("{url}/api/v1/documents/upload")))
                };
                let (_, _, document) = insist(&urls, upload).await;
                let id = document["document_id"].as_str().expect("an id").to_owned();
                acknowledged.lock().documents.insert(id, text);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    let requests = {
        let (urls, acknowledged) = (urls.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            while !*stopping.borrow() {
                let body = json!({"model": "bert-mean", "input": "a text"});
                let (at, id, _) = insist(&urls, |url| client.post(format!("{url}/v1/embeddings")).json(&body)).await;
                acknowledged.lock().requests.push((id, at, Instant::now()));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    let (kills, restarts) = (count("HEARTH_KILLS", 4), count("HEARTH_RESTARTS", 2));
    let mut killed: Vec<(usize, Instant)> = Vec::new();
    let mut failures: Vec<bool> = (0..kills + restarts).map(|number| number < kills).collect();
    rand::seq::SliceRandom::shuffle(&mut failures[..], &mut random);
    let database = Arc::new(database);
    for is_server in failures {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        if is_server {
            let at = random.random_range(0..2);
            killed.push((at, replicas[at].kill_and_start().await));
        } else {
            let database = database.clone();
            tokio::task::spawn_blocking(move || database.crash_and_start()).await.expect("PostgreSQL starts again");
            // Rows wait for the database, and go with a server that is killed before it is back.
            tokio::time::sleep(3 * BOUND).await;
        }
    }
    stop.send_replace(true);
    uploads.await.expect("no panic");
    requests.await.expect("no panic");
    let Acknowledged { documents, requests } = std::mem::take(&mut *acknowledged.lock());
    eprintln!(
        "{} documents, {} requests, {kills} servers and {restarts} databases killed",
        documents.len(),
        requests.len()
    );
    let at = urls[0].lock().clone().expect("it runs");
    let read = |id: &str| get(format!("{at}/api/v1/documents/{id}"));
    let began = Instant::now();
    for id in documents.keys() {
        loop {
            let state = read(id).await;
            if state["status"] == "ready" {
                break;
            }
            assert_eq!(state["status"], "processing", "{state}");
            assert!(began.elapsed() < Duration::from_secs(120), "{state}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    eprintln!("all documents are read {:?} after the last failure", began.elapsed());
    for (id, text) in &documents {
        let word = text.rsplit(' ').next().expect("a word").trim_end_matches('.').to_owned();
        let body = json!({"query": word, "search_mode": "lexical", "top_k": 3, "min_similarity": 0.0});
        let found =
            reqwest::Client::new().post(format!("{at}/api/v1/search")).json(&body).send().await.expect("an answer");
        let found: Value = found.json().await.expect("JSON");
        assert_eq!(found["passages"].as_array().map(Vec::len), Some(1), "{word}: {found}");
        assert_eq!(found["passages"][0]["document_id"], id.as_str(), "{word}: {found}");
    }
    // The last rows are written.
    tokio::time::sleep(2 * BOUND).await;
    check(&url, &documents, &requests, &killed).await;
    drop(replicas);
    tokio::task::spawn_blocking(move || drop(database)).await.expect("PostgreSQL stops");
}

/// What the database has, held against what the clients were told.
async fn check(
    url: &str,
    documents: &BTreeMap<String, String>,
    requests: &[(String, usize, Instant)],
    killed: &[(usize, Instant)],
) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("the database answers");
    let connection = tokio::spawn(connection);
    let number = async |sql: &str| client.query_one(sql, &[]).await.expect("an answer").get::<_, i64>(0);
    assert_eq!(number("SELECT count(*) FROM documents").await, documents.len() as i64, "no document twice");
    let twice = "SELECT count(*) FROM (SELECT 1 FROM chunks GROUP BY file_id, position HAVING count(*) > 1) AS twice";
    assert_eq!(number(twice).await, 0, "no chunk twice");
    assert_eq!(number("SELECT count(*) FROM chunks").await, number("SELECT count(*) FROM vectors").await);
    assert_eq!(number("SELECT count(*) FROM jobs WHERE ready_at IS NOT NULL").await, 0, "every job has ended");
    let done = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE kind = 'ingest' AND state = 'done'
        GROUP BY payload ->> 'file_id' HAVING count(*) = 1) AS once";
    assert_eq!(number(done).await, documents.len() as i64, "every document was read once to its end");
    for column in ["requests", "prompt_tokens", "compute_us", "latency_us", "cost_micro_usd"] {
        let of_row = if column == "requests" { "1 + repeats" } else { column };
        let summed = number(&format!("SELECT sum({column})::bigint FROM spent")).await;
        assert_eq!(summed, number(&format!("SELECT sum({of_row})::bigint FROM ledger")).await, "{column}");
    }
    let rows = client.query("SELECT request_id FROM ledger", &[]).await.expect("an answer");
    let rows: std::collections::HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let (mut missing, mut unexplained) = (0, Vec::new());
    for (id, at, answered) in requests.iter().filter(|(id, ..)| !rows.contains(id)) {
        missing += 1;
        // An answer may be read a little after its server's end.
        let is_bound = |(killed_at, killed): &(usize, Instant)| {
            killed_at == at && *answered + BOUND >= *killed && *answered <= *killed + BOUND / 4
        };
        if !killed.iter().any(is_bound) {
            unexplained.push(id);
        }
    }
    eprintln!("{missing} rows of {} are missing, each of a server that was killed within {BOUND:?}", requests.len());
    assert!(unexplained.is_empty(), "{unexplained:?}");
    connection.abort();
}
