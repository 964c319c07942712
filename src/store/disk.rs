//! Disk space: what growth must leave free, and what is reserved for deletions on a full disk.
//!
//! A database on a full disk cannot even delete, since deleting writes. So growth (uploads, chunks, new jobs) is
//! refused below a reserve of free space, and a ballast file beside the database holds space that the store releases
//! when the disk fills up all the same, for example through other programs: deleting, revoking and opening use it, and
//! the ballast is recreated when there is room.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use super::{Result, StoreError, private};

const BALLAST: &str = "ballast";
/// Share of the disk that growth leaves free by default.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MIN: u64 = 1 << 20;
const RESERVE_MAX: u64 = 512 << 20;
const BALLAST_MAX: u64 = 16 << 20;
/// Bytes that one small change may need: pages of the log, their index, and the database's own growth.
const CHANGE_BYTES: u64 = 256 << 10;
/// With less than this free beyond the reserve, the log is checkpointed after each change.
const TIGHT_BYTES: u64 = 16 << 20;

/// How a change uses the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// Grows the store by about this many bytes; refused below the reserve.
    Bytes(u64),
    /// Writes a few rows, such as the ledger's: may use up the reserve, but not the ballast.
    Rows,
    /// Deletes, or must be possible for another reason: the ballast makes room for it.
    Essential,
}

/// The disk of a data directory.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    reserve: u64,
}

impl Disk {
    /// `reserve` is in bytes; `None` takes a share of the disk.
    pub(super) fn new(directory: &Path, reserve: Option<u64>) -> Self {
        let of_disk = || {
            let total = space(directory).map_or(u64::MAX, |space| space.total);
            (total / RESERVE_SHARE).clamp(RESERVE_MIN, RESERVE_MAX)
        };
        Self { directory: directory.to_owned(), reserve: reserve.unwrap_or_else(of_disk) }
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join(BALLAST)
    }

    fn ballast_bytes(&self) -> u64 {
        (self.reserve / 2).clamp(CHANGE_BYTES, BALLAST_MAX)
    }

    /// Bytes that are free for this user; unlimited where the system does not say.
    fn free(&self) -> u64 {
        space(&self.directory).map_or(u64::MAX, |space| space.free)
    }

    /// Whether free space is near the reserve.
    pub(super) fn is_tight(&self) -> bool {
        self.free() < self.reserve.saturating_add(TIGHT_BYTES)
    }

    /// # Errors
    /// [`StoreError::Full`] if `bytes` more leave less free than the reserve.
    pub(super) fn refuse_growth(&self, bytes: u64) -> Result<()> {
        let (free, needed) = (self.free(), self.reserve.saturating_add(bytes));
        if free >= needed {
            return Ok(());
        }
        Err(StoreError::Full { directory: self.directory.clone(), free, needed })
    }

    /// Before a change: refuses growth below the reserve, and makes room for essential changes. `shrink` shortens the
    /// log as far as possible.
    pub(super) fn prepare(&self, growth: Growth, shrink: impl FnOnce()) -> Result<()> {
        match growth {
            Growth::Bytes(bytes) => self.refuse_growth(bytes.saturating_add(CHANGE_BYTES)),
            Growth::Rows | Growth::Essential => {
                if self.free() >= CHANGE_BYTES {
                    return Ok(());
                }
                shrink();
                let free = self.free();
                if free >= CHANGE_BYTES {
                    return Ok(());
                }
                if growth == Growth::Rows {
                    return Err(StoreError::Full { directory: self.directory.clone(), free, needed: CHANGE_BYTES });
                }
                self.release();
                Ok(())
            }
        }
    }

    /// Releases the ballast's space.
    pub(super) fn release(&self) {
        match fs::remove_file(self.ballast()) {
            Ok(()) => tracing::warn!(
                directory = %self.directory.display(),
                "the disk is full: the store uses the space of its ballast file; make room, or delete documents"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%error, "the ballast file cannot be removed from a full disk"),
        }
    }

    /// Recreates the ballast if it is missing or incomplete and the disk has room for it beside the reserve.
    pub(super) fn restore(&self) {
        let (path, bytes) = (self.ballast(), self.ballast_bytes());
        let is_whole = fs::metadata(&path).is_ok_and(|found| found.len() == bytes);
        if is_whole || self.free() < self.reserve.saturating_add(bytes) {
            return;
        }
        if let Err(error) = fill(&path, bytes) {
            tracing::warn!(path = %path.display(), %error, "the ballast file cannot be made");
            // A partial ballast takes space and is too small to rely on.
            let _ = fs::remove_file(&path);
        }
    }
}

/// A file of this length whose blocks are really allocated.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = private::open_or_create(path)?;
    #[cfg(target_os = "linux")]
    if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_ok() {
        return file.sync_all();
    }
    // Random bytes: a compressing file system would store zeros as nothing.
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut block = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        noise.fill(&mut block[..some]);
        file.write_all(&block[..some])?;
        left -= some as u64;
    }
    file.set_len(bytes)?;
    file.sync_all()
}

#[derive(Clone, Copy, Debug)]
struct Space {
    free: u64,
    total: u64,
}

#[cfg(unix)]
fn space(directory: &Path) -> Option<Space> {
    let found = rustix::fs::statvfs(directory).ok()?;
    // Some file systems report nothing, as zeros.
    (found.f_blocks > 0).then(|| Space {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

#[cfg(not(unix))]
fn space(_directory: &Path) -> Option<Space> {
    None
}

/// Whether an operation failed because the disk or the user's quota is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_stops_at_the_reserve_and_what_is_essential_gets_the_ballast() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path(), Some(1 << 20));
        disk.restore();
        assert_eq!(fs::metadata(disk.ballast()).unwrap().len(), 512 << 10);
        assert!(disk.prepare(Growth::Bytes(1), || panic!("there is room")).is_ok());

        // A reserve that no disk has simulates a full one.
        let full = Disk { reserve: u64::MAX, ..disk.clone() };
        assert!(matches!(full.prepare(Growth::Bytes(1), || ()), Err(StoreError::Full { .. })));
        assert!(full.prepare(Growth::Rows, || ()).is_ok());
        full.release();
        full.restore();
        assert!(!full.ballast().exists(), "there is no room for it");
        disk.restore();
        assert!(disk.ballast().exists());
    }

    #[test]
    fn ballast_without_fallocate_is_as_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b");
        fill(&path, 100_001).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 100_001);
    }
}
