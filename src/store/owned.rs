//! One caller's view of the store: what the caller owns, and nothing else.
//!
//! Everything that is found, listed, changed or deleted on a caller's behalf goes through an [`Owned`], so that the
//! owner cannot be forgotten. Another caller's data does not exist here: the error is the same as for an unknown id.
//! Background work uses one as well, on behalf of its job's owner.

use rusqlite::Connection;

use super::{Result, Store, StoreError};
use hearth_domain::StorageQuota;

/// A store as its owner sees it.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    pub(super) store: &'a Store,
    pub(super) owner: &'a str,
    pub(super) quota: StorageQuota,
    pub(super) is_local_only: bool,
}

impl Store {
    /// This caller's view.
    pub fn of<'a>(&'a self, owner: &'a str) -> Owned<'a> {
        Owned { store: self, owner, quota: StorageQuota::default(), is_local_only: false }
    }
}

impl Owned<'_> {
    /// The same view, limited to this quota.
    #[must_use]
    pub fn within(self, quota: StorageQuota) -> Self {
        Self { quota, ..self }
    }

    /// The same view for a request that must stay on this machine, if it must: documents that it adds must, too.
    #[must_use]
    pub fn kept_local(self, is_local_only: bool) -> Self {
        Self { is_local_only, ..self }
    }
}

/// Refuses a file that exceeds what is left of its owner's quota.
pub(super) fn refuse_bytes_over(quota: StorageQuota, connection: &Connection, owner: &str, more: u64) -> Result<()> {
    let Some(limit) = quota.bytes else { return Ok(()) };
    let sum = "SELECT coalesce(sum(bytes), 0) FROM files WHERE owner = ?";
    let used: u64 = connection.query_row(sum, [owner], |row| row.get(0))?;
    if used.saturating_add(more) <= limit {
        return Ok(());
    }
    Err(StoreError::Quota { what: "bytes of files", used, limit, more })
}

