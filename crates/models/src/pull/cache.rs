//! The hub's cache on disk, in the layout shared by all hub clients, so that a file is fetched once. The crate hf-hub
//! names its directories; this file adds what the crate has no names for: blobs, downloads in progress and locks.
//!
//! `models--OWNER--NAME/` holds `blobs/ETAG` (the bytes), `snapshots/COMMIT/PATH` (links to them) and
//! `refs/REVISION` (a commit). A download in progress is `blobs/ETAG.incomplete`.

use std::{
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(crate) struct RepositoryCache {
    cache: Cache,
    repository: String,
    directory: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub(crate) fn new(cache: &Path, repository: &str) -> Self {
        let name = Repo::model(repository.to_owned()).folder_name();
        Self {
            cache: Cache::new(cache.to_owned()),
            repository: repository.to_owned(),
            directory: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    fn at(&self, revision: &str) -> CacheRepo {
        self.cache.repo(Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned()))
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.directory.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.directory.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.at(commit).pointer_path(commit)
    }

    /// The commit that a revision resolved to when it was last fetched; a commit resolves to itself.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.directory.join("refs").join(revision)).ok()?.trim().to_owned();
        self.snapshot(&commit).is_dir().then_some(commit)
    }

    pub(crate) fn write_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        self.at(revision).create_ref(commit)
    }

    /// Files of a snapshot whose bytes are present, as paths within the snapshot.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.is_file()
                    && let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str)
                {
                    files.push(name.to_owned());
                }
            }
        }
        files.sort();
        files
    }

    /// Links a finished blob to the path where programs look for it, and returns that path.
    pub(crate) fn link(&self, commit: &str, path: &str, etag: &str) -> io::Result<PathBuf> {
        let link = self.snapshot(commit).join(path);
        create_parent(&link)?;
        let up = "../".repeat(path.split('/').count() + 1);
        replace_with_link(&PathBuf::from(format!("{up}blobs/{etag}")), &self.blob(etag), &link)?;
        Ok(link)
    }

    /// Waits until no other process is fetching this blob, and blocks others until the returned file is dropped.
    pub(crate) fn lock(&self, etag: &str) -> io::Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(path)?;
        file.lock()?;
        Ok(file)
    }
}

pub(crate) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Makes `link` point to `target` (relative to the link's directory, or absolute); `real` is the same file's path from
/// here. On systems without symbolic links, the file is hard-linked or copied instead.
pub(crate) fn replace_with_link(target: &Path, real: &Path, link: &Path) -> io::Result<()> {
    if fs::symlink_metadata(link).is_ok() {
        fs::remove_file(link)?;
    }
    #[cfg(unix)]
    {
        let _ = real;
        std::os::unix::fs::symlink(target, link)
    }
    #[cfg(not(unix))]
    {
        let _ = target;
        fs::hard_link(real, link).or_else(|_| fs::copy(real, link).map(|_| ()))
    }
}

/// Whether the path stays below the directory it is joined to. The hub's answers are trusted with nothing else.
pub(crate) fn is_plain_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0', ':'])
        && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_out_are_refused() {
        for plain in ["model.gguf", "Q8_0/model-00001-of-00002.gguf", "1_Pooling/config.json"] {
            assert!(is_plain_path(plain), "{plain}");
        }
        for climbing in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\..\\b", "C:/x", "a\0b"] {
            assert!(!is_plain_path(climbing), "{climbing}");
        }
    }

    #[test]
    fn a_linked_blob_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = RepositoryCache::new(directory.path(), "owner/name");
        create_parent(&cache.blob("e1")).unwrap();
        fs::write(cache.blob("e1"), b"weights").unwrap();
        assert_eq!(cache.commit("main"), None);
        for path in ["model.gguf", "sub/model.gguf"] {
            let link = cache.link("c0ffee", path, "e1").unwrap();
            assert_eq!(fs::read(link).unwrap(), b"weights");
        }
        cache.write_commit("main", "c0ffee").unwrap();
        assert_eq!(cache.commit("main").as_deref(), Some("c0ffee"));
        assert_eq!(cache.commit("c0ffee").as_deref(), Some("c0ffee"));
        assert_eq!(cache.files("c0ffee"), ["model.gguf", "sub/model.gguf"]);
    }
}
