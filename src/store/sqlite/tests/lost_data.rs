//! No opening and no recovery removes an upload, whatever happened to the database.

use super::*;
use crate::store::{INGEST, write_note};

/// A data directory with this many uploads, closed cleanly, and their ids.
fn with_uploads(count: usize) -> (TempDir, Vec<String>) {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let ids = (0..count).map(|n| document(&store, &collection, "a.md", &[&format!("text {n}")]).0).collect();
    (directory, ids)
}

fn uploads(directory: &TempDir) -> Vec<String> {
    files::complete_files(&directory.path().join(files::FOLDER)).unwrap().into_keys().collect()
}

fn remove_database(directory: &TempDir) {
    for rest in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(directory.path().join(format!("{DATABASE}{rest}")));
    }
}

/// The directory is refused as it is, and a recovery restores all of its uploads.
#[track_caller]
fn refused_and_recovered(directory: &TempDir, ids: &[String]) {
    let refused = SqliteStore::open(directory.path(), None).unwrap_err();
    assert!(matches!(refused, StoreError::Lost { .. }), "{refused}");
    assert!(refused.to_string().contains("hearth recover"), "{refused}");
    assert!(matches!(crate::store::KeyTable::open(directory.path()).unwrap_err(), StoreError::Lost { .. }));
    assert_eq!(uploads(directory), ids);
    recover(directory.path()).unwrap();
    let store = open(directory);
    let mut found: Vec<String> =
        store.of(LOCAL).files_page(None, &all()).unwrap().entries.into_iter().map(|file| file.id).collect();
    found.sort();
    assert_eq!((found, uploads(directory)), (ids.to_vec(), ids.to_vec()));
}

#[test]
fn an_empty_database_beside_uploads_is_refused() {
    let (directory, ids) = with_uploads(5);
    remove_database(&directory);
    fs::write(directory.path().join(DATABASE), "").unwrap();
    refused_and_recovered(&directory, &ids);
}

#[test]
fn a_missing_database_beside_uploads_is_refused() {
    let (directory, ids) = with_uploads(5);
    remove_database(&directory);
    refused_and_recovered(&directory, &ids);
}

#[test]
fn a_database_that_lost_its_log_and_all_its_tables_is_refused() {
    let (directory, ids) = with_uploads(2);
    remove_database(&directory);
    // What a process leaves if it is killed before its log is checkpointed: one page without a table.
    let connection = Connection::open(directory.path().join(DATABASE)).unwrap();
    configure(&connection).unwrap();
    drop(connection);
    refused_and_recovered(&directory, &ids);
}

#[test]
fn an_older_database_moves_the_uploads_of_a_newer_one_aside_and_the_newer_one_brings_them_back() {
    let (directory, mut ids) = with_uploads(2);
    let path = directory.path().join(DATABASE);
    let older = fs::read(&path).unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).collection("docs").unwrap().id;
    ids.push(document(&store, &collection, "late.md", &["later"]).0);
    drop(store);
    let newer = fs::read(&path).unwrap();
    fs::write(&path, older).unwrap();
    drop(open(&directory));
    assert_eq!(uploads(&directory), ids, "moved, not removed");
    let store = open(&directory);
    assert!(!store.file_path(&ids[2]).exists() && store.file_path(&ids[0]).exists());
    drop(store);
    fs::write(&path, newer).unwrap();
    let store = open(&directory);
    assert!(store.file_path(&ids[2]).exists());
    assert_eq!(words(&store, &collection, "later").len(), 1);
}

#[test]
fn every_instant_of_a_recovery_leads_to_the_recovered_database_and_all_uploads() {
    let (source, ids) = with_uploads(3);
    let path = source.path().join(DATABASE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() / 2);
    fs::write(&path, &bytes).unwrap();
    // The states that the renames pass through, as the names that exist: by an earlier version and by this one.
    let ready = "hearth.sqlite3.recovered-17";
    let states: [(&str, &[&str]); 6] = [
        ("the new one is being made", &[DATABASE, "hearth.sqlite3.new"]),
        ("an earlier version put the damaged one away", &["hearth.sqlite3.damaged-9", "hearth.sqlite3.new"]),
        ("the new one is whole", &[DATABASE, ready]),
        ("the log is away", &[DATABASE, "hearth.sqlite3.damaged-17-wal", ready]),
        ("the damaged one is away", &["hearth.sqlite3.damaged-17", ready]),
        ("all is done", &["hearth.sqlite3.damaged-17"]),
    ];
    let recovered = {
        let whole = TempDir::new().unwrap();
        copy_directory(source.path(), whole.path());
        recover(whole.path()).unwrap();
        fs::read(whole.path().join(DATABASE)).unwrap()
    };
    for (state, names) in states {
        let directory = TempDir::new().unwrap();
        copy_directory(source.path(), directory.path());
        fs::remove_file(directory.path().join(DATABASE)).unwrap();
        for name in names {
            let is_whole = *name == ready;
            fs::write(directory.path().join(name), if is_whole { &recovered } else { &bytes }).unwrap();
        }
        if SqliteStore::open(directory.path(), None).is_err() {
            recover(directory.path()).unwrap_or_else(|error| panic!("{state}: {error}"));
        }
        let store = open(&directory);
        let mut found: Vec<String> =
            store.of(LOCAL).files_page(None, &all()).unwrap().entries.into_iter().map(|file| file.id).collect();
        found.sort();
        assert_eq!((found, uploads(&directory)), (ids.clone(), ids.clone()), "{state}");
    }
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_was_deleted_before_the_bytes_were_unlinked_does_not_come_back() {
    let (directory, ids) = with_uploads(2);
    let store = open(&directory);
    let bytes = fs::read(store.file_path(&ids[0])).unwrap();
    store.of(LOCAL).delete_file(&ids[0]).unwrap();
    let path = store.file_path(&ids[0]);
    drop(store);
    // A power cut undid the unlinking.
    fs::write(&path, &bytes).unwrap();
    recover(directory.path()).unwrap();
    let store = open(&directory);
    assert!(!path.exists());
    assert_eq!(store.of(LOCAL).files_page(None, &all()).unwrap().entries.len(), 1);
    drop(store);
    fs::write(&path, &bytes).unwrap();
    open(&directory);
    assert_eq!(uploads(&directory).len(), 2, "without a tombstone it is somebody's, and kept aside");
}

#[test]
fn a_recovered_new_version_still_takes_the_place_of_the_old_one() {
    let (directory, ids) = with_uploads(1);
    let store = open(&directory);
    let collection = store.of(LOCAL).collection("docs").unwrap().id;
    let new = file(&store, "new.md", b"new").id;
    store.of(LOCAL).add_document(&collection, &new, BTreeMap::new(), Some(&ids[0])).unwrap();
    drop(store);
    recover(directory.path()).unwrap();
    let store = open(&directory);
    let held: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST).unwrap()).collect();
    let job = held.iter().find(|(job, _)| job.payload["file_id"] == new).expect("a job");
    assert_eq!(job.0.payload["supersedes"], serde_json::json!([ids[0]]));
}

