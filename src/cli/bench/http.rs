//! Through a server on loopback: what a client sees, sockets and JSON included.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, future::try_join_all};
use serde_json::{Value, json};

use super::{Measured, Workload, prompt};
use crate::{
    app::Server,
    config::Config,
    providers::{ChatModel, local::LocalChat},
    service::callers::{CallerSettings, NewKey},
};

/// Starts a server on the loaded model and measures it as [`super::in_process`] measures the engine.
pub(super) async fn measure(config: &Config, model: LocalChat, workload: Workload) -> anyhow::Result<Measured> {
    let mut config = config.clone();
    // Only this process may reach it.
    config.address = ([127, 0, 0, 1], 0).into();
    config.http.tls = None;
    let key = NewKey::random()?.key;
    config.callers = CallerSettings { api_keys: vec![key.clone()], ..CallerSettings::default() };
    let vocab_size = model.info().vocab_size;
    let name = model.info().id.clone();
    let server = Server::bind(config)?.with_chat(model);
    let address = server.address()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async { drop(stopped.await) }));
    let client =
        Arc::new(Client { http: reqwest::Client::new(), url: format!("http://{address}"), key, name, vocab_size });
    let measured = client.clone().measure(workload).await;
    drop(stop);
    serving.await.context("the server's task")??;
    measured
}

struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
    name: String,
    vocab_size: usize,
}

impl Client {
    async fn measure(self: Arc<Self>, workload: Workload) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        for repetition in 0..=workload.repetitions {
            let salt = 1_000_000 + repetition as u64 * 1000;
            let mut once = Measured::default();
            if workload.prefill {
                let (first_token, _) = self.stream(workload.prompt_tokens, 1, salt).await?;
                once.record_prefill(workload, first_token);
            }
            if workload.decode {
                let (_, decode) = self.stream(workload.depth, workload.decode_tokens, salt + 1).await?;
                once.record_decode(workload, decode);
            }
            if workload.streams {
                let started = Instant::now();
                let streams =
                    (0..workload.parallel).map(|index| self.stream(1, workload.decode_tokens, salt + 2 + index as u64));
                try_join_all(streams).await?;
                once.record_concurrent(workload, started.elapsed().as_secs_f64());
            }
            if repetition > 0 {
                measured.append(once);
            }
        }
        Ok(measured)
    }

    /// Seconds from the request to the first token, and from the first token to the last.
    async fn stream(&self, prompt_tokens: usize, decode_tokens: usize, salt: u64) -> anyhow::Result<(f64, f64)> {
        let body = json!({
            "model": self.name,
            "prompt": prompt(prompt_tokens, self.vocab_size, salt),
            "max_tokens": decode_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            // A token may have no text of its own, but it has an id.
            "return_token_ids": true,
        });
        let started = Instant::now();
        let response =
            self.http.post(format!("{}/v1/completions", self.url)).bearer_auth(&self.key).json(&body).send().await?;
        let status = response.status();
        ensure!(status.is_success(), "the server answered {status}: {}", response.text().await.unwrap_or_default());
        let mut bytes = response.bytes_stream();
        let mut buffer = Vec::new();
        let mut first = None;
        let mut last = None;
        while let Some(part) = bytes.next().await {
            buffer.extend_from_slice(&part?);
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = buffer.drain(..end + 2).collect();
                if is_token(&frame)? {
                    let now = Instant::now();
                    first.get_or_insert(now);
                    last = Some(now);
                }
            }
        }
        let (Some(first), Some(last)) = (first, last) else { bail!("the stream ended without a token") };
        Ok(((first - started).as_secs_f64(), (last - first).as_secs_f64()))
    }
}

/// Does this SSE frame carry generated tokens?
fn is_token(frame: &[u8]) -> anyhow::Result<bool> {
    let Some(data) = frame.strip_prefix(b"data: ") else { return Ok(false) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Ok(false);
    }
    let event: Value = serde_json::from_slice(data).context("a frame that is not JSON")?;
    if let Some(error) = event.get("error") {
        bail!("the server failed in mid-stream: {error}");
    }
    let choice = &event["choices"][0];
    let has_ids = choice["token_ids"].as_array().is_some_and(|ids| !ids.is_empty());
    Ok(has_ids || choice["text"].as_str().is_some_and(|text| !text.is_empty()))
}
