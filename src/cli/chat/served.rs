//! A server's model, with its documents if requested.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{anyhow, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::{Args, Piece, Pieces, summary};
use crate::cli::{client::Client, documents::ask::write_sources};

pub(super) struct ServedPartner {
    client: Client,
    /// `None` answers from documents only.
    model: Option<String>,
    /// The request body without its messages.
    body: Value,
    from_documents: bool,
    timings: bool,
}

impl ServedPartner {
    /// The requested model of this server, or else its first; `None` if there is none.
    pub(super) fn choose(client: Client, models: &Value, args: &Args) -> Option<Self> {
        let from_documents = !args.collection.is_empty();
        let model = match args.settings.model.as_deref() {
            Some(wanted) => Some(chat_models(models).find(|model| is_called(model, wanted))?),
            None => chat_models(models).next(),
        };
        let model = model.and_then(|model| model["id"].as_str()).map(str::to_owned);
        if model.is_none() && !from_documents {
            return None;
        }
        let mut body = json!({"temperature": args.temperature, "max_tokens": args.max_tokens});
        if let Some(model) = &model {
            body["model"] = model.clone().into();
        }
        if from_documents {
            body["collections"] = args.collection.clone().into();
            body["wait"] = true.into();
        } else {
            body["top_p"] = args.top_p.into();
            body["stream"] = true.into();
            if let Some(seed) = args.seed {
                body["seed"] = seed.into();
            }
        }
        Some(Self { client, model, body, from_documents, timings: args.timings })
    }

    pub(super) fn name(&self) -> String {
        match &self.model {
            Some(model) => format!("{model} at {}", self.client.url()),
            None => format!("the documents at {}", self.client.url()),
        }
    }

    pub(super) async fn answer(&self, messages: &[Value]) -> anyhow::Result<Pieces> {
        let mut body = self.body.clone();
        body["messages"] = messages.into();
        let path = if self.from_documents { "/api/v1/chat/stream" } else { "/v1/chat/completions" };
        let events = self.client.events(path, &body).await?;
        let timings = self.timings;
        let is_done = Arc::new(AtomicBool::new(false));
        let ends = is_done.clone();
        let said = events.map_ok(move |event| {
            if event["done"] == true || event["choices"][0]["finish_reason"].is_string() {
                ends.store(true, Ordering::Relaxed);
            }
            stream::iter(pieces(&event, timings))
        });
        let end = stream::once(async move {
            ensure!(is_done.load(Ordering::Relaxed), "the answer ended before it was done");
            Ok(None)
        });
        Ok(said.try_flatten().map_ok(Some).chain(end).try_filter_map(async |piece| Ok(piece)).boxed())
    }
}

/// The models that generate.
fn chat_models(models: &Value) -> impl Iterator<Item = &Value> {
    models["data"].as_array().into_iter().flatten().filter(|model| model["capabilities"]["chat"] == true)
}

/// Whether a model has this name, or is named after this file.
fn is_called(model: &Value, wanted: &Path) -> bool {
    let is_file = wanted.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let stem = wanted.file_stem().filter(|_| is_file);
    let names = model["aliases"].as_array().into_iter().flatten().chain([&model["id"]]).filter_map(Value::as_str);
    names.into_iter().any(|name| wanted == Path::new(name) || stem.is_some_and(|stem| stem == name))
}

/// The pieces in one event.
fn pieces(event: &Value, timings: bool) -> Vec<anyhow::Result<Piece>> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let delta = &event["choices"][0]["delta"];
    let mut pieces = Vec::new();
    pieces.extend(text(&delta["reasoning_content"]).map(Piece::Thinking));
    pieces.extend(text(&delta["content"]).or_else(|| text(&event["token"])).map(Piece::Text));
    if event["done"] == true {
        let mut sources = Vec::new();
        match write_sources(&mut sources, event) {
            Ok(()) => pieces.push(Piece::Sources(String::from_utf8_lossy(&sources).into_owned())),
            Err(error) => return vec![Err(anyhow!(error))],
        }
    }
    let took = &event["timings"];
    if timings && took.is_object() {
        let count = |key: &str| took[key].as_u64().unwrap_or_default() as usize;
        let rate = |key: &str| took[key].as_f64().unwrap_or_default();
        let (new, cached) = (count("prompt_n"), count("cache_n"));
        pieces.push(Piece::Remark(summary(
            new + cached,
            cached,
            rate("prompt_per_second"),
            count("predicted_n"),
            rate("predicted_per_second"),
        )));
    }
    pieces.into_iter().map(Ok).collect()
}
