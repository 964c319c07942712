//! The commands over documents, which ask a server as any client does: see [`super::client`].

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

/// How often a command looks whether what it waits for is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
    let filename = filename.strip_suffix(".gz").unwrap_or(filename);
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
    let score = source["similarity_score"].as_f64().or(source["score"].as_f64()).unwrap_or_default();
    if title == filename {
        format!("[{number}] {filename}{place} ({score:.2})")
    } else {
        format!("[{number}] {title}, {filename}{place} ({score:.2})")
    }
}
