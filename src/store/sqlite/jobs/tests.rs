//! Jobs through the store's interface: which worker holds one, what ends it, and that no job waits forever.

use std::collections::BTreeMap;

use hearth_domain::{
    LOCAL,
    documents::{DocumentStatus, EmbeddingIdentity, NewChunk, StoredFile},
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::{INGEST, Member, Storage, Upload, Uploads};

fn open(directory: &TempDir) -> SqliteStore {
    SqliteStore::open(directory.path(), None).unwrap()
}

fn new_job(kind: &str, n: i32) -> NewJob {
    NewJob { kind: kind.to_owned(), payload: json!({"n": n}), followed_by: None }
}

#[test]
fn a_job_is_held_by_one_worker_and_survives_it() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let take = |store: &SqliteStore| store.lease_job("ingest").unwrap();
    let first = store.of(LOCAL).enqueue(new_job("ingest", 1)).unwrap();
    let (held, lease) = take(&store).unwrap();
    assert_eq!((&held.id, held.attempts, &held.state), (&first.id, 1, &JobState::Running));
    assert!(store.holds_job(&held).unwrap());
    assert!(take(&store).is_none() && store.lease_job("other").unwrap().is_none());
    // The machine's clock does not affect a lease.
    store.tamper("UPDATE jobs SET leased_until = 0, updated = 0, run_after = 0");
    assert!(take(&store).is_none());
    drop(lease);
    let (again, _lease) = take(&store).expect("its worker was lost");
    assert_eq!((&again.id, again.attempts), (&first.id, 2));
    drop(store);

    let store = open(&directory);
    let (third, lease) = take(&store).expect("its process is gone");
    assert_eq!((&third.id, third.attempts), (&first.id, 3));
    for stale in [&held, &again] {
        assert!(!store.holds_job(stale).unwrap() && !store.finish_job(stale, json!(1)).unwrap());
        assert!(!store.fail_job(stale, "late", None).unwrap() && !store.drop_job(stale).unwrap());
        assert_eq!(store.add_job_event(stale, &json!("late")).unwrap(), None);
    }
    assert!(store.fail_job(&third, "no luck", Some(0)).unwrap());
    drop(lease);
    let (fourth, _lease) = take(&store).unwrap();
    for number in 0..3 {
        assert_eq!(store.add_job_event(&fourth, &json!({"step": number})).unwrap(), Some(number));
    }
    assert!(store.fail_job(&fourth, "never", None).unwrap());
    assert_eq!(store.add_job_event(&fourth, &json!({"step": 3})).unwrap(), None, "what has ended says nothing further");
    assert_eq!(store.of(LOCAL).job(&first.id).unwrap().state, JobState::Failed { error: "never".into() });
    assert_eq!(store.of(LOCAL).job_events(&first.id, 1).unwrap(), [(1, json!({"step": 1})), (2, json!({"step": 2}))]);

    let second = store.of(LOCAL).enqueue(new_job("ingest", 2)).unwrap();
    let (second, _lease) = take(&store).filter(|(job, _)| job.id == second.id).unwrap();
    assert!(store.of(LOCAL).cancel_job(&second.id).unwrap() && !store.of(LOCAL).cancel_job(&second.id).unwrap());
    assert!(!store.finish_job(&second, json!({})).unwrap(), "a cancelled job has no result");
    assert_eq!(store.of(LOCAL).jobs("ingest", 10).unwrap().len(), 2);
}

#[test]
fn a_clock_that_is_set_back_does_not_put_a_retry_off() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    store.of(LOCAL).enqueue(new_job("ingest", 0)).unwrap();
    let (job, lease) = store.lease_job("ingest").unwrap().unwrap();
    assert!(store.fail_job(&job, "not yet", Some(3_600_000)).unwrap());
    drop(lease);
    assert!(store.lease_job("ingest").unwrap().is_none(), "in an hour");
    // The attempt failed at what is now tomorrow.
    store.tamper("UPDATE jobs SET updated = updated + 86400000, run_after = run_after + 86400000");
    assert!(store.lease_job("ingest").unwrap().is_some());
}

