//! Workers: panics, cancellation, and what happens to a job whose worker is lost.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use hearth_domain::{LOCAL, part::RESTARTS_MAX, usage::NoSink};

fn open(directory: &TempDir) -> Arc<Jobs> {
    let store = Store::open(directory.path()).unwrap();
    Jobs::new(store.clone(), Callers::new(store), Arc::new(NoSink))
}

/// Waits until a job is as expected.
async fn until(jobs: &Arc<Jobs>, job: &Job, is_so: impl Fn(&Job) -> bool) -> Job {
    let mut changes = jobs.changes();
    loop {
        changes.mark_unchanged();
        let found = jobs.of(LOCAL).find(job_kind(job), &job.id).await.unwrap();
        if is_so(&found) {
            return found;
        }
        changes.changed().await.unwrap();
    }
}

fn job_kind(job: &Job) -> &'static str {
    ["clumsy", "gated", "faulty"].into_iter().find(|kind| *kind == job.kind).unwrap()
}

/// Panics at its first job, completes the second, and is interrupted at the third.
#[derive(Debug, Default)]
struct Clumsy(AtomicUsize);

impl Worker for Clumsy {
    fn kind(&self) -> &'static str {
        "clumsy"
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        assert_ne!(turn, 0, "not my day");
        async move {
            progress.report(&json!({"turn": turn})).await;
            if job.payload == json!("endless") { std::future::pending().await } else { Ok(json!(turn)) }
        }
        .boxed()
    }

    fn retries(&self) -> &[Duration] {
        &[]
    }
}

#[tokio::test]
async fn a_panic_fails_its_job_alone_and_a_stop_leaves_the_job_as_it_is() {
    let directory = TempDir::new().unwrap();
    let jobs = open(&directory);
    jobs.start(Arc::new(Clumsy::default()), 1);
    let first = jobs.of(LOCAL).enqueue("clumsy", json!(1)).await.unwrap();
    let reason = "a fault of Hearth's own: assertion `left != right` failed: not my day";
    let failed = until(&jobs, &first, has_ended).await;
    assert!(matches!(failed.state, JobState::Failed { error } if error.starts_with(reason)));
    let second = jobs.of(LOCAL).enqueue("clumsy", json!(2)).await.unwrap();
    assert_eq!(until(&jobs, &second, has_ended).await.state, JobState::Done { result: json!(1) });

    let third = jobs.of(LOCAL).enqueue("clumsy", json!("endless")).await.unwrap();
    let mut changes = jobs.changes();
    while jobs.of(LOCAL).events(&third.id, 0).await.unwrap().is_empty() {
        changes.changed().await.unwrap();
    }
    assert_eq!(until(&jobs, &third, |_| true).await.attempts, 1);
    jobs.stop();
    let stopped = until(&jobs, &third, |job| job.attempts == 0).await;
    assert_eq!(stopped.state, JobState::Running);
    assert_eq!(jobs.num_unended("clumsy", LOCAL).await.unwrap(), (1, 1));
    assert_eq!(jobs.parts(), [PartReport { name: "work at `clumsy` jobs".into(), panics: 0, failure: None }]);
}

/// Reports which job it starts, and runs it when the gate lets it.
struct Gated {
    begun: mpsc::UnboundedSender<(String, u32)>,
    gate: Arc<Semaphore>,
}

impl Worker for Gated {
    fn kind(&self) -> &'static str {
        "gated"
    }

    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        async move {
            self.begun.send((job.id.clone(), job.attempts)).unwrap();
            self.gate.acquire().await.unwrap().forget();
            progress.report(&json!({"attempt": job.attempts})).await;
            Ok(json!(job.attempts))
        }
        .boxed()
    }
}

/// Two workers, the jobs that they start, and their gate.
fn start_gated(jobs: &Arc<Jobs>) -> (mpsc::UnboundedReceiver<(String, u32)>, Arc<Semaphore>) {
    let (begun, begins) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    jobs.start(Arc::new(Gated { begun, gate: gate.clone() }), 2);
    (begins, gate)
}

#[tokio::test]
async fn a_clock_that_jumps_takes_no_job_from_its_worker() {
    let directory = TempDir::new().unwrap();
    let jobs = open(&directory);
    let (mut begins, gate) = start_gated(&jobs);
    let first = jobs.of(LOCAL).enqueue("gated", json!(1)).await.unwrap();
    assert_eq!(begins.recv().await.unwrap(), (first.id.clone(), 1));
    // As if the machine had slept for a day: every time in the row is long past.
    assert_eq!(jobs.store.tamper("UPDATE jobs SET leased_until = 1, run_after = 1, updated = 1"), 1);
    let second = jobs.of(LOCAL).enqueue("gated", json!(2)).await.unwrap();
    assert_eq!(begins.recv().await.unwrap(), (second.id.clone(), 1), "the other worker takes what is free");
    gate.add_permits(2);
    for job in [&first, &second] {
        let done = until(&jobs, job, has_ended).await;
        assert_eq!((done.state, done.attempts), (JobState::Done { result: json!(1) }, 1));
    }
    assert!(begins.try_recv().is_err(), "each was done once");
}

