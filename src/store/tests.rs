//! What any store does: acknowledged changes survive reopening, refused ones do not exist, and an owner has what is the owner's.

mod jobs;
mod ledger;
mod owned;

use std::{collections::BTreeMap, fs};

use tempfile::TempDir;

use super::*;
use hearth_domain::{
    LOCAL,
    documents::{
        AttributeFilter, AttributeValue, Collection, Comparison, DocumentStatus, EmbeddingIdentity, NewChunk,
        PageRequest, StoredFile,
    },
};

/// A page with everything that these tests create.
pub(super) fn all() -> PageRequest {
    PageRequest { limit: 100, ascending: false, after: None, before: None }
}

/// The store of a directory: in it or, if `HEARTH_TEST_POSTGRES` is the address of a server, in a database there of its own.
pub(super) fn open(directory: &TempDir) -> Arc<Store> {
    #[cfg(feature = "cluster")]
    if let Some(shared) = postgres::tests::database(directory) {
        return Store::connect(&shared, directory.path(), None).unwrap();
    }
    Store::open(directory.path()).unwrap()
}

pub(super) fn file(store: &Store, name: &str, bytes: &[u8]) -> StoredFile {
    file_of(LOCAL, store, name, bytes)
}

pub(super) fn file_of(owner: &str, store: &Store, name: &str, bytes: &[u8]) -> StoredFile {
    let mut incoming = store.receive_file(0).unwrap();
    bytes.chunks(3).for_each(|part| incoming.write(part).unwrap());
    store.of(owner).keep_file(incoming, name, "assistants").unwrap()
}

pub(super) fn chunk(text: &str) -> NewChunk {
    let heading = "Guide > Setup".to_owned();
    NewChunk { text: text.to_owned(), heading, place: Some(3), tokens: 5, vector: vec![0.6, 0.8] }
}

/// The model of the chunks' vectors.
pub(super) fn embedding() -> EmbeddingIdentity {
    EmbeddingIdentity { name: "minilm".into(), dimensions: 2 }
}

pub(super) fn attributes(pairs: &[(&str, AttributeValue)]) -> BTreeMap<String, AttributeValue> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// Whether a file's bytes are there.
pub(super) fn has_bytes(store: &Store, id: &str) -> bool {
    store.open_file(id).is_ok_and(|file| file.path().exists())
}

/// A searchable document.
pub(super) fn document(store: &Store, collection: &str, name: &str, texts: &[&str]) -> (String, Vec<u64>) {
    let file = file(store, name, texts.join("\n").as_bytes());
    assert!(matches!(
        store.of(LOCAL).add_document(collection, &file.id, BTreeMap::new(), None).unwrap(),
        Upload::New(_)
    ));
    let chunks = texts.iter().map(|text| chunk(text)).collect();
    (file.id.clone(), store.of(LOCAL).replace_chunks(collection, &file.id, &embedding(), chunks, &[]).unwrap().added)
}

pub(super) fn words(store: &Store, collection: &str, query: &str) -> Vec<u64> {
    let scope = Scope { collection_id: collection, filter: None };
    store.lexical_search(scope, query, 10).unwrap().iter().map(|hit| hit.chunk_id).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection =
        store.of(LOCAL).create_collection("docs", attributes(&[("team", AttributeValue::Text("a".into()))])).unwrap();
    let (file_id, chunks) = document(&*store, &collection.id, "a.md", &["install with cargo", "then start the server"]);
    drop(store);

    let store = open(&directory);
    let bound = Collection { embedding: Some(embedding()), ..collection.clone() };
    assert_eq!(store.of(LOCAL).collections().unwrap(), [bound], "the first chunks have bound it");
    assert_eq!(store.of(LOCAL).collection("docs").unwrap().id, collection.id);
    let document = store.of(LOCAL).document(&collection.id, &file_id).unwrap();
    assert_eq!((document.status, document.num_chunks, &document.filename[..]), (DocumentStatus::Ready, 2, "a.md"));
    assert_eq!(store.chunk_ids(&collection.id).unwrap(), chunks);
    assert_eq!(store.vectors(&chunks).unwrap(), [(chunks[0], vec![0.6, 0.8]), (chunks[1], vec![0.6, 0.8])]);
    let found = &*store.chunks(&[chunks[1], 9999]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].text[..], found[0].position, found[0].place), ("then start the server", 1, Some(3)));
    assert_eq!(
        fs::read(store.open_file(&file_id).unwrap().path()).unwrap(),
        b"install with cargo\nthen start the server"
    );
    assert_eq!(words(&*store, &collection.id, "How do I start servers?"), [chunks[1]]);
}

