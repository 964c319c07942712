//! `hearth ps`: the models that the running server serves.

use std::io::Write;

use comfy_table::{Table, presets::NOTHING};
use indicatif::{DecimalBytes, HumanCount};
use serde_json::Value;

use super::client::served_models;
use crate::config::{Config, Settings};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.settings)?;
    let (_, models) = served_models(&config)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{models:#}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["NAME", "WHAT", "PARAMETERS", "TYPE", "SIZE", "CONTEXT"]);
    for model in models["data"].as_array().into_iter().flatten() {
        let can = |what: &str| model["capabilities"][what] == true;
        let what = match () {
            () if can("chat") => "chat",
            () if can("embeddings") => "embeddings",
            () => "rerank",
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let count = |value: &Value| HumanCount(value.as_u64().unwrap_or_default()).to_string();
        table.add_row([
            text(&model["id"]),
            what.to_owned(),
            count(&model["meta"]["n_params"]),
            text(&model["meta"]["quantization"]),
            DecimalBytes(model["meta"]["size"].as_u64().unwrap_or_default()).to_string(),
            count(&model["context_length"]),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}
