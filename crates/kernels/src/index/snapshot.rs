//! A frozen part on disk: written completely or not at all, and verified before it is used.
//!
//! The file is the block of `frozen.rs` with two hashes in its header: one of the identity of what produced the vectors
//! (the embedding model, its pooling and prefixes), and one of the whole file. It is written to a temporary file,
//! synced and renamed, so that a crash at any moment leaves the old file or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use super::frozen::Frozen;

/// Byte ranges of the hashes in the header.
const IDENTITY: std::ops::Range<usize> = 128..160;
const HASH: std::ops::Range<usize> = 160..192;

/// Why a snapshot cannot be used or written. No data is lost: the store is the source of truth.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a whole snapshot: {problem}", path = .path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the snapshot is of another embedding model")]
    Identity,
    #[error("the snapshot has {found} dimensions where {expected} are needed")]
    Dimensions { found: usize, expected: usize },
}

pub(super) fn write(frozen: &Frozen, path: &Path, identity: &str) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::Io { path: path.to_owned(), source };
    let bytes = frozen.bytes();
    let mut head = bytes[..HASH.end].to_vec();
    head[IDENTITY].copy_from_slice(blake3::hash(identity.as_bytes()).as_bytes());
    let hash = hash_of(&head[..HASH.start], &bytes[HASH.end..]);
    head[HASH].copy_from_slice(hash.as_bytes());
    let beside = path.with_extension("incomplete");
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&head)?;
        file.write_all(&bytes[HASH.end..])?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The name must be as durable as the bytes.
        File::open(directory)?.sync_all()
    };
    write().map_err(failed)
}

pub(super) fn read(path: &Path, identity: &str) -> Result<Frozen, SnapshotError> {
    let damaged = |problem: &str| SnapshotError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let failed = |source| SnapshotError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the file belongs to this process and is never modified in place, only replaced by renaming. A process
    // that modified it anyway could change what a search reads, but not where it reads: every access is bounds-checked.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    if map.len() < HASH.end {
        return Err(damaged("it is shorter than its header"));
    }
    if map[HASH] != *hash_of(&map[..HASH.start], &map[HASH.end..]).as_bytes() {
        return Err(damaged("its hash is not the one it was written with"));
    }
    if map[IDENTITY] != *blake3::hash(identity.as_bytes()).as_bytes() {
        return Err(SnapshotError::Identity);
    }
    let frozen = Frozen::map(map).map_err(|problem| damaged(&problem))?;
    frozen.check().map_err(|problem| damaged(&problem))?;
    Ok(frozen)
}

fn hash_of(head: &[u8], rest: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(head).update(rest).finalize()
}
