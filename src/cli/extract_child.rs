//! `hearth extract-child`: the process that reads one PDF or Office document for its parent and may die of it.
//! Users do not type this; [`hearth_text::extract::sandbox`] starts it.

use std::io;

use hearth_text::extract::sandbox;

/// Answers the request on standard input to standard output.
pub fn run() -> anyhow::Result<()> {
    Ok(sandbox::serve_one(io::stdin().lock(), io::BufWriter::new(io::stdout().lock()))?)
}
