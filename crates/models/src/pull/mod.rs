//! Fetching a model from a hub.
//!
//! Resolve a revision to a commit and list its files (`hub.rs`, through the hub's own client library), choose
//! (`select.rs`), download each (`download.rs`) into the cache that all programs of the hub share (`cache.rs`) or into a
//! plain directory. The library's downloads are not used: they start over after every interruption and check neither
//! status, length nor checksum of what they store. Drawing a progress bar is the command line's business.

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
    select::{Choice, Reference},
    settings::HubSettings,
};
use super::manifest::Manifest;

/// Watches a download.
pub trait PullProgress: Send + Sync {
    /// `have` of `total` bytes of this file are there; also called when it starts over.
    fn begin(&self, file: &str, total: u64, have: u64);
    /// So many more bytes have arrived.
    fn advance(&self, bytes: u64);
    /// All have; the checksum is computed.
    fn verify(&self, file: &str);
    /// The file is in its place.
    fn finish(&self, file: &str);
}

/// What to fetch, and where to.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub reference: Reference,
    /// Plain files below this directory, instead of the hub's cache.
    pub to: Option<PathBuf>,
    /// `(path, checksum)` that a manifest promises.
    pub promised: Option<(String, String)>,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub repository: String,
    pub commit: String,
    pub files: Vec<PulledFile>,
}

/// One file on the disk.
#[derive(Clone, Debug)]
pub struct PulledFile {
    /// In the repository.
    pub name: String,
    pub path: PathBuf,
    /// It was there before.
    pub was_there: bool,
}

impl PullRequest {
    /// A known model: its weights' file, or all files of an embedding model.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        let choice =
            if manifest.file.ends_with(".gguf") { Choice::File(manifest.file.clone()) } else { Choice::Default };
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
/// [`PullError`] says what went wrong and what to do. What has arrived of a large file is kept for the next call.
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

/// The newest snapshot in the cache that has what was chosen.
fn find_in_cache(
    settings: &HubSettings,
    repository: &str,
    revision: &str,
    choice: &Choice,
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

/// Looks a model up in the cache without asking the network.
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

/// The hub says no checksum of a file that is not in its large storage: then the file itself is held to the promise, also one
/// that was there.
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

/// Brings one file to where it belongs, unless it is there.
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
            // Named after the bytes it will hold, so that a newer version does not go on from an older one's.
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

/// A blob's name vouches for its content once it has been renamed; a plain file's does not.
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
