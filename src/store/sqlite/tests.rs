//! What only a store in a data directory does: its files, its lock, and databases of other versions or other programs.

mod backup;
mod lost_data;
mod owners;

use std::{collections::BTreeMap, fs};

use sha2::Digest;
use tempfile::TempDir;

use super::*;
use crate::store::{
    Chunks, JobQueue, Uploads,
    tests::{all, chunk, document, embedding, file, file_of, words},
};
use hearth_domain::{LOCAL, documents::DocumentStatus};

fn open(directory: &TempDir) -> SqliteStore {
    SqliteStore::open(directory.path(), None).unwrap()
}

#[test]
fn what_was_not_kept_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let mut cut_off = store.receive_file(0).unwrap();
    cut_off.write(b"half").unwrap();
    let files = directory.path().join(files::FOLDER);
    assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
    drop(cut_off);
    assert_eq!(fs::read_dir(&files).unwrap().count(), 0);
    let kept = file(&store, "../../etc/passwd", b"x");
    assert_eq!(store.file_path(&kept.id).parent(), Some(files.as_path()));
    fs::write(files.join("file-left-by-a-crash.incomplete"), "x").unwrap();
    drop(store);
    open(&directory);
    assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
}

#[test]
fn one_process_at_a_time() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    assert!(matches!(SqliteStore::open(directory.path(), None), Err(StoreError::Locked { .. })));
    drop(store);
    open(&directory);
}

#[test]
fn a_database_that_is_not_ours_to_use_is_left_as_it_is() {
    let directory = TempDir::new().unwrap();
    drop(open(&directory));
    let path = directory.path().join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(SqliteStore::open(directory.path(), None), Err(StoreError::Newer { found: 99, .. })));

    let foreign = TempDir::new().unwrap();
    let connection = Connection::open(foreign.path().join(DATABASE)).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(connection);
    assert!(matches!(SqliteStore::open(foreign.path(), None), Err(StoreError::Foreign { .. })));

    let garbage = TempDir::new().unwrap();
    let bytes = vec![7; 8192];
    fs::write(garbage.path().join(DATABASE), &bytes).unwrap();
    let said = SqliteStore::open(garbage.path(), None).unwrap_err();
    assert!(matches!(said, StoreError::Corrupt { .. }), "{said}");
    assert_eq!(fs::read(garbage.path().join(DATABASE)).unwrap(), bytes);
}

#[test]
fn an_older_database_keeps_all_that_is_in_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    configure(&connection).unwrap();
    connection.execute_batch(schema::MIGRATIONS[0]).unwrap();
    connection.execute_batch(schema::MIGRATIONS[1]).unwrap();
    connection.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    connection
        .execute_batch(
            "INSERT INTO collections (id, name, created) VALUES ('vs_1', 'docs', 1);
             INSERT INTO files VALUES ('file-1', 'a.md', 'assistants', 1, zeroblob(32), 1);
             INSERT INTO documents (collection_id, file_id, status, created, updated)
                VALUES ('vs_1', 'file-1', 'ready', 1, 1);
             INSERT INTO chunks (collection_id, file_id, position, heading, text, tokens)
                VALUES ('vs_1', 'file-1', 0, '', 'words', 1);",
        )
        .unwrap();
    drop(connection);
    let store = open(&directory);
    assert_eq!(store.of(LOCAL).document("vs_1", "file-1").unwrap().num_chunks, 1);
    assert_eq!(words(&store, "vs_1", "words"), store.chunk_ids("vs_1").unwrap());
    assert!(store.of(LOCAL).delete_collection("vs_1").unwrap());
    assert!(store.chunk_ids("vs_1").unwrap().is_empty(), "what refers to a collection still goes with it");
}
