//! A damaged database, and what can still be read of it in a new one.
//!
//! Collections, files and documents are taken over as far as their rows can be read; what was made from documents
//! (chunks, words, vectors) is made again by reading them again, so that nothing of it is half. The bytes of files lie
//! beside the database and are whole: one that the database no longer knows is kept under its id, in a collection of
//! its own that belongs to the caller who needs no key. Keys and the ledger are taken over row by row. The damaged database
//! stays, under another name.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, Row, Transaction, params, params_from_iter, types::Value};
use sha2::{Digest, Sha256};

use super::{
    DATABASE, Result, StoreError, attributes::Attributes, collections, configure, documents, files, named, new_id,
    now_ms, schema, take_lock,
};
use crate::domain::LOCAL;

/// The collection, one for each owner, of files that no document is known of any more.
const RECOVERED: &str = "recovered";

/// What was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub collections: usize,
    pub documents: usize,
    pub files: usize,
    /// Files that the damaged database no longer knew.
    pub unknown_files: usize,
    pub keys: usize,
    /// Whether some of the keys could not be read; those are to be made anew.
    pub lost_keys: bool,
    pub ledger_rows: usize,
    /// Where the damaged database is now.
    pub damaged: PathBuf,
}

/// Puts a new database in the place of a directory's damaged one. All documents are read again when the server starts.
///
/// # Errors
/// If another process uses the directory, there is no database in it, or the disk does not take the new one.
pub fn recover(directory: &Path) -> Result<Recovered> {
    let _lock = take_lock(directory)?;
    let path = directory.join(DATABASE);
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    fs::metadata(&path).map_err(io_error(&path))?;
    let new_path = directory.join(format!("{DATABASE}.new"));
    // A recovery that was cut off begins anew.
    remove_if_there(&new_path).map_err(io_error(&new_path))?;
    let mut new = Connection::open(&new_path)?;
    new.pragma_update(None, "journal_mode", "delete")?;
    schema::migrate(&mut new, &new_path)?;
    let mut recovered = take_over(&path, &mut new, directory).map_err(|error| named(error, &new_path))?;
    configure(&new)?;
    new.close().map_err(|(_, error)| StoreError::Database(error))?;
    File::open(&new_path).and_then(|file| file.sync_all()).map_err(io_error(&new_path))?;
    recovered.damaged = directory.join(format!("{DATABASE}.damaged-{}", now_ms()));
    fs::rename(&path, &recovered.damaged).map_err(io_error(&path))?;
    for rest in ["wal", "shm"] {
        let from = directory.join(format!("{DATABASE}-{rest}"));
        if from.exists() {
            let to = PathBuf::from(format!("{}-{rest}", recovered.damaged.display()));
            fs::rename(&from, &to).map_err(io_error(&from))?;
        }
    }
    fs::rename(&new_path, &path).map_err(io_error(&path))?;
    Ok(recovered)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn take_over(damaged: &Path, new: &mut Connection, directory: &Path) -> Result<Recovered> {
    // What cannot even be opened has nothing to take over but the files.
    let old = Connection::open_with_flags(damaged, OpenFlags::SQLITE_OPEN_READ_ONLY).ok();
    let (collections, _) = owned_rows(old.as_ref(), collections::COLUMNS, "collections", collections::read_row);
    let (known_files, _) = owned_rows(old.as_ref(), files::COLUMNS, "files", files::read_row);
    let (members, all_members) = rows(old.as_ref(), "collection_id, file_id, attributes", "documents", |row| {
        let attributes: String = row.get(2)?;
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, super::attributes::from_json(&attributes)))
    });
    let transaction = new.transaction()?;
    let mut collection_owners = HashMap::new();
    for (collection, owner) in &collections {
        // Its vectors are made again, by the model that is there then.
        let insert = "INSERT OR IGNORE INTO collections (id, owner, name, metadata, created) VALUES (?, ?, ?, ?, ?)";
        let metadata = super::attributes::to_json(&collection.metadata);
        transaction.execute(insert, params![collection.id, owner, collection.name, metadata, collection.created_ms])?;
        collection_owners.entry(collection.id.clone()).or_insert_with(|| owner.clone());
    }
    let folder = directory.join(files::FOLDER);
    let mut unread: BTreeMap<String, PathBuf> =
        complete_files(&folder).map_err(|source| StoreError::Io { path: folder, source })?;
    let mut file_owners = HashMap::new();
    for (file, owner) in &known_files {
        // Without its bytes it is nothing.
        if unread.remove(&file.id).is_some() {
            files::insert(&transaction, owner, file)?;
            file_owners.insert(file.id.clone(), owner.clone());
        }
    }
    let mut enqueued = HashSet::new();
    for (collection_id, file_id, attributes) in members {
        let is_new = !enqueued.contains(&(collection_id.clone(), file_id.clone()));
        let owners = (collection_owners.get(&collection_id), file_owners.get(&file_id));
        if is_new && matches!(owners, (Some(of_collection), Some(of_file)) if of_collection == of_file) {
            documents::enqueue(&transaction, &collection_id, &file_id, &attributes, None)?;
            enqueued.insert((collection_id, file_id));
        }
    }
    let unknown_files = unread.len();
    // Files may be in no collection. Where rows of documents were lost, those are in one again that may have been.
    let mut homeless: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, owner) in file_owners.iter().filter(|_| !all_members) {
        if enqueued.iter().all(|(_, file_id)| file_id != id) {
            homeless.entry(owner.clone()).or_default().push(id.clone());
        }
    }
    for (id, path) in unread {
        let (bytes, sha256) = hash(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        let file = crate::domain::documents::StoredFile {
            filename: id.clone(),
            id: id.clone(),
            purpose: "assistants".to_owned(),
            bytes,
            sha256,
            created_ms: now_ms(),
        };
        files::insert(&transaction, LOCAL, &file)?;
        homeless.entry(LOCAL.to_owned()).or_default().push(id);
    }
    for (owner, files) in &homeless {
        let id = new_id("vs_");
        let insert = "INSERT INTO collections (id, owner, name, metadata, created) VALUES (?, ?, ?, '{}', ?)";
        transaction.execute(insert, params![id, owner, RECOVERED, now_ms()])?;
        for file_id in files {
            documents::enqueue(&transaction, &id, file_id, &Attributes::new(), None)?;
        }
    }
    let (keys, all_keys) = copy(old.as_ref(), &transaction, "keys")?;
    let (ledger_rows, _) = copy(old.as_ref(), &transaction, "ledger")?;
    transaction.commit()?;
    Ok(Recovered {
        collections: collection_owners.len() + homeless.len(),
        documents: enqueued.len() + homeless.values().map(Vec::len).sum::<usize>(),
        files: file_owners.len() + unknown_files,
        unknown_files,
        keys,
        lost_keys: !all_keys,
        ledger_rows,
        damaged: PathBuf::new(),
    })
}

