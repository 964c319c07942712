//! `hearth ingest`: files and directories into a collection.
//!
//! A file is known by its path as it was named, or as it is below what was named: one that has changed takes the place of its earlier version, and
//! one that has not is left as it is, so that a run that was cut off is gone on with by running it again.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use hearth_domain::error::sentence;
use ignore::WalkBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use super::{Client, LOOK_AGAIN, documents_of, with_server};
use crate::config::Settings;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, and directories with everything below them; what is hidden or ignored by .gitignore is left out
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The collection that they go to; made if it is not there
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: String,
    /// Also delete the documents below the named directories whose files are gone
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let files = files(&args.paths)?;
    // A directory that is empty now may have had files.
    ensure!(args.sync || !files.is_empty(), "there is no file to read");
    with_server(args.settings, async move |client| {
        if args.sync {
            delete_gone(&client, &args.collection, &args.paths).await?;
        }
        if files.is_empty() {
            return Ok(());
        }
        ingest(&client, &args.collection, files).await
    })
}

/// The attribute with the absolute path of the file that a document was read from.
const PATH: &str = "hearth.path";
/// The attribute of a document that several files are, byte for byte: it does not go with one of them.
const SHARED: &str = "hearth.shared";
/// Attributes have no longer values; a document of a longer path has none.
const PATH_CHARS_MAX: usize = 512;

/// Deletes the documents that were read from files below the named directories, where those files are gone from the disk. A
/// document that came in another way, or that another file is as well, stays.
async fn delete_gone(client: &Client, collection: &str, paths: &[PathBuf]) -> anyhow::Result<()> {
    let folders: Vec<PathBuf> = paths.iter().filter(|path| path.is_dir()).map(absolute).collect::<Result<_, _>>()?;
    let is_gone =
        |path: &Path| folders.iter().any(|folder| path.starts_with(folder)) && matches!(path.try_exists(), Ok(false));
    let mut gone: Vec<(PathBuf, String)> = documents_of(client, collection)
        .await?
        .into_iter()
        .filter(|(_, document)| document["attributes"][SHARED] != true)
        .filter_map(|(id, document)| Some((PathBuf::from(document["attributes"][PATH].as_str()?), id)))
        .filter(|(path, _)| is_gone(path))
        .collect();
    gone.sort();
    for (path, id) in gone {
        client.delete(&format!("/api/v1/documents/{id}")).await?;
        writeln!(std::io::stderr(), "{}: the file is gone, and so is the document", path.display())?;
    }
    Ok(())
}

/// Notes on a document that was there already from which file it is now, or that it is of several.
async fn note_path(client: &Client, document: &Value, path: &str) -> anyhow::Result<()> {
    let mut attributes = document["attributes"].clone();
    match attributes[PATH].as_str() {
        Some(known) if known == path => return Ok(()),
        Some(known) if Path::new(known).exists() => attributes[SHARED] = true.into(),
        _ => attributes[PATH] = path.into(),
    }
    let text = |key: &str| document[key].as_str().unwrap_or_default();
    let route = format!("/v1/vector_stores/{}/files/{}", text("collection"), text("document_id"));
    client.post(&route, &json!({"attributes": attributes})).await.map(drop)
}

/// The path of a file that is there, without links and dots.
fn absolute(path: impl AsRef<Path>) -> anyhow::Result<PathBuf> {
    let path = path.as_ref();
    path.canonicalize().with_context(|| format!("reading {}", path.display()))
}

/// A file's path as it is below what was named: of an absolute path, what is above it says nothing about it.
fn below(named: &Path, path: &Path) -> PathBuf {
    let parent = if named.is_absolute() { named.parent().unwrap_or(named) } else { Path::new("") };
    path.strip_prefix(parent).unwrap_or(path).to_owned()
}

/// Every file by the name under which it is known.
fn files(paths: &[PathBuf]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut add = |short: &Path, path: PathBuf| {
        let name = if found.contains_key(&name(short)) { name(&path) } else { name(short) };
        found.insert(name, path);
    };
    for path in paths {
        ensure!(path.exists(), "{} does not exist", path.display());
        if path.is_file() {
            add(&below(path, path), path.clone());
            continue;
        }
        for entry in WalkBuilder::new(path).require_git(false).sort_by_file_name(Ord::cmp).build() {
            let entry = entry.with_context(|| format!("reading {}", path.display()))?;
            if entry.file_type().is_some_and(|kind| kind.is_file()) {
                add(&below(path, entry.path()), entry.path().to_owned());
            }
        }
    }
    Ok(found)
}

