//! The store: everything that must outlive the process, in one SQLite database and a folder of uploaded files.
//!
//! It is the truth; the vector index is derived from it. One thread writes, one transaction a change, and any number of
//! connections read beside it (SQLite's write-ahead log). A change that was acknowledged is on the disk. The calls
//! block, for milliseconds as a rule: callers on an async runtime use its blocking threads.

mod attributes;
mod batches;
mod chunks;
mod collections;
mod documents;
mod files;
mod jobs;
mod keys;
mod ledger;
mod owned;
mod recover;
mod reembedded;
mod schema;
mod search;
mod spending;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub use self::{
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

/// Changes that may wait for the writer; callers of one more wait until there is room.
const QUEUE: usize = 64;
/// How long a connection waits for a lock that another one holds, a checkpoint's for instance.
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
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("there is a collection called {0:?} already; choose another name")]
    NameTaken(String),
    #[error(
        "the collection's vectors were made with {stored}, and the embedding model is now {asked}: start with the model \
         that made them, or make them anew with `hearth reindex`"
    )]
    OtherEmbedding { stored: String, asked: String },
    #[error("the store's thread ended")]
    Stopped,
    #[error("the database: {0}")]
    Database(#[from] rusqlite::Error),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

type Change = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the store; see the module.
pub struct Store {
    directory: PathBuf,
    writer: Option<SyncSender<Change>>,
    thread: Option<JoinHandle<()>>,
    readers: Mutex<Vec<Connection>>,
    /// Held as long as the store is open.
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a data directory, made if it is not there, and brings an older schema up to date.
    ///
    /// # Errors
    /// If another process uses it, or the database is damaged, of a newer version or not Hearth's.
    pub fn open(directory: &Path) -> Result<Self> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        let files = directory.join(files::FOLDER);
        fs::create_dir_all(&files).map_err(io_error(&files))?;
        let lock = take_lock(directory)?;
        let path = directory.join(DATABASE);
        let mut connection = Connection::open(&path)?;
        let opened = configure(&connection).map_err(StoreError::from);
        opened.and_then(|()| schema::migrate(&mut connection, &path)).map_err(|error| named(error, &path))?;
        let (writer, changes) = sync_channel::<Change>(QUEUE);
        let thread = std::thread::Builder::new()
            .name("hearth-store".to_owned())
            .spawn(move || changes.into_iter().for_each(|change| change(&mut connection)))
            .map_err(io_error(&path))?;
        let store = Self {
            directory: directory.to_owned(),
            writer: Some(writer),
            thread: Some(thread),
            readers: Mutex::new(Vec::new()),
            _lock: lock,
        };
        store.remove_orphaned_files()?;
        store.take_over_jobs()?;
        Ok(store)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a change in a transaction on the writer's thread. When it returns well, the change is on the disk; an
    /// error leaves nothing of it.
    fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let run = move |connection: &mut Connection| {
            let done = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(StoreError::from)
                .and_then(|transaction| {
                    let done = change(&transaction)?;
                    transaction.commit()?;
                    Ok(done)
                });
            // Nobody waits any more: the change stands or falls all the same.
            let _ = answer.send(done);
        };
        let writer = self.writer.as_ref().ok_or(StoreError::Stopped)?;
        writer.send(Box::new(run)).map_err(|_| StoreError::Stopped)?;
        let done = answered.recv().map_err(|_| StoreError::Stopped)?;
        done.map_err(|error| named(error, &self.directory.join(DATABASE)))
    }

    /// Runs a query on a connection that sees one state of the database throughout.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let path = self.directory.join(DATABASE);
        let idle = self.readers.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                configure(&connection)?;
                connection
            }
        };
        let transaction = connection.unchecked_transaction()?;
        let result = query(&transaction).map_err(|error| named(error, &path));
        drop(transaction);
        let mut readers = self.readers.lock();
        if readers.len() < READERS_KEPT {
            readers.push(connection);
        }
        result
    }
}

impl Drop for Store {
    /// What was accepted is written before the store is closed.
    fn drop(&mut self) {
        self.writer.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread failed");
        }
    }
}

/// Makes sure that no other process uses the directory while the file is held.
fn take_lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let lock = File::create(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked { path: directory.to_owned() },
        TryLockError::Error(source) => StoreError::Io { path, source },
    })?;
    Ok(lock)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    if !connection.is_readonly(rusqlite::MAIN_DB)? {
        connection.pragma_update(None, "journal_mode", "wal")?;
        // An acknowledged change survives the loss of power, too, not only of the process.
        connection.pragma_update(None, "synchronous", "full")?;
    }
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Says of a damaged or foreign file what it is.
fn named(error: StoreError, path: &Path) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
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

/// A new identifier that sorts by its time.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests;
