//! The store in one SQLite database and a folder of uploaded files.
//!
//! One thread writes, one transaction per change, and any number of connections read concurrently (SQLite's write-ahead log).

mod attributes;
mod backup;
mod batches;
mod chunks;
mod collections;
mod documents;
mod files;
mod jobs;
mod keys;
mod ledger;
mod opening;
mod owned;
mod pages;
mod recover;
mod reembedded;
mod schema;
mod search;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::AtomicUsize,
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction};

pub use self::{
    backup::{BackupProgress, BackupSummary, back_up, restore},
    keys::SqliteKeyTable,
    recover::{Recovered, recover},
};
use self::{jobs::Leases, owned::SqliteOwned, writer::Writer};
use super::{
    Access, Owned, Result, Storage, StoreError,
    disk::{self, Disk, Growth},
    now_ms,
};
use hearth_domain::part::PartReport;

/// How long a connection waits for a lock that another one holds, for example for a checkpoint.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle readers that are kept open.
const READERS_KEPT: usize = 16;
const DATABASE: &str = "hearth.sqlite3";

/// See the module.
pub struct SqliteStore {
    directory: PathBuf,
    writer: Writer,
    disk: Disk,
    /// `None` once the store is closed.
    readers: Mutex<Option<Vec<Connection>>>,
    /// Files deleted since tombstones were last cleared.
    deleted_files: AtomicUsize,
    leases: Leases,
    /// Held as long as the store is open.
    _lock: File,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store of a data directory; `reserve` are the bytes that growth leaves free on the disk, `None` a share of the disk.
    ///
    /// # Errors
    /// If another process uses it, or the database is lost, damaged, of a newer version or not Hearth's.
    pub fn open(directory: &Path, reserve: Option<u64>) -> Result<Self> {
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
            leases: Leases::default(),
            _lock: lock,
        };
        store.settle_files()?;
        store.take_over_jobs()?;
        store.skip_chunk_ids()?;
        store.disk.restore();
        Ok(store)
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

impl Storage for SqliteStore {
    fn view<'a>(&'a self, access: Access<'a>) -> Box<dyn Owned + 'a> {
        Box::new(SqliteOwned { store: self, access })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn has_room(&self) -> bool {
        self.disk.refuse_growth(0).is_ok()
    }

    fn report(&self) -> PartReport {
        self.writer.report()
    }

    /// The log is checkpointed: afterwards `hearth.sqlite3` alone is the database.
    fn close(&self) {
        // A connection that is still reading prevents a full checkpoint; idle ones need not.
        drop(self.readers.lock().take());
        self.writer.close();
    }

    #[cfg(test)]
    fn tamper(&self, sql: &str) -> usize {
        let sql = sql.to_owned();
        self.write(move |transaction| Ok(transaction.execute(&sql, [])?)).unwrap()
    }
}

impl Drop for SqliteStore {
    /// Accepted changes are written before the store closes.
    fn drop(&mut self) {
        self.close();
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(Box::new(error))
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
    let failure = match &error {
        StoreError::Io { source, .. } if disk::is_full(source) => return full(),
        StoreError::Database(source) => source.downcast_ref(),
        _ => None,
    };
    match failure {
        Some(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == DiskFull => full(),
        Some(rusqlite::Error::SqliteFailure(failure, message))
            if [DatabaseCorrupt, NotADatabase].contains(&failure.code) =>
        {
            let problem = message.clone().unwrap_or_else(|| failure.to_string());
            StoreError::Corrupt { path: path.to_owned(), problem }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests;
