//! Jobs: what ends one, what follows it, and whose turn it is.

use serde_json::json;

use super::*;

fn new_job(kind: &str, n: i32) -> NewJob {
    NewJob { kind: kind.to_owned(), payload: json!({"n": n}), followed_by: None }
}

#[test]
fn however_a_job_ends_what_follows_it_begins_once() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let new = || NewJob { followed_by: Some("webhook".into()), ..new_job("analysis", 0) };
    let lease = |kind: &str| store.lease_job(kind).unwrap().map(|(job, _lost)| job);
    let ends: [&dyn Fn(&Job); 5] = [
        &|job| assert!(store.finish_job(job, json!({})).unwrap()),
        &|job| assert!(store.fail_job(job, "never", None).unwrap()),
        &|job| assert!(store.drop_job(job).unwrap()),
        &|job| assert!(store.of(LOCAL).cancel_job(&job.id).unwrap()),
        // A retry, taken first.
        &|job| {
            assert!(store.fail_job(job, "not yet", Some(0)).unwrap());
            assert_eq!(lease("webhook"), None);
            assert!(store.finish_job(&lease("analysis").unwrap(), json!({})).unwrap());
        },
    ];
    for end in ends {
        store.of(LOCAL).enqueue(new()).unwrap();
        let job = lease("analysis").unwrap();
        assert_eq!(lease("webhook"), None);
        end(&job);
        let follower = lease("webhook").unwrap();
        assert_eq!(follower.payload, json!({"job_id": job.id}));
        assert!(!store.of(LOCAL).cancel_job(&job.id).unwrap() && !store.finish_job(&job, json!({})).unwrap());
        assert!(store.finish_job(&follower, json!({})).unwrap());
        assert_eq!(lease("webhook"), None);
    }
    assert_eq!(
        (store.num_unended_jobs("analysis", LOCAL).unwrap().0, store.of(LOCAL).jobs("analysis", 9).unwrap().len()),
        (0, 5)
    );
}

#[test]
fn an_attempt_that_was_broken_off_does_not_count() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    store.of(LOCAL).enqueue(new_job("ingest", 0)).unwrap();
    for _ in 0..3 {
        let (job, _lease) = store.lease_job("ingest").unwrap().unwrap();
        assert_eq!(job.attempts, 1);
        assert!(store.forget_attempt(&job).unwrap() && !store.forget_attempt(&job).unwrap());
    }
}

#[test]
fn owners_have_their_turns_however_much_each_has_waiting() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let job = || new_job("ingest", 1);
    for (owner, count) in [("many", 50), ("few", 2), ("one", 1)] {
        for _ in 0..count {
            store.of(owner).enqueue(job()).unwrap();
        }
    }
    let take = || store.lease_job("ingest").unwrap().expect("a job waits");
    // Two workers, as in the server: while one works on a job of an owner, the other takes another owner's.
    let mut order = Vec::new();
    let (mut first, mut second) = (take(), take());
    for _ in 0..4 {
        assert_ne!(first.0.owner, second.0.owner);
        order.push(first.0.owner.clone());
        assert!(store.finish_job(&first.0, json!({})).unwrap());
        drop(first.1);
        first = std::mem::replace(&mut second, take());
    }
    order.extend([first.0.owner, second.0.owner]);
    let of = |owner: &str| order.iter().filter(|had| *had == owner).count();
    assert_eq!((of("few"), of("one")), (2, 1), "{order:?}");
}
