//! How a data directory is opened: locked, private, finished where a recovery was cut off, refused where its database
//! is lost, and brought to the newest schema after a backup.
//!
//! A lost database is the dangerous case: SQLite makes an empty one in its place without a word, and the uploads beside
//! it belong to no row any more. So a directory with uploads and without a database that knows tables is refused, and
//! the error says how to get the database back.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use super::{DATABASE, Result, StoreError, backup, configure, disk::Disk, files, named, private, recover, schema};

/// Makes the directory if it is not there, private to its owner, and makes sure that no other process uses it while the
/// file is held.
pub(super) fn take_directory(directory: &Path) -> Result<File> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    private::create_dir_all(directory).map_err(io_error(directory))?;
    make_private(directory);
    let path = directory.join("lock");
    let lock = private::open_or_create(&path).map_err(io_error(&path))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked { path: directory.to_owned() },
        TryLockError::Error(source) => StoreError::Io { path, source },
    })?;
    Ok(lock)
}

/// Takes the rights of other users away from a directory that had some, and from what is in it.
fn make_private(directory: &Path) {
    match private::restrict(directory) {
        Ok(false) => return,
        Ok(true) => tracing::info!(directory = %directory.display(), "the data directory is private to its owner now"),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "other users may read the data directory");
            return;
        }
    }
    let log = [DATABASE.to_owned(), format!("{DATABASE}-wal"), format!("{DATABASE}-shm")];
    let mut paths: Vec<PathBuf> = log.iter().map(|name| directory.join(name)).collect();
    let folder = directory.join(files::FOLDER);
    paths.extend(fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    paths.push(folder);
    // The directory itself keeps others out already.
    paths.iter().for_each(|path| drop(private::restrict(path)));
}

/// Opens the database of a directory that is held, and brings its schema up to date.
pub(super) fn open_database(directory: &Path, disk: &Disk) -> Result<Connection> {
    let path = directory.join(DATABASE);
    let folder = directory.join(files::FOLDER);
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    recover::finish(directory)?;
    backup::refuse_unfinished_restore(directory)?;
    if length(&path).map_err(io_error(&path))? == 0 {
        refuse_lost(directory)?;
    }
    private::create_dir_all(&folder).map_err(io_error(&folder))?;
    // SQLite gives its log the database's own mode.
    private::open_or_create(&path).map_err(io_error(&path))?;
    let mut connection = Connection::open(&path)?;
    let prepared = (|| {
        configure(&connection)?;
        if schema::is_empty(&connection)? {
            refuse_lost(directory)?;
        }
        if let Some(version) = schema::version_before_upgrade(&connection, &path)? {
            disk.refuse_growth(length(&path).unwrap_or_default())?;
            let kept = backup::before_upgrade(directory, version)?;
            tracing::info!(backup = %kept.display(), "the database is brought to a newer schema; this is how it was");
        }
        schema::migrate(&mut connection, &path)
    })();
    prepared.map_err(|error| named(error, &path))?;
    Ok(connection)
}

/// Bytes of a file; 0 if it is not there.
fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Refuses a directory that has had a database: uploads, a log or a damaged database are beside the place of the one
/// that is not there.
fn refuse_lost(directory: &Path) -> Result<()> {
    let failed = |source| StoreError::Io { path: directory.to_owned(), source };
    let uploads = files::complete_files(&directory.join(files::FOLDER)).map_err(failed)?.len();
    let has_log = length(&directory.join(format!("{DATABASE}-wal"))).map_err(failed)? > 0;
    let is_damaged = recover::newest_damaged(directory).map_err(failed)?.is_some();
    // The log of a database that is open belongs to it.
    let has_log = has_log && length(&directory.join(DATABASE)).map_err(failed)? == 0;
    if uploads == 0 && !has_log && !is_damaged {
        return Ok(());
    }
    Err(StoreError::Lost { directory: directory.to_owned(), uploads })
}
