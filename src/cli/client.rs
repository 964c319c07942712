//! How a command asks a server: the one that owns the data directory or, if none runs, one in this process that ends
//! with the command. Commands speak HTTP like any client, so that there is one way to do a thing.

use std::{future::Future, io::Write, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::{
    app::{Server, URL_FILE},
    config::{Config, Settings},
    providers::hosted::event_decoder::EventDecoder,
    service::callers::{CallerSettings, NewKey},
    store::StoreError,
    telemetry,
};

/// A server, and what it needs to know about its caller.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    api_key: Option<String>,
}

impl Client {
    /// The server at an address, called with the first configured key.
    pub(super) fn at(url: String, config: &Config) -> Self {
        // Without a connection there is no server, but an answer may take as long as a model does.
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().unwrap_or_default();
        Self { http, url, api_key: config.callers.api_keys.first().cloned() }
    }

    /// Where the server listens.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; an error response becomes an error with the server's own message.
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

    pub(super) async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        self.send(request).await?.json().await.context("the server's answer is no JSON")
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// The events of a streamed answer. An error event becomes an error with the server's own message.
    pub(super) async fn events(
        &self,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Value>> + Unpin + use<>> {
        let answer = self.send(self.request(Method::POST, path).json(body)).await?;
        let mut decoder = EventDecoder::default();
        let events = answer.bytes_stream().map(move |part| -> anyhow::Result<_> {
            let mut events = Vec::new();
            decoder.push(&part.context("the answer was cut off")?, &mut events)?;
            Ok(stream::iter(events.into_iter().filter(|event| event != "[DONE]").map(|event| {
                let event: Value = serde_json::from_str(&event).context("a part of the answer is no JSON")?;
                match event["error"]["message"].as_str() {
                    Some(message) => bail!("{message}"),
                    None => Ok(event),
                }
            })))
        });
        Ok(Box::pin(events.try_flatten()))
    }

    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::DELETE, path)).await
    }
}

/// Runs `work` with a server: the one that owns the data directory, or one in this process.
pub(super) fn with_server<F, W>(mut settings: Settings, work: W) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
    W: FnOnce(Client) -> F,
{
    // The command reports failures itself, with the file's name.
    settings.log.get_or_insert_with(|| "warn,hearth::service::jobs=off".to_owned());
    let mut config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let mut client = Client::at(String::new(), &config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Only this command uses its own server.
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

/// The server that owns the data directory; `None` if it has not published its address.
pub(super) fn running_server(config: &Config) -> anyhow::Result<Option<Client>> {
    let Some(url) = url_of_running(&config.data_dir) else { return Ok(None) };
    writeln!(std::io::stderr(), "Asking the server at {url}, which has the data.")?;
    Ok(Some(Client::at(url, config)))
}

/// The models that the running server serves, and how to ask it.
///
/// # Errors
/// If no server runs on the data directory.
pub(super) fn served_models(config: &Config) -> anyhow::Result<(Client, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(find_running(config))?;
    served.with_context(|| format!("no server runs on {}; `hearth serve` starts one", config.data_dir.display()))
}

/// The server that runs on the data directory, and the models that it serves. A server that was killed leaves its
/// address behind and does not answer.
pub(super) async fn find_running(config: &Config) -> anyhow::Result<Option<(Client, Value)>> {
    let Some(url) = url_of_running(&config.data_dir) else { return Ok(None) };
    let client = Client::at(url, config);
    let asked = tokio::time::timeout(Duration::from_secs(5), client.get("/v1/models")).await;
    match asked.unwrap_or_else(|_elapsed| Err(anyhow!("what listens at {} does not answer", client.url))) {
        Ok(models) => Ok(Some((client, models))),
        Err(error) if error.downcast_ref().is_some_and(reqwest::Error::is_connect) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The address that the server of this data directory published there.
fn url_of_running(data_dir: &Path) -> Option<String> {
    let url = std::fs::read_to_string(data_dir.join(URL_FILE)).ok()?;
    // A server that listens on all addresses is called on loopback.
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
