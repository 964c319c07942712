//! Where a report goes: printed as a table or as JSON, and to files.

use std::{fmt::Display, io::Write, path::PathBuf};

use anyhow::Context;

#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// What is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write the report as JSON to this file, too
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Draw the report as an SVG to this file
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

impl OutputArgs {
    /// Prints the report in the requested format, and writes it to a file if requested; the caller draws the plot.
    pub(super) fn write(&self, table: impl Display, json: &str) -> anyhow::Result<()> {
        match self.format {
            Format::Table => writeln!(std::io::stdout(), "{table}")?,
            Format::Json => writeln!(std::io::stdout(), "{json}")?,
        }
        if let Some(path) = &self.output {
            std::fs::write(path, format!("{json}\n")).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}
