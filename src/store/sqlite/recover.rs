//! Recovers what is readable of a damaged database into a new one.
//!
//! Collections, files and documents are copied as far as their rows can be read; what was derived from documents
//! (chunks, words, vectors) is rebuilt by reading them again, so that none of it is partial. The bytes of files lie
//! beside the database and are intact: a file that the database no longer knows is kept under its id, in a separate
//! collection that belongs to the keyless caller. Keys and the ledger are copied row by row. The damaged database
//! stays, under another name.
//!
//! The new database is built beside the damaged one. Once it is complete and on the disk it is renamed to
//! `hearth.sqlite3.recovered-<time>`, which commits the recovery: the damaged database and its log are moved away and
//! the new one takes its place, in this process or, if that was interrupted, by [`finish`] in the next process that
//! opens the directory. Until that rename nothing of the old state is touched.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, Row, Transaction, params, params_from_iter, types::Value};

use super::{DATABASE, collections, documents, files, named, opening::take_directory, schema};
use crate::store::{Attributes, INGEST, Result, StoreError, new_id, now_ms, private};
use hearth_domain::{
    LOCAL,
    documents::{Collection, StoredFile},
};

/// The collection, one per owner, of files without a known document.
const RECOVERED: &str = "recovered";

/// What was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub collections: usize,
    pub documents: usize,
    pub files: usize,
    /// Files that the damaged database no longer knew.
    pub unknown_files: usize,
    pub keys: usize,
    /// Whether some of the keys could not be read; those have to be created again.
    pub lost_keys: bool,
    pub ledger_rows: usize,
    /// Where the damaged database is now; `None` if it was lost.
    pub damaged: Option<PathBuf>,
}

/// Prefix of a complete new database; the time in milliseconds follows.
const READY: &str = "hearth.sqlite3.recovered-";
/// Prefix of a damaged database; the same time follows.
const DAMAGED: &str = "hearth.sqlite3.damaged-";

/// Replaces a directory's damaged or lost database with a new one. All documents are read again when the server starts.
///
/// # Errors
/// If another process uses the directory, there is nothing in it to recover from, or the disk rejects the new database.
pub fn recover(directory: &Path) -> Result<Recovered> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    // A missing directory must not be created.
    fs::metadata(directory).map_err(io_error(directory))?;
    let _lock = take_directory(directory)?;
    finish(directory)?;
    let path = directory.join(DATABASE);
    // An empty database has nothing: one that an earlier recovery put aside may have more.
    let is_there = fs::metadata(&path).is_ok_and(|found| found.len() > 0);
    let source = if is_there { Some(path.clone()) } else { newest_damaged(directory).map_err(io_error(&path))? };
    let uploads = files::complete_files(&directory.join(files::FOLDER)).map_err(io_error(directory))?;
    if source.is_none() && uploads.is_empty() {
        let nothing = io::Error::new(io::ErrorKind::NotFound, "there is no database and no upload to recover");
        return Err(StoreError::Io { path, source: nothing });
    }
    let new_path = directory.join(format!("{DATABASE}.new"));
    // An interrupted recovery starts over.
    for rest in ["", "-journal", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{rest}", new_path.display()));
        remove_if_there(&path).map_err(io_error(&path))?;
    }
    private::create_new(&new_path).map_err(io_error(&new_path))?;
    let mut new = Connection::open(&new_path)?;
    new.pragma_update(None, "journal_mode", "delete")?;
    schema::migrate(&mut new, &new_path)?;
    let taken = take_over(source.as_deref(), &mut new, uploads);
    let mut recovered = taken.map_err(|error| named(error, &new_path))?;
    new.close().map_err(|(_, error)| StoreError::from(error))?;
    File::open(&new_path).and_then(|file| file.sync_all()).map_err(io_error(&new_path))?;
    let time = now_ms();
    let ready = directory.join(format!("{READY}{time}"));
    let renamed = fs::rename(&new_path, &ready).and_then(|()| private::sync_dir(directory));
    renamed.map_err(io_error(&ready))?;
    recovered.damaged = path.exists().then(|| directory.join(format!("{DAMAGED}{time}")));
    finish(directory)?;
    Ok(recovered)
}

