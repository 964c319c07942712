//! What only several servers can get wrong, each with a store of its own on one database. `HEARTH_TEST_POSTGRES` has the address of a
//! PostgreSQL for tests, which `scripts/test.sh` starts; without it these tests find nothing to test.

#![expect(clippy::disallowed_methods, reason = "tests are told by the environment what there is")]

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::store::{
    JobState, NewJob, Scope, SharedStore, Store, StoreError, Upload,
    tests::{attributes, chunk, embedding, file, words},
};
use hearth_domain::{
    LOCAL,
    documents::{AttributeFilter, AttributeValue, Comparison, EmbeddingIdentity, NewChunk},
};

/// A database for a directory on the server for tests, made if it is missing. `None` without such a server.
pub(in crate::store) fn database(directory: &TempDir) -> Option<SharedStore> {
    database_named(directory.path())
}

fn database_named(directory: &Path) -> Option<SharedStore> {
    let server = std::env::var("HEARTH_TEST_POSTGRES").ok()?;
    let name: String = directory.file_name()?.to_str()?.bytes().map(|byte| format!("{byte:x}")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&format!("{server}/postgres"), NoTls).await.expect("the server for tests runs");
        let connection = tokio::spawn(connection);
        // It may be there already.
        let _ = client.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await;
        connection.abort();
    });
    Some(SharedStore { url: format!("{server}/{name}"), ca_file: None, connections: 8, name: "test".to_owned() })
}

/// Two stores on one database, as two servers have them; `None` without a server for tests.
fn two_stores() -> Option<[(TempDir, Arc<Store>); 2]> {
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let shared = database(&directories[0])?;
    Some(directories.map(|directory| {
        let store = Store::connect(&shared, directory.path(), None).unwrap();
        (directory, store)
    }))
}

fn new_job(number: usize) -> NewJob {
    NewJob { kind: "work".to_owned(), payload: json!({"number": number, "text": "with a NUL \0"}), followed_by: None }
}

#[test]
fn each_job_is_done_once_whoever_takes_it() {
    let Some(stores) = two_stores() else { return };
    for number in 0..200 {
        stores[number % 2].1.of(["a", "b", "c"][number % 3]).enqueue(new_job(number)).unwrap();
    }
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (store, done) = (stores[worker % 2].1.clone(), &done);
            scope.spawn(move || {
                while let Some((job, _lease)) = store.lease_job("work").unwrap() {
                    assert_eq!(store.add_job_event(&job, &json!("begun")).unwrap(), Some(0));
                    assert!(store.finish_job(&job, json!({"said": "\0"})).unwrap());
                    done.lock().push(job.payload["number"].as_u64().unwrap());
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_unstable();
    assert_eq!(done, (0..200).collect::<Vec<u64>>());
    let first = stores[0].1.of("a").jobs("work", 1000).unwrap();
    assert!(first.iter().all(|job| job.state == JobState::Done { result: json!({"said": "\0"}) }));
}

#[test]
fn a_job_goes_to_another_server_when_its_own_lets_go_or_is_gone() {
    let Some([(_one, one), (_two, two)]) = two_stores() else { return };
    one.of(LOCAL).enqueue(new_job(1)).unwrap();
    let (first, lease) = one.lease_job("work").unwrap().unwrap();
    assert!(two.lease_job("work").unwrap().is_none(), "it is held");
    drop(lease);
    // Given back by a thread of the store.
    let (second, _lease) = std::iter::from_fn(|| Some(two.lease_job("work").unwrap())).flatten().next().unwrap();
    assert_eq!((second.id.clone(), second.attempts), (first.id.clone(), 2));
    assert!(!one.holds_job(&first).unwrap() && two.holds_job(&second).unwrap());
    for late in [one.finish_job(&first, json!(1)), one.fail_job(&first, "late", None), one.forget_attempt(&first)] {
        assert!(!late.unwrap(), "what the former holder says is ignored");
    }
    assert_eq!(one.add_job_event(&first, &json!("late")).unwrap(), None);
    // As if this server had not renewed its lease in time.
    assert_eq!(two.tamper("UPDATE jobs SET ready_at = now_ms()"), 1);
    let (third, _lease) = one.lease_job("work").unwrap().unwrap();
    assert_eq!(third.attempts, 3);
    assert!(!two.finish_job(&second, json!(2)).unwrap() && one.finish_job(&third, json!(3)).unwrap());
    // A stop lets the other go on at once, and does not count.
    one.of(LOCAL).enqueue(new_job(2)).unwrap();
    let (job, lease) = one.lease_job("work").unwrap().unwrap();
    assert!(one.forget_attempt(&job).unwrap());
    drop(lease);
    one.close();
    assert_eq!(two.lease_job("work").unwrap().unwrap().0.attempts, 1);
    assert!(matches!(one.lease_job("work"), Err(StoreError::Stopped)));
}

#[test]
fn two_servers_at_once_leave_one_of_each() {
    let Some(stores) = two_stores() else { return };
    for round in 0..10 {
        let name = format!("docs {round}");
        let made = std::thread::scope(|scope| {
            let make = |at: usize| {
                let (store, name) = (stores[at].1.clone(), name.clone());
                scope.spawn(move || store.of(LOCAL).create_collection(&name, BTreeMap::new()).is_ok())
            };
            [make(0), make(1)].map(|made| made.join().unwrap())
        });
        assert_ne!(made[0], made[1], "a name is taken once");
        let id = stores[0].1.of(LOCAL).collection(&name).unwrap().id;
        let files = [0, 1].map(|at| file(&*stores[at].1, "a.md", name.as_bytes()).id);
        let added = std::thread::scope(|scope| {
            let add = |at: usize| {
                let (store, id, file) = (stores[at].1.clone(), id.clone(), files[at].clone());
                scope.spawn(move || store.of(LOCAL).add_document(&id, &file, BTreeMap::new(), None).unwrap())
            };
            [add(0), add(1)].map(|added| added.join().unwrap())
        });
        let new = added.iter().filter(|upload| matches!(upload, Upload::New(_))).count();
        assert_eq!(new, 1, "the same bytes are one document");
        assert_eq!(stores[1].1.of(LOCAL).num_documents(Some(&id)).unwrap(), 1);
    }
}

#[test]
fn changing_deleting_and_reading_at_once_ends_in_one_state() {
    let Some(stores) = two_stores() else { return };
    let id = stores[0].1.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap().id;
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (store, id) = (stores[worker % 2].1.clone(), id.clone());
            scope.spawn(move || {
                let own = store.of(LOCAL);
                for round in 0..12 {
                    let text = format!("text {worker} {round}");
                    let added = file(&*store, "a.md", text.as_bytes()).id;
                    own.add_document(&id, &added, BTreeMap::new(), None).unwrap();
                    own.replace_chunks(&id, &added, &embedding(), vec![chunk(&text), chunk(&text)], &[]).unwrap();
                    match round % 4 {
                        0 => drop(own.delete_file(&added).unwrap().unwrap()),
                        1 => drop(own.delete_document(&id, &added).unwrap()),
                        2 => drop(own.set_document_attributes(&id, &added, attributes(&[])).unwrap()),
                        _ => {}
                    }
                }
            });
        }
    });
    let store = &stores[1].1;
    assert_eq!(store.of(LOCAL).num_documents(Some(&id)).unwrap(), 4 * 6);
    assert_eq!(store.chunk_ids(&id).unwrap().len(), 4 * 6 * 2);
    assert_eq!(words(&**store, &id, "text").len(), 10);
    let deleted = store.vector_search().unwrap().versions(&[&id, "none"]).unwrap();
    assert_eq!(deleted, [4 * (12 + 3 + 3 + 3), 0], "every change of what is found counts");
}

