//! `hearth search`: passages, best first.

use std::io::Write;

use serde_json::json;

use super::{LookupArgs, source_line, with_server};
use crate::config::Settings;

#[derive(Debug, clap::Args)]
pub struct Args {
    query: String,
    #[command(flatten)]
    lookup: LookupArgs,
    /// The passages whole, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut body = json!({"query": args.query});
    args.lookup.write(&mut body);
    with_server(args.settings, async move |client| {
        let answer = client.post("/api/v1/search", &body).await?;
        let mut out = std::io::stdout();
        if args.json {
            writeln!(out, "{answer:#}")?;
            return Ok(());
        }
        let passages = answer["passages"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, passage) in passages.iter().enumerate() {
            writeln!(out, "{}", source_line(index + 1, passage))?;
            writeln!(out, "    {}", passage["content_preview"].as_str().unwrap_or_default())?;
        }
        if passages.is_empty() {
            writeln!(std::io::stderr(), "No passage is near enough; --min-similarity sets how near.")?;
        }
        Ok(())
    })
}