#[test]
fn words_weigh_by_the_collection_that_is_searched_and_by_no_other() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let own = store.of(LOCAL).create_collection("own", BTreeMap::new()).unwrap().id;
    let (_, chunks) = document(&*store, &own, "a.md", &["quarterly report", "insolvency report", "a report of ships"]);
    let search = || {
        let scope = Scope { collection_id: &own, filter: None };
        store.lexical_search(scope, "quarterly insolvencies of reports", 10).unwrap()
    };
    let before = search();
    assert_eq!(before.iter().map(|hit| hit.chunk_id).collect::<Vec<_>>(), chunks);
    // A word that all chunks contain weighs little beside a rare one.
    assert!(before[0].score > 3.0 * before[2].score, "{before:?}");
    let other = store.of("another").create_collection("other", BTreeMap::new()).unwrap().id;
    for name in ["b.md", "c.md", "d.md"] {
        let file = file_of("another", &*store, name, name.as_bytes());
        store.of("another").add_document(&other, &file.id, BTreeMap::new(), None).unwrap();
        let texts = ["quarterly quarterly", "quarterly and long and longer, with many other words"].map(chunk);
        store.of("another").replace_chunks(&other, &file.id, &embedding(), texts.to_vec(), &[]).unwrap();
    }
    assert_eq!(search(), before);
}

#[test]
fn a_new_version_takes_the_place_of_the_old_in_one_step() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let (old, old_chunks) = document(&*store, &collection, "a.md", &["the old text"]);
    let new = file(&*store, "a.md", b"the new text").id;
    store.of(LOCAL).add_document(&collection, &new, BTreeMap::new(), Some(&old)).unwrap();
    assert_eq!(
        words(&*store, &collection, "text"),
        old_chunks,
        "the old version is searched until the new one is ready"
    );
    let replaced = store
        .of(LOCAL)
        .replace_chunks(&collection, &new, &embedding(), vec![chunk("the new text")], std::slice::from_ref(&old))
        .unwrap();
    assert_eq!(replaced.removed, old_chunks);
    assert_eq!(words(&*store, &collection, "text"), replaced.added);
    assert!(words(&*store, &collection, "old").is_empty());
    assert!(matches!(store.of(LOCAL).document(&collection, &old), Err(StoreError::NotFound { .. })));
    let again = store
        .of(LOCAL)
        .replace_chunks(&collection, &new, &embedding(), vec![chunk("a third text")], std::slice::from_ref(&new))
        .unwrap();
    assert_eq!(again.removed, replaced.added);
    assert!(again.added[0] > replaced.added[0], "an id is never used again");
}

#[test]
fn the_same_bytes_are_one_document() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let other = store.of(LOCAL).create_collection("other", BTreeMap::new()).unwrap().id;
    let (first, second) = (file(&*store, "a.md", b"same"), file(&*store, "b.md", b"same"));
    assert_eq!(first.sha256, second.sha256);
    assert!(matches!(
        store.of(LOCAL).add_document(&collection, &first.id, BTreeMap::new(), None).unwrap(),
        Upload::New(_)
    ));
    match store.of(LOCAL).add_document(&collection, &second.id, BTreeMap::new(), None).unwrap() {
        Upload::Known(known) => assert_eq!(known.file_id, first.id),
        Upload::New(_) => panic!("the same bytes twice"),
    }
    assert!(matches!(store.of(LOCAL).add_document(&other, &second.id, BTreeMap::new(), None).unwrap(), Upload::New(_)));
    let failed = DocumentStatus::Failed { code: "invalid_file".into(), reason: "no text in it".into() };
    let document = store.of(LOCAL).set_document_status(&collection, &first.id, failed.clone()).unwrap();
    assert_eq!(document.status, failed);
    assert!(matches!(
        store.of(LOCAL).add_document(&collection, &second.id, BTreeMap::new(), None).unwrap(),
        Upload::New(_)
    ));
}

