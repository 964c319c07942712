//! `hearth ask`: an answer from documents as it arrives, then its sources.

use std::io::Write;

use anyhow::bail;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{LookupArgs, source_line};
use crate::{
    cli::client::{Client, with_server},
    config::Settings,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    question: String,
    #[command(flatten)]
    lookup: LookupArgs,
    /// How the answer is bound to the documents: auto, extract, quote or free
    #[arg(long, default_value = "auto", value_name = "HOW")]
    grounding: String,
    /// Tokens of what a model writes
    #[arg(short = 'n', long, default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// Rate how fully the documents answer the question
    #[arg(long)]
    confidence: bool,
    /// The whole answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut body = json!({
        "question": args.question,
        "grounding": args.grounding,
        "max_tokens": args.max_tokens,
        "confidence": args.confidence,
    });
    args.lookup.write(&mut body);
    let json = args.json;
    with_server(args.settings, async move |client| {
        if json {
            let answer = client.post("/ask", &body).await?;
            writeln!(std::io::stdout(), "{answer:#}")?;
            return Ok(());
        }
        stream(&client, &body).await
    })
}

async fn stream(client: &Client, body: &Value) -> anyhow::Result<()> {
    let mut events = client.events("/ask/stream", body).await?;
    let mut out = std::io::stdout();
    while let Some(event) = events.next().await.transpose()? {
        if let Some(text) = event["token"].as_str() {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        if event["done"] == true {
            writeln!(out)?;
            return write_sources(&mut out, &event);
        }
    }
    bail!("the answer ended before it was done")
}

/// What follows an answer: its sources, its author, and its sentences that no source supports.
pub(in crate::cli) fn write_sources(out: &mut impl Write, done: &Value) -> anyhow::Result<()> {
    let sources = done["sources"].as_array().or(done["citations"].as_array()).map(Vec::as_slice).unwrap_or_default();
    if !sources.is_empty() {
        writeln!(out)?;
    }
    for (index, source) in sources.iter().enumerate() {
        writeln!(out, "{}", source_line(index + 1, source))?;
    }
    if let Some(left_out @ 1..) = done["sources_left_out"].as_u64() {
        writeln!(out, "{left_out} more did not fit into the model's context.")?;
    }
    let model = done["model"].as_str().unwrap_or_default();
    match done["grounding"].as_str() {
        _ if sources.is_empty() => {}
        Some("extract") => writeln!(out, "Quoted from the sources; no chat model was asked.")?,
        Some("quote") => writeln!(out, "Quoted from the sources; {model} chose.")?,
        _ => writeln!(out, "Written by {model}.")?,
    }
    for sentence in done["unsupported"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "No source supports: {sentence}")?;
    }
    if let Some(confidence) = done["confidence"].as_f64() {
        let note =
            if done["confidence_is_rated"] == true { "" } else { " (the model's rating could not be understood)" };
        writeln!(out, "Confidence: {confidence:.2}{note}")?;
    }
    Ok(())
}