/// Takes the rows of a table over as they are. Returns how many, and whether these are all.
fn copy(old: Option<&Connection>, new: &Transaction<'_>, table: &str) -> Result<(usize, bool)> {
    let select = format!("SELECT * FROM {table} LIMIT 0");
    let columns: Vec<String> = match old.map(|old| old.prepare(&select)) {
        Some(Ok(query)) => query.column_names().map(str::to_owned).collect(),
        // A database from before there was such a table lost nothing of it; of one that cannot be read nobody knows.
        Some(Err(_)) => return Ok((0, old.is_some_and(|old| is_without(old, table)))),
        None => return Ok((0, false)),
    };
    let values = |row: &Row<'_>| (0..columns.len()).map(|column| row.get::<_, Value>(column)).collect();
    let (found, all) = rows(old, &columns.join(", "), table, values);
    let places = vec!["?"; columns.len()].join(", ");
    let mut insert =
        new.prepare(&format!("INSERT OR IGNORE INTO {table} ({}) VALUES ({places})", columns.join(", ")))?;
    let mut copied = 0;
    for row in found {
        let row: Vec<Value> = row;
        copied += insert.execute(params_from_iter(row))?;
    }
    Ok((copied, all))
}

/// Whether a database that can be read has no such table.
fn is_without(connection: &Connection, table: &str) -> bool {
    let count = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
    connection.query_row(count, [table], |row| row.get::<_, i64>(0)).is_ok_and(|count| count == 0)
}

/// [`rows`] with their owners. What a schema without owners holds belongs to the caller who needs no key.
fn owned_rows<T>(
    connection: Option<&Connection>,
    columns: &str,
    table: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> (Vec<(T, String)>, bool) {
    let has_owners = |connection: &Connection| connection.prepare(&format!("SELECT owner FROM {table}")).is_ok();
    let owner = if connection.is_some_and(has_owners) { "owner" } else { "'local'" };
    let columns = format!("{columns}, {owner} AS of_whom");
    rows(connection, &columns, table, |row| Ok((read(row)?, row.get("of_whom")?)))
}

/// The rows of a table that can be read, from its beginning to the damage and from its end back to it, some of them
/// twice; and whether these are all.
fn rows<T>(
    connection: Option<&Connection>,
    columns: &str,
    table: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> (Vec<T>, bool) {
    let mut found = Vec::new();
    let Some(connection) = connection else { return (found, false) };
    for order in ["ASC", "DESC"] {
        // By the first column, which the key begins with.
        let Ok(mut query) = connection.prepare(&format!("SELECT {columns} FROM {table} ORDER BY 1 {order}")) else {
            continue;
        };
        let Ok(mut rows) = query.query([]) else { continue };
        loop {
            match rows.next() {
                // A row whose values are of no use is one lost row.
                Ok(Some(row)) => found.extend(read(row)),
                Ok(None) => return (found, order == "ASC"),
                Err(_damage) => break,
            }
        }
    }
    (found, false)
}

/// Uploaded files by their ids; those that had not been received whole are left out.
fn complete_files(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    if !folder.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none()
            && let Some(id) = path.file_name().and_then(|name| name.to_str())
        {
            found.insert(id.to_owned(), path.clone());
        }
    }
    Ok(found)
}

fn hash(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}