#[test]
fn an_upload_whose_row_is_written_gets_its_name_at_the_next_start() {
    let (directory, ids) = with_uploads(1);
    let path = directory.path().join(files::FOLDER).join(&ids[0]);
    let cut_off = path.with_extension("incomplete");
    fs::rename(&path, &cut_off).unwrap();
    fs::create_dir(directory.path().join("files/lost+found")).unwrap();
    fs::write(directory.path().join("files/.DS_Store"), "not an upload").unwrap();
    let store = open(&directory);
    assert_eq!(fs::read(store.file_path(&ids[0])).unwrap(), b"text 0");
    assert!(!cut_off.exists());
}

#[test]
fn ids_of_chunks_are_not_given_again_by_an_older_copy() {
    let (directory, _) = with_uploads(1);
    let path = directory.path().join(DATABASE);
    let older = fs::read(&path).unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).collection("docs").unwrap().id;
    let lost = document(&store, &collection, "b.md", &["one", "two"]).1;
    drop(store);
    fs::write(&path, older).unwrap();
    // Usually in the clock's next second: only the second separates the two ranges of ids.
    let store = open(&directory);
    let base = store.chunk_ids(&collection).unwrap();
    let given = document(&store, &collection, "c.md", &["three", "four"]).1;
    assert!(given.iter().all(|id| !base.contains(id)));
    assert!(given[0] >= lost[0] && given[0] >> 20 >= lost[0] >> 20);
}

#[test]
fn a_clean_stop_leaves_the_whole_database_in_one_file() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap();
    // As when a task still holds the store: closing does not wait for the last handle.
    store.close();
    assert!(!directory.path().join(format!("{DATABASE}-wal")).exists());
    let copy = TempDir::new().unwrap();
    fs::copy(directory.path().join(DATABASE), copy.path().join(DATABASE)).unwrap();
    assert_eq!(open(&copy).of(LOCAL).collections().unwrap().len(), 1);
    assert!(matches!(store.of(LOCAL).collections(), Err(StoreError::Stopped)));
    assert!(matches!(store.of(LOCAL).create_collection("late", BTreeMap::new()), Err(StoreError::Stopped)));
}

#[test]
fn a_change_that_panics_fails_alone() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let failed = store.write(|transaction| -> Result<()> {
        transaction.execute("INSERT INTO collections (id, name, created) VALUES ('vs_1', 'half', 1)", []).unwrap();
        panic!("a fault on purpose")
    });
    assert!(matches!(failed, Err(StoreError::Panicked)), "{failed:?}");
    assert_eq!((store.report().panics, store.report().failure), (1, None));
    store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap();
    assert_eq!(store.of(LOCAL).collections().unwrap().len(), 1, "nothing of the half is there");
}

#[cfg(unix)]
#[test]
fn the_data_directory_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("data");
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    let make = |directory: &Path| {
        let store = SqliteStore::open(directory, None).unwrap();
        let stored = file(&store, "a.md", b"text");
        write_note(directory, "server-url", b"http://127.0.0.1").unwrap();
        let wal = mode("hearth.sqlite3-wal");
        (format!("files/{}", stored.id), wal)
    };
    let (upload, wal) = make(&directory);
    assert_eq!((mode(""), mode("files"), mode(DATABASE), mode(&upload), wal), (0o700, 0o700, 0o600, 0o600, 0o600));
    assert_eq!((mode("server-url"), mode("lock")), (0o600, 0o600));
    // A directory that an earlier version created.
    for (name, loose) in [("", 0o755), ("files", 0o755), (DATABASE, 0o644), (&upload, 0o644)] {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(loose)).unwrap();
    }
    make(&directory);
    assert_eq!((mode(""), mode("files"), mode(DATABASE), mode(&upload)), (0o700, 0o700, 0o600, 0o600));
}