fn file(store: &SqliteStore, bytes: &[u8]) -> StoredFile {
    let mut incoming = store.receive_file(0).unwrap();
    incoming.write(bytes).unwrap();
    store.of(LOCAL).keep_file(incoming, "a.md", "assistants").unwrap()
}

fn add(store: &SqliteStore, collection: &str, file: &StoredFile, supersedes: Option<&str>) -> Upload {
    store.of(LOCAL).add_document(collection, &file.id, BTreeMap::new(), supersedes).unwrap()
}

/// Payloads of the ingest jobs, in the order in which they are taken.
fn to_read(store: &SqliteStore) -> Vec<Value> {
    let taken: Vec<_> = std::iter::from_fn(|| store.lease_job(INGEST).unwrap()).collect();
    taken.into_iter().map(|(job, _lease)| job.payload).collect()
}

/// A store with an unread document whose job was cancelled, as a lost lease could once do. Beside it one that has been
/// read, one that has failed and one that waits with its job.
fn with_a_stuck_document(directory: &TempDir) -> (SqliteStore, String, StoredFile) {
    let store = open(directory);
    let own = store.of(LOCAL);
    let collection = own.create_collection("docs", BTreeMap::new()).unwrap().id;
    let chunk = || NewChunk { text: "words".into(), heading: String::new(), place: None, tokens: 1, vector: vec![1.0] };
    let files = [&b"old"[..], b"failed", b"stuck", b"waits"].map(|bytes| file(&store, bytes));
    for (number, file) in files.iter().enumerate() {
        let supersedes = (number == 2).then_some(&files[0].id[..]);
        assert!(matches!(add(&store, &collection, file, supersedes), Upload::New(_)));
    }
    let embedding = EmbeddingIdentity { name: "m".into(), dimensions: 1 };
    own.replace_chunks(&collection, &files[0].id, &embedding, vec![chunk()], &[]).unwrap();
    assert!(own.fail_document(&collection, &files[1].id, "invalid_file", "no text in it").unwrap());
    assert!(!own.fail_document(&collection, &files[1].id, "server_error", "once more").unwrap());
    for number in 0..3 {
        let end = "UPDATE jobs SET state = 'cancelled' WHERE payload ->> 'file_id' =";
        assert_eq!(store.tamper(&format!("{end} '{}'", files[number].id)), 1);
    }
    let [_, _, stuck, _] = files;
    assert_eq!(own.document(&collection, &stuck.id).unwrap().status, DocumentStatus::Processing);
    drop(own);
    (store, collection, stuck)
}

#[test]
fn a_document_without_a_job_gets_one_at_start() {
    let directory = TempDir::new().unwrap();
    let (store, collection, stuck) = with_a_stuck_document(&directory);
    let before: Value = store
        .read(|connection| {
            let sql = "SELECT payload FROM jobs WHERE payload ->> 'file_id' = ?";
            let payload: String = connection.query_row(sql, [&stuck.id], |row| row.get(0))?;
            Ok(serde_json::from_str(&payload).unwrap())
        })
        .unwrap();
    assert_eq!(before["supersedes"].as_array().unwrap().len(), 1);
    let waiting = to_read(&store);
    assert!(waiting.len() == 1 && waiting[0]["file_id"] != stuck.id.as_str());
    drop(store);
    for _ in 0..2 {
        let store = open(&directory);
        let payloads = to_read(&store);
        assert_eq!(payloads.len(), 2, "one more than before, and the second start finds nothing missing: {payloads:?}");
        assert!(payloads.contains(&before) && payloads.contains(&waiting[0]));
        assert_eq!(store.of(LOCAL).jobs(INGEST, 9).unwrap().len(), 5);
        assert_eq!(store.of(LOCAL).num_documents(Some(&collection)).unwrap(), 4);
    }
}

