//! Uploaded files: their bytes in a folder under their id, their metadata in the database.
//!
//! Bytes arrive in a file with the suffix `.incomplete` (an [`Incoming`]), are hashed on the way, and are synced to the
//! disk before the database knows of them; then the file gets its final name. So a file without a row does not belong
//! to this database, and it is never removed: the next start moves it into a separate folder and logs that. Bytes are
//! unlinked only when a tombstone names them, a row that the deleting transaction wrote.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use rusqlite::{Connection, OptionalExtension, Row, params, types::Value as Sql};
use sha2::{Digest, Sha256};

use super::{
    SqliteOwned, SqliteStore,
    documents::cancel_ingest,
    named,
    owned::refuse_bytes_over,
    pages::{Listing, page},
};
use crate::store::{Files, Incoming, LocalFile, Result, StoreError, Uploads, new_id, now_ms, private};
use hearth_domain::documents::{Page, PageRequest, StoredFile};

pub(super) const FOLDER: &str = "files";

pub(super) const INCOMPLETE: &str = "incomplete";

/// Prefix of the folders of files without a row; the time in milliseconds follows.
const ORPHANED: &str = "orphaned-";

/// Tombstones are cleared after this many deletions.
const TOMBSTONES_KEPT: usize = 1024;

pub(super) const COLUMNS: &str = "id, filename, purpose, bytes, sha256, created";

pub(super) fn read_row(row: &Row<'_>) -> rusqlite::Result<StoredFile> {
    Ok(StoredFile {
        id: row.get(0)?,
        filename: row.get(1)?,
        purpose: row.get(2)?,
        bytes: row.get(3)?,
        sha256: row.get(4)?,
        created_ms: row.get(5)?,
    })
}

pub(super) fn insert(connection: &Connection, owner: &str, file: &StoredFile) -> Result<()> {
    connection.execute(
        "INSERT INTO files (id, owner, filename, purpose, bytes, sha256, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![file.id, owner, file.filename, file.purpose, file.bytes, file.sha256, file.created_ms],
    )?;
    Ok(())
}

/// Writes the tombstone of a file whose row this transaction deletes.
pub(super) fn bury(connection: &Connection, id: &str) -> Result<()> {
    let bury = "INSERT OR IGNORE INTO deleted_files (id, deleted) VALUES (?, ?)";
    connection.execute(bury, params![id, now_ms()])?;
    Ok(())
}

impl SqliteStore {
    fn file_folder(&self) -> PathBuf {
        self.directory.join(FOLDER)
    }

    /// The path of a file's bytes.
    pub fn file_path(&self, id: &str) -> PathBuf {
        self.file_folder().join(id)
    }

