//! What is one owner's does not exist for another.

use std::fmt::Debug;

use serde_json::json;

use super::*;

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
    let store = open(&directory);
    let (a, b) = (store.of("a"), store.of("b"));
    let docs = a.create_collection("docs", BTreeMap::new()).unwrap();
    let stored = file_of("a", &*store, "a.md", b"mine");
    a.add_document(&docs.id, &stored.id, BTreeMap::new(), None).unwrap();
    let chunks = a.replace_chunks(&docs.id, &stored.id, &embedding(), vec![chunk("mine")], &[]).unwrap().added;
    let batch = a.create_batch(&docs.id, vec![member(&stored.id)]).unwrap();
    let waiting = file_of("a", &*store, "b.md", b"not read yet");
    a.add_document(&docs.id, &waiting.id, BTreeMap::new(), None).unwrap();
    let work = NewJob { kind: "analysis".into(), payload: json!({}), followed_by: None };
    let job = a.enqueue(work).unwrap();
    let (leased, _lease) = store.lease_job("analysis").unwrap().unwrap();
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
    absent(b.replace_chunks(&docs.id, &stored.id, &embedding(), vec![chunk("mine")], &[]), "document");
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
    let theirs = file_of("b", &*store, "a.md", b"mine");
    absent(b.add_document(&docs.id, &theirs.id, BTreeMap::new(), None), "collection");
    absent(b.attach_document(&docs.id, member(&theirs.id)), "collection");
    absent(b.add_document(&own.id, &stored.id, BTreeMap::new(), None), "file");
    absent(b.attach_document(&own.id, member(&stored.id)), "file");
    absent(b.create_vector_store(String::new(), BTreeMap::new(), vec![stored.id.clone()]), "file");
    // Nor in place of another caller's document.
    absent(
        b.replace_chunks(&own.id, &theirs.id, &embedding(), vec![chunk("mine")], std::slice::from_ref(&stored.id)),
        "document",
    );
    let added = b.add_document(&own.id, &theirs.id, BTreeMap::new(), Some(&stored.id)).unwrap();
    assert!(matches!(added, Upload::New(_)), "the same bytes are a document of each owner's own");
    b.replace_chunks(&own.id, &theirs.id, &embedding(), vec![chunk("mine")], std::slice::from_ref(&stored.id)).unwrap();
    assert_eq!((b.collection("docs").unwrap().id, a.collection("docs").unwrap().id), (own.id, docs.id.clone()));

    assert_eq!(of_a(), before);
    assert_eq!(store.chunk_ids(&docs.id).unwrap(), chunks);
    assert_eq!(a.job(&job.id).unwrap().state, JobState::Running);
    assert_eq!(a.job_events(&job.id, 0).unwrap().len(), 1);
    assert!(has_bytes(&*store, &stored.id));
    // Deleting another caller's document would have cancelled its ingest job.
    let taken: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST).unwrap()).collect();
    let is_read = |job: &Job| job.owner == "a" && job.payload["file_id"] == waiting.id.as_str();
    assert!(taken.iter().any(|(job, _)| is_read(job)), "{taken:?}");
}
