//! `hearth models`: lists what is here, shows one, and imports one from disk.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use hearth_domain::error::sentence;
use hearth_models::{
    gguf::Gguf,
    manifest::{self, Kind, Manifest},
    selection::kind_of,
    store::{Format, ModelStore, StoredModel, check_safetensors},
};
use indicatif::{DecimalBytes, HumanCount};

use crate::config::StoreSettings;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    store: StoreSettings,
}

/// `hearth list`: the same as `hearth models list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// `hearth rm`: the same as `hearth models rm`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// A name as `hearth list` shows it
    model: String,
    #[command(flatten)]
    store: StoreSettings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is in the models directory, and which models are known by name
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a model out of the models directory
    Rm {
        /// A name as `hearth list` shows it
        model: String,
    },
    /// What a model is
    Show {
        /// A name, a file, or a directory
        model: String,
        /// Every metadata key and tensor
        #[arg(long)]
        all: bool,
    },
    /// Copy a model into the models directory, having checked that it opens
    Import {
        /// A GGUF file (any part of a split one), or a directory with config.json and model.safetensors
        path: PathBuf,
        /// Call it this
        #[arg(long)]
        name: Option<String>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let (store, _) = args.store.open()?;
    let mut out = io::stdout().lock();
    match args.command {
        Command::List { json } => list(&store, json, &mut out),
        Command::Rm { model } => remove(&store, &model, &mut out),
        Command::Show { model, all } => show(&store, &model, all, &mut out),
        Command::Import { path, name } => import(&store, &path, name.as_deref(), &mut out),
    }
}

pub fn run_list(args: ListArgs) -> anyhow::Result<()> {
    list(&args.store.open()?.0, args.json, &mut io::stdout().lock())
}

pub fn run_remove(args: RemoveArgs) -> anyhow::Result<()> {
    remove(&args.store.open()?.0, &args.model, &mut io::stdout().lock())
}

fn remove(store: &ModelStore, name: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let removed = store.remove(name)?;
    for path in &removed.paths {
        writeln!(out, "{}", path.display())?;
    }
    if removed.were_links {
        writeln!(io::stderr(), "The files themselves stay in the hub's cache, which other programs share.")?;
    }
    Ok(())
}

fn list(store: &ModelStore, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let models = store.list()?;
    let absent: Vec<&Manifest> = manifest::known().iter().filter(|known| store.resolve(&known.name).is_err()).collect();
    if json {
        let here: Vec<_> = models
            .iter()
            .map(|model| {
                serde_json::json!({
                    "name": model.name,
                    "format": match model.format { Format::Gguf => "gguf", Format::Safetensors => "safetensors" },
                    "path": model.path,
                    "bytes": model.bytes,
                })
            })
            .collect();
        let known: Vec<_> = absent.iter().map(|known| &known.name).collect();
        let answer = serde_json::json!({ "directory": store.directory(), "models": here, "pullable": known });
        writeln!(out, "{answer:#}")?;
        return Ok(());
    }
    writeln!(out, "In {}:", store.places())?;
    let mut table = table(&["name", "what", "size"]);
    for model in &models {
        table.add_row([model.name.clone(), summary(model), DecimalBytes(model.bytes).to_string()]);
    }
    if models.is_empty() {
        writeln!(out, "  nothing yet; `hearth pull NAME` fetches one of these, `hearth models import` takes a file")?;
    } else {
        writeln!(out, "{table}")?;
    }
    if !absent.is_empty() {
        let mut table = self::table(&["name", "what", "size", "licence"]);
        for known in absent {
            let size = known.bytes.map(|bytes| DecimalBytes(bytes).to_string()).unwrap_or_default();
            table.add_row([known.name.clone(), purpose(known), size, known.licence.clone()]);
        }
        writeln!(out, "\nKnown by name, for `hearth pull NAME`:\n{table}")?;
    }
    Ok(())
}

fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().copied());
    table
}

fn purpose(known: &Manifest) -> String {
    let context = HumanCount(known.context_length as u64);
    match (known.kind, known.dimensions) {
        (Kind::Chat, _) => format!("chat, {} ({context} tokens)", known.architecture),
        (Kind::Embedding, Some(dimensions)) => format!("embeddings, {dimensions} dimensions ({context} tokens)"),
        (Kind::Embedding, None) => format!("embeddings ({context} tokens)"),
    }
}