/// A path's names, without what stands for a place.
fn name(path: &Path) -> String {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    names.collect::<Vec<_>>().join("/")
}

async fn ingest(client: &Client, collection: &str, files: BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    // Of several of one name, the newest: it knows whose place it was to take.
    let mut earlier: HashMap<String, (i64, String)> = HashMap::new();
    for (id, document) in documents_of(client, collection).await? {
        let version = (document["created_at"].as_i64().unwrap_or_default(), id);
        let newest = earlier.entry(filename(&document)).or_insert_with(|| version.clone());
        *newest = version.max(newest.clone());
    }
    let bar = ProgressBar::new(files.len() as u64 * 2);
    bar.set_style(ProgressStyle::with_template("{msg:9} [{bar:40}] {percent}%, {elapsed}")?);
    bar.set_message("Uploading");
    let mut uploaded: Vec<String> = Vec::new();
    let mut refused: Vec<(String, String)> = Vec::new();
    for (name, path) in &files {
        match upload(client, collection, name, path, earlier.get(name).map(|(_, id)| id)).await {
            Ok(id) => uploaded.push(id),
            Err(error) => refused.push((name.clone(), sentence(&error))),
        }
        bar.inc(1);
    }
    bar.set_message("Reading");
    let settled = loop {
        let now = documents_of(client, collection).await?;
        let is_settled = |id: &&String| now.get(*id).is_none_or(|document| document["status"] != "processing");
        let settled = uploaded.iter().filter(is_settled).count();
        bar.set_position((files.len() + refused.len() + settled) as u64);
        if settled == uploaded.len() {
            break now;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    bar.finish_and_clear();
    for document in uploaded.iter().filter_map(|id| settled.get(id)) {
        if document["status"] == "failed" {
            let reason = document["error"]["message"].as_str().unwrap_or_default();
            refused.push((filename(document), reason.to_owned()));
        }
    }
    let mut out = std::io::stderr();
    for (name, reason) in &refused {
        writeln!(out, "{name}: {reason}")?;
    }
    let passages: u64 = uploaded.iter().filter_map(|id| settled.get(id)?["chunks"].as_u64()).sum();
    let read = files.len() - refused.len();
    writeln!(out, "{read} of {} files can be searched in {collection:?}: {passages} passages.", files.len())?;
    if read == 0 {
        bail!("no file could be read");
    }
    Ok(())
}

fn filename(document: &Value) -> String {
    document["filename"].as_str().unwrap_or_default().to_owned()
}

async fn upload(
    client: &Client,
    collection: &str,
    name: &str,
    path: &Path,
    earlier: Option<&String>,
) -> anyhow::Result<String> {
    let file = Part::file(path).await.with_context(|| format!("reading {}", path.display()))?;
    let mut form = Form::new().text("collection", collection.to_owned());
    let absolute = absolute(path)?;
    let absolute = absolute.to_str().filter(|path| path.chars().count() <= PATH_CHARS_MAX);
    if let Some(absolute) = absolute {
        form = form.text("attributes", json!({PATH: absolute}).to_string());
    }
    if let Some(earlier) = earlier {
        form = form.text("replaces", earlier.clone());
    }
    let form = form.part("file", file.file_name(name.to_owned()));
    let answer = client.json(client.request(Method::POST, "/api/v1/documents/upload").multipart(form)).await?;
    if let Some(absolute) = absolute {
        note_path(client, &answer, absolute).await?;
    }
    Ok(answer["document_id"].as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_an_absolute_path_is_no_part_of_the_name() {
        assert_eq!(below(Path::new("/home/x/docs"), Path::new("/home/x/docs/a.md")), Path::new("docs/a.md"));
    }

    #[test]
    fn files_of_one_name_in_two_places_are_two() {
        let home = tempfile::tempdir().expect("a temporary directory");
        for folder in ["a", "b"] {
            std::fs::create_dir(home.path().join(folder)).expect("a writable directory");
            std::fs::write(home.path().join(folder).join("README.md"), folder).expect("a writable directory");
        }
        let path = |name: &str| home.path().join(name);
        let names = |paths: &[PathBuf]| files(paths).expect("files").into_keys().collect::<Vec<_>>();
        assert_eq!(names(&[path("a"), path("b")]), ["a/README.md", "b/README.md"]);
        assert_eq!(names(&[path("a/README.md"), path("b/README.md")]).len(), 2);
        assert_eq!(name(Path::new("./docs/../API.md")), "docs/API.md");
    }
}