#[test]
fn a_version_replaces_the_old_one_once_and_only_where_it_was() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let own = store.of(LOCAL);
    let [x, y] = ["x", "y"].map(|name| own.create_collection(name, BTreeMap::new()).unwrap().id);
    let (a, _) = document(&*store, &x, "a.md", &["first"]);
    own.attach_document(&y, Member { file_id: a.clone(), attributes: BTreeMap::new() }).unwrap();
    let ended = || {
        while let Some((job, _lease)) = store.lease_job(INGEST).unwrap() {
            store.finish_job(&job, serde_json::json!(null)).unwrap();
        }
    };
    let replace = |name: &str, old: &str| {
        let new = file(&*store, name, name.as_bytes()).id;
        own.add_document(&x, &new, BTreeMap::new(), Some(old)).unwrap();
        new
    };
    ended();
    let b = replace("b.md", &a);
    own.replace_chunks(&x, &b, &embedding(), vec![chunk("second")], std::slice::from_ref(&a)).unwrap();
    assert!(has_bytes(&*store, &a) && own.file(&a).is_ok(), "it is in another collection");
    let (job, lease) = store.lease_job(INGEST).unwrap().expect("the job of b");
    assert_eq!(job.payload["supersedes"], serde_json::json!([]), "begun again it replaces nothing more");
    drop(lease);
    ended();

    own.attach_document(&x, Member { file_id: a.clone(), attributes: BTreeMap::new() }).unwrap();
    ended();
    let c = replace("c.md", &b);
    let (job, _lease) = store.lease_job(INGEST).unwrap().expect("the job of c");
    assert_eq!(job.payload["supersedes"], serde_json::json!([b]), "a was added again since b replaced it");
    own.replace_chunks(&x, &c, &embedding(), vec![chunk("third")], std::slice::from_ref(&b)).unwrap();
    assert!(own.document(&x, &a).is_ok());
    assert!(!has_bytes(&*store, &b) && own.file(&b).is_err(), "its file is in no collection any more");
}

#[test]
fn what_is_deleted_is_gone_from_everywhere() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let (a, a_chunks) = document(&*store, &collection, "a.md", &["alpha"]);
    let (b, b_chunks) = document(&*store, &collection, "b.md", &["beta"]);
    assert_eq!(store.of(LOCAL).delete_document(&collection, &a).unwrap(), a_chunks);
    assert!(matches!(store.of(LOCAL).delete_document(&collection, &a), Err(StoreError::NotFound { .. })));
    assert!(words(&*store, &collection, "alpha").is_empty() && store.vectors(&a_chunks).unwrap().is_empty());
    assert!(has_bytes(&*store, &a), "the file stays");
    assert_eq!(store.of(LOCAL).delete_file(&b).unwrap(), Some(vec![(collection.clone(), b_chunks[0])]));
    assert_eq!(store.of(LOCAL).delete_file(&b).unwrap(), None);
    assert!(!has_bytes(&*store, &b));
    assert!(store.chunk_ids(&collection).unwrap().is_empty());
    let (c, _) = document(&*store, &collection, "c.md", &["gamma"]);
    assert!(
        store.of(LOCAL).delete_collection(&collection).unwrap()
            && !store.of(LOCAL).delete_collection(&collection).unwrap()
    );
    assert!(matches!(store.of(LOCAL).document(&collection, &c), Err(StoreError::NotFound { .. })));
    assert!(words(&*store, &collection, "gamma").is_empty());
    let gone = store.of(LOCAL).replace_chunks(&collection, &c, &embedding(), vec![chunk("late")], &[]);
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "a document deleted while it was read stays deleted");
}

