//! `hearth embed`: the vectors of texts, as JSON, one line per text.
//!
//! Texts are the arguments, or else the lines of standard input. The provider is the server's, so vectors made here and
//! there may be mixed.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, ensure};
use hearth_domain::{Account, EmbedInput, EmbedInputType, EmbedRequest};
use hearth_models::{manifest::Kind, selection::kind_of};
use serde_json::json;

use crate::{
    app,
    config::{Config, Settings},
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

/// Texts embedded at a time: enough to fill the batches, few enough for output to start soon.
const TEXTS_AT_A_TIME: usize = 256;

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = args.settings;
    settings.log.get_or_insert_with(|| "warn".to_owned());
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    if let (Some(path), None) = (&config.model, &config.embedding_model) {
        let is_chat = kind_of(path).is_ok_and(|kind| kind == Kind::Chat);
        ensure!(is_chat, "-m names a chat model; name {} with --embedding-model", path.display());
    }
    let embedder = app::load_embedder(&config)?.with_context(|| {
        format!(
            "there is no embedding model in {}: name one with --embedding-model, or fetch one with `hearth pull`",
            config.models.places()
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
        // An empty line has no meaning to embed; it keeps its place, so that output lines match input lines.
        let inputs = texts.iter().filter(|text| !text.is_empty()).cloned().map(EmbedInput::Text).collect();
        let response = runtime.block_on(embedder.embed(EmbedRequest {
            account: Account::unrecorded(),
            inputs,
            input_type,
            dimensions: args.dimensions,
            truncate: args.truncate,
            deadline: None,
        }))?;
        let mut embeddings = response.embeddings.into_iter();
        for text in texts {
            let embedding = if text.is_empty() { None } else { embeddings.next() };
            writeln!(out, "{}", json!({"text": text, "embedding": embedding}))?;
        }
    }
    Ok(())
}

fn lines() -> anyhow::Result<Vec<String>> {
    let stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "nothing to embed: give texts as arguments, or lines on standard input");
    let lines: Result<Vec<String>, _> = stdin.lock().lines().collect();
    lines.context("reading standard input")
}