#[test]
fn the_same_bytes_once_more_give_a_stuck_document_a_job() {
    let directory = TempDir::new().unwrap();
    let (store, collection, stuck) = with_a_stuck_document(&directory);
    let again = file(&store, b"stuck");
    for _ in 0..2 {
        match add(&store, &collection, &again, None) {
            Upload::Known(known) => {
                assert_eq!((known.file_id, known.status), (stuck.id.clone(), DocumentStatus::Processing));
            }
            Upload::New(document) => panic!("{document:?}"),
        }
        let of_it = to_read(&store).into_iter().filter(|payload| payload["file_id"] == stuck.id.as_str()).count();
        assert_eq!(of_it, 1);
    }
    store.tamper("UPDATE jobs SET state = 'failed' WHERE state IN ('queued', 'running')");
    let member = Member { file_id: stuck.id, attributes: BTreeMap::new() };
    store.of(LOCAL).attach_document(&collection, member).unwrap();
    assert_eq!(to_read(&store).len(), 1, "and so does its file, as a member of a vector store");
}

/// What happens to jobs and workers. The numbers choose among what exists.
#[derive(Clone, Debug)]
enum Happening {
    Enqueue,
    Lease,
    /// A current or former holder ends the job, each variant in its own way.
    Finish(usize),
    Fail(usize),
    Retry(usize),
    Drop(usize),
    Forget(usize),
    Look(usize),
    Say(usize),
    /// The owner.
    Cancel(usize),
    /// The worker vanishes silently.
    Lose(usize),
    /// The process restarts.
    Restart,
    SetClockBack,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let some = 0_usize..1000;
    let happening = prop_oneof![
        4 => Just(Happening::Enqueue),
        8 => Just(Happening::Lease),
        3 => some.clone().prop_map(Happening::Finish),
        2 => some.clone().prop_map(Happening::Fail),
        3 => some.clone().prop_map(Happening::Retry),
        2 => some.clone().prop_map(Happening::Drop),
        1 => some.clone().prop_map(Happening::Forget),
        2 => some.clone().prop_map(Happening::Look),
        1 => some.clone().prop_map(Happening::Say),
        2 => some.clone().prop_map(Happening::Cancel),
        4 => some.prop_map(Happening::Lose),
        1 => Just(Happening::Restart),
        1 => Just(Happening::SetClockBack),
    ];
    proptest::collection::vec(happening, 1..40)
}

/// A worker's view of a job, which it may keep after it has lost the job.
struct Attempt {
    job: Job,
    lease: Option<Lease>,
    /// The last answer to whether it holds the job; once false, it stays false.
    holds: bool,
}