    /// Reconciles the folder with the database: uploads whose row was written get their final names; interrupted
    /// uploads and the bytes that a tombstone names are removed. A file without a row is moved into a separate folder:
    /// it is an upload of another database.
    pub(super) fn settle_files(&self) -> Result<()> {
        let ids = |table: &'static str| {
            self.read(move |connection| {
                let mut query = connection.prepare(&format!("SELECT id FROM {table}"))?;
                Ok(query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<HashSet<String>>>()?)
            })
        };
        let (known, deleted) = (ids("files")?, ids("deleted_files")?);
        let folder = self.file_folder();
        let settled = settle(&folder, &known, &deleted);
        let missing = settled.map_err(|source| StoreError::Io { path: folder.clone(), source })?;
        if missing > 0 {
            tracing::error!(
                missing,
                folder = %folder.display(),
                "uploaded files are not there though the database knows them: bring them back from a backup"
            );
        }
        if !deleted.is_empty() {
            // The unlinking is durable before its tombstones are removed, so no file reappears without one.
            self.write_essential(|transaction| Ok(transaction.execute("DELETE FROM deleted_files", [])?))?;
        }
        Ok(())
    }

    /// Unlinks the bytes of a file whose tombstone is written.
    pub(super) fn unlink_deleted(&self, id: &str) {
        let path = self.file_path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "the bytes of a deleted file are still there");
                return;
            }
            _ => {}
        }
        if self.deleted_files.fetch_add(1, Ordering::Relaxed) + 1 >= TOMBSTONES_KEPT {
            self.deleted_files.store(0, Ordering::Relaxed);
            if let Err(error) = self.drop_tombstones() {
                tracing::warn!(%error, "tombstones of deleted files could not be taken away");
            }
        }
    }

    /// Removes tombstones, once the unlinking of their files is durable.
    fn drop_tombstones(&self) -> Result<()> {
        let ids: Vec<String> = self.read(|connection| {
            let mut query = connection.prepare("SELECT id FROM deleted_files")?;
            Ok(query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })?;
        let folder = self.file_folder();
        let unlink = || -> io::Result<()> {
            for id in &ids {
                match fs::remove_file(folder.join(id)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            private::sync_dir(&folder)
        };
        unlink().map_err(|source| StoreError::Io { path: folder.clone(), source })?;
        self.write_essential(move |transaction| {
            let mut delete = transaction.prepare("DELETE FROM deleted_files WHERE id = ?")?;
            for id in &ids {
                delete.execute([id])?;
            }
            Ok(())
        })
    }
}

impl Uploads for SqliteStore {
    fn open_file(&self, id: &str) -> Result<LocalFile> {
        Ok(LocalFile { path: self.file_path(id), is_copy: false })
    }

    fn receive_file(&self, bytes: u64) -> Result<Incoming> {
        self.disk.refuse_growth(bytes)?;
        let id = new_id("file-");
        let path = self.file_path(&id).with_extension(INCOMPLETE);
        let file = private::create_new(&path).map_err(|source| StoreError::Io { path: path.clone(), source });
        let file = file.map_err(|error| named(error, &path))?;
        Ok(Incoming { id, path, file, hasher: Sha256::new(), bytes: 0, disk: self.disk.clone(), kept: false })
    }
}

/// [`SqliteStore::settle_files`] on the folder; returns how many known files are missing.
fn settle(folder: &Path, known: &HashSet<String>, deleted: &HashSet<String>) -> io::Result<usize> {
    let mut missing: HashSet<&String> = known.iter().collect();
    let mut unknown = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Folders belong to the file system, or hold files that were moved there before.
        if !entry.file_type()?.is_file() {
            continue;
        }
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let incomplete = name.strip_suffix(INCOMPLETE).and_then(|name| name.strip_suffix('.'));
        match incomplete {
            Some(id) if known.contains(id) && !folder.join(id).exists() => {
                fs::rename(&path, folder.join(id))?;
                missing.remove(&id.to_owned());
            }
            // An upload that was never acknowledged.
            Some(_) => fs::remove_file(&path)?,
            None if known.contains(&name) => drop(missing.remove(&name)),
            None if deleted.contains(&name) => fs::remove_file(&path)?,
            None => unknown.push(entry.file_name()),
        }
    }
    if !unknown.is_empty() {
        let aside = folder.join(format!("{ORPHANED}{}", now_ms()));
        private::create_dir_all(&aside)?;
        for name in &unknown {
            fs::rename(folder.join(name), aside.join(name))?;
        }
        private::sync_dir(&aside)?;
        tracing::warn!(
            files = unknown.len(),
            folder = %aside.display(),
            "files that the database does not know were moved: if they are uploads of a newer database, bring that one \
             back, or stop the server and take them in with `hearth recover`"
        );
    }
    if !missing.is_empty() {
        // The database that knows the files moved aside may be back.
        let aside = complete_files(folder)?;
        for id in missing.iter().filter_map(|id| aside.get_key_value(*id)) {
            fs::rename(id.1, folder.join(id.0))?;
        }
        missing.retain(|id| !aside.contains_key(*id));
    }
    if !deleted.is_empty() {
        // It may have been moved aside between its deletion and now.
        for (_, path) in
            complete_files(folder)?.into_iter().filter(|(id, _)| deleted.contains(id) && !known.contains(id))
        {
            fs::remove_file(path)?;
        }
    }
    private::sync_dir(folder)?;
    Ok(missing.len())
}

/// Whether a name may be an upload's. Ids are generated here and contain only letters, digits and dashes.
pub(super) fn is_id(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Uploaded files by their ids, including those that were moved aside and excluding incomplete ones.
pub(super) fn complete_files(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() && name.starts_with(ORPHANED) {
            for (id, path) in complete_files(&path)? {
                found.entry(id).or_insert(path);
            }
        } else if kind.is_file() && is_id(name) {
            found.insert(name.to_owned(), path.clone());
        }
    }
    Ok(found)
}

impl Files for SqliteOwned<'_> {
    fn keep_file(&self, mut incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile> {
        let (folder, to) = (self.store.file_folder(), self.store.file_path(&incoming.id));
        let io_error = |source| named(StoreError::Io { path: to.clone(), source }, &to);
        incoming.file.sync_all().and_then(|()| private::sync_dir(&folder)).map_err(io_error)?;
        let stored = StoredFile {
            id: incoming.id.clone(),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
            bytes: incoming.bytes,
            sha256: std::mem::take(&mut incoming.hasher).finalize().into(),
            created_ms: now_ms(),
        };
        let (owner, row, quota) = (self.access.owner.to_owned(), stored.clone(), self.access.quota);
        self.store.grow(0, move |transaction| {
            refuse_bytes_over(quota, transaction, &owner, row.bytes)?;
            insert(transaction, &owner, &row)
        })?;
        // From here on the next start gives it its final name.
        let named = fs::rename(&incoming.path, &to).and_then(|()| private::sync_dir(&folder));
        if let Err(source) = named {
            let id = stored.id;
            self.store
                .write_essential(move |transaction| Ok(transaction.execute("DELETE FROM files WHERE id = ?", [id])?))?;
            return Err(io_error(source));
        }
        incoming.kept = true;
        Ok(stored)
    }

    fn file(&self, id: &str) -> Result<StoredFile> {
        let query = format!("SELECT {COLUMNS} FROM files WHERE id = ? AND owner = ?");
        let found = self
            .store
            .read(|connection| Ok(connection.query_row(&query, [id, self.access.owner], read_row).optional()?))?;
        found.ok_or_else(|| StoreError::NotFound { what: "file", id: id.to_owned() })
    }

    fn files_page(&self, purpose: Option<&str>, request: &PageRequest) -> Result<Page<StoredFile>> {
        self.store.read(|connection| {
            let mut listing = Listing {
                sql: format!("SELECT {COLUMNS} FROM files WHERE owner = ?"),
                parameters: vec![Sql::Text(self.access.owner.to_owned())],
                created: "created",
                id: "id",
            };
            if let Some(purpose) = purpose {
                listing.sql.push_str(" AND purpose = ?");
                listing.parameters.push(Sql::Text(purpose.to_owned()));
            }
            let created_of = |id: &str| {
                let created = "SELECT created FROM files WHERE id = ? AND owner = ?";
                Ok(connection.query_row(created, [id, self.access.owner], |row| row.get(0)).optional()?)
            };
            page(connection, listing, request, created_of, read_row)
        })
    }

    fn delete_file(&self, id: &str) -> Result<Option<Vec<(String, u64)>>> {
        let (owner, row_id) = (self.access.owner.to_owned(), id.to_owned());
        let deleted = self.store.write_essential(move |transaction| {
            let found = "SELECT 1 FROM files WHERE id = ? AND owner = ?";
            if transaction.query_row(found, [&row_id, &owner], |_| Ok(())).optional()?.is_none() {
                return Ok(None);
            }
            let mut query = transaction.prepare("SELECT collection_id, id FROM chunks WHERE file_id = ?")?;
            let chunks = query.query_map([&row_id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let chunks: Vec<(String, u64)> = chunks.collect::<rusqlite::Result<_>>()?;
            cancel_ingest(transaction, None, Some(&row_id))?;
            transaction.execute("DELETE FROM documents WHERE file_id = ?", [&row_id])?;
            transaction.execute("DELETE FROM files WHERE id = ?", [&row_id])?;
            bury(transaction, &row_id)?;
            Ok(Some(chunks))
        })?;
        if deleted.is_some() {
            self.store.unlink_deleted(id);
        }
        Ok(deleted)
    }
}
