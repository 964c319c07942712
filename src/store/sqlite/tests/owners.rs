//! Owners in databases of older versions, and after a recovery.

use super::*;
use crate::store::INGEST;

#[track_caller]
fn absent<T: std::fmt::Debug>(found: Result<T>, what: &str) {
    match found {
        Err(StoreError::NotFound { what: absent, .. }) => assert_eq!(absent, what),
        found => panic!("a {what} of another's: {found:?}"),
    }
}

#[test]
fn what_was_there_before_there_were_owners_is_the_local_callers() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(DATABASE);
    let before_owners = 4;
    {
        let connection = Connection::open(&path).unwrap();
        configure(&connection).unwrap();
        for step in &schema::MIGRATIONS[..before_owners] {
            connection.execute_batch(step).unwrap();
        }
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
        connection.pragma_update(None, "user_version", before_owners).unwrap();
        let rows = r#"
            INSERT INTO collections (id, name, created) VALUES ('vs_1', 'docs', 1), ('vs_2', 'docs', 2);
            INSERT INTO files VALUES ('file-1', 'a.md', 'assistants', 4, zeroblob(32), 1);
            INSERT INTO documents (collection_id, file_id, status, created, updated)
                VALUES ('vs_1', 'file-1', 'processing', 1, 1);
            INSERT INTO batches (id, collection_id, created) VALUES ('vsfb_1', 'vs_1', 1);
            INSERT INTO batch_documents VALUES ('vsfb_1', 'vs_1', 'file-1');
            INSERT INTO jobs (id, kind, payload, state, run_after, created, updated) VALUES
                ('job_1', 'ingest', '{"collection_id": "vs_1", "file_id": "file-1", "supersedes": []}', 'queued', 1, 1, 1),
                ('job_2', 'analysis', '{}', 'queued', 1, 1, 1);"#;
        connection.execute_batch(rows).unwrap();
    }
    fs::create_dir_all(directory.path().join("files")).unwrap();
    fs::write(directory.path().join("files/file-1"), "mine").unwrap();
    let store = SqliteStore::open(directory.path(), None).unwrap();
    let (own, other) = (store.of(LOCAL), store.of("b"));
    assert_eq!(own.collections().unwrap().len(), 2);
    assert_eq!(own.document("vs_1", "file-1").unwrap().status, DocumentStatus::Processing);
    assert_eq!(own.batch("vs_1", "vsfb_1").unwrap().documents.len(), 1);
    assert_eq!(own.file("file-1").unwrap().bytes, 4);
    assert!(store.file_path("file-1").exists());
    assert_eq!(own.jobs("analysis", 9).unwrap().len(), 1);
    let (leased, _lease) = store.lease_job(INGEST).unwrap().unwrap();
    assert_eq!((&leased.id[..], &leased.owner[..]), ("job_1", LOCAL));
    own.replace_chunks("vs_1", "file-1", &embedding(), vec![chunk("mine")], &[]).unwrap();
    assert_eq!(
        (other.collections().unwrap(), other.files_page(None, &all()).unwrap().entries),
        (Vec::new(), Vec::new())
    );
    absent(other.document("vs_1", "file-1"), "document");
    absent(other.job("job_2"), "job");
}

#[test]
fn recovery_gives_each_owner_back_its_own() {
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(directory.path(), None).unwrap();
    let mut made = Vec::new();
    for owner in ["a", "b"] {
        let own = store.of(owner);
        let collection = own.create_collection("docs", BTreeMap::new()).unwrap();
        let stored = file_of(owner, &store, "a.md", owner.as_bytes());
        own.add_document(&collection.id, &stored.id, BTreeMap::new(), None).unwrap();
        made.push((owner, collection, stored));
    }
    drop(store);
    fs::write(directory.path().join("files/file-unknown"), "whose?").unwrap();
    recover(directory.path()).unwrap();
    let store = SqliteStore::open(directory.path(), None).unwrap();
    for (owner, collection, stored) in made {
        let own = store.of(owner);
        assert_eq!(
            (own.collections().unwrap(), own.files_page(None, &all()).unwrap().entries),
            (vec![collection.clone()], vec![stored])
        );
        assert_eq!(own.documents_page(&collection.id, None, None, &all()).unwrap().entries.len(), 1);
    }
    let unknown = store.of(LOCAL).files_page(None, &all()).unwrap().entries;
    assert_eq!(unknown.iter().map(|file| &file.id[..]).collect::<Vec<_>>(), ["file-unknown"]);
    let taken: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST).unwrap()).collect();
    assert_eq!(taken.len(), 3);
    assert!(["a", "b", LOCAL].iter().all(|owner| taken.iter().any(|(job, _)| job.owner == *owner)), "{taken:?}");
}
