//! `hearth embed`: the vectors of texts, as JSON, one line a text.
//!
//! Texts are the arguments, or else the lines of standard input. The same provider as behind the server, so
//! that vectors made here and there may be mixed.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::{
    app,
    config::{Config, Settings},
    domain::{EmbedInput, EmbedInputType, EmbedRequest},
    providers::Embedder,
    telemetry,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Texts to embed; without any, the lines of standard input
    texts: Vec<String>,
    /// The texts are search queries: models that want a prefix for those get it
    #[arg(long, conflicts_with = "passage")]
    query: bool,
    /// The texts are passages to be searched
    #[arg(long)]
    passage: bool,
    /// Keep this many leading dimensions, renormalized
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Cut texts that are too long instead of refusing them
    #[arg(long)]
    truncate: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Texts embedded at a time: enough to fill the batches, few enough that output begins soon.
const TEXTS_AT_A_TIME: usize = 256;

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = args.settings;
    settings.log.get_or_insert_with(|| "warn".to_owned());
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let embedder = app::load_embedder(&config)?.with_context(|| {
        format!(
            "there is no embedding model in {}: name one with --embedding-model, or fetch one with `hearth pull`",
            config.models_dir.display()
        )
    })?;
    let texts = if args.texts.is_empty() { lines()? } else { args.texts };
    let input_type = match (args.query, args.passage) {
        (true, _) => EmbedInputType::Query,
        (_, true) => EmbedInputType::Passage,
        _ => EmbedInputType::Plain,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut out = std::io::stdout().lock();
    for texts in texts.chunks(TEXTS_AT_A_TIME) {
        let response = runtime.block_on(embedder.embed(EmbedRequest {
            request_id: uuid::Uuid::now_v7().to_string(),
            model: embedder.info().id.clone(),
            inputs: texts.iter().cloned().map(EmbedInput::Text).collect(),
            input_type,
            dimensions: args.dimensions,
            truncate: args.truncate,
            caller: String::new(),
            deadline: None,
        }))?;
        for (text, embedding) in texts.iter().zip(response.embeddings) {
            writeln!(out, "{}", json!({"text": text, "embedding": embedding}))?;
        }
    }
    Ok(())
}

fn lines() -> anyhow::Result<Vec<String>> {
    let stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "nothing to embed: give texts as arguments, or lines on standard input");
    let lines: Result<Vec<String>, _> = stdin.lock().lines().collect();
    let lines: Vec<String> = lines.context("reading standard input")?;
    Ok(lines.into_iter().filter(|line| !line.is_empty()).collect())
}
