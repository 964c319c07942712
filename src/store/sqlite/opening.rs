//! How a data directory is opened: locked, made private, an interrupted recovery finished, refused if its database is
//! lost, and upgraded to the newest schema after a backup.
//!
//! A lost database is the dangerous case: SQLite silently creates an empty one in its place, and then no row knows the
//! uploads beside it. So a directory with uploads and without a database that has tables is refused, and the error says
//! how to get the database back.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use super::{DATABASE, backup, configure, files, named, recover, schema};
use crate::store::{Result, StoreError, disk::Disk, private};

/// Creates the directory if it is missing, private to its owner, and locks it: no other process uses it while the
/// returned file is held.
pub(super) fn take_directory(directory: &Path) -> Result<File> {
    let lock = private::lock_directory(directory)?;
    make_private(directory);
    Ok(lock)
}

/// Revokes other users' rights to a directory that granted some, and to its contents.
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
    // The directory itself already keeps others out.
    paths.iter().for_each(|path| drop(private::restrict(path)));
}

/// Opens the database of a locked directory, and upgrades its schema.
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

/// Length of a file; 0 if it does not exist.
fn length(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Refuses a directory that has lost its database: it holds uploads, a log or a damaged database, but no database.
fn refuse_lost(directory: &Path) -> Result<()> {
    let failed = |source| StoreError::Io { path: directory.to_owned(), source };
    let uploads = files::complete_files(&directory.join(files::FOLDER)).map_err(failed)?.len();
    let has_log = length(&directory.join(format!("{DATABASE}-wal"))).map_err(failed)? > 0;
    let is_damaged = recover::newest_damaged(directory).map_err(failed)?.is_some();
    // The log of an open database belongs to it.
    let has_log = has_log && length(&directory.join(DATABASE)).map_err(failed)? == 0;
    if uploads == 0 && !has_log && !is_damaged {
        return Ok(());
    }
    Err(StoreError::Lost { directory: directory.to_owned(), uploads })
}
