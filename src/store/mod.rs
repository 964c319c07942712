//! The store: everything that must outlive the process. What it can do is the trait [`Storage`], an owner's part of which is
//! [`Owned`]; `sqlite/` keeps it in a database of its own in the data directory.
//!
//! It is the source of truth; the vector index is derived from it. An acknowledged change is on the disk. The calls block, usually for
//! milliseconds: callers on an async runtime use its blocking threads.

mod batches;
mod chunks;
mod collections;
mod disk;
mod documents;
mod files;
mod jobs;
mod keys;
mod ledger;
mod owned;
mod private;
mod reembedded;
mod search;
mod sqlite;

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use self::sqlite::SqliteStore;
pub use self::{
    batches::{Batch, Batches, Member},
    chunks::{Chunks, OwnedChunks},
    collections::Collections,
    documents::{Documents, INGEST, Replaced, Upload},
    files::{Files, Incoming, LocalFile, Uploads},
    jobs::{Job, JobQueue, JobState, Jobs, Lease, NewJob},
    keys::{Keys, StoredKey},
    ledger::{GroupBy, LedgerRow, LedgerRows, LedgerTotals, SpentBy, UsageGroup, UsageQuery},
    owned::{Access, Owned},
    reembedded::Reembedding,
    search::{LexicalHit, LexicalSearch, Scope},
    sqlite::{BackupProgress, BackupSummary, KeyTable, Recovered, back_up, recover, restore},
};
use hearth_domain::{documents::AttributeValue, part::PartReport};

type Attributes = BTreeMap<String, AttributeValue>;

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "another hearth uses the data directory {path}: stop it, or choose another one with --data-dir",
        path = .path.display()
    )]
    Locked { path: PathBuf },
    #[error(
        "{path} was written by a newer version of Hearth (schema {found}, this one knows {supported}): use that version, \
         or another --data-dir",
        path = .path.display()
    )]
    Newer { path: PathBuf, found: i64, supported: i64 },
    #[error(
        "the server that uses {path} is of another version of Hearth (schema {found}, this one knows {supported}): stop \
         it, or use that version for this command, too",
        path = .path.display()
    )]
    InUseByOther { path: PathBuf, found: i64, supported: i64 },
    #[error("{path} is not a database of Hearth; move it away, or choose another --data-dir", path = .path.display())]
    Foreign { path: PathBuf },
    #[error(
        "the database {path} is damaged ({problem}): stop the server and run `hearth recover` with the same --data-dir, which \
         saves what can be read and reads all documents again, or bring the directory back from a backup",
        path = .path.display()
    )]
    Corrupt { path: PathBuf, problem: String },
    #[error(
        "{directory} has had a database, with {uploads} uploads that are still there, and hearth.sqlite3 is missing or \
         empty. Bring it back from a backup (`hearth restore`, or hearth.sqlite3 together with hearth.sqlite3-wal), or run \
         `hearth recover` with the same --data-dir, which makes a database that knows the uploads. Nothing was changed",
        directory = .directory.display()
    )]
    Lost { directory: PathBuf, uploads: usize },
    #[error(
        "a restore into {directory} was cut off: run `hearth restore` with the same backup again",
        directory = .directory.display()
    )]
    HalfRestored { directory: PathBuf },
    #[error("{0}")]
    Backup(String),
    #[error(
        "the disk of {directory} is full: {free} bytes are free and {needed} are needed. Delete documents, make room on the \
         disk, or move the data directory to a larger one",
        directory = .directory.display()
    )]
    Full { directory: PathBuf, free: u64, needed: u64 },
    #[error("{used} of {limit} {what} are in use, and {more} more do not fit")]
    Quota { what: &'static str, used: u64, limit: u64, more: u64 },
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("there is a collection called {0:?} already; choose another name")]
    NameTaken(String),
    #[error(
        "the collection's vectors were made with {stored}, and the embedding model is now {asked}: start with the model \
         that made them, or make them anew with `hearth reindex`"
    )]
    OtherEmbedding { stored: String, asked: String },
    #[error("the store is closed")]
    Stopped,
    #[error("a fault of Hearth's own: a change of the store panicked and was rolled back; the log has the cause")]
    Panicked,
    #[error("the database: {0}")]
    Database(Box<dyn Error + Send + Sync>),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a store can do, for all owners together; see the module.
pub trait Storage:
    Uploads + Chunks + Reembedding + LexicalSearch + JobQueue + Keys + LedgerRows + Debug + Send + Sync
{
    /// One caller's part of it, within the limits of a request.
    fn view<'a>(&'a self, access: Access<'a>) -> Box<dyn Owned + 'a>;

    /// One caller's part of it.
    fn of<'a>(&'a self, owner: &'a str) -> Box<dyn Owned + 'a> {
        self.view(Access::of(owner))
    }

    /// The data directory of this process.
    fn directory(&self) -> &Path;

    /// Whether there is room for more documents.
    fn has_room(&self) -> bool;

    /// Its entry in the health report.
    fn report(&self) -> PartReport;

    /// Applies accepted changes and closes; afterwards reads and writes are refused.
    fn close(&self);

    /// Changes rows in ways that no caller can; returns how many.
    #[cfg(test)]
    fn tamper(&self, sql: &str) -> usize;
}

/// A store of any kind.
pub type Store = dyn Storage;

impl dyn Storage {
    /// Opens the store of a data directory, which is created if missing, and upgrades an older schema after a backup.
    ///
    /// # Errors
    /// If another process uses it, or the database is lost, damaged, of a newer version or not Hearth's.
    pub fn open(directory: &Path) -> Result<Arc<Self>> {
        Self::open_with_reserve(directory, None)
    }

    /// `open` with the bytes that growth leaves free on the disk; `None` means a share of the disk.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with_reserve(directory: &Path, reserve: Option<u64>) -> Result<Arc<Self>> {
        Ok(Arc::new(SqliteStore::open(directory, reserve)?))
    }
}

/// Writes a small file of a data directory, readable by its owner alone.
///
/// # Errors
/// If the disk rejects it.
pub fn write_note(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = directory.join(name);
    private::write(&path, bytes).map_err(|source| io_error(&path, source))
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    if disk::is_full(&source) {
        return StoreError::Full { directory: path.parent().unwrap_or(path).to_owned(), free: 0, needed: 1 };
    }
    StoreError::Io { path: path.to_owned(), source }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A new identifier that sorts by creation time.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests;
