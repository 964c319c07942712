//! The store: everything that must outlive the process. What it can do is the trait [`Storage`], an owner's part of which is
//! [`Owned`]; `sqlite/` keeps it in a database of its own in the data directory, `postgres/` in one that several servers share.
//!
//! It is the source of truth; the vector index is derived from it. An acknowledged change is on the disk. The calls block, usually for
//! milliseconds: callers on an async runtime use its blocking threads.

mod attributes;
mod batches;
mod chunks;
mod cluster;
mod collections;
mod disk;
mod documents;
mod error;
mod files;
mod jobs;
mod keys;
mod ledger;
mod owned;
#[cfg(feature = "cluster")]
mod postgres;
mod private;
mod reembedded;
mod search;
mod sqlite;
mod vectors;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use self::sqlite::{SqliteKeyTable, SqliteStore};
pub use self::{
    batches::{Batch, Batches, Member},
    chunks::{Chunks, OwnedChunks},
    cluster::{Cluster, DatabaseReport, SharedStore},
    collections::Collections,
    documents::{Documents, INGEST, Replaced, Upload},
    error::{Result, StoreError, not_found},
    files::{Files, Incoming, LocalFile, Uploads},
    jobs::{Job, JobQueue, JobState, Jobs, Lease, NewJob},
    keys::{KeyManagement, KeyTable, Keys, StoredKey},
    ledger::{GroupBy, LedgerRow, LedgerRows, LedgerTotals, SpentBy, UsageGroup, UsageQuery},
    owned::{Access, Owned},
    reembedded::Reembedding,
    search::{LexicalHit, LexicalSearch, Scope},
    sqlite::{BackupProgress, BackupSummary, Recovered, back_up, recover, restore},
    vectors::VectorSearch,
};
use hearth_domain::{documents::AttributeValue, part::PartReport};

type Attributes = BTreeMap<String, AttributeValue>;

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

    /// Search by vectors in the store itself. Without it, [`Indexes`](crate::retrieval::indexes::Indexes) of this process are searched.
    fn vector_search(&self) -> Option<&dyn VectorSearch> {
        None
    }

    /// The servers that share the store, if it is one that can be shared.
    fn cluster(&self) -> Option<&dyn Cluster> {
        None
    }

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

impl dyn Storage {
    /// Connects to the database that several servers share; `directory` holds what is this process's alone, such as uploads that are
    /// being received.
    ///
    /// # Errors
    /// If the database cannot be reached or used, or its schema is of a newer version; if another process uses the directory.
    #[cfg(feature = "cluster")]
    pub fn connect(shared: &SharedStore, directory: &Path, reserve: Option<u64>) -> Result<Arc<Self>> {
        Ok(Arc::new(postgres::PostgresStore::open(shared, directory, reserve)?))
    }

    /// # Errors
    /// Always: this build cannot.
    #[cfg(not(feature = "cluster"))]
    pub fn connect(_shared: &SharedStore, _directory: &Path, _reserve: Option<u64>) -> Result<Arc<Self>> {
        Err(not_built())
    }
}

impl dyn KeyManagement {
    /// The keys of a data directory, whose server may run.
    ///
    /// # Errors
    /// If the database is damaged, not Hearth's, or of another version than this program and in use.
    pub fn open(directory: &Path) -> Result<Box<Self>> {
        Ok(Box::new(SqliteKeyTable::open(directory)?))
    }

    /// The keys of the database that several servers share.
    ///
    /// # Errors
    /// If the database cannot be reached or used, or its schema is of a newer version.
    #[cfg(feature = "cluster")]
    pub fn connect(shared: &SharedStore) -> Result<Box<Self>> {
        Ok(Box::new(postgres::PostgresKeyTable::open(shared)?))
    }

    /// # Errors
    /// Always: this build cannot.
    #[cfg(not(feature = "cluster"))]
    pub fn connect(_shared: &SharedStore) -> Result<Box<Self>> {
        Err(not_built())
    }
}

#[cfg(not(feature = "cluster"))]
fn not_built() -> StoreError {
    StoreError::Address("this program was built without the feature `cluster`".to_owned())
}

/// Creates a data directory if it is missing, for its owner alone.
///
/// # Errors
/// If the disk rejects it.
pub fn create_directory(directory: &Path) -> Result<()> {
    private::create_dir_all(directory).map_err(|source| io_error(directory, source))
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
