//! Backups: a consistent copy of a data directory in a directory of its own, and its restoration.
//!
//! A backup holds `hearth.sqlite3`, `files/`, `keys.secret` if keys were made, and `manifest.json` with the length and
//! SHA-256 of each. The manifest is written last: a backup without one is incomplete. SQLite copies the database in one
//! read transaction (`VACUUM INTO`), so a server may run meanwhile; a file that is deleted before it is copied is
//! deleted in the backup, too, so that every upload that the backup knows is in it. Vector indexes are not copied: they
//! are rebuilt from the database.
//!
//! Before its schema changes, a database is backed up into `backups/` of its data directory; the uploads there are hard
//! links, which take no space. Restoring does not change the schema, so an earlier version of Hearth can use what is
//! restored from such a backup.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DATABASE, configure, documents::cancel_ingest, files, named, opening::take_directory, recover};
use crate::store::{Result, StoreError, now_ms, private};

const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;
/// The secret that keys are hashed with; see `service/callers/secret.rs`.
const SECRET: &str = "keys.secret";
/// Where backups before upgrades are, in the data directory.
const UPGRADES: &str = "backups";
/// Marks a directory whose restore has not finished.
const RESTORING: &str = "restore-incomplete";
const BUFFER: usize = 1 << 20;

/// The progress of a backup or a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupProgress {
    /// The database is being copied.
    Database,
    /// `done` of the `of` files are copied.
    Files { done: usize, of: usize },
}

