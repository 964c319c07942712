//! The store: everything that must outlive the process, in one SQLite database and a folder of uploaded files.
//!
//! It is the source of truth; the vector index is derived from it. One thread writes, one transaction per change, and
//! any number of connections read concurrently (SQLite's write-ahead log). An acknowledged change is on the disk. The
//! calls block, usually for milliseconds: callers on an async runtime use its blocking threads.

mod attributes;
mod backup;
mod batches;
mod chunks;
mod collections;
mod disk;
mod documents;
mod files;
mod jobs;
mod keys;
mod ledger;
mod opening;
mod owned;
mod pages;
mod private;
mod recover;
mod reembedded;
mod schema;
mod search;
mod spending;
mod writer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicUsize,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction};

pub use self::{
    backup::{BackupProgress, BackupSummary, back_up, restore},
    batches::{Batch, Member},
    documents::{INGEST, Replaced, Upload},
    files::Incoming,
    jobs::{Job, JobState, Lease, Leases, NewJob},
    keys::{KeyTable, StoredKey},
    ledger::{GroupBy, LedgerRow, LedgerTotals, UsageGroup, UsageQuery},
    owned::Owned,
    recover::{Recovered, recover},
    search::{LexicalHit, Scope},
    spending::SpentBy,
};
use self::{
    disk::{Disk, Growth},
    writer::Writer,
};
use hearth_domain::part::PartReport;

/// How long a connection waits for a lock that another one holds, for example for a checkpoint.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle readers that are kept open.
const READERS_KEPT: usize = 16;
const DATABASE: &str = "hearth.sqlite3";

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
    Database(#[from] rusqlite::Error),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A handle on the store; see the module.
pub struct Store {
    directory: PathBuf,
    writer: Writer,
    disk: Disk,
    /// `None` once the store is closed.
    readers: Mutex<Option<Vec<Connection>>>,
    /// Files deleted since tombstones were last cleared.
    deleted_files: AtomicUsize,
    /// Held as long as the store is open.
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a data directory, which is created if missing, and upgrades an older schema after a backup.
    ///
    /// # Errors
    /// If another process uses it, or the database is lost, damaged, of a newer version or not Hearth's.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_with_reserve(directory, None)
    }

    /// [`Self::open`] with the bytes that growth leaves free on the disk; `None` means a share of the disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_reserve(directory: &Path, reserve: Option<u64>) -> Result<Self> {
        let lock = opening::take_directory(directory)?;
        let disk = Disk::new(directory, reserve);
        // Opening writes; on a full disk the ballast makes room for it.
        disk.prepare(Growth::Essential, || ())?;
        let connection = opening::open_database(directory, &disk)?;
        let path = directory.join(DATABASE);
        let writer =
            Writer::start(connection, &path, disk.clone()).map_err(|source| StoreError::Io { path, source })?;
        let store = Self {
            directory: directory.to_owned(),
            writer,
            disk,
            readers: Mutex::new(Some(Vec::new())),
            deleted_files: AtomicUsize::new(0),
            _lock: lock,
        };
        store.settle_files()?;
        store.take_over_jobs()?;
        store.skip_chunk_ids()?;
        store.disk.restore();
        Ok(store)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the disk has room for more documents beside its reserve.
    pub fn has_room(&self) -> bool {
        self.disk.refuse_growth(0).is_ok()
    }

    /// The writer thread's entry in the health report.
    pub fn report(&self) -> PartReport {
        self.writer.report()
    }

    /// Writes a small file of the data directory, readable by its owner alone.
    ///
    /// # Errors
    /// If the disk rejects it.
    pub fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        private::write(&path, bytes).map_err(|source| named(StoreError::Io { path: path.clone(), source }, &path))
    }

    /// Applies the queued changes, checkpoints the log, and closes the database: afterwards `hearth.sqlite3` alone is
    /// the database, and reads and writes are refused.
    pub fn close(&self) {
        // A connection that is still reading prevents a full checkpoint; idle ones need not.
        drop(self.readers.lock().take());
        self.writer.close();
    }

    /// Runs a small change in a transaction on the writer's thread. On success the change is on the disk; an error
    /// leaves nothing of it.
    fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.write(Growth::Rows, change)
    }

    /// [`Self::write`] for a change that grows the database by about `bytes`: refused if the disk has no room for them
    /// beside its reserve.
    fn grow<T: Send + 'static>(
        &self,
        bytes: u64,
        change: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.write(Growth::Bytes(bytes), change)
    }

    /// [`Self::write`] for a change that a full disk must not prevent, such as deleting.
    fn write_essential<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.write(Growth::Essential, change)
    }

    /// Advances chunk ids past any that a lost later state of this database may have used, for example after an older
    /// copy was put back or the database was recovered: an index on the disk is matched with the database by ids alone.
    fn skip_chunk_ids(&self) -> Result<()> {
        /// Ids per second: more than can be used.
        const SHIFT: u32 = 20;
        self.write_essential(|transaction| {
            let first = (now_ms() / 1000) << SHIFT;
            transaction.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'chunks'", [first])?;
            transaction.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'chunks', ?
                 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'chunks')",
                [first],
            )?;
            Ok(())
        })
    }

    /// Runs a query on a connection that sees one snapshot of the database throughout.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let path = self.directory.join(DATABASE);
        let idle = self.readers.lock().as_mut().ok_or(StoreError::Stopped)?.pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                configure(&connection)?;
                search::prepare(&connection)?;
                connection
            }
        };
        let transaction = connection.unchecked_transaction()?;
        let result = query(&transaction).map_err(|error| named(error, &path));
        drop(transaction);
        if let Some(readers) = &mut *self.readers.lock()
            && readers.len() < READERS_KEPT
        {
            readers.push(connection);
        }
        result
    }
}

impl Drop for Store {
    /// Accepted changes are written before the store closes.
    fn drop(&mut self) {
        self.close();
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    if !connection.is_readonly(rusqlite::MAIN_DB)? {
        connection.pragma_update(None, "journal_mode", "wal")?;
        // An acknowledged change must survive a power cut, not only the end of the process.
        connection.pragma_update(None, "synchronous", "full")?;
    }
    // KiB, for each of up to seventeen connections; the system caches the file as well.
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Gives the error of a damaged or foreign file, or of a full disk, its specific variant.
fn named(error: StoreError, path: &Path) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    let full = || StoreError::Full { directory: path.parent().unwrap_or(path).to_owned(), free: 0, needed: 1 };
    match error {
        StoreError::Database(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == DiskFull => full(),
        StoreError::Io { source, .. } if disk::is_full(&source) => full(),
        StoreError::Database(rusqlite::Error::SqliteFailure(failure, message))
            if [DatabaseCorrupt, NotADatabase].contains(&failure.code) =>
        {
            let problem = message.unwrap_or_else(|| failure.to_string());
            StoreError::Corrupt { path: path.to_owned(), problem }
        }
        error => error,
    }
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