#[test]
fn filters_compare_within_a_type() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let text = |text: &str| AttributeValue::Text(text.to_owned());
    let odd = "a.b \"c\"";
    let sets = [
        attributes(&[("year", AttributeValue::Number(2024.0)), ("public", AttributeValue::Bool(true))]),
        attributes(&[("year", AttributeValue::Number(2025.5)), (odd, text("x"))]),
        attributes(&[("year", text("2025"))]),
        attributes(&[]),
    ];
    let mut ids = Vec::new();
    let mut files = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let (file, chunks) = document(&*store, &collection, "a.md", &[&format!("common words {number}")]);
        store.of(LOCAL).set_document_attributes(&collection, &file, set.clone()).unwrap();
        ids.push(chunks[0]);
        files.push(file);
    }
    let compare = |key: &str, comparison, value| AttributeFilter::Compare { key: key.to_owned(), comparison, value };
    let number = AttributeValue::Number;
    let is_in =
        |negated| AttributeFilter::In { key: "year".into(), values: vec![number(2024.0), text("2025")], negated };
    for (filter, expected) in [
        (compare("year", Comparison::Eq, number(2024.0)), vec![0]),
        (compare("year", Comparison::Ne, number(2024.0)), vec![1, 2, 3]),
        (compare("year", Comparison::Gte, number(2024.0)), vec![0, 1]),
        (compare("year", Comparison::Lt, number(2025.0)), vec![0]),
        (compare("year", Comparison::Eq, text("2025")), vec![2]),
        (compare("public", Comparison::Eq, AttributeValue::Bool(true)), vec![0]),
        (compare("public", Comparison::Eq, number(1.0)), vec![]),
        (compare(odd, Comparison::Eq, text("x")), vec![1]),
        (is_in(false), vec![0, 2]),
        (is_in(true), vec![1, 3]),
        (AttributeFilter::Files(vec![files[3].clone(), "file-none".into()]), vec![3]),
        (AttributeFilter::All(vec![is_in(false), compare("year", Comparison::Gt, number(0.0))]), vec![0]),
        (AttributeFilter::Any(vec![is_in(false), compare(odd, Comparison::Eq, text("x"))]), vec![0, 1, 2]),
        (AttributeFilter::Any(vec![]), vec![]),
        (AttributeFilter::All(vec![]), vec![0, 1, 2, 3]),
    ] {
        let expected: Vec<u64> = expected.into_iter().map(|index: usize| ids[index]).collect();
        let mut found = store.filtered_chunk_ids(&collection, &filter).unwrap();
        found.sort_unstable();
        assert_eq!(found, expected, "{filter:?}");
        let scope = Scope { collection_id: &collection, filter: Some(&filter) };
        let mut hits: Vec<u64> =
            store.lexical_search(scope, "common", 10).unwrap().iter().map(|hit| hit.chunk_id).collect();
        hits.sort_unstable();
        assert_eq!(hits, expected, "{filter:?}");
    }
}

#[test]
fn long_filters_are_one_expression() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let collection = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    let number = |number: i32| AttributeValue::Number(f64::from(number));
    let (file, chunks) = document(&*store, &collection, "a.md", &["text"]);
    store.of(LOCAL).set_document_attributes(&collection, &file, attributes(&[("year", number(900))])).unwrap();
    let years = |first| (first..first + 1000).map(number);
    let within = |values: Vec<_>| AttributeFilter::In { key: "year".into(), values, negated: false };
    let equal = |value| AttributeFilter::Compare { key: "year".into(), comparison: Comparison::Eq, value };
    for (filter, expected) in [
        (within(years(0).collect()), &chunks[..]),
        (within(years(1000).collect()), &[]),
        (AttributeFilter::Any(years(0).map(equal).collect()), &chunks),
        (AttributeFilter::All(years(0).map(equal).collect()), &[]),
    ] {
        assert_eq!(store.filtered_chunk_ids(&collection, &filter).unwrap(), expected);
    }
}

#[test]
fn a_collection_keeps_to_one_embedding_and_names_are_taken_once() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let id = store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    assert!(matches!(store.of(LOCAL).create_collection("docs", BTreeMap::new()), Err(StoreError::NameTaken(_))));
    let (_, chunks) = document(&*store, &id, "a.md", &["alpha"]);
    document(&*store, &id, "b.md", &["beta"]);
    let own = store.of(LOCAL);
    let late = file(&*store, "c.md", b"gamma").id;
    own.add_document(&id, &late, BTreeMap::new(), None).unwrap();
    let bge = EmbeddingIdentity { name: "bge".into(), dimensions: 2 };
    let refused = own.replace_chunks(&id, &late, &bge, vec![chunk("gamma")], &[]).unwrap_err().to_string();
    assert!(refused.contains("minilm") && refused.contains("bge"), "{refused}");
    assert_eq!(own.document(&id, &late).unwrap().status, DocumentStatus::Processing, "nothing of the change is left");
    // The vectors were swapped for another model's while a document was being read.
    let ids = store.chunk_ids(&id).unwrap();
    assert!(ids.contains(&chunks[0]));
    store.keep_reembedded(&bge, ids.into_iter().map(|id| (id, vec![0.8, 0.6])).collect()).unwrap();
    assert_eq!(store.swap_vectors(&id, &bge).unwrap(), Some(2));
    assert_eq!(own.collection(&id).unwrap().embedding, Some(bge));
    let refused = own.replace_chunks(&id, &late, &embedding(), vec![chunk("gamma")], &[]);
    assert!(matches!(refused, Err(StoreError::OtherEmbedding { .. })), "{refused:?}");
    assert!(words(&*store, &id, "gamma").is_empty());
    let other = store.of(LOCAL).create_collection("other", BTreeMap::new()).unwrap().id;
    assert!(matches!(
        store.of(LOCAL).update_collection(&other, Some("docs".into()), None),
        Err(StoreError::NameTaken(_))
    ));
    assert_eq!(store.of(LOCAL).update_collection(&other, Some("mine".into()), None).unwrap().name, "mine");
}