#[tokio::test]
async fn who_has_lost_a_job_writes_nothing_more_of_it_and_cancels_nothing() {
    let directory = TempDir::new().unwrap();
    let jobs = open(&directory);
    let (mut begins, gate) = start_gated(&jobs);
    let followed = NewJob { kind: "gated".into(), payload: json!(1), followed_by: Some("follower".into()) };
    let job = jobs.of(LOCAL).enqueue_job(followed).await.unwrap();
    assert_eq!(begins.recv().await.unwrap(), (job.id.clone(), 1));
    // As if another worker had taken it.
    assert_eq!(jobs.store.tamper("UPDATE jobs SET attempts = attempts + 1"), 1);
    jobs.wake_workers();
    assert_eq!(begins.recv().await.unwrap(), (job.id.clone(), 3), "its worker has let go of it");
    gate.add_permits(1);
    let done = until(&jobs, &job, has_ended).await;
    assert_eq!((done.state, done.attempts), (JobState::Done { result: json!(3) }, 3));
    assert_eq!(jobs.of(LOCAL).events(&job.id, 0).await.unwrap(), [(0, json!({"attempt": 3}))]);
    assert_eq!(jobs.num_unended("follower", LOCAL).await.unwrap(), (1, 1));
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_runs_frees_its_worker() {
    let directory = TempDir::new().unwrap();
    let jobs = open(&directory);
    let (mut begins, gate) = start_gated(&jobs);
    let mut running = Vec::new();
    for number in 0..2 {
        running.push(jobs.of(LOCAL).enqueue("gated", json!(number)).await.unwrap());
        begins.recv().await.unwrap();
    }
    let waiting = jobs.of(LOCAL).enqueue("gated", json!(2)).await.unwrap();
    assert!(jobs.of(LOCAL).cancel("gated", &running[0].id).await.unwrap());
    assert_eq!(begins.recv().await.unwrap(), (waiting.id.clone(), 1));
    gate.add_permits(2);
    for job in [&running[1], &waiting] {
        assert_eq!(until(&jobs, job, has_ended).await.state, JobState::Done { result: json!(1) });
    }
    assert_eq!(until(&jobs, &running[0], has_ended).await.state, JobState::Cancelled);
}

/// Fails, and then panics in its retry policy, outside the guarded attempt, a number of times.
struct Faulty(Arc<AtomicUsize>);

impl Worker for Faulty {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn work(&self, job: Job, _: Progress) -> BoxFuture<'_, Result<Value, Failure>> {
        let is_well = self.0.load(Ordering::Acquire) == 0;
        async move { if is_well { Ok(json!(job.attempts)) } else { Err(Failure::Passing("not yet".into())) } }.boxed()
    }

    fn retries(&self) -> &[Duration] {
        self.0.fetch_sub(1, Ordering::AcqRel);
        panic!("asked to panic")
    }
}

/// The delays after panics pass at once.
#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_outside_of_an_attempt_goes_on_and_says_how_it_is() {
    let directory = TempDir::new().unwrap();
    let jobs = open(&directory);
    let panics = Arc::new(AtomicUsize::new(1));
    jobs.start(Arc::new(Faulty(panics.clone())), 1);
    let job = jobs.of(LOCAL).enqueue("faulty", json!(1)).await.unwrap();
    let done = until(&jobs, &job, has_ended).await;
    assert_eq!((done.state, done.attempts), (JobState::Done { result: json!(2) }, 2), "its job was free again");
    assert_eq!(jobs.parts(), [PartReport { name: "work at `faulty` jobs".into(), panics: 1, failure: None }]);

    panics.store(RESTARTS_MAX + 2, Ordering::Release);
    let mut changes = jobs.changes();
    let job = jobs.of(LOCAL).enqueue("faulty", json!(2)).await.unwrap();
    let failure = loop {
        if let Some(failure) = jobs.parts()[0].failure.clone() {
            break failure;
        }
        changes.changed().await.unwrap();
    };
    assert!(failure.contains("work at `faulty` jobs"), "{failure}");
    assert!(matches!(until(&jobs, &job, has_ended).await.state, JobState::Done { .. }), "it goes on trying");
    while jobs.parts()[0].failure.is_some() {
        tokio::task::yield_now().await;
    }
}
