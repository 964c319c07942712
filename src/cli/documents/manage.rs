//! `hearth documents`: lists those of a collection, and deletes some.

use std::io::Write;

use anyhow::{bail, ensure};
use comfy_table::{Table, presets::NOTHING};
use indicatif::{DecimalBytes, HumanCount};
use serde_json::Value;

use super::documents_of;
use crate::{
    cli::client::{Client, with_server},
    config::Settings,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The documents of a collection, and how reading each of them went
    List {
        /// Of this collection
        #[arg(long, default_value = "default", value_name = "NAME")]
        collection: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Delete documents, with their files
    Delete {
        /// Names as `hearth documents list` shows them, or ids
        #[arg(required = true, value_name = "DOCUMENT")]
        documents: Vec<String>,
        /// Of this collection
        #[arg(long, default_value = "default", value_name = "NAME")]
        collection: String,
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::List { collection, json, settings } => {
            with_server(*settings, async move |client| list(&client, &collection, json).await)
        }
        Command::Delete { documents, collection, settings } => {
            with_server(*settings, async move |client| delete(&client, &collection, &documents).await)
        }
    }
}

async fn list(client: &Client, collection: &str, json: bool) -> anyhow::Result<()> {
    let documents = sorted(client, collection).await?;
    let mut out = std::io::stdout();
    if json {
        writeln!(out, "{:#}", Value::Array(documents))?;
        return Ok(());
    }
    if documents.is_empty() {
        writeln!(std::io::stderr(), "There is no document in {collection:?}: `hearth ingest` puts some in.")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["DOCUMENT", "ID", "STATUS", "SIZE", "PASSAGES"]);
    for document in &documents {
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let status = match document["error"]["message"].as_str() {
            Some(reason) => format!("{}: {reason}", text("status")),
            None => text("status"),
        };
        let size = DecimalBytes(document["bytes"].as_u64().unwrap_or_default()).to_string();
        let passages = HumanCount(document["chunks"].as_u64().unwrap_or_default()).to_string();
        table.add_row([text("filename"), text("document_id"), status, size, passages]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

/// Deletes all of them or, if one does not exist, none.
async fn delete(client: &Client, collection: &str, wanted: &[String]) -> anyhow::Result<()> {
    let documents = sorted(client, collection).await?;
    let mut chosen: Vec<&Value> = Vec::new();
    for name in wanted {
        let named = |document: &&Value| document["document_id"] == **name || document["filename"] == **name;
        let found: Vec<&Value> = documents.iter().filter(named).collect();
        ensure!(
            !found.is_empty(),
            "there is no document {name:?} in {collection:?}; nothing was deleted. `hearth documents list` shows what is there"
        );
        for document in found {
            if !chosen.contains(&document) {
                chosen.push(document);
            }
        }
    }
    for document in chosen {
        let Some(id) = document["document_id"].as_str() else {
            bail!("the server's list has a document without an id")
        };
        client.delete(&format!("/api/v1/documents/{id}")).await?;
        writeln!(std::io::stderr(), "Deleted {} ({id}).", document["filename"].as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// By name, then by age.
async fn sorted(client: &Client, collection: &str) -> anyhow::Result<Vec<Value>> {
    let mut documents: Vec<Value> = documents_of(client, collection).await?.into_values().collect();
    documents.sort_by_key(|document| {
        let name = document["filename"].as_str().unwrap_or_default().to_owned();
        (name, document["created_at"].as_i64().unwrap_or_default())
    });
    Ok(documents)
}