/// The result of a backup or a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupSummary {
    pub files: usize,
    /// In total, the database included.
    pub bytes: u64,
    /// Ids of files that are in the database and not in the data directory.
    pub missing: Vec<String>,
    /// Ids of files whose bytes are not those that were uploaded.
    pub damaged: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Manifest {
    format: u32,
    /// The version of Hearth that made the backup.
    hearth: String,
    /// The version of the database's schema.
    schema: i64,
    /// RFC 3339
    created: String,
    files: Vec<Entry>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Entry {
    path: String,
    bytes: u64,
    /// Hexadecimal
    sha256: String,
}

impl Entry {
    fn new(path: String, bytes: u64, sha256: &[u8]) -> Self {
        Self { path, bytes, sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| named(StoreError::Io { path: path.clone(), source }, &path)
}

/// Copies a data directory into `to`, which must not exist or be empty. A server may be using the directory.
///
/// # Errors
/// If there is no database, it is damaged, or `to` cannot be written.
pub fn back_up(directory: &Path, to: &Path, progress: &mut dyn FnMut(BackupProgress)) -> Result<BackupSummary> {
    // SQLite deletes the log of an empty database when it opens it.
    if !fs::metadata(directory.join(DATABASE)).is_ok_and(|found| found.len() > 0) {
        let message = format!("there is no database in {} to back up; name its --data-dir", directory.display());
        return Err(StoreError::Backup(message));
    }
    let _lock = match take_directory(directory) {
        Ok(lock) => {
            recover::finish(directory)?;
            Some(lock)
        }
        Err(StoreError::Locked { .. }) => None,
        Err(error) => return Err(error),
    };
    refuse_unfinished_restore(directory)?;
    if to.exists() && fs::read_dir(to).map_err(io_error(to))?.next().is_some() {
        return Err(StoreError::Backup(format!("{} is not empty; name a new directory", to.display())));
    }
    write(directory, to, Bytes::Copied, progress)
}

/// Backs the database up before its schema changes from this version; returns the backup's path.
pub(super) fn before_upgrade(directory: &Path, version: i64) -> Result<PathBuf> {
    let name = format!("schema-{version}-{}", now_ms());
    let folder = directory.join(UPGRADES);
    let (half, whole) = (folder.join(format!("{name}.incomplete")), folder.join(name));
    let written = write(directory, &half, Bytes::Linked, &mut |_| ()).inspect_err(|_| {
        // A partial backup is useless, and may be what fills the disk.
        let _ = fs::remove_dir_all(&half);
    })?;
    if !written.missing.is_empty() {
        tracing::error!(files = ?written.missing, backup = %whole.display(), "uploads are missing in a backup");
    }
    fs::rename(&half, &whole).and_then(|()| private::sync_dir(&folder)).map_err(io_error(&whole))?;
    Ok(whole)
}

/// How uploads get into a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// Copied, and verified against the hash of their upload.
    Copied,
    /// Hard-linked if the file system allows it, and not read.
    Linked,
}

fn write(directory: &Path, to: &Path, bytes: Bytes, progress: &mut dyn FnMut(BackupProgress)) -> Result<BackupSummary> {
    let folder = to.join(files::FOLDER);
    private::create_dir_all(&folder).map_err(io_error(&folder))?;
    progress(BackupProgress::Database);
    let (path, copy) = (directory.join(DATABASE), to.join(DATABASE));
    let source = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    private::create_new(&copy).map_err(io_error(&copy))?;
    let copied = configure(&source).and_then(|()| source.execute("VACUUM INTO ?", [copy.to_string_lossy()]));
    copied.map_err(|error| named(error.into(), &path))?;
    let mut database = Connection::open(&copy)?;
    let known: Vec<(String, u64, [u8; 32])> = {
        let mut query = database.prepare("SELECT id, bytes, sha256 FROM files ORDER BY id")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    let mut summary = BackupSummary::default();
    let mut entries = Vec::with_capacity(known.len() + 2);
    let (mut deleted, of) = (Vec::new(), known.len());
    let mut aside = None;
    for (done, (id, length, sha256)) in known.into_iter().enumerate() {
        progress(BackupProgress::Files { done, of });
        let from = directory.join(files::FOLDER).join(&id);
        let mut taken = take_upload(&from, &folder.join(&id), bytes).map_err(io_error(&from))?;
        if taken.is_none() {
            // A start with an older database may have moved it.
            let aside = match &mut aside {
                Some(found) => found,
                none => none.insert(files::complete_files(&directory.join(files::FOLDER)).map_err(io_error(&from))?),
            };
            if let Some(path) = aside.get(&id) {
                taken = take(path, &folder.join(&id), bytes).map_err(io_error(path))?;
            }
        }
        let Some(found) = taken else {
            let is_known = "SELECT 1 FROM files WHERE id = ?";
            match source.query_row(is_known, [&id], |_| Ok(())).optional()? {
                None => deleted.push(id),
                Some(()) => summary.missing.push(id),
            }
            continue;
        };
        if found.is_some_and(|found| found != (length, sha256)) {
            summary.damaged.push(id.clone());
        }
        let (length, sha256) = found.unwrap_or((length, sha256));
        entries.push(Entry::new(format!("{}/{id}", files::FOLDER), length, &sha256));
        summary.bytes += length;
        summary.files += 1;
    }
    progress(BackupProgress::Files { done: of, of });
    forget(&mut database, &deleted)?;
    let schema = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    database.close().map_err(|(_, error)| StoreError::from(error))?;
    let (length, sha256) = hash(&copy).map_err(io_error(&copy))?;
    entries.push(Entry::new(DATABASE.to_owned(), length, &sha256));
    summary.bytes += length;
    let secret = directory.join(SECRET);
    if let Some(Some((length, sha256))) = take(&secret, &to.join(SECRET), Bytes::Copied).map_err(io_error(&secret))? {
        entries.push(Entry::new(SECRET.to_owned(), length, &sha256));
    }
    File::open(&copy).and_then(|file| file.sync_all()).map_err(io_error(&copy))?;
    private::sync_dir(&folder).and_then(|()| private::sync_dir(to)).map_err(io_error(to))?;
    let created = jiff::Timestamp::now().to_string();
    let manifest =
        Manifest { format: FORMAT, hearth: env!("CARGO_PKG_VERSION").to_owned(), schema, created, files: entries };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|error| StoreError::Backup(error.to_string()))?;
    let path = to.join(MANIFEST);
    private::write(&path, &json).map_err(io_error(&path))?;
    Ok(summary)
}

/// Deletes files that no longer exist from a backup's database, with the documents made from them.
fn forget(database: &mut Connection, deleted: &[String]) -> Result<()> {
    if deleted.is_empty() {
        return Ok(());
    }
    database.pragma_update(None, "foreign_keys", true)?;
    let transaction = database.transaction()?;
    for id in deleted {
        cancel_ingest(&transaction, None, Some(id))?;
        transaction.execute("DELETE FROM documents WHERE file_id = ?", [id])?;
        transaction.execute("DELETE FROM files WHERE id = ?", [id])?;
    }
    Ok(transaction.commit()?)
}

type Hashed = (u64, [u8; 32]);

/// [`take`] for an upload whose row is written. It may not have its final name yet, and get it meanwhile.
fn take_upload(from: &Path, to: &Path, bytes: Bytes) -> io::Result<Option<Option<Hashed>>> {
    for from in [from, &from.with_extension(files::INCOMPLETE), from] {
        let taken = take(from, to, bytes)?;
        if taken.is_some() {
            return Ok(taken);
        }
    }
    Ok(None)
}

/// Copies or links one file into a backup. `None` if it does not exist; the inner `None` if it was linked and therefore
/// not read.
fn take(from: &Path, to: &Path, bytes: Bytes) -> io::Result<Option<Option<Hashed>>> {
    if bytes == Bytes::Linked && fs::hard_link(from, to).is_ok() {
        return Ok(Some(None));
    }
    match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => copy(file?, to).map(|hashed| Some(Some(hashed))),
    }
}

fn copy(mut from: File, to: &Path) -> io::Result<Hashed> {
    let mut into = private::create_new(to)?;
    let hashed = read_through(&mut from, |bytes| into.write_all(bytes))?;
    into.sync_all()?;
    Ok(hashed)
}

/// Length and SHA-256 of a file.
pub(super) fn hash(path: &Path) -> io::Result<Hashed> {
    read_through(&mut File::open(path)?, |_| Ok(()))
}

fn read_through(file: &mut File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Hashed> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((length, hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        each(&buffer[..read])?;
        length += read as u64;
    }
}

/// # Errors
/// [`StoreError::HalfRestored`]
pub(super) fn refuse_unfinished_restore(directory: &Path) -> Result<()> {
    if directory.join(RESTORING).exists() {
        return Err(StoreError::HalfRestored { directory: directory.to_owned() });
    }
    Ok(())
}

/// Restores a data directory from a backup. The directory must hold no database, upload, key or index, except those of
/// an interrupted restore. Every file is verified against the manifest.
///
/// # Errors
/// If the backup is incomplete or damaged, or the directory is in use, not empty or cannot be written.
pub fn restore(from: &Path, directory: &Path, progress: &mut dyn FnMut(BackupProgress)) -> Result<BackupSummary> {
    let manifest = read_manifest(from)?;
    let _lock = take_directory(directory)?;
    let marker = directory.join(RESTORING);
    if !marker.exists() {
        // A recovered database that is not in place yet is data, too.
        recover::finish(directory)?;
        refuse_used(directory)?;
        private::write(&marker, b"").map_err(io_error(&marker))?;
    }
    let folder = directory.join(files::FOLDER);
    private::create_dir_all(&folder).map_err(io_error(&folder))?;
    let mut summary = BackupSummary::default();
    let of = manifest.files.len();
    for (done, entry) in manifest.files.iter().enumerate() {
        progress(BackupProgress::Files { done, of });
        let (source, to) = (from.join(&entry.path), directory.join(&entry.path));
        match fs::remove_file(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&to)(error)),
            _ => {}
        }
        let (bytes, sha256) = File::open(&source).and_then(|file| copy(file, &to)).map_err(io_error(&source))?;
        if Entry::new(String::new(), bytes, &sha256).sha256 != entry.sha256 || bytes != entry.bytes {
            return Err(StoreError::Backup(format!(
                "{} is not the file that was backed up (its SHA-256 is another one): the backup is damaged; use another \
                 one",
                source.display()
            )));
        }
        summary.bytes += bytes;
        summary.files += usize::from(entry.path.starts_with(files::FOLDER));
    }
    progress(BackupProgress::Files { done: of, of });
    let finished = private::sync_dir(&folder)
        .and_then(|()| private::sync_dir(directory))
        .and_then(|()| fs::remove_file(&marker))
        .and_then(|()| private::sync_dir(directory));
    finished.map_err(io_error(directory))?;
    Ok(summary)
}

