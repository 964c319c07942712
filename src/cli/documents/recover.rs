//! `hearth recover`: a new database in place of a damaged one.

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
    let recovered = recover(&config.data_dir)?;
    let Recovered { collections, documents, files, unknown_files, keys, lost_keys, ledger_rows, damaged } = recovered;
    let mut out = std::io::stderr();
    writeln!(out, "{collections} collections, {documents} documents and {files} files were saved.")?;
    if unknown_files > 0 {
        writeln!(out, "{unknown_files} of the files had lost their names; they are in the collection \"recovered\".")?;
    }
    writeln!(out, "{keys} keys and {ledger_rows} rows of the ledger were saved.")?;
    if lost_keys {
        writeln!(
            out,
            "Not all keys could be read: see which are there with `hearth keys list`, and make the others anew."
        )?;
    }
    writeln!(out, "The documents are read again when the server starts.")?;
    if let Some(damaged) = damaged {
        writeln!(out, "The damaged database is {}.", damaged.display())?;
    }
    Ok(())
}