/// Moves a complete recovered database into place, if there is one.
pub(super) fn finish(directory: &Path) -> Result<()> {
    let failed = |source| StoreError::Io { path: directory.to_owned(), source };
    let Some((ready, time)) = newest(directory, READY).map_err(failed)? else { return Ok(()) };
    let path = directory.join(DATABASE);
    // The log first: the new database must never be beside another database's log.
    for rest in ["-journal", "-wal", "-shm", ""] {
        let from = PathBuf::from(format!("{}{rest}", path.display()));
        if from.exists() {
            let to = directory.join(format!("{DAMAGED}{time}{rest}"));
            fs::rename(&from, &to).map_err(|source| StoreError::Io { path: from, source })?;
        }
    }
    let finished = private::sync_dir(directory)
        .and_then(|()| fs::rename(&ready, &path))
        .and_then(|()| private::sync_dir(directory));
    finished.map_err(|source| StoreError::Io { path: ready, source })
}

/// The newest of the databases that recoveries have put aside, or that an interrupted recovery of an earlier version
/// left.
pub(super) fn newest_damaged(directory: &Path) -> io::Result<Option<PathBuf>> {
    Ok(newest(directory, DAMAGED)?.map(|(path, _)| path))
}

/// The file with this prefix and the greatest number after it.
fn newest(directory: &Path, prefix: &str) -> io::Result<Option<(PathBuf, u64)>> {
    let mut found = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let time = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok());
        if let Some(time) = time
            && found.as_ref().is_none_or(|(_, newest)| time > *newest)
        {
            found = Some((entry.path(), time));
        }
    }
    Ok(found)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `uploads` are all complete files by their ids.
fn take_over(damaged: Option<&Path>, new: &mut Connection, uploads: BTreeMap<String, PathBuf>) -> Result<Recovered> {
    // A database that cannot even be opened, or is empty, leaves only the files to recover.
    let damaged = damaged.filter(|path| fs::metadata(path).is_ok_and(|found| found.len() > 0));
    let old = damaged.and_then(|path| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok());
    let (collections, _) = owned_rows(old.as_ref(), collections::COLUMNS, "collections", collections::read_row);
    let (known_files, _) = owned_rows(old.as_ref(), files::COLUMNS, "files", files::read_row);
    let (members, all_members) = rows(old.as_ref(), "collection_id, file_id, attributes", "documents", |row| {
        let attributes: String = row.get(2)?;
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, super::attributes::from_json(&attributes)))
    });
    let local_only = local_only_documents(old.as_ref());
    let mut superseded = superseded_by_unread(old.as_ref());
    let transaction = new.transaction()?;
    let collection_owners = copy_collections(&transaction, &collections)?;
    let mut unread = uploads;
    // Deleted before the damage; the next start checks whether the bytes are gone.
    copy(old.as_ref(), &transaction, "deleted_files")?;
    {
        let mut deleted = transaction.prepare("SELECT id FROM deleted_files")?;
        for id in deleted.query_map([], |row| row.get::<_, String>(0))? {
            unread.remove(&id?);
        }
    }
    let mut file_owners = HashMap::new();
    for (file, owner) in &known_files {
        // Without its bytes a file's row is worthless. Damage yields some rows twice.
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
            let key = (collection_id, file_id);
            let replaces = superseded.remove(&key).unwrap_or_default();
            let is_local_only = local_only.contains(&key);
            documents::enqueue_superseding(&transaction, &key.0, &key.1, &attributes, replaces, is_local_only)?;
            enqueued.insert(key);
        }
    }
    let unknown_files = unread.len();
    // Files may be in no collection. If document rows were lost, files that may have been in a collection are put back
    // into one.
    let mut homeless: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, owner) in file_owners.iter().filter(|_| !all_members) {
        if enqueued.iter().all(|(_, file_id)| file_id != id) {
            homeless.entry(owner.clone()).or_default().push(id.clone());
        }
    }
    for (id, path) in unread {
        adopt(&transaction, &id, &path)?;
        homeless.entry(LOCAL.to_owned()).or_default().push(id);
    }
    collect(&transaction, &homeless)?;
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
        damaged: None,
    })
}

