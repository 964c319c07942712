//! The commands over documents. They speak to a server as any client does, so that there is one way to do a thing:
//! to the server that has the data directory, or, if none runs, to one of their own that ends with them.

pub mod ask;
pub mod collections;
pub mod ingest;
pub mod manage;
pub mod recover;
pub mod reindex;
pub mod search;

use std::{collections::HashMap, future::Future, io::Write, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::{
    app::{Server, URL_FILE},
    config::{Config, Settings},
    service::callers::{CallerSettings, NewKey},
    store::StoreError,
    telemetry,
};

/// How often a command looks whether what it waits for is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A server, and what it needs to know of its caller.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    api_key: Option<String>,
}

impl Client {
    /// Where the server listens.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; an answer that is an error becomes the server's own words.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| format!("the server at {}", self.url))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        match body["error"]["message"].as_str() {
            Some(message) if status == StatusCode::UNAUTHORIZED => {
                bail!("{message} Commands send the key that is in HEARTH_API_KEY, or given with --api-key.")
            }
            Some(message) => bail!("{message}"),
            None => bail!("the server at {} answered {status}", self.url),
        }
    }

    async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        self.send(request).await?.json().await.context("the server's answer is no JSON")
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::DELETE, path)).await
    }
}

/// Runs `work` with a server: the one that has the data directory, or one of this process.
pub(super) fn with_server<F, W>(mut settings: Settings, work: W) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
    W: FnOnce(Client) -> F,
{
    settings.log.get_or_insert_with(|| "warn".to_owned());
    let mut config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let mut client =
        Client { http: reqwest::Client::new(), url: String::new(), api_key: config.callers.api_keys.first().cloned() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // A server of one's own is nobody else's.
    config.address = ([127, 0, 0, 1], 0).into();
    config.http.tls = None;
    let own_key = NewKey::random()?.key;
    config.callers = CallerSettings { api_keys: vec![own_key.clone()], ..CallerSettings::default() };
    let data_dir = config.data_dir.clone();
    let server = match Server::bind(config) {
        Ok(server) => server,
        Err(error) if matches!(error.downcast_ref(), Some(StoreError::Locked { .. })) => {
            client.url = url_of_running(&data_dir).ok_or(error)?;
            writeln!(std::io::stderr(), "Asking the server at {}, which has the data.", client.url)?;
            return runtime.block_on(async {
                ready(&client).await?;
                work(client).await
            });
        }
        Err(error) => return Err(error),
    };
    client.api_key = Some(own_key);
    client.url = format!("http://{}", server.address().context("asking for the port")?);
    runtime.block_on(async {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut serving = tokio::spawn(server.run(async { drop(stopped.await) }));
        let outcome = tokio::select! {
            outcome = async {
                ready(&client).await?;
                work(client).await
            } => outcome,
            ended = &mut serving => {
                ended.context("the server failed")??;
                bail!("the server ended before it had answered")
            }
        };
        drop(stop);
        serving.await.context("the server failed")??;
        outcome
    })
}

/// The server that has the data directory; `None` if it has not said where it listens.
pub(super) fn running_server(config: &Config) -> anyhow::Result<Option<Client>> {
    let Some(url) = url_of_running(&config.data_dir) else { return Ok(None) };
    writeln!(std::io::stderr(), "Asking the server at {url}, which has the data.")?;
    Ok(Some(Client { http: reqwest::Client::new(), url, api_key: config.callers.api_keys.first().cloned() }))
}

/// The models that the running server serves, and how to ask it.
///
/// # Errors
/// If no server runs on the data directory; one that was killed has left its address there.
pub(super) fn served_models(config: &Config) -> anyhow::Result<(Client, Value)> {
    let none = || anyhow!("no server runs on {}; `hearth serve` starts one", config.data_dir.display());
    let url = url_of_running(&config.data_dir).ok_or_else(none)?;
    let client = Client { http: reqwest::Client::new(), url, api_key: config.callers.api_keys.first().cloned() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let models = runtime.block_on(client.get("/v1/models")).map_err(|error| {
        let is_gone = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect);
        if is_gone { none() } else { error }
    })?;
    Ok((client, models))
}

/// Where the server that has this data directory listens, as it says there.
fn url_of_running(data_dir: &Path) -> Option<String> {
    let url = std::fs::read_to_string(data_dir.join(URL_FILE)).ok()?;
    // A server that listens on all addresses is asked on this machine's own.
    let url = url.trim().replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
    (!url.is_empty()).then_some(url)
}

/// Waits until a server has loaded its models.
async fn ready(client: &Client) -> anyhow::Result<()> {
    loop {
        let answer = client.request(Method::GET, "/health/ready").send().await?;
        if answer.status().is_success() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The documents of a collection by their ids; none if it is not there yet.
pub(super) async fn documents_of(client: &Client, collection: &str) -> anyhow::Result<HashMap<String, Value>> {
    let request = client.request(Method::GET, "/api/v1/documents").query(&[("collection", collection)]);
    let answer = request.send().await.context("asking for the documents")?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(HashMap::new());
    }
    ensure!(answer.status().is_success(), "asking for the documents: {}", answer.text().await.unwrap_or_default());
    let mut answer: Value = answer.json().await?;
    let Value::Array(documents) = answer["documents"].take() else { return Ok(HashMap::new()) };
    let by_id = |document: Value| (document["document_id"].as_str().unwrap_or_default().to_owned(), document);
    Ok(documents.into_iter().map(by_id).collect())
}

/// Where to look, on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct LookupArgs {
    /// Look in this collection; several with commas [default: default]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    collection: Vec<String>,
    /// Passages at most
    #[arg(short = 'k', long, default_value_t = 5, value_name = "N")]
    top_k: usize,
    /// Passages less similar than this are no answer
    #[arg(long, default_value_t = 0.3, value_name = "0..1")]
    min_similarity: f32,
    /// How to look: fused, dense or lexical
    #[arg(long, default_value = "fused", value_name = "MODE")]
    mode: String,
    /// Have the model of --rerank-model put the passages in order
    #[arg(long)]
    rerank: bool,
}

impl LookupArgs {
    /// These fields in a body. Documents that are still being read are waited for.
    fn write(&self, body: &mut Value) {
        body["collections"] = self.collection.clone().into();
        body["top_k"] = self.top_k.into();
        body["min_similarity"] = self.min_similarity.into();
        body["search_mode"] = self.mode.clone().into();
        body["rerank"] = self.rerank.into();
        body["wait"] = true.into();
    }
}

/// Where in a file: a page, a sheet or a line, as its kind has them.
fn place_of(filename: &str, place: u64) -> String {
    match filename.rsplit('.').next().map(str::to_lowercase).as_deref() {
        Some("pdf") => format!(", page {place}"),
        Some("xlsx" | "xlsm" | "xls" | "ods") => format!(", sheet {place}"),
        _ => format!(":{place}"),
    }
}

/// A passage's line: how similar it is, what it is about and where it is from.
fn source_line(number: usize, source: &Value) -> String {
    let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
    let (title, filename) = (text("title"), text("filename"));
    let place = source["place"].as_u64().map_or(String::new(), |place| place_of(&filename, place));
    let score = source["similarity_score"].as_f64().unwrap_or_default();
    if title == filename {
        format!("[{number}] {filename}{place} ({score:.2})")
    } else {
        format!("[{number}] {title}, {filename}{place} ({score:.2})")
    }
}
