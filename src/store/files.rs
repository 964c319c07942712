//! Uploaded files: bytes in a folder under their id, what is known of them in the database.
//!
//! Bytes arrive in a file beside their place (an [`Incoming`]), hashed on the way, and are forced to the disk before
//! the database knows of them. What a crash leaves without a row is removed at the next start.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::{Owned, Result, Store, StoreError, documents::cancel_ingest, new_id, now_ms};
use crate::domain::documents::StoredFile;

pub(super) const FOLDER: &str = "files";
const INCOMPLETE: &str = "incomplete";

pub(super) const COLUMNS: &str = "id, filename, purpose, bytes, sha256, created";

/// A file that is being received. Dropped, it is gone.
#[derive(Debug)]
pub struct Incoming {
    id: String,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
    kept: bool,
}

impl Incoming {
    /// # Errors
    /// If the disk does not take the bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
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
            // At worst it is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

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

impl Store {
    fn file_folder(&self) -> PathBuf {
        self.directory.join(FOLDER)
    }

    /// Where a file's bytes are. Ids are made here and have nothing but letters, digits and dashes in them.
    pub fn file_path(&self, id: &str) -> PathBuf {
        self.file_folder().join(id)
    }

    /// Begins to receive a file.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn receive_file(&self) -> Result<Incoming> {
        let id = new_id("file-");
        let path = self.file_path(&id).with_extension(INCOMPLETE);
        let file = File::create_new(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        Ok(Incoming { id, path, file, hasher: Sha256::new(), bytes: 0, kept: false })
    }

    /// Removes bytes that the database does not know of: uploads that were cut off, files that were deleted.
    pub(super) fn remove_orphaned_files(&self) -> Result<()> {
        let known: HashSet<String> = self.read(|connection| {
            let mut query = connection.prepare("SELECT id FROM files")?;
            Ok(query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })?;
        let folder = self.file_folder();
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if !known.contains(&*entry.file_name().to_string_lossy()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|source| StoreError::Io { path: folder.clone(), source })
    }
}

impl Owned<'_> {
    /// Keeps what was received. The file name is for people; it is never part of a path.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn keep_file(&self, mut incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile> {
        let to = self.store.file_path(&incoming.id);
        let keep = || -> io::Result<()> {
            incoming.file.sync_all()?;
            fs::rename(&incoming.path, &to)?;
            File::open(self.store.file_folder())?.sync_all()
        };
        keep().map_err(|source| StoreError::Io { path: to, source })?;
        incoming.kept = true;
        let stored = StoredFile {
            id: incoming.id.clone(),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
            bytes: incoming.bytes,
            sha256: std::mem::take(&mut incoming.hasher).finalize().into(),
            created_ms: now_ms(),
        };
        let (owner, row) = (self.owner.to_owned(), stored.clone());
        self.store.write(move |transaction| insert(transaction, &owner, &row))?;
        Ok(stored)
    }

    /// # Errors
    /// [`StoreError::NotFound`]
    pub fn file(&self, id: &str) -> Result<StoredFile> {
        let query = format!("SELECT {COLUMNS} FROM files WHERE id = ? AND owner = ?");
        let found =
            self.store.read(|connection| Ok(connection.query_row(&query, [id, self.owner], read_row).optional()?))?;
        found.ok_or_else(|| StoreError::NotFound { what: "file", id: id.to_owned() })
    }

    /// All files, the newest first.
    pub fn files(&self) -> Result<Vec<StoredFile>> {
        self.store.read(|connection| {
            let all = format!("SELECT {COLUMNS} FROM files WHERE owner = ? ORDER BY created DESC, id DESC");
            let mut query = connection.prepare(&all)?;
            Ok(query.query_map([self.owner], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Deletes a file and the documents that were made of it. Returns the ids of their chunks by collection; `None` if
    /// there is no such file.
    pub fn delete_file(&self, id: &str) -> Result<Option<Vec<(String, u64)>>> {
        let (owner, row_id) = (self.owner.to_owned(), id.to_owned());
        let deleted = self.store.write(move |transaction| {
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
            Ok(Some(chunks))
        })?;
        if deleted.is_some() {
            let path = self.store.file_path(id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "the bytes of a deleted file are still there");
                }
                _ => {}
            }
        }
        Ok(deleted)
    }
}
