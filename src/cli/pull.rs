//! `hearth pull`: fetches a model and puts it where `serve` looks. Standard output is the model's path.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::Mutex,
};

use anyhow::{Context, bail};
use hearth_models::{
    manifest,
    pull::{FileChoice, PullProgress, PullRequest, Pulled, Reference, pull},
    selection::kind_of,
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::pull_auto;
use crate::{app, config::StoreSettings};

/// Given instead of a model's name.
const AUTO: &str = "auto";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A known name (see `hearth models list`), OWNER/NAME, OWNER/NAME:QUANTIZATION such as :Q4_K_M, or `auto`: the best chat
    /// model that this machine can run well
    model: String,
    /// One file of the repository; all parts come with any part of a split file
    file: Option<String>,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Put plain files into this directory, instead of links to the hub's shared cache
    #[arg(long, value_name = "DIR", visible_alias = "local-dir")]
    to: Option<PathBuf>,
    #[command(flatten)]
    store: StoreSettings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut model = args.model;
    if model == AUTO {
        let (chosen, reason) = pull_auto::choose(app::available_memory())?;
        writeln!(std::io::stderr(), "{reason}")?;
        model.clone_from(&chosen.name);
    }
    let path = fetch_as(request(&model, args.file, args.revision, args.to)?, args.store)?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

/// Fetches the model that a name means, and reports what to serve.
pub(super) fn fetch(model: &str, settings: StoreSettings) -> anyhow::Result<PathBuf> {
    fetch_as(request(model, None, None, None)?, settings)
}

fn fetch_as(request: PullRequest, settings: StoreSettings) -> anyhow::Result<PathBuf> {
    let (store, hub) = settings.open()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull(&hub, &request, &Bar::default()))?;
    if pulled.files.iter().all(|file| file.was_there) {
        writeln!(std::io::stderr(), "{} was here already, at commit {}", pulled.repository, pulled.commit)?;
    }
    let path = match &request.to {
        Some(directory) => served_path(&pulled, directory),
        None => store.adopt(&pulled)?,
    };
    if let Err(problem) = kind_of(&path) {
        bail!("{} was fetched, but cannot be served: {problem}", path.display());
    }
    Ok(path)
}

fn request(
    model: &str,
    file: Option<String>,
    revision: Option<String>,
    to: Option<PathBuf>,
) -> anyhow::Result<PullRequest> {
    let mut request = match (manifest::find(model), file) {
        (Some(known), None) => PullRequest::of_manifest(known),
        (Some(known), Some(file)) => {
            bail!("{model} means {} of {}: give the repository to choose {file}", known.file, known.repository)
        }
        (None, file) => {
            let mut reference = Reference::parse(model)?;
            if let Some(file) = file {
                if reference.choice != FileChoice::Default {
                    bail!("{model} names what to fetch already: leave {file} out, or the part after the repository");
                }
                reference.choice = FileChoice::File(file);
            }
            PullRequest { reference, to: None, promised: None }
        }
    };
    if revision.is_some() {
        // A commit other than the manifest's has other bytes.
        request.promised = None;
        request.reference.revision = revision;
    }
    request.to = to;
    Ok(request)
}

/// The path to give to `serve` for files in a plain directory.
fn served_path(pulled: &Pulled, directory: &std::path::Path) -> PathBuf {
    match pulled.files.first() {
        Some(first) if first.name.ends_with(".gguf") => first.path.clone(),
        _ => directory.to_owned(),
    }
}

/// A bar per file in a terminal; a line per file elsewhere.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.0.lock().expect("no holder of this lock panics").as_ref() {
            act(bar);
        }
    }
}

impl PullProgress for Bar {
    fn begin(&self, file: &str, total: u64, have: u64) {
        if !std::io::stderr().is_terminal() {
            let from = if have > 0 { format!(", going on from {}", HumanBytes(have)) } else { String::new() };
            line(&format!("fetching {file} ({}{from})", HumanBytes(total)));
        }
        let bar = ProgressBar::new(total).with_message(file.to_owned()).with_position(have);
        bar.reset_eta();
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
        bar.set_style(style.expect("the template is well formed"));
        *self.0.lock().expect("no holder of this lock panics") = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        self.with(|bar| bar.inc(bytes));
    }

    fn verify(&self, file: &str) {
        self.with(|bar| bar.set_message(format!("{file}: checking the checksum")));
    }

    fn finish(&self, file: &str) {
        self.with(|bar| bar.finish_with_message(file.to_owned()));
    }
}

/// A failed progress message is not worth failing for.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A bar for copying without a hub.
pub(super) fn copy_bar(total: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}").context("the bar's template")?;
    Ok(ProgressBar::new(total).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(model: &str, file: Option<&str>, revision: Option<&str>) -> anyhow::Result<PullRequest> {
        request(model, file.map(str::to_owned), revision.map(str::to_owned), None)
    }

    #[test]
    fn a_known_name_is_its_pinned_file() {
        let request = parse("qwen3-0.6b", None, None).unwrap();
        assert_eq!(request.reference.repository, "Qwen/Qwen3-0.6B-GGUF");
        assert!(request.reference.revision.is_some() && request.promised.is_some());
        let newest = parse("qwen3-0.6b", None, Some("main")).unwrap();
        assert_eq!(newest.reference.revision.as_deref(), Some("main"));
        assert!(newest.promised.is_none());
        assert!(parse("qwen3-0.6b", Some("x.gguf"), None).is_err());
    }

    #[test]
    fn a_repository_takes_a_file_or_a_quantization_but_not_both() {
        assert_eq!(parse("o/n", Some("a.gguf"), None).unwrap().reference.choice, FileChoice::File("a.gguf".into()));
        assert_eq!(parse("o/n:Q8_0", None, None).unwrap().reference.choice, FileChoice::Quantization("Q8_0".into()));
        assert!(parse("o/n:Q8_0", Some("a.gguf"), None).is_err());
        assert!(parse("nonsense", None, None).is_err());
    }
}
