//! The document commands, which call a server like any client: see [`super::client`].

pub mod ask;
pub mod collections;
mod files;
pub mod ingest;
pub mod manage;
pub mod recover;
pub mod reindex;
pub mod search;

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, ensure};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::client::Client;

/// How often a command polls what it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The documents of a collection by their ids; none if it does not exist yet.
pub(super) async fn documents_of(client: &Client, collection: &str) -> anyhow::Result<HashMap<String, Value>> {
    let documents = all_documents(client, Some(collection)).await?;
    Ok(documents.into_iter().map(|document| (id_of(&document), document)).collect())
}

fn id_of(document: &Value) -> String {
    document["document_id"].as_str().unwrap_or_default().to_owned()
}

/// The documents of a collection or of all, page by page; none if the collection does not exist.
pub(super) async fn all_documents(client: &Client, collection: Option<&str>) -> anyhow::Result<Vec<Value>> {
    let mut documents: Vec<Value> = Vec::new();
    loop {
        let mut query: Vec<(&str, String)> =
            collection.map(|name| ("collection", name.to_owned())).into_iter().collect();
        query.extend(documents.last().map(|last| ("after", id_of(last))));
        let answer = client.request(Method::GET, "/api/v1/documents").query(&query).send().await;
        let answer = answer.context("asking for the documents")?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(documents);
        }
        ensure!(answer.status().is_success(), "asking for the documents: {}", answer.text().await.unwrap_or_default());
        let mut answer: Value = answer.json().await?;
        let Value::Array(page) = answer["documents"].take() else { return Ok(documents) };
        let is_last = page.is_empty() || answer["has_more"] != true;
        documents.extend(page);
        if is_last {
            return Ok(documents);
        }
    }
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
    /// Passages less similar than this are not used
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
    /// Writes these fields into a body. The server waits for documents that are still being read.
    fn write(&self, body: &mut Value) {
        body["collections"] = self.collection.clone().into();
        body["top_k"] = self.top_k.into();
        body["min_similarity"] = self.min_similarity.into();
        body["search_mode"] = self.mode.clone().into();
        body["rerank"] = self.rerank.into();
        body["wait"] = true.into();
    }
}

/// The place in a file: a page, a sheet or a line, depending on the file's kind.
fn place_of(filename: &str, place: u64) -> String {
    let filename = filename.strip_suffix(".gz").unwrap_or(filename);
    match filename.rsplit('.').next().map(str::to_lowercase).as_deref() {
        Some("pdf") => format!(", page {place}"),
        Some("xlsx" | "xlsm" | "xls" | "ods") => format!(", sheet {place}"),
        _ => format!(":{place}"),
    }
}

/// A passage's line: its similarity, its subject and its origin.
fn source_line(number: usize, source: &Value) -> String {
    let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
    let (title, filename) = (text("title"), text("filename"));
    let place = source["place"].as_u64().map_or(String::new(), |place| place_of(&filename, place));
    let score = source["similarity_score"].as_f64().or(source["score"].as_f64()).unwrap_or_default();
    if title == filename {
        format!("[{number}] {filename}{place} ({score:.2})")
    } else {
        format!("[{number}] {title}, {filename}{place} ({score:.2})")
    }
}