/// One line about a model in the directory, or why it is not usable.
fn summary(model: &StoredModel) -> String {
    let describe = || -> anyhow::Result<String> {
        let kind = match kind_of(&model.path)? {
            Kind::Chat => "chat",
            Kind::Embedding => "embeddings",
        };
        if model.format == Format::Safetensors {
            return Ok(format!("{kind}, safetensors"));
        }
        let gguf = Gguf::open(&model.path)?;
        let architecture = gguf.architecture()?;
        let context = gguf.metadata().u64(&format!("{architecture}.context_length")).unwrap_or_default();
        Ok(format!("{kind}, {architecture} {} ({} tokens)", gguf.quantization(), HumanCount(context)))
    };
    describe().unwrap_or_else(|problem| format!("not usable: {}", sentence(&problem)))
}

fn show(store: &ModelStore, name: &str, all: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = match (store.resolve(name), manifest::find(name)) {
        (Ok(path), _) => path,
        (Err(_), Some(known)) => return show_known(known, out),
        (Err(error), None) => return Err(error.into()),
    };
    if path.is_dir() {
        let tensors = check_safetensors(&path)?;
        writeln!(out, "path          {}", path.display())?;
        writeln!(out, "format        safetensors, {tensors} tensors")?;
        return Ok(());
    }
    let gguf = Gguf::open(&path)?;
    for part in gguf.paths() {
        writeln!(out, "path          {}", part.display())?;
    }
    let architecture = gguf.architecture()?;
    let metadata = gguf.metadata();
    writeln!(out, "size          {}", DecimalBytes(gguf.file_bytes()))?;
    writeln!(out, "architecture  {architecture}")?;
    writeln!(out, "parameters    {}", HumanCount(gguf.parameters()))?;
    let (recipe, dominant) = (gguf.quantization(), gguf.dominant_type());
    if recipe == dominant {
        writeln!(out, "type          {recipe} for the most part")?;
    } else {
        writeln!(out, "type          {recipe}; most parameters are {dominant}")?;
    }
    if let Some(context) = metadata.u64(&format!("{architecture}.context_length")) {
        writeln!(out, "context       {} tokens", HumanCount(context))?;
    }
    for (label, key) in
        [("name", "general.name"), ("licence", "general.license"), ("tokenizer", "tokenizer.ggml.model")]
    {
        if let Some(value) = metadata.str(key) {
            writeln!(out, "{label:13} {value}")?;
        }
    }
    let template = if metadata.str("tokenizer.chat_template").is_some() { "in the file" } else { "none" };
    writeln!(out, "template      {template}")?;
    match kind_of(&path) {
        Ok(_) => writeln!(out, "usable        yes")?,
        Err(problem) => writeln!(out, "usable        no: {problem}")?,
    }
    if all {
        writeln!(out)?;
        for (key, value) in metadata.iter() {
            writeln!(out, "{key} = {value}")?;
        }
        writeln!(out)?;
        for tensor in gguf.tensors() {
            writeln!(out, "{} {:?} {}", tensor.name, tensor.shape, tensor.type_name)?;
        }
    }
    Ok(())
}

fn show_known(known: &Manifest, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{} is not here; `hearth pull {}` fetches it.", known.name, known.name)?;
    writeln!(out, "what          {}", purpose(known))?;
    writeln!(out, "repository    {}", known.repository)?;
    writeln!(out, "revision      {}", known.revision.as_deref().unwrap_or("the newest"))?;
    writeln!(out, "file          {}", known.file)?;
    writeln!(out, "licence       {}", known.licence)?;
    if let Some(bytes) = known.bytes {
        writeln!(out, "size          {}", DecimalBytes(bytes))?;
    }
    if let Some(sha256) = &known.sha256 {
        writeln!(out, "sha256        {sha256}")?;
    }
    if let Some(pypi) = &known.pypi {
        writeln!(out, "also          in the Python package {} {}", pypi.package, pypi.version)?;
    }
    Ok(())
}

fn import(store: &ModelStore, from: &Path, name: Option<&str>, out: &mut dyn Write) -> anyhow::Result<()> {
    kind_of(from)?;
    let total = if from.is_dir() {
        std::fs::metadata(from.join("model.safetensors"))?.len()
    } else {
        Gguf::open(from)?.file_bytes()
    };
    let bar = super::pull::copy_bar(total)?;
    let (path, copied) = store.import(from, name, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    for (file, sha256) in &copied {
        let known = manifest::known().iter().find(|known| known.sha256.as_deref() == Some(sha256));
        let remark = known.map(|known| format!("  (the published {})", known.name)).unwrap_or_default();
        writeln!(io::stderr(), "{sha256}  {}{remark}", file.display())?;
    }
    writeln!(out, "{}", path.display())?;
    Ok(())
}