struct World {
    directory: TempDir,
    store: Option<SqliteStore>,
    attempts: Vec<Attempt>,
    /// How often each job has ended.
    ends: BTreeMap<String, u32>,
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let store = Some(open(&directory));
        Self { directory, store, attempts: Vec::new(), ends: BTreeMap::new() }
    }

    fn store(&self) -> &SqliteStore {
        self.store.as_ref().unwrap()
    }

    fn take(&mut self) -> bool {
        let Some((job, lease)) = self.store().lease_job("work").unwrap() else { return false };
        assert_eq!(self.ends[&job.id], 0, "what has ended is not taken");
        for earlier in self.attempts.iter_mut().filter(|earlier| earlier.job.id == job.id) {
            assert!(earlier.lease.is_none(), "two hold one job");
            earlier.holds = false;
        }
        self.attempts.push(Attempt { job, lease: Some(lease), holds: true });
        true
    }

    /// An attempt reports what only the holder may.
    fn says(&mut self, which: usize, ends: bool, keeps: bool, says: impl FnOnce(&SqliteStore, &Job) -> bool) {
        let count = self.attempts.len();
        if count == 0 {
            return;
        }
        let attempt = &self.attempts[which % count];
        let is_heard = says(self.store(), &attempt.job);
        assert_eq!(is_heard, attempt.holds, "{:?}", attempt.job);
        let id = attempt.job.id.clone();
        if is_heard && ends {
            *self.ends.get_mut(&id).unwrap() += 1;
        }
        let attempt = &mut self.attempts[which % count];
        if !keeps {
            (attempt.holds, attempt.lease) = (false, None);
        }
    }

    fn happens(&mut self, happening: &Happening) {
        match *happening {
            Happening::Enqueue => {
                let job = NewJob { followed_by: Some("follower".into()), ..new_job("work", 0) };
                let enqueued = self.store().of(LOCAL).enqueue(job).unwrap();
                self.ends.insert(enqueued.id, 0);
            }
            Happening::Lease => drop(self.take()),
            Happening::Finish(which) => {
                self.says(which, true, false, |store, job| store.finish_job(job, json!(1)).unwrap());
            }
            Happening::Fail(which) => {
                self.says(which, true, false, |store, job| store.fail_job(job, "bad", None).unwrap());
            }
            Happening::Retry(which) => {
                self.says(which, false, false, |store, job| store.fail_job(job, "not yet", Some(0)).unwrap());
            }
            Happening::Drop(which) => self.says(which, true, false, |store, job| store.drop_job(job).unwrap()),
            Happening::Forget(which) => {
                // The attempt number no longer identifies earlier attempts.
                self.says(which, false, false, |store, job| store.forget_attempt(job).unwrap());
                let ids: Vec<String> = self.attempts.iter().map(|attempt| attempt.job.id.clone()).collect();
                if let Some(id) = ids.get(which % ids.len().max(1)) {
                    self.attempts.retain(|attempt| attempt.job.id != *id);
                }
            }
            Happening::Look(which) => self.says(which, false, true, |store, job| store.holds_job(job).unwrap()),
            Happening::Say(which) => {
                self.says(which, false, true, |store, job| store.add_job_event(job, &json!(1)).unwrap().is_some());
            }
            Happening::Cancel(which) => {
                let count = self.ends.len();
                let Some(id) = self.ends.keys().nth(which % count.max(1)).cloned() else { return };
                let has_ended = self.ends[&id] > 0;
                assert_eq!(self.store().of(LOCAL).cancel_job(&id).unwrap(), !has_ended);
                *self.ends.get_mut(&id).unwrap() = 1;
                self.attempts
                    .iter_mut()
                    .filter(|attempt| attempt.job.id == id)
                    .for_each(|attempt| attempt.holds = false);
            }
            Happening::Lose(which) => {
                let count = self.attempts.len();
                if count > 0 {
                    self.attempts[which % count].lease = None;
                }
            }
            Happening::Restart => {
                self.store = None;
                self.store = Some(open(&self.directory));
                self.attempts.iter_mut().for_each(|attempt| attempt.lease = None);
            }
            Happening::SetClockBack => {
                let later = "UPDATE jobs SET updated = updated + 86400000, run_after = run_after + 86400000";
                self.store().tamper(&format!("{later} WHERE state = 'queued'"));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_job_ends_once_by_its_holder_or_its_owner_and_can_always_end(happenings in happenings()) {
        let mut world = World::new();
        for happening in &happenings {
            world.happens(happening);
            let store = world.store();
            for (id, ends) in &world.ends {
                let job = store.of(LOCAL).job(id).unwrap();
                let has_ended = !matches!(job.state, JobState::Queued | JobState::Running);
                prop_assert_eq!(has_ended, *ends == 1, "{:?} after {} ends", job, ends);
            }
            let followers = store.of(LOCAL).jobs("follower", 1000).unwrap().len();
            prop_assert_eq!(followers, world.ends.values().filter(|ends| **ends > 0).count());
        }
        // All leases are dropped: then every job can be taken, and ended.
        world.attempts.clear();
        while world.take() {
            let last = world.attempts.len() - 1;
            world.happens(&Happening::Finish(last));
        }
        prop_assert!(world.ends.values().all(|ends| *ends == 1), "{:?}", world.ends);
        prop_assert_eq!(world.store().num_unended_jobs("work", LOCAL).unwrap(), (0, 0));
    }
}