#[test]
fn vectors_are_found_exactly_in_a_small_collection_and_by_the_index_in_a_large_one() {
    let Some([(_one, store), _]) = two_stores() else { return };
    let search = store.vector_search().unwrap();
    let own = store.of(LOCAL);
    let small = own.create_collection("small", BTreeMap::new()).unwrap().id;
    let unit = |angle: f32| vec![angle.cos(), angle.sin()];
    let new = |angle: f32| NewChunk { vector: unit(angle), ..chunk("text") };
    let added = file(&*store, "a.md", b"a").id;
    own.add_document(&small, &added, attributes(&[("year", AttributeValue::Number(2024.0))]), None).unwrap();
    let chunks = (0..20).map(|number| new(number as f32 / 10.0)).collect();
    let ids = own.replace_chunks(&small, &added, &embedding(), chunks, &[]).unwrap().added;
    let nearest = |filter: Option<&AttributeFilter>, limit| {
        let scope = Scope { collection_id: &small, filter };
        search.nearest(scope, &embedding(), &unit(0.52), limit).unwrap()
    };
    let found = nearest(None, 3);
    assert_eq!(found, [ids[5], ids[6], ids[4]]);
    let year = |number| AttributeFilter::Compare {
        key: "year".into(),
        comparison: Comparison::Eq,
        value: AttributeValue::Number(number),
    };
    assert_eq!(nearest(Some(&year(2024.0)), 3), found);
    assert!(nearest(Some(&year(2025.0)), 3).is_empty());
    let other = EmbeddingIdentity { name: "other".into(), dimensions: 2 };
    let scope = Scope { collection_id: &small, filter: None };
    assert!(search.nearest(scope, &other, &unit(0.0), 3).unwrap().is_empty());
}

#[test]
fn servers_that_start_together_make_the_tables_once_and_a_newer_schema_is_refused() {
    let directories = [0; 4].map(|_| TempDir::new().unwrap());
    let Some(shared) = database(&directories[0]) else { return };
    let opened: Vec<_> = std::thread::scope(|scope| {
        let shared = &shared;
        let open = |directory: &TempDir| {
            let path = directory.path().to_owned();
            scope.spawn(move || Store::connect(shared, &path, None).unwrap())
        };
        let opening: Vec<_> = directories.iter().map(open).collect();
        opening.into_iter().map(|opened| opened.join().unwrap()).collect()
    });
    // Each looks again every second.
    while opened.iter().any(|store| store.cluster().unwrap().num_replicas() != 4) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(matches!(Store::connect(&shared, directories[0].path(), None), Err(StoreError::Locked { .. })));
    assert_eq!(opened[0].tamper("INSERT INTO schema_steps (number) VALUES (99)"), 1);
    let late = TempDir::new().unwrap();
    let refused = Store::connect(&shared, late.path(), None).unwrap_err();
    assert!(matches!(refused, StoreError::NewerShared { .. }), "{refused}");
    let report = shared.inspect().unwrap();
    assert_eq!((report.replicas.len(), report.has_synchronous_standby), (4, false));
}

