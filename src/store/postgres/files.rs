//! Uploaded files: received into the data directory of the server that has the request, kept as pieces in the database, and read
//! from a copy that lives as long as it is read.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::{
    PostgresStore, collections,
    documents::cancel_ingest,
    no_timeout,
    owned::{PostgresOwned, refuse_bytes_over},
    pages::{Listing, page},
    storable, values,
};
use crate::store::{Files, Incoming, LocalFile, Result, StoreError, Uploads, io_error, new_id, private};
use hearth_domain::documents::{Page, PageRequest, StoredFile};

/// Bytes of a row.
const PIECE: usize = 1 << 20;
/// The folder, in the data directory, of files that are being received or read.
const FOLDER: &str = "incoming";

/// Takes a data directory for this process, and removes what an earlier one was receiving or reading. The directory is this process's as
/// long as the returned file is held.
pub(super) fn prepare(directory: &Path) -> Result<File> {
    let lock = private::lock_directory(directory)?;
    let folder = directory.join(FOLDER);
    let remove = || match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => private::create_dir_all(&folder),
    };
    remove().map_err(|source| io_error(&folder, source))?;
    Ok(lock)
}

const COLUMNS: &str = "id, filename, purpose, bytes, sha256, created";

fn read_row(row: &Row) -> StoredFile {
    StoredFile {
        id: row.get(0),
        filename: row.get(1),
        purpose: row.get(2),
        bytes: row.get::<_, i64>(3) as u64,
        sha256: row.get::<_, &[u8]>(4).try_into().unwrap_or_default(),
        created_ms: row.get(5),
    }
}

impl Uploads for PostgresStore {
    fn receive_file(&self, bytes: u64) -> Result<Incoming> {
        self.disk.refuse_growth(bytes)?;
        let id = new_id("file-");
        let path = self.directory.join(FOLDER).join(&id);
        let file = private::create_new(&path).map_err(|source| io_error(&path, source))?;
        Ok(Incoming { id, path, file, hasher: Sha256::new(), bytes: 0, disk: self.disk.clone(), kept: false })
    }

    fn open_file(&self, id: &str) -> Result<LocalFile> {
        let not_found = || StoreError::NotFound { what: "file", id: id.to_owned() };
        let length = self.read(async |client| {
            let rows = client.query_typed("SELECT bytes FROM files WHERE id = $1", values![TEXT id]).await?;
            rows.first().map(|row| row.get::<_, i64>(0) as u64).ok_or_else(not_found)
        })?;
        let path = self.directory.join(FOLDER).join(new_id("copy-"));
        let mut file = private::create_new(&path).map_err(|source| io_error(&path, source))?;
        // Dropped, and with it the file, if a piece cannot be had.
        let local = LocalFile { path, is_copy: true };
        let mut copied = 0;
        for number in 0.. {
            if number > 0 && copied >= length {
                break;
            }
            let piece = self.read(async |client| {
                let piece = "SELECT bytes FROM file_pieces WHERE file_id = $1 AND number = $2";
                let rows = client.query_typed(piece, values![TEXT id, INT4 number]).await?;
                // Without it the file was deleted meanwhile.
                rows.first().map(|row| row.get::<_, Vec<u8>>(0)).ok_or_else(not_found)
            })?;
            self.disk.refuse_growth(piece.len() as u64)?;
            file.write_all(&piece).map_err(|source| io_error(&local.path, source))?;
            copied += piece.len() as u64;
        }
        Ok(local)
    }
}

