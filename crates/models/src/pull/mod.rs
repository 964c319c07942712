//! Fetching a model from a hub.
//!
//! It resolves a revision to a commit and lists its files (`hub.rs`), selects (`select.rs`), and downloads each file
//! (`download.rs`) into the cache shared by all hub clients (`cache.rs`) or into a plain directory. The hub's own
//! client library only names the cache's directories. Its downloads are not used: they start over after every
//! interruption and check neither status, length nor checksum of what they store. Drawing a progress bar is left to the
//! command line.

mod cache;
mod download;
mod error;
mod hub;
mod select;
mod settings;

use std::path::{Path, PathBuf};

use self::{
    cache::RepositoryCache,
    download::Download,
    hub::{Hub, RemoteFile},
};
pub(crate) use self::{
    cache::{create_parent, replace_with_link},
    download::{hex, rename, sha256_of},
    select::{ENCODER_FILES, select},
};
pub use self::{
    error::PullError,
    select::{FileChoice, Reference},
    settings::HubSettings,
};
use super::manifest::Manifest;

/// Observes a download.
pub trait PullProgress: Send + Sync {
    /// `have` of `total` bytes of this file are present; also called when the download starts over.
    fn begin(&self, file: &str, total: u64, have: u64);
    /// `bytes` more bytes have arrived.
    fn advance(&self, bytes: u64);
    /// All bytes have arrived; the checksum is being computed.
    fn verify(&self, file: &str);
    /// The file is at its destination.
    fn finish(&self, file: &str);
}

/// What to fetch, and where to put it.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub reference: Reference,
    /// Store plain files below this directory instead of in the hub's cache.
    pub to: Option<PathBuf>,
    /// The `(path, checksum)` that a manifest states.
    pub promised: Option<(String, String)>,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub repository: String,
    pub commit: String,
    pub files: Vec<PulledFile>,
}

/// One fetched file.
#[derive(Clone, Debug)]
pub struct PulledFile {
    /// Its path in the repository.
    pub name: String,
    pub path: PathBuf,
    /// The file was already present.
    pub was_there: bool,
}

impl PullRequest {
    /// A known model: its weight file, or all files of an embedding model.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        let choice = if manifest.file.ends_with(".gguf") {
            FileChoice::File(manifest.file.clone())
        } else {
            FileChoice::Default
        };
        Self {
            reference: Reference {
                repository: manifest.repository.clone(),
                revision: manifest.revision.clone(),
                choice,
            },
            to: None,
            promised: manifest.sha256.clone().map(|sha256| (manifest.file.clone(), sha256)),
        }
    }
}

/// Fetches a model, or finds it in the cache.
///
/// # Errors
/// [`PullError`] says what went wrong and what to do. The part of a large file that has arrived is kept for the next
/// call.
pub async fn pull(
    settings: &HubSettings,
    request: &PullRequest,
    progress: &dyn PullProgress,
) -> Result<Pulled, PullError> {
    let Reference { repository, revision, choice } = &request.reference;
    let revision = revision.as_deref().unwrap_or("main");
    let cache = RepositoryCache::new(&settings.cache, repository);
    if settings.offline {
        return find_in_cache(settings, repository, revision, choice);
    }
    let hub = Hub::new(settings)?;
    let commit = hub.commit(repository, revision).await?;
    let listed = hub.files(repository, &commit).await?;
    let paths: Vec<String> = listed.iter().map(|file| file.path.clone()).collect();
    let mut files = Vec::new();
    for name in select(repository, &paths, choice)? {
        let file = listed.iter().find(|file| file.path == name).expect("select picks from the paths it is given");
        let file = hub.describe(repository, &commit, file).await?;
        check_promise(request, &file)?;
        let fetched = fetch(settings, &hub, &cache, request, &commit, &file, progress).await?;
        keep_promise(request, &file, &fetched)?;
        files.push(fetched);
    }
    if request.to.is_none() {
        cache.write_commit(revision, &commit).map_err(|source| disk(&settings.cache, source))?;
    }
    Ok(Pulled { repository: repository.clone(), commit, files })
}