#[test]
fn all_servers_hash_keys_with_one_secret() {
    let Some([(_one, one), (_two, two)]) = two_stores() else { return };
    let [one, two] = [&one, &two].map(|store| store.cluster().unwrap());
    assert!(one.agrees_on_secret(&[1; 32]).unwrap() && two.agrees_on_secret(&[1; 32]).unwrap());
    assert!(!two.agrees_on_secret(&[2; 32]).unwrap(), "the first one counts");
}

/// Vectors in clusters, as those of texts are: their nearest neighbours are near.
fn clustered(count: usize, dimensions: usize, random: &mut StdRng) -> Vec<Vec<f32>> {
    let gaussian = |random: &mut StdRng| (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
    let centres: Vec<Vec<f32>> =
        (0..(count / 100).max(1)).map(|_| (0..dimensions).map(|_| gaussian(random)).collect()).collect();
    let near = |random: &mut StdRng| {
        let centre = &centres[random.random_range(0..centres.len())];
        let vector: Vec<f32> = centre.iter().map(|value| value + 0.7 * gaussian(random)).collect();
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        vector.into_iter().map(|value| value / length).collect()
    };
    (0..count).map(|_| near(random)).collect()
}

/// `HEARTH_TEST_VECTORS` says how many vectors, of 384 dimensions; without it there are a few thousand short ones.
#[test]
fn filtered_searches_find_what_is_nearest() {
    const QUERIES: usize = 100;
    const CHUNKS: usize = 50;
    let Some([(_one, store), _]) = two_stores() else { return };
    let asked = std::env::var("HEARTH_TEST_VECTORS").ok().and_then(|number| number.parse().ok());
    let (count, dimensions) = asked.map_or((24_000, 16), |count: usize| (count, 384));
    let random = &mut StdRng::seed_from_u64(1);
    let mut vectors = clustered(count + QUERIES, dimensions, random);
    let queries = vectors.split_off(count);
    let model = EmbeddingIdentity { name: "clustered".into(), dimensions };
    let own = store.of(LOCAL);
    let id = own.create_collection("docs", BTreeMap::new()).unwrap().id;
    let mut keys = Vec::new();
    for (number, vectors) in vectors.chunks(CHUNKS).enumerate() {
        let added = file(&*store, "a.md", number.to_string().as_bytes()).id;
        let part = AttributeValue::Number((number % 100) as f64);
        own.add_document(&id, &added, attributes(&[("part", part)]), None).unwrap();
        let chunks = vectors.iter().map(|vector| NewChunk { vector: vector.clone(), ..chunk("text") }).collect();
        keys.extend(own.replace_chunks(&id, &added, &model, chunks, &[]).unwrap().added);
    }
    let shared = database(&_one).unwrap();
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The stores may be building it themselves.
    while store.tamper("SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('vectors_s1') AND indisvalid") == 0 {
        runtime.block_on(super::vectors::build_indexes(&shared, 1)).unwrap();
    }
    eprintln!("{count} vectors of {dimensions} dimensions indexed in {:?}", began.elapsed());
    store.tamper("ANALYZE");
    for percent in [1, 10, 50, 100] {
        let filter = AttributeFilter::Compare {
            key: "part".into(),
            comparison: Comparison::Lt,
            value: AttributeValue::Number(f64::from(percent)),
        };
        let scope = Scope { collection_id: &id, filter: (percent < 100).then_some(&filter) };
        let (mut found, mut times) = (0, Vec::new());
        for query in &queries {
            let dot = |vector: &Vec<f32>| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
            let passes = |number: usize| number / CHUNKS % 100 < percent as usize;
            let mut exact: Vec<(f32, u64)> = vectors
                .iter()
                .enumerate()
                .filter(|(number, _)| passes(*number))
                .map(|(n, v)| (dot(v), keys[n]))
                .collect();
            exact.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            let began = Instant::now();
            let hits = store.vector_search().unwrap().nearest(scope, &model, query, 10).unwrap();
            times.push(began.elapsed());
            assert_eq!(hits.len(), 10);
            found += exact[..10].iter().filter(|(_, key)| hits.contains(key)).count();
        }
        times.sort_unstable();
        let recall = found as f64 / (10 * QUERIES) as f64;
        eprintln!(
            "filter of {percent} %: recall@10 {recall:.3}, median {:?}, 95 % {:?}",
            times[QUERIES / 2],
            times[QUERIES * 95 / 100]
        );
        assert!(recall >= 0.98, "{percent} %: {recall}");
    }
}
