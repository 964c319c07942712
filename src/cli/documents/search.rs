//! `hearth search`: passages, best first.

use std::{collections::HashSet, io::Write};

use hearth_text::sentences::sentences;
use serde_json::json;

use super::{LookupArgs, source_line};
use crate::{cli::client::with_server, config::Settings, wire::ask::preview};

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
    let mut body = json!({"query": &args.query});
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
            writeln!(out, "    {}", excerpt(&args.query, passage["text"].as_str().unwrap_or_default()))?;
        }
        if passages.is_empty() {
            writeln!(std::io::stderr(), "No passage is near enough; --min-similarity sets how near.")?;
        }
        Ok(())
    })
}

/// The part of a passage with the most of the query's words, as a preview.
fn excerpt(query: &str, text: &str) -> String {
    let words = |text: &str| -> HashSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let wanted = words(query);
    let found = sentences(text)
        .into_iter()
        .map(|range| (words(&text[range.clone()]).intersection(&wanted).count(), range.start));
    // Of equally good ones, the first.
    let best = found.reduce(|best, next| if next.0 > best.0 { next } else { best });
    preview(&text[best.map_or(0, |(_, start)| start)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_begins_where_the_words_are() {
        let text = "Filler comes first. The relief valve is in unit 217. It is red.";
        assert_eq!(excerpt("relief valve of unit 217", text), "The relief valve is in unit 217. It is red.");
        assert_eq!(excerpt("a xylophone", text), text);
        assert_eq!(excerpt("x", ""), "");
    }
}