/// Fills the buffer as far as the file goes.
fn read_piece(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

impl Files for PostgresOwned<'_> {
    fn keep_file(&self, incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile> {
        let (owner, quota) = (self.access.owner, self.access.quota);
        let sha256: [u8; 32] = incoming.hasher.clone().finalize().into();
        let (filename, purpose) = (storable(filename), storable(purpose));
        self.store.write(async |transaction| {
            let insert = format!(
                "INSERT INTO files (id, owner, filename, purpose, bytes, sha256, created) VALUES ($1, $2, $3, $4, $5, $6, now_ms())
                 RETURNING {COLUMNS}"
            );
            let parameters = values![
                TEXT incoming.id, TEXT owner, TEXT &*filename, TEXT &*purpose, INT8 incoming.bytes as i64, BYTEA &sha256[..]
            ];
            let rows = transaction.query_typed(&insert, parameters).await?;
            let failed = |source| io_error(&incoming.path, source);
            let mut file = File::open(&incoming.path).map_err(failed)?;
            let mut buffer = vec![0; PIECE];
            for number in 0.. {
                let length = read_piece(&mut file, &mut buffer).map_err(failed)?;
                // An empty file has an empty piece.
                if length > 0 || number == 0 {
                    let insert = "INSERT INTO file_pieces (file_id, number, bytes) VALUES ($1, $2, $3)";
                    let parameters = values![TEXT incoming.id, INT4 number, BYTEA &buffer[..length]];
                    transaction.execute_typed(insert, parameters).await?;
                }
                if length < PIECE {
                    break;
                }
            }
            // Last, so that the owner's other uploads wait for this count alone, and not while bytes are sent.
            refuse_bytes_over(quota, transaction, owner, incoming.bytes).await?;
            rows.first().map(read_row).ok_or(StoreError::NotFound { what: "file", id: incoming.id.clone() })
        })
    }

    fn file(&self, id: &str) -> Result<StoredFile> {
        let found = self.store.read(async |client| {
            let query = format!("SELECT {COLUMNS} FROM files WHERE id = $1 AND owner = $2");
            let rows = client.query_typed(&query, values![TEXT id, TEXT self.access.owner]).await?;
            Ok(rows.first().map(read_row))
        })?;
        found.ok_or_else(|| StoreError::NotFound { what: "file", id: id.to_owned() })
    }

    fn files_page(&self, purpose: Option<&str>, request: &PageRequest) -> Result<Page<StoredFile>> {
        self.store.read(async |client| {
            let mut listing = Listing {
                sql: format!("SELECT {COLUMNS} FROM files WHERE owner = $1"),
                values: vec![self.access.owner.to_owned()],
                created: "created",
                id: "id",
                created_of: "SELECT created FROM files WHERE owner = $1 AND id = $2",
                of: vec![self.access.owner.to_owned()],
            };
            if let Some(purpose) = purpose {
                listing.sql.push_str(" AND purpose = $2");
                listing.values.push(purpose.to_owned());
            }
            page(client, listing, request, read_row).await
        })
    }

    fn delete_file(&self, id: &str) -> Result<Option<Vec<(String, u64)>>> {
        self.store.write(async |transaction| {
            no_timeout(transaction).await?;
            // From here on no transaction makes it a document.
            let found = "SELECT 1 FROM files WHERE id = $1 AND owner = $2 FOR UPDATE";
            if transaction.query_typed(found, values![TEXT id, TEXT self.access.owner]).await?.is_empty() {
                return Ok(None);
            }
            let lock = "SELECT collection_id FROM documents WHERE file_id = $1 ORDER BY collection_id FOR UPDATE";
            let rows = transaction.query_typed(lock, values![TEXT id]).await?;
            let collections: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let chunks =
                "SELECT chunks.collection_id, chunks.id FROM documents JOIN chunks USING (collection_id, file_id)
                 WHERE documents.file_id = $1";
            let rows = transaction.query_typed(chunks, values![TEXT id]).await?;
            let chunks = rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as u64)).collect();
            transaction.execute_typed("DELETE FROM documents WHERE file_id = $1", values![TEXT id]).await?;
            cancel_ingest(transaction, None, Some(id)).await?;
            transaction.execute_typed("DELETE FROM files WHERE id = $1", values![TEXT id]).await?;
            for collection in &collections {
                collections::touch(transaction, collection).await?;
            }
            Ok(Some(chunks))
        })
    }
}