/// The newest snapshot in the cache that contains the selected files.
fn find_in_cache(
    settings: &HubSettings,
    repository: &str,
    revision: &str,
    choice: &FileChoice,
) -> Result<Pulled, PullError> {
    let cache = RepositoryCache::new(&settings.cache, repository);
    let absent = || PullError::Offline { repository: repository.to_owned(), cache: settings.cache.clone() };
    let commit = cache.commit(revision).ok_or_else(absent)?;
    let snapshot = cache.snapshot(&commit);
    let names = select(repository, &cache.files(&commit), choice).map_err(|_| absent())?;
    let files =
        names.into_iter().map(|name| PulledFile { path: snapshot.join(&name), name, was_there: true }).collect();
    Ok(Pulled { repository: repository.to_owned(), commit, files })
}

/// Looks up a model in the cache without network access.
pub(crate) fn cached(settings: &HubSettings, reference: &Reference) -> Option<Pulled> {
    let revision = reference.revision.as_deref().unwrap_or("main");
    find_in_cache(settings, &reference.repository, revision, &reference.choice).ok()
}

fn check_promise(request: &PullRequest, file: &RemoteFile) -> Result<(), PullError> {
    match (&request.promised, &file.sha256) {
        (Some((name, expected)), Some(found)) if *name == file.path && !expected.eq_ignore_ascii_case(found) => {
            Err(PullError::ManifestChecksum { file: name.clone(), expected: expected.clone(), found: found.clone() })
        }
        _ => Ok(()),
    }
}

/// The hub gives no checksum for a file outside its large-file storage. In that case the file itself is checked against
/// the manifest's checksum, even if it was already present.
fn keep_promise(request: &PullRequest, file: &RemoteFile, fetched: &PulledFile) -> Result<(), PullError> {
    let Some((name, expected)) = &request.promised else { return Ok(()) };
    if *name != file.path || file.sha256.is_some() {
        return Ok(());
    }
    let found = sha256_of(&fetched.path).map_err(|source| disk(&fetched.path, source))?;
    if expected.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(PullError::ManifestChecksum { file: name.clone(), expected: expected.clone(), found })
}

/// Fetches one file to its destination, unless it is already there.
async fn fetch(
    settings: &HubSettings,
    hub: &Hub,
    cache: &RepositoryCache,
    request: &PullRequest,
    commit: &str,
    file: &RemoteFile,
    progress: &dyn PullProgress,
) -> Result<PulledFile, PullError> {
    let repository = &request.reference.repository;
    let (incomplete, destination) = match &request.to {
        None => (cache.incomplete(&file.etag), cache.blob(&file.etag)),
        Some(directory) => {
            let destination = directory.join(&file.path);
            // Named after the bytes it will hold, so that a newer version is not resumed from an older one's bytes.
            let mut incomplete = destination.clone().into_os_string();
            incomplete.push(format!(".{}.incomplete", &file.etag[..file.etag.len().min(12)]));
            (PathBuf::from(incomplete), destination)
        }
    };
    let lock = cache.clone();
    let etag = file.etag.clone();
    let _lock = tokio::task::spawn_blocking(move || lock.lock(&etag))
        .await
        .map_err(std::io::Error::other)
        .and_then(|lock| lock)
        .map_err(|source| disk(&settings.cache, source))?;
    let was_there = is_there(&destination, file, request.to.is_some()).map_err(|source| disk(&destination, source))?;
    if !was_there {
        let url = hub.file_url(repository, commit, &file.path);
        let retry_wait = settings.retry_wait;
        Download { hub, repository, file, url, incomplete, destination: destination.clone(), retry_wait, progress }
            .run()
            .await?;
    }
    let path = match &request.to {
        Some(_) => destination,
        None => cache.link(commit, &file.path, &file.etag).map_err(|source| disk(&destination, source))?,
    };
    Ok(PulledFile { name: file.path.clone(), path, was_there })
}

/// A finished blob's name guarantees its content; a plain file's name does not.
fn is_there(path: &Path, file: &RemoteFile, is_plain: bool) -> std::io::Result<bool> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(about) if about.len() != file.bytes => Ok(false),
        Ok(_) if !is_plain => Ok(true),
        Ok(_) => match &file.sha256 {
            Some(sha256) => Ok(sha256_of(path)?.eq_ignore_ascii_case(sha256)),
            None => Ok(false),
        },
    }
}

fn disk(path: &Path, source: std::io::Error) -> PullError {
    PullError::Disk { path: path.to_owned(), source }
}
