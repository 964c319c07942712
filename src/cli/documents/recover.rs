//! `hearth recover`: a new database in the place of a damaged one.

use std::io::Write;

use crate::{
    config::{Config, Settings},
    store::{Recovered, recover},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.settings)?;
    let Recovered { collections, documents, files, unknown_files, damaged } = recover(&config.data_dir)?;
    let mut out = std::io::stderr();
    writeln!(out, "{collections} collections, {documents} documents and {files} files were saved.")?;
    if unknown_files > 0 {
        writeln!(out, "{unknown_files} of the files had lost their names; they are in the collection \"recovered\".")?;
    }
    writeln!(
        out,
        "The documents are read again when the server starts. The damaged database is {}.",
        damaged.display()
    )?;
    Ok(())
}
