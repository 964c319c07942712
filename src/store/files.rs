//! Uploaded files: received piece by piece, kept once their row is written, and read as files of this machine.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Result, disk::Disk, io_error};
use hearth_domain::documents::{Page, PageRequest, StoredFile};

/// An incoming file rechecks the free space after this many bytes.
const LOOK_BYTES: u64 = 4 << 20;

/// A file that is being received. Dropping it deletes it.
#[derive(Debug)]
pub struct Incoming {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) hasher: Sha256,
    pub(super) bytes: u64,
    pub(super) disk: Disk,
    pub(super) kept: bool,
}

impl Incoming {
    /// # Errors
    /// If the disk rejects the bytes, or they would use up its reserve.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let more = bytes.len() as u64;
        if self.bytes / LOOK_BYTES != (self.bytes + more) / LOOK_BYTES {
            self.disk.refuse_growth(more)?;
        }
        self.file.write_all(bytes).map_err(|source| io_error(&self.path, source))?;
        self.hasher.update(bytes);
        self.bytes += more;
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // If this fails, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// An uploaded file as a file of this machine, for as long as this value lives.
#[derive(Debug)]
pub struct LocalFile {
    pub(super) path: PathBuf,
    /// Whether it was made for this value, and goes with it.
    pub(super) is_copy: bool,
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if self.is_copy {
            // If this fails, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl LocalFile {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The bytes of all owners' files.
pub trait Uploads {
    /// Starts to receive a file of about `bytes` bytes; 0 if the sender has not said how many.
    ///
    /// # Errors
    /// If the folder cannot be written, or the disk has no room for the file beside its reserve.
    fn receive_file(&self, bytes: u64) -> Result<Incoming>;

    /// Opens a file's bytes for reading. That they are missing may show only when they are read.
    ///
    /// # Errors
    /// If they cannot be brought to this machine.
    fn open_file(&self, id: &str) -> Result<LocalFile>;
}

/// The files of an owner.
pub trait Files {
    /// Keeps a received file. The file name is for display; it is never part of a path.
    ///
    /// # Errors
    /// If the disk rejects it, or keeping it would use up the disk's reserve.
    fn keep_file(&self, incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile>;

    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn file(&self, id: &str) -> Result<StoredFile>;

    /// A page of the files, either of one purpose or all.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn files_page(&self, purpose: Option<&str>, request: &PageRequest) -> Result<Page<StoredFile>>;

    /// Deletes a file and the documents made from it. Returns the ids of their chunks by collection; `None` if there is
    /// no such file.
    fn delete_file(&self, id: &str) -> Result<Option<Vec<(String, u64)>>>;
}
