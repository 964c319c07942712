//! Backups hold one complete state, and restore to what they were made from.

use super::*;

fn quiet(_: BackupProgress) {}

#[test]
fn a_backup_beside_a_running_server_is_restored_whole() {
    let (directory, away) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (to, back) = (away.path().join("backup"), away.path().join("back"));
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let (kept, chunks) = document(&store, &collection, "a.md", &["alpha"]);
    let (deleted, _) = document(&store, &collection, "b.md", &["beta"]);
    store.of(LOCAL).delete_file(&deleted).unwrap();
    fs::write(directory.path().join("keys.secret"), [7; 32]).unwrap();

    let mut steps = Vec::new();
    let summary = back_up(directory.path(), &to, &mut |step| steps.push(step)).unwrap();
    assert_eq!((summary.files, summary.missing.len(), summary.damaged.len()), (1, 0, 0));
    assert_eq!(steps[0], BackupProgress::Database);
    assert_eq!(steps.last(), Some(&BackupProgress::Files { done: 1, of: 1 }));
    document(&store, &collection, "late.md", &["gamma"]);
    assert!(matches!(back_up(directory.path(), &to, &mut quiet), Err(StoreError::Backup(_))), "it is not overwritten");
    assert!(matches!(back_up(away.path(), &back, &mut quiet), Err(StoreError::Backup(_))), "there is no database");
    drop(store);

    restore(&to, &back, &mut quiet).unwrap();
    let store = SqliteStore::open(&back, None).unwrap();
    let documents = store.of(LOCAL).documents_page(&collection, None, None, &all()).unwrap().entries;
    assert_eq!(documents.iter().map(|document| &document.file_id).collect::<Vec<_>>(), [&kept]);
    assert_eq!(fs::read(store.file_path(&kept)).unwrap(), b"alpha");
    assert_eq!(words(&store, &collection, "alpha"), chunks);
    assert!(words(&store, &collection, "beta").is_empty() && words(&store, &collection, "gamma").is_empty());
    assert_eq!(fs::read(back.join("keys.secret")).unwrap(), [7; 32]);
    drop(store);
    let refused = restore(&to, &back, &mut quiet).unwrap_err();
    assert!(refused.to_string().contains("has data already"), "{refused}");
}

#[test]
fn a_backup_that_is_not_whole_or_damaged_is_not_restored() {
    let (directory, away) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let to = away.path().join("backup");
    let store = open(&directory);
    let stored = file(&store, "a.md", b"bytes");
    drop(store);
    back_up(directory.path(), &to, &mut quiet).unwrap();
    let back = away.path().join("back");

    let upload = to.join(files::FOLDER).join(&stored.id);
    fs::write(&upload, "other").unwrap();
    let refused = restore(&to, &back, &mut quiet).unwrap_err();
    assert!(refused.to_string().contains("SHA-256"), "{refused}");
    assert!(matches!(SqliteStore::open(&back, None), Err(StoreError::HalfRestored { .. })));
    fs::write(&upload, "bytes").unwrap();
    let logged = away.path().join("logged");
    fs::create_dir(&logged).unwrap();
    fs::write(logged.join("hearth.sqlite3-wal"), "of another database").unwrap();
    let refused = restore(&to, &logged, &mut quiet).unwrap_err();
    assert!(refused.to_string().contains("hearth.sqlite3-wal"), "{refused}");
    restore(&to, &back, &mut quiet).unwrap();
    assert_eq!(SqliteStore::open(&back, None).unwrap().of(LOCAL).file(&stored.id).unwrap(), stored);

    let manifest = fs::read_to_string(to.join("manifest.json")).unwrap();
    for (found, instead, said) in [
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("files/file-", "../file-", "no file of a backup"),
        ("hearth.sqlite3", "keys.secret", "names no hearth.sqlite3"),
        ("{", "", "cannot be read"),
    ] {
        fs::write(to.join("manifest.json"), manifest.replacen(found, instead, usize::MAX)).unwrap();
        let refused = restore(&to, &away.path().join("other"), &mut quiet).unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
    fs::remove_file(to.join("manifest.json")).unwrap();
    let refused = restore(&to, &away.path().join("other"), &mut quiet).unwrap_err();
    assert!(refused.to_string().contains("no whole backup"), "{refused}");
    assert!(!away.path().join("other").exists());
}

#[test]
fn an_upload_that_has_no_name_yet_is_backed_up() {
    let (directory, away) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&directory);
    let id = file(&store, "a", b"bytes").id;
    let path = store.file_path(&id);
    drop(store);
    fs::rename(&path, path.with_extension("incomplete")).unwrap();
    let summary = back_up(directory.path(), &away.path().join("backup"), &mut quiet).unwrap();
    assert_eq!((summary.files, summary.missing.len()), (1, 0));
    assert_eq!(fs::read(away.path().join("backup/files").join(id)).unwrap(), b"bytes");
}

#[test]
fn what_a_backup_cannot_find_or_finds_changed_is_named() {
    let (directory, away) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&directory);
    let [missing, damaged] = ["a", "b"].map(|name| file(&store, name, b"bytes").id);
    fs::remove_file(store.file_path(&missing)).unwrap();
    fs::write(store.file_path(&damaged), "other").unwrap();
    let summary = back_up(directory.path(), &away.path().join("backup"), &mut quiet).unwrap();
    assert_eq!((summary.missing, summary.damaged), (vec![missing], vec![damaged]));
}

#[test]
fn an_upgrade_of_the_schema_can_be_gone_back_on() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(DATABASE);
    let before = schema::MIGRATIONS.len() - 1;
    fs::create_dir(directory.path().join(files::FOLDER)).unwrap();
    fs::write(directory.path().join("files/file-1"), "old").unwrap();
    let connection = Connection::open(&path).unwrap();
    configure(&connection).unwrap();
    schema::MIGRATIONS[..before].iter().for_each(|step| connection.execute_batch(step).unwrap());
    connection.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", before).unwrap();
    connection
        .execute(
            "INSERT INTO files (id, filename, purpose, bytes, sha256, created) VALUES ('file-1', 'a', 'b', 3, ?, 1)",
            [&sha2::Sha256::digest(b"old")[..]],
        )
        .unwrap();
    let tables = |path: &Path| -> Vec<(String, Option<String>)> {
        let connection = Connection::open(path).unwrap();
        let mut query = connection.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    };
    drop(connection);
    let old_tables = tables(&path);

    let store = open(&directory);
    assert_ne!(tables(&path), old_tables);
    let late = file(&store, "late", b"new").id;
    drop(store);
    open(&directory);
    let kept: Vec<_> = fs::read_dir(directory.path().join("backups")).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(kept.len(), 1, "one upgrade, one backup");
    let back = TempDir::new().unwrap();
    restore(&kept[0].path(), back.path(), &mut quiet).unwrap();
    assert_eq!(tables(&back.path().join(DATABASE)), old_tables);
    let connection = Connection::open(back.path().join(DATABASE)).unwrap();
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, before, "the earlier version of Hearth opens it");
    let known: Vec<String> = connection
        .prepare("SELECT id FROM files")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    // The earlier version removes what its database does not know: there is nothing else.
    assert_eq!(known, ["file-1"]);
    let there: Vec<_> =
        fs::read_dir(back.path().join("files")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["file-1"]);
    assert!(directory.path().join("files").join(late).exists());
}
