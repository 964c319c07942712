//! `hearth reindex`: recomputes a collection's vectors, with a progress bar.

use std::io::Write;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::LOOK_AGAIN;
use crate::{cli::client::with_server, config::Settings};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A collection's name or id
    #[arg(default_value = "default")]
    collection: String,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    with_server(args.settings, async move |client| {
        let path = format!("/api/v1/collections/{}/reindex", args.collection);
        let mut job = client.post(&path, &json!({})).await?;
        let path = format!("{path}/{}", job["job_id"].as_str().unwrap_or_default());
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("Embedding [{bar:40}] {pos}/{len} passages, {eta} left")?);
        while matches!(job["status"].as_str(), Some("queued" | "running")) {
            tokio::time::sleep(LOOK_AGAIN).await;
            job = client.get(&path).await?;
            if let Some(left) = job["progress"]["left"].as_u64() {
                // The first report counts all of them.
                let all = bar.length().unwrap_or(0).max(left);
                bar.set_length(all);
                bar.set_position(all - left);
            }
        }
        bar.finish_and_clear();
        match job["status"].as_str() {
            Some("done") => {
                writeln!(std::io::stderr(), "{} passages embedded anew.", job["result"]["chunks"])?;
                Ok(())
            }
            Some("cancelled") => bail!("the collection was deleted"),
            _ => bail!("{}", job["error"].as_str().unwrap_or("reindexing failed")),
        }
    })
}
