//! `hearth collections`: lists them with their documents, and deletes one.

use std::io::Write;

use comfy_table::{Table, presets::NOTHING};

use crate::{
    cli::client::{Client, with_server},
    config::Settings,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Delete this collection, by name or id, with the documents in it
    #[arg(long, value_name = "NAME")]
    delete: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    with_server(args.settings, async move |client| match args.delete {
        Some(name) => {
            let deleted = client.delete(&format!("/api/v1/collections/{name}")).await?;
            writeln!(std::io::stderr(), "Deleted {}.", deleted["name"].as_str().unwrap_or(&name))?;
            Ok(())
        }
        None => list(&client, args.json).await,
    })
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let answer = client.get("/api/v1/collections").await?;
    let mut out = std::io::stdout();
    if json {
        writeln!(out, "{answer:#}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["NAME", "ID", "DOCUMENTS", "FAILED", "EMBEDDED BY"]);
    let collections = answer["collections"].as_array().map(Vec::as_slice).unwrap_or_default();
    for collection in collections {
        let text = |key: &str| collection[key].as_str().unwrap_or_default().to_owned();
        let store = client.get(&format!("/v1/vector_stores/{}", text("id"))).await?;
        let count = |status: &str| store["file_counts"][status].as_u64().unwrap_or_default();
        let (failed, others) = (count("failed"), count("total") - count("failed"));
        table.add_row([text("name"), text("id"), others.to_string(), failed.to_string(), text("embedding")]);
    }
    if collections.is_empty() {
        writeln!(std::io::stderr(), "There is no collection yet: `hearth ingest` makes one.")?;
    } else {
        writeln!(out, "{table}")?;
    }
    Ok(())
}