/// Copies collections. Returns their owners by their ids.
fn copy_collections(
    transaction: &Transaction<'_>,
    collections: &[(Collection, String)],
) -> Result<HashMap<String, String>> {
    let mut owners = HashMap::new();
    for (collection, owner) in collections {
        // Its vectors are rebuilt, with the embedding model that is served by then.
        let insert = "INSERT OR IGNORE INTO collections (id, owner, name, metadata, created) VALUES (?, ?, ?, ?, ?)";
        let metadata = super::attributes::to_json(&collection.metadata);
        transaction.execute(insert, params![collection.id, owner, collection.name, metadata, collection.created_ms])?;
        owners.entry(collection.id.clone()).or_insert_with(|| owner.clone());
    }
    Ok(owners)
}

/// The documents that must stay on this machine. Databases of older versions have none.
fn local_only_documents(old: Option<&Connection>) -> HashSet<(String, String)> {
    let columns = "collection_id, file_id, local_only";
    let read = |row: &Row<'_>| Ok(((row.get(0)?, row.get(1)?), row.get::<_, bool>(2)?));
    let (documents, _) = rows(old, columns, "documents", read);
    documents.into_iter().filter(|(_, is_local_only)| *is_local_only).map(|(key, _)| key).collect()
}

/// Makes a file that the database did not know the keyless caller's.
fn adopt(transaction: &Transaction<'_>, id: &str, path: &Path) -> Result<()> {
    let (bytes, sha256) =
        super::backup::hash(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let file = StoredFile {
        filename: id.to_owned(),
        id: id.to_owned(),
        purpose: "assistants".to_owned(),
        bytes,
        sha256,
        created_ms: now_ms(),
    };
    files::insert(transaction, LOCAL, &file)
}

/// Puts each owner's files into a new collection.
fn collect(transaction: &Transaction<'_>, homeless: &BTreeMap<String, Vec<String>>) -> Result<()> {
    for (owner, files) in homeless {
        let id = new_id("vs_");
        let insert = "INSERT INTO collections (id, owner, name, metadata, created) VALUES (?, ?, ?, '{}', ?)";
        transaction.execute(insert, params![id, owner, RECOVERED, now_ms()])?;
        for file_id in files {
            // Whether it had to stay on this machine is lost.
            documents::enqueue(transaction, &id, file_id, &Attributes::new(), None, true)?;
        }
    }
    Ok(())
}

/// What each unread document was to supersede, by its collection and file.
fn superseded_by_unread(old: Option<&Connection>) -> HashMap<(String, String), Vec<String>> {
    let (jobs, _) = rows(old, "id, kind, state, payload", "jobs", |row| {
        let payload: String = row.get(3)?;
        Ok((row.get::<_, String>(1)?, row.get::<_, String>(2)?, payload))
    });
    let unread =
        jobs.into_iter().filter(|(kind, state, _)| kind == INGEST && ["queued", "running"].contains(&&state[..]));
    unread
        .filter_map(|(_, _, payload)| {
            let payload: serde_json::Value = serde_json::from_str(&payload).ok()?;
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let replaced = payload["supersedes"].as_array()?.iter().filter_map(text).collect();
            Some(((text(&payload["collection_id"])?, text(&payload["file_id"])?), replaced))
        })
        .collect()
}

/// Copies the rows of a table unchanged. Returns how many, and whether these are all.
fn copy(old: Option<&Connection>, new: &Transaction<'_>, table: &str) -> Result<(usize, bool)> {
    let select = format!("SELECT * FROM {table} LIMIT 0");
    let columns: Vec<String> = match old.map(|old| old.prepare(&select)) {
        Some(Ok(query)) => query.column_names().map(str::to_owned).collect(),
        // A database older than the table lost nothing of it; what an unreadable one has lost is unknown.
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

/// Whether a readable database has no such table.
fn is_without(connection: &Connection, table: &str) -> bool {
    let count = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
    connection.query_row(count, [table], |row| row.get::<_, i64>(0)).is_ok_and(|count| count == 0)
}

/// [`rows`] with their owners. Under a schema without owners everything belongs to the keyless caller.
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

/// The readable rows of a table, forwards from its beginning and backwards from its end to the damage, some of them
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
        // By the first column, which is the first of the key.
        let Ok(mut query) = connection.prepare(&format!("SELECT {columns} FROM {table} ORDER BY 1 {order}")) else {
            continue;
        };
        let Ok(mut rows) = query.query([]) else { continue };
        loop {
            match rows.next() {
                // A row with unusable values is one lost row.
                Ok(Some(row)) => found.extend(read(row)),
                Ok(None) => return (found, order == "ASC"),
                Err(_damage) => break,
            }
        }
    }
    (found, false)
}
