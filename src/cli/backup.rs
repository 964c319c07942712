//! `hearth backup` and `hearth restore`: a data directory copied into another, and back.

use std::{io::Write, path::PathBuf};

use anyhow::ensure;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::{
    config::DataSettings,
    store::{self, BackupProgress, BackupSummary},
};

#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// A directory that is not there yet, or empty
    directory: PathBuf,
    #[command(flatten)]
    settings: DataSettings,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The directory that `hearth backup` made
    directory: PathBuf,
    #[command(flatten)]
    settings: DataSettings,
}

pub fn back_up(args: &BackupArgs) -> anyhow::Result<()> {
    let data = args.settings.clone().directory()?;
    let bar = Bar::new()?;
    let BackupSummary { files, bytes, missing, damaged } =
        store::back_up(&data, &args.directory, &mut |step| bar.show(step))?;
    bar.finish();
    writeln!(
        std::io::stderr(),
        "The database and {files} files of {} are in {}, {}.",
        data.display(),
        args.directory.display(),
        HumanBytes(bytes)
    )?;
    for id in &missing {
        writeln!(std::io::stderr(), "{id} is in the database, but its file is not there.")?;
    }
    for id in &damaged {
        writeln!(std::io::stderr(), "{id} has other bytes than were uploaded.")?;
    }
    ensure!(
        missing.is_empty() && damaged.is_empty(),
        "{} uploads of {} are missing or damaged; the backup has everything else. Look for them in an earlier backup.",
        missing.len() + damaged.len(),
        data.display()
    );
    Ok(())
}

pub fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let data = args.settings.clone().directory()?;
    let bar = Bar::new()?;
    let BackupSummary { files, bytes, .. } = store::restore(&args.directory, &data, &mut |step| bar.show(step))?;
    bar.finish();
    writeln!(
        std::io::stderr(),
        "The database and {files} files are in {}, {}. Start the server with this --data-dir.",
        data.display(),
        HumanBytes(bytes)
    )?;
    Ok(())
}

/// The progress that a terminal shows.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> anyhow::Result<Self> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len}, {eta} left")?);
        Ok(Self(bar))
    }

    fn show(&self, step: BackupProgress) {
        match step {
            BackupProgress::Database => self.0.set_message("Copying the database"),
            BackupProgress::Files { done, of } => {
                self.0.set_message("Copying files");
                self.0.set_length(of as u64);
                self.0.set_position(done as u64);
            }
        }
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
