//! `hearth ingest`: files, directories and archives into a collection.
//!
//! A file is identified by its path as it was named, or as it is below what was named. A changed file replaces its
//! earlier version and an unchanged file is left alone, so running the command again continues an interrupted run.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use hearth_domain::error::sentence;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use super::{
    LOOK_AGAIN, all_documents, documents_of,
    files::{FileReader, Found, FoundFile, is_there},
    id_of,
};
use crate::{
    cli::client::{Client, with_server},
    config::Settings,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, and directories and ZIP archives with all that is in them; what is hidden or ignored by .gitignore is left out
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The collection that they go to; created if it does not exist
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: String,
    /// Also delete the documents below the named directories whose files are gone
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Largest packed file in bytes, unless --upload-limit-mib says otherwise: no server accepts more by default.
const PACKED_BYTES_MAX: u64 = 100 << 20;

pub fn run(args: Args) -> anyhow::Result<()> {
    let found = Found::below(&args.paths)?;
    // A directory that is empty now may have had files.
    ensure!(args.sync || !found.files.is_empty() || !found.refused.is_empty(), "there is no file to read");
    let packed_bytes = args.settings.upload_limit_mib.map_or(PACKED_BYTES_MAX, |mib| (mib as u64) << 20);
    with_server(args.settings, async move |client| {
        if args.sync {
            delete_gone(&client, &args.collection, &args.paths, &found).await?;
        }
        if found.files.is_empty() && found.refused.is_empty() {
            return Ok(());
        }
        ingest(&client, &args.collection, found, packed_bytes).await
    })
}

/// The attribute with the absolute path of a document's source file; a packed file is below its archive.
const PATH: &str = "hearth.path";
/// The attribute of a document that several identical files share: it is not deleted with one of them.
const SHARED: &str = "hearth.shared";
/// Attribute values cannot be longer; a document with a longer path has none.
const PATH_CHARS_MAX: usize = 512;

/// Deletes the documents whose source files, below the named directories and archives, no longer exist. A document that
/// came in another way, or that another file shares, stays.
async fn delete_gone(client: &Client, collection: &str, named: &[PathBuf], found: &Found) -> anyhow::Result<()> {
    let documents: Vec<(PathBuf, String)> = documents_of(client, collection)
        .await?
        .into_iter()
        .filter(|(_, document)| document["attributes"][SHARED] != true)
        .filter_map(|(id, document)| Some((PathBuf::from(document["attributes"][PATH].as_str()?), id)))
        .collect();
    let gone = found.gone(named, documents.iter().map(|(path, _)| path.clone()))?;
    let mut documents: Vec<_> = documents.into_iter().filter(|(path, _)| gone.contains(path)).collect();
    documents.sort();
    let collections = if documents.is_empty() { HashMap::new() } else { collections_of_each(client).await? };
    for (path, id) in documents {
        take_out(client, collection, &id, collections.get(&id).copied().unwrap_or_default()).await?;
        writeln!(std::io::stderr(), "{}: the file is gone, and so is the document", path.display())?;
    }
    Ok(())
}

/// The number of collections that each document is in.
async fn collections_of_each(client: &Client) -> anyhow::Result<HashMap<String, usize>> {
    let mut counts = HashMap::new();
    for document in all_documents(client, None).await? {
        *counts.entry(id_of(&document)).or_default() += 1;
    }
    Ok(counts)
}

/// Takes a document out of a collection, and deletes its file if none of its other `collections` has it.
async fn take_out(client: &Client, collection: &str, id: &str, collections: usize) -> anyhow::Result<()> {
    let path = match collections {
        0 => return Ok(()),
        1 => format!("/api/v1/documents/{id}"),
        _ => format!("/v1/vector_stores/{collection}/files/{id}"),
    };
    client.delete(&path).await.map(drop)
}

/// Records on an existing document which file it now comes from, or that several files share it.
async fn note_path(client: &Client, document: &Value, path: &str) -> anyhow::Result<()> {
    let mut attributes = document["attributes"].clone();
    match attributes[PATH].as_str() {
        Some(known) if known == path => return Ok(()),
        Some(known) if is_there(Path::new(known)) => attributes[SHARED] = true.into(),
        _ => attributes[PATH] = path.into(),
    }
    let text = |key: &str| document[key].as_str().unwrap_or_default();
    let route = format!("/v1/vector_stores/{}/files/{}", text("collection"), text("document_id"));
    client.post(&route, &json!({"attributes": attributes})).await.map(drop)
}

async fn ingest(client: &Client, collection: &str, found: Found, packed_bytes: u64) -> anyhow::Result<()> {
    let Found { files, mut refused, .. } = found;
    let of = files.len() + refused.len();
    // Of several with one name, the newest: it knows which one it was to replace.
    let mut earlier: HashMap<String, (i64, String)> = HashMap::new();
    // Failed documents are tried again, and do not stay beside the new attempt.
    let mut failed: HashMap<String, Vec<String>> = HashMap::new();
    for (id, document) in documents_of(client, collection).await? {
        if document["status"] == "failed" {
            failed.entry(filename(&document)).or_default().push(id);
            continue;
        }
        let version = (document["created_at"].as_i64().unwrap_or_default(), id);
        let newest = earlier.entry(filename(&document)).or_insert_with(|| version.clone());
        *newest = version.max(newest.clone());
    }
    let collections = if failed.is_empty() { HashMap::new() } else { collections_of_each(client).await? };
    let bar = ProgressBar::new(of as u64 * 2);
    bar.set_style(ProgressStyle::with_template("{msg:9} [{bar:40}] {percent}%, {elapsed}")?);
    bar.set_message("Uploading");
    let mut uploaded: Vec<String> = Vec::new();
    let mut reader = FileReader::default();
    for (name, file) in &files {
        let earlier = earlier.get(name).map(|(_, id)| id);
        let upload = async {
            let part = reader.read(file, packed_bytes).await?.file_name(name.clone());
            upload(client, collection, file, part, earlier).await
        };
        match upload.await {
            Ok(id) => {
                uploaded.push(id);
                for old in failed.remove(name).unwrap_or_default() {
                    let count = collections.get(&old).copied().unwrap_or_default();
                    take_out(client, collection, &old, count).await?;
                }
            }
            Err(error) => refused.push((name.clone(), sentence(&error))),
        }
        bar.inc(1);
    }
    bar.set_style(ProgressStyle::with_template("{prefix:9} [{bar:30}] {percent}%, {elapsed} {wide_msg}")?);
    bar.set_prefix("Reading");
    let settled = loop {
        let now = documents_of(client, collection).await?;
        if let Some(id) =
            uploaded.iter().find(|id| now.get(*id).is_some_and(|document| document["status"] == "processing"))
        {
            bar.set_message(in_work(client, id).await?);
        }
        let is_settled = |id: &&String| now.get(*id).is_none_or(|document| document["status"] != "processing");
        let settled = uploaded.iter().filter(is_settled).count();
        bar.set_position((of + refused.len() + settled) as u64);
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
    let read = of - refused.len();
    writeln!(out, "{read} of {of} files can be searched in {collection:?}: {passages} passages.")?;
    // A script must see that something is missing.
    ensure!(refused.is_empty(), "{} of {of} files could not be read", refused.len());
    Ok(())
}

/// The document being read, and its progress.
async fn in_work(client: &Client, id: &str) -> anyhow::Result<String> {
    let document = client.get(&format!("/api/v1/documents/{id}")).await?;
    let (name, progress) = (filename(&document), &document["progress"]);
    Ok(match (progress["done"].as_u64(), progress["of"].as_u64()) {
        (Some(done), Some(of)) => format!("{name}, passage {done} of {of}"),
        _ => name,
    })
}

fn filename(document: &Value) -> String {
    document["filename"].as_str().unwrap_or_default().to_owned()
}

async fn upload(
    client: &Client,
    collection: &str,
    file: &FoundFile,
    part: Part,
    earlier: Option<&String>,
) -> anyhow::Result<String> {
    let mut form = Form::new().text("collection", collection.to_owned());
    let origin = file.origin()?;
    let origin = origin.to_str().filter(|path| path.chars().count() <= PATH_CHARS_MAX);
    if let Some(origin) = origin {
        form = form.text("attributes", json!({PATH: origin}).to_string());
    }
    if let Some(earlier) = earlier {
        form = form.text("replaces", earlier.clone());
    }
    let form = form.part("file", part);
    let answer = client.json(client.request(Method::POST, "/api/v1/documents/upload").multipart(form)).await?;
    if let Some(origin) = origin {
        note_path(client, &answer, origin).await?;
    }
    Ok(answer["document_id"].as_str().unwrap_or_default().to_owned())
}