#[test]
fn a_batch_outlives_the_process_and_is_cancelled_as_one() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let id = store.of(LOCAL).create_vector_store(String::new(), BTreeMap::new(), Vec::new()).unwrap().id;
    let member = |file: &StoredFile| Member { file_id: file.id.clone(), attributes: BTreeMap::new() };
    let files = ["a", "b", "c"].map(|name| file(&*store, name, b"same"));
    let unknown = Member { file_id: "file-none".into(), attributes: BTreeMap::new() };
    let refused = store.of(LOCAL).create_batch(&id, vec![member(&files[0]), unknown]);
    assert!(matches!(refused, Err(StoreError::NotFound { what: "file", .. })));
    assert!(
        store.of(LOCAL).documents_page(&id, None, None, &all()).unwrap().entries.is_empty()
            && store.lease_job(INGEST).unwrap().is_none()
    );
    let batch = store.of(LOCAL).create_batch(&id, files.iter().map(member).collect()).unwrap();
    store.of(LOCAL).replace_chunks(&id, &files[0].id, &embedding(), vec![chunk("same")], &[]).unwrap();
    drop(store);

    let store = open(&directory);
    assert_eq!(store.of(LOCAL).batch(&id, &batch.id).unwrap().documents.len(), 3);
    assert!(matches!(store.of(LOCAL).batch("vs_other", &batch.id), Err(StoreError::NotFound { .. })));
    let cancelled = store.of(LOCAL).cancel_batch(&id, &batch.id).unwrap();
    let ready = cancelled.documents.iter().filter(|document| document.status == DocumentStatus::Ready).count();
    assert_eq!((cancelled.cancelled, ready), (true, 1));
    let late = store.of(LOCAL).replace_chunks(&id, &files[1].id, &embedding(), vec![chunk("same")], &[]);
    assert!(matches!(late, Err(StoreError::NotFound { .. })));
    store.of(LOCAL).attach_document(&id, member(&files[1])).unwrap();
    assert_eq!(store.of(LOCAL).document(&id, &files[1].id).unwrap().status, DocumentStatus::Processing, "added again");
    store.of(LOCAL).delete_document(&id, &files[2].id).unwrap();
    assert_eq!(store.of(LOCAL).batch(&id, &batch.id).unwrap().documents.len(), 2);
    assert!(store.of(LOCAL).delete_collection(&id).unwrap());
    assert!(matches!(store.of(LOCAL).batch(&id, &batch.id), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_shared_name_is_the_oldests_and_no_name_is_nobodys() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let made: Vec<String> = ["docs", "docs", ""]
        .map(|name| store.of(LOCAL).create_vector_store(name.to_owned(), BTreeMap::new(), Vec::new()).unwrap().id)
        .into();
    assert_eq!(store.of(LOCAL).collection("docs").unwrap().id, made[0]);
    assert!(matches!(store.of(LOCAL).collection(""), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.of(LOCAL).create_collection("docs", BTreeMap::new()), Err(StoreError::NameTaken(_))));
    assert_eq!(store.of(LOCAL).update_vector_store(&made[2], Some("docs".into()), None).unwrap().name, "docs");
    assert!(matches!(store.of(LOCAL).update_vector_store("vs_none", None, None), Err(StoreError::NotFound { .. })));
}