/// Refuses a change that has pushed its owner's documents over the quota; the caller must roll the transaction back.
pub(super) fn refuse_documents_over(quota: StorageQuota, connection: &Connection, owner: &str) -> Result<()> {
    let Some(limit) = quota.documents else { return Ok(()) };
    let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
         WHERE collections.owner = ?";
    let used: u64 = connection.query_row(count, [owner], |row| row.get(0))?;
    if used <= limit {
        Ok(())
    } else {
        Err(StoreError::Quota { what: "documents", used: limit, limit, more: used - limit })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt::Debug, fs};

    use hearth_domain::{
        LOCAL,
        documents::{DocumentStatus, EmbeddingIdentity, NewChunk, StoredFile},
    };
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use hearth_domain::documents::PageRequest;

    fn all() -> PageRequest {
        PageRequest { limit: 100, ascending: false, after: None, before: None }
    }

    use crate::store::{DATABASE, INGEST, Job, JobState, Leases, Member, NewJob, Upload, configure, recover, schema};

    fn file(own: Owned<'_>, name: &str, bytes: &[u8]) -> StoredFile {
        let mut incoming = own.store.receive_file(0).unwrap();
        incoming.write(bytes).unwrap();
        own.keep_file(incoming, name, "assistants").unwrap()
    }

    fn chunk() -> NewChunk {
        NewChunk { text: "mine".into(), heading: String::new(), place: None, tokens: 1, vector: vec![1.0] }
    }

    fn embedding() -> EmbeddingIdentity {
        EmbeddingIdentity { name: "m".into(), dimensions: 1 }
    }

    fn member(file_id: &str) -> Member {
        Member { file_id: file_id.to_owned(), attributes: BTreeMap::new() }
    }

    #[track_caller]
    fn absent<T: Debug>(found: Result<T>, what: &str) {
        match found {
            Err(StoreError::NotFound { what: absent, .. }) => assert_eq!(absent, what),
            found => panic!("a {what} of another's: {found:?}"),
        }
    }

    #[test]
    fn what_is_anothers_is_not_there() {
        let directory = TempDir::new().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (a, b) = (store.of("a"), store.of("b"));
        let docs = a.create_collection("docs", BTreeMap::new()).unwrap();
        let stored = file(a, "a.md", b"mine");
        a.add_document(&docs.id, &stored.id, BTreeMap::new(), None).unwrap();
        let chunks = a.replace_chunks(&docs.id, &stored.id, &embedding(), vec![chunk()], &[]).unwrap().added;
        let batch = a.create_batch(&docs.id, vec![member(&stored.id)]).unwrap();
        let waiting = file(a, "b.md", b"not read yet");
        a.add_document(&docs.id, &waiting.id, BTreeMap::new(), None).unwrap();
        let work = NewJob { kind: "analysis".into(), payload: json!({}), followed_by: None };
        let job = a.enqueue(work).unwrap();
        let leases = Leases::default();
        let (leased, _lease) = store.lease_job("analysis", &leases).unwrap().unwrap();
        store.add_job_event(&leased, &json!({"step": 0})).unwrap();
        let of_a = || {
            let documents = a.documents_page(&docs.id, None, None, &all()).unwrap().entries;
            (
                a.collections().unwrap(),
                documents,
                a.files_page(None, &all()).unwrap().entries,
                a.batch(&docs.id, &batch.id).unwrap(),
            )
        };
        let before = of_a();

        assert_eq!((b.collections().unwrap(), b.files_page(None, &all()).unwrap().entries), (Vec::new(), Vec::new()));
        assert_eq!(b.documents_page(&docs.id, None, None, &all()).unwrap().entries, []);
        assert_eq!(b.documents_of_file(&stored.id).unwrap(), []);
        assert_eq!(b.jobs("analysis", 9).unwrap(), []);
        assert_eq!(b.job_events(&job.id, 0).unwrap(), []);
        assert_eq!(b.num_unsearchable(&docs.id).unwrap(), 0);
        assert_eq!(b.ingest_progress(&docs.id, &waiting.id).unwrap(), None);
        assert_eq!(b.chunks_between(&docs.id, &stored.id, 0, 9).unwrap(), []);
        for name in ["docs", &docs.id] {
            absent(b.collection(name), "collection");
        }
        absent(b.update_collection(&docs.id, Some("taken".into()), None), "collection");
        absent(b.update_vector_store(&docs.id, None, Some(BTreeMap::new())), "collection");
        assert!(!b.delete_collection(&docs.id).unwrap());
        absent(b.file(&stored.id), "file");
        assert_eq!(b.delete_file(&stored.id).unwrap(), None);
        absent(b.document(&docs.id, &stored.id), "document");
        absent(b.delete_document(&docs.id, &stored.id), "document");
        absent(b.replace_chunks(&docs.id, &stored.id, &embedding(), vec![chunk()], &[]), "document");
        absent(b.set_document_status(&docs.id, &stored.id, DocumentStatus::Cancelled), "document");
        assert!(!b.fail_document(&docs.id, &waiting.id, "server_error", "not theirs to say").unwrap());
        absent(b.set_document_attributes(&docs.id, &stored.id, BTreeMap::new()), "document");
        absent(b.batch(&docs.id, &batch.id), "file batch");
        absent(b.cancel_batch(&docs.id, &batch.id), "file batch");
        absent(b.create_batch(&docs.id, Vec::new()), "collection");
        absent(b.job(&job.id), "job");
        absent(b.cancel_job(&job.id), "job");

        // Neither into another caller's collection, nor with another caller's file.
        let own = b.create_collection("docs", BTreeMap::new()).unwrap();
        let theirs = file(b, "a.md", b"mine");
        absent(b.add_document(&docs.id, &theirs.id, BTreeMap::new(), None), "collection");
        absent(b.attach_document(&docs.id, member(&theirs.id)), "collection");
        absent(b.add_document(&own.id, &stored.id, BTreeMap::new(), None), "file");
        absent(b.attach_document(&own.id, member(&stored.id)), "file");
        absent(b.create_vector_store(String::new(), BTreeMap::new(), vec![stored.id.clone()]), "file");
        // Nor in place of another caller's document.
        absent(
            b.replace_chunks(&own.id, &theirs.id, &embedding(), vec![chunk()], std::slice::from_ref(&stored.id)),
            "document",
        );
        let added = b.add_document(&own.id, &theirs.id, BTreeMap::new(), Some(&stored.id)).unwrap();
        assert!(matches!(added, Upload::New(_)), "the same bytes are a document of each owner's own");
        b.replace_chunks(&own.id, &theirs.id, &embedding(), vec![chunk()], std::slice::from_ref(&stored.id)).unwrap();
        assert_eq!((b.collection("docs").unwrap().id, a.collection("docs").unwrap().id), (own.id, docs.id.clone()));

        assert_eq!(of_a(), before);
        assert_eq!(store.chunk_ids(&docs.id).unwrap(), chunks);
        assert_eq!(a.job(&job.id).unwrap().state, JobState::Running);
        assert_eq!(a.job_events(&job.id, 0).unwrap().len(), 1);
        assert!(store.file_path(&stored.id).exists());
        // Deleting another caller's document would have cancelled its ingest job.
        let taken: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST, &leases).unwrap()).collect();
        let is_read = |job: &Job| job.owner == "a" && job.payload["file_id"] == waiting.id.as_str();
        assert!(taken.iter().any(|(job, _)| is_read(job)), "{taken:?}");
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
        let store = Store::open(directory.path()).unwrap();
        let (own, other) = (store.of(LOCAL), store.of("b"));
        assert_eq!(own.collections().unwrap().len(), 2);
        assert_eq!(own.document("vs_1", "file-1").unwrap().status, DocumentStatus::Processing);
        assert_eq!(own.batch("vs_1", "vsfb_1").unwrap().documents.len(), 1);
        assert_eq!(own.file("file-1").unwrap().bytes, 4);
        assert!(store.file_path("file-1").exists());
        assert_eq!(own.jobs("analysis", 9).unwrap().len(), 1);
        let (leased, _lease) = store.lease_job(INGEST, &Leases::default()).unwrap().unwrap();
        assert_eq!((&leased.id[..], &leased.owner[..]), ("job_1", LOCAL));
        own.replace_chunks("vs_1", "file-1", &embedding(), vec![chunk()], &[]).unwrap();
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
        let store = Store::open(directory.path()).unwrap();
        let mut made = Vec::new();
        for owner in ["a", "b"] {
            let own = store.of(owner);
            let collection = own.create_collection("docs", BTreeMap::new()).unwrap();
            let stored = file(own, "a.md", owner.as_bytes());
            own.add_document(&collection.id, &stored.id, BTreeMap::new(), None).unwrap();
            made.push((owner, collection, stored));
        }
        drop(store);
        fs::write(directory.path().join("files/file-unknown"), "whose?").unwrap();
        recover(directory.path()).unwrap();
        let store = Store::open(directory.path()).unwrap();
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
        let leases = Leases::default();
        let taken: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST, &leases).unwrap()).collect();
        assert_eq!(taken.len(), 3);
        assert!(["a", "b", LOCAL].iter().all(|owner| taken.iter().any(|(job, _)| job.owner == *owner)), "{taken:?}");
    }
}