fn read_manifest(from: &Path) -> Result<Manifest> {
    let path = from.join(MANIFEST);
    let json = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::Backup(format!(
            "{} is no whole backup: it has no {MANIFEST}, which is written when everything else is there",
            from.display()
        )),
        _ => io_error(&path)(error),
    })?;
    let manifest: Manifest = serde_json::from_slice(&json)
        .map_err(|error| StoreError::Backup(format!("{} cannot be read: {error}", path.display())))?;
    if manifest.format != FORMAT {
        return Err(StoreError::Backup(format!(
            "{} is of format {}, and this version of Hearth knows {FORMAT}: restore it with the version that made it, {}",
            from.display(),
            manifest.format,
            manifest.hearth
        )));
    }
    for Entry { path, .. } in &manifest.files {
        let is_upload =
            path.strip_prefix(files::FOLDER).and_then(|rest| rest.strip_prefix('/')).is_some_and(files::is_id);
        if !is_upload && path != DATABASE && path != SECRET {
            return Err(StoreError::Backup(format!("{MANIFEST} names {path:?}, which is no file of a backup")));
        }
    }
    if manifest.files.iter().all(|entry| entry.path != DATABASE) {
        return Err(StoreError::Backup(format!("{MANIFEST} names no {DATABASE}")));
    }
    Ok(manifest)
}

/// Refuses to restore over data.
fn refuse_used(directory: &Path) -> Result<()> {
    let is_filled = |name: &str| {
        let found = fs::read_dir(directory.join(name));
        found.is_ok_and(|mut entries| entries.next().is_some())
    };
    // A log is replayed into whatever database is beside it, and an index belongs to the database that it was built
    // from.
    let (log, journal) = (format!("{DATABASE}-wal"), format!("{DATABASE}-journal"));
    let used = [DATABASE, &log, &journal, SECRET].into_iter().find(|name| directory.join(name).exists());
    let used = used.or_else(|| [files::FOLDER, "index"].into_iter().find(|name| is_filled(name)));
    let Some(used) = used else { return Ok(()) };
    Err(StoreError::Backup(format!(
        "{} has data already ({used}): restore into another --data-dir, or move this one away",
        directory.display()
    )))
}
