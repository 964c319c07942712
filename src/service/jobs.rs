//! Jobs: work that continues after the request that asked for it was answered, and after a restart.
//!
//! The store keeps them; they are run here. A [`Worker`] runs the jobs of one kind, several at a time, and holds each
//! for as long as its attempt lasts: if it panics or is dropped, the job is released and taken again. A worker loses a
//! job that is cancelled while it runs: the work is dropped at its next await point, and nothing further of it is
//! written. A transient failure is retried with increasing delays; a permanent one ends the job. A job that lacks disk
//! space waits until there is room. A process that ends leaves its jobs to the next one.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use hearth_domain::{
    Account, CacheUse, RequestContext,
    error::{Error, Result},
    part::{Part, PartReport, panic_message},
    usage::{Outcome, UsageSink},
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::callers::Callers;
use crate::store::{Job, JobState, Lease, NewJob, Owned, Store, StoreError, not_found};

/// A worker checks at this interval, and at every change of any job, whether it still holds its own.
const LOOK_AT_HOLD: Duration = Duration::from_secs(1);
/// A worker's delay after a panic or a store failure.
const AFTER_FAULT: Duration = Duration::from_secs(5);
/// How long a job that lacks disk space waits.
const NO_ROOM_WAIT: Duration = Duration::from_secs(60);
/// How long a job waits for a database that is away.
const AWAY_WAIT: Duration = Duration::from_secs(5);
/// How long stopping workers may take before the store is closed without them.
const STOPPING_MAX: Duration = Duration::from_secs(5);
/// Idle workers poll at this interval, for retries that have become due.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// How often those who follow a job look whether another server has changed it.
const OTHERS_LOOK: Duration = Duration::from_secs(1);
/// The default delay after each failed attempt; after the last of them the job has failed.
const RETRIES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// Why an attempt at a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A retry may succeed.
    Passing(String),
    /// The disk has no room for the output: the job waits for room, however long that takes.
    NoRoom(String),
    /// The database is away: the job waits for it, however long that takes.
    Away(String),
    /// A retry would fail as well.
    Lasting(String),
    /// The work is no longer wanted: its subject is gone.
    Moot,
    /// The server is shutting down: the job is left for the next process.
    Interrupted,
}

/// Runs the jobs of one kind.
pub trait Worker: Send + Sync + 'static {
    /// The kind of [`NewJob`] that it takes.
    fn kind(&self) -> &'static str;

    /// Runs one job from its beginning; an earlier attempt may have been interrupted anywhere. Dropping the future
    /// stops it.
    fn work(&self, job: Job, progress: Progress) -> BoxFuture<'_, Result<Value, Failure>>;

    /// The job has failed for good, for this reason. Called where blocking is allowed.
    fn given_up(&self, _job: &Job, _reason: &str) {}

    /// The delay after each transient failure; after the last of them the job has failed.
    fn retries(&self) -> &[Duration] {
        &RETRIES
    }
}

/// Where a worker reports its progress.
#[derive(Clone, Debug)]
pub struct Progress {
    jobs: Arc<Jobs>,
    job: Job,
    account: Arc<Account>,
}

impl Progress {
    /// Where the attempt's usage is recorded.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Appends a progress event. A report that cannot be stored is no reason to stop.
    pub async fn report(&self, event: &impl Serialize) {
        let (jobs, job) = (self.jobs.clone(), self.job.clone());
        let event = serde_json::to_value(event).unwrap_or_default();
        let stored = blocking(move || jobs.store.add_job_event(&job, &event)).await;
        if let Err(error) = stored {
            tracing::warn!(job = self.job.id, %error, "progress was not stored");
        }
        self.jobs.changed.send_modify(|changes| *changes += 1);
    }
}

/// The jobs of a store, and their workers. There is one per store.
pub struct Jobs {
    store: Arc<Store>,
    /// The tasks of each kind, for the health report.
    parts: Mutex<Vec<Arc<Part>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    callers: Arc<Callers>,
    usage_sink: Arc<dyn UsageSink>,
    new_work: Notify,
    /// Counts changes of any job, so that waiting tasks can look again.
    changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Jobs {
    pub fn new(store: Arc<Store>, callers: Arc<Callers>, usage_sink: Arc<dyn UsageSink>) -> Arc<Self> {
        let (changed, _) = watch::channel(0);
        let (stopping, _) = watch::channel(false);
        let (parts, tasks) = (Mutex::default(), Mutex::default());
        Arc::new(Self { store, parts, tasks, callers, usage_sink, new_work: Notify::new(), changed, stopping })
    }

    /// The jobs that run on this caller's behalf.
    pub fn of<'a>(self: &'a Arc<Self>, owner: &'a str) -> OwnedJobs<'a> {
        OwnedJobs { jobs: self, owner }
    }

    /// A job was enqueued elsewhere: wakes the workers.
    pub fn wake_workers(&self) {
        self.new_work.notify_waiters();
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The number of unfinished jobs of a kind: of all owners, and of this one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn num_unended(self: &Arc<Self>, kind: &'static str, owner: &str) -> Result<(usize, usize)> {
        let (this, owner) = (self.clone(), owner.to_owned());
        blocking(move || this.store.num_unended_jobs(kind, &owner)).await
    }

    /// Changes whenever any job does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Starts `count` tasks that run this worker's jobs until [`Self::stop`].
    pub fn start(self: &Arc<Self>, worker: Arc<dyn Worker>, count: usize) {
        if self.parts.lock().is_empty() {
            let this = self.clone();
            self.tasks.lock().push(tokio::spawn(async move { this.hear_of_others().await }));
        }
        let part = Part::new(format!("work at `{}` jobs", worker.kind()));
        self.parts.lock().push(part.clone());
        for _ in 0..count {
            let (this, worker, part) = (self.clone(), worker.clone(), part.clone());
            let task = tokio::spawn(async move { this.run_guarded(worker, &part).await });
            self.tasks.lock().push(task);
        }
    }

    /// Where servers share the store, jobs change at others as well: wakes workers when they hear of it, and those who follow a job at an
    /// interval, since its events are not announced one by one.
    async fn hear_of_others(&self) {
        let Some(mut changes) = self.store.cluster().map(|cluster| cluster.job_changes()) else { return };
        let mut stopping = self.stopping.subscribe();
        loop {
            tokio::select! {
                changed = tokio::time::timeout(OTHERS_LOOK, changes.changed()) => match changed {
                    Ok(Ok(())) => self.wake_workers(),
                    Ok(Err(_closed)) => return,
                    Err(_elapsed) => self.changed.send_modify(|changes| *changes += 1),
                },
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
            }
        }
    }

    /// The workers' entries in the health report.
    pub fn parts(&self) -> Vec<PartReport> {
        self.parts.lock().iter().map(|part| part.report()).collect()
    }

    /// Takes no more jobs, and drops the running ones: the next process takes them over.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// [`Self::stop`], and waits until the workers have recorded how their attempts ended.
    pub async fn stop_and_wait(&self) {
        self.stop();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        if tokio::time::timeout(STOPPING_MAX, join_all(tasks)).await.is_err() {
            tracing::warn!("a job does not let itself be stopped; it is begun again at the next start");
        }
    }

    /// Whether [`Self::stop`] was called, and a notification when it is.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// A panic outside an attempt ends neither the task nor its later jobs. The job that it held has been released by
    /// then.
    async fn run_guarded(self: Arc<Self>, worker: Arc<dyn Worker>, part: &Part) {
        let mut stopping = self.stopping.subscribe();
        while let Err(panic) = AssertUnwindSafe(self.run(&worker, part)).catch_unwind().await {
            part.panicked(&*panic);
            self.wake_workers();
            self.pause(&mut stopping).await;
        }
    }

    async fn pause(&self, stopping: &mut watch::Receiver<bool>) {
        tokio::select! {
            () = tokio::time::sleep(AFTER_FAULT) => {}
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
        }
    }

    async fn run(self: &Arc<Self>, worker: &Arc<dyn Worker>, part: &Part) {
        let mut stopping = self.stopping.subscribe();
        while !*stopping.borrow_and_update() {
            let woken = self.new_work.notified();
            tokio::pin!(woken);
            // From here on a wake-up counts, even one that arrives while the store is being read.
            woken.as_mut().enable();
            let (this, kind) = (self.clone(), worker.kind());
            match blocking(move || this.store.lease_job(kind)).await {
                Ok(Some((job, lease))) => {
                    self.attempt(worker, job, lease, &mut stopping).await;
                    part.works();
                }
                Ok(None) => {
                    part.works();
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep(IDLE_LOOK) => {}
                        _ = stopping.changed() => {}
                    }
                }
                Err(error) => {
                    tracing::error!(kind, ?error, "no job can be taken");
                    self.pause(&mut stopping).await;
                }
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        worker: &Arc<dyn Worker>,
        job: Job,
        lease: Lease,
        stopping: &mut watch::Receiver<bool>,
    ) {
        let account = self.open_account(&job).await;
        let progress = Progress { jobs: self.clone(), job: job.clone(), account: account.clone() };
        // A panic ends the attempt but not the worker, which has other jobs to run.
        let work = AssertUnwindSafe(async { worker.work(job.clone(), progress).await }).catch_unwind();
        let outcome = tokio::select! {
            // In this order: a job that is taken while the server stops does not start.
            biased;
            _ = stopping.changed() => Some(Err(Failure::Interrupted)),
            () = self.is_lost(&job) => None,
            outcome = work => Some(outcome.unwrap_or_else(|panic| Err(Failure::Passing(panic_reason(&*panic))))),
        };
        account.set_outcome(outcome.as_ref().map_or(Outcome::Cancelled, how_it_ended), None);
        let ended = match outcome {
            // It has ended, or another worker holds it: nothing is written.
            None => Ok(false),
            Some(Ok(result)) => self.end(&job, move |store, job| store.finish_job(job, result)).await,
            Some(Err(Failure::Interrupted)) => {
                let forgotten = self.end(&job, Store::forget_attempt).await;
                // The process is about to end; if it is not, there is no hurry.
                self.pause(stopping).await;
                forgotten
            }
            Some(Err(Failure::NoRoom(reason))) => {
                tracing::warn!(job = job.id, kind = job.kind, reason, retry_in = ?NO_ROOM_WAIT, "a job waits for room");
                let wait = NO_ROOM_WAIT.as_millis() as i64;
                self.end(&job, move |store, job| store.put_off_job(job, &reason, wait)).await
            }
            Some(Err(Failure::Away(reason))) => {
                tracing::warn!(job = job.id, kind = job.kind, reason, retry_in = ?AWAY_WAIT, "a job waits for the database");
                let wait = AWAY_WAIT.as_millis() as i64;
                self.end(&job, move |store, job| store.put_off_job(job, &reason, wait)).await
            }
            Some(Err(Failure::Moot)) => self.end(&job, Store::drop_job).await,
            Some(Err(Failure::Passing(reason))) if job.attempts as usize <= worker.retries().len() => {
                let wait = worker.retries()[(job.attempts as usize).saturating_sub(1)];
                tracing::warn!(job = job.id, kind = job.kind, reason, retry_in = ?wait, "a job's attempt failed");
                let after = wait.as_millis() as i64;
                self.end(&job, move |store, job| store.fail_job(job, &reason, Some(after))).await
            }
            Some(Err(Failure::Passing(reason) | Failure::Lasting(reason))) => {
                tracing::warn!(job = job.id, kind = job.kind, reason, "a job failed");
                let worker = worker.clone();
                let fail = move |store: &Store, job: &Job| {
                    let has_failed = store.fail_job(job, &reason, None)?;
                    // Only the holder may record the outcome.
                    if has_failed {
                        worker.given_up(job, &reason);
                    }
                    Ok(has_failed)
                };
                self.end(&job, fail).await
            }
        };
        if let Err(error) = ended {
            tracing::error!(job = job.id, %error, "how a job ended could not be stored; it will be done again");
            self.pause(stopping).await;
        }
        // Now an unfinished job can be taken again, and a follower can start.
        drop(lease);
        self.wake_workers();
    }

    /// Each attempt has an account of its own, in the name of the job's owner.
    async fn open_account(&self, job: &Job) -> Arc<Account> {
        let opening = RequestContext {
            request_id: job.id.clone(),
            route: format!("job {}", job.kind),
            caller: self.callers.of_id(&job.owner).await,
            fairness_key: job.kind.clone(),
            policy: None,
            is_recorded: true,
            cache_use: CacheUse::default(),
            is_local_only: false,
            session: None,
        };
        Account::open(self.usage_sink.clone(), opening)
    }

    /// Stores how an attempt ended. `false` if this worker no longer held the job.
    async fn end(
        self: &Arc<Self>,
        job: &Job,
        how: impl FnOnce(&Store, &Job) -> Result<bool, StoreError> + Send + 'static,
    ) -> Result<bool> {
        let (this, job) = (self.clone(), job.clone());
        blocking(move || how(&*this.store, &job)).await
    }

    /// Resolves when this worker no longer holds a job, because it was cancelled.
    async fn is_lost(self: &Arc<Self>, job: &Job) {
        let mut changes = self.changes();
        loop {
            // A change of any job, or a timeout: both are reasons to look.
            let _any = tokio::time::timeout(LOOK_AT_HOLD, changes.changed()).await;
            let (this, job) = (self.clone(), job.clone());
            if let Ok(false) = blocking(move || this.store.holds_job(&job)).await {
                return;
            }
        }
    }
}

/// The jobs of one caller. Other callers' jobs do not exist here.
#[derive(Clone, Copy, Debug)]
pub struct OwnedJobs<'a> {
    jobs: &'a Arc<Jobs>,
    owner: &'a str,
}

impl OwnedJobs<'_> {
    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Owned) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T> {
        let (jobs, owner) = (self.jobs.clone(), self.owner.to_owned());
        blocking(move || work(&*jobs.store.of(&owner))).await
    }

    /// # Errors
    /// If the store cannot keep it.
    pub async fn enqueue(&self, kind: &'static str, payload: Value) -> Result<Job> {
        self.enqueue_job(NewJob { kind: kind.to_owned(), payload, followed_by: None }).await
    }

    /// [`Self::enqueue`] for a job with a follower.
    ///
    /// # Errors
    /// If the store cannot keep it.
    pub async fn enqueue_job(&self, job: NewJob) -> Result<Job> {
        let job = self.stored(move |store| store.enqueue(job)).await?;
        self.jobs.wake_workers();
        Ok(job)
    }

    /// Ends a job of a kind. `false` if it has ended already.
    ///
    /// # Errors
    /// 404 if there is no such job.
    pub async fn cancel(&self, kind: &'static str, id: &str) -> Result<bool> {
        let id = self.find(kind, id).await?.id;
        let cancelled = self.stored(move |store| store.cancel_job(&id)).await?;
        self.jobs.wake_workers();
        Ok(cancelled)
    }

    /// # Errors
    /// 404 if there is no such job of this kind.
    pub async fn find(&self, kind: &'static str, id: &str) -> Result<Job> {
        let asked = id.to_owned();
        let job = self.stored(move |store| store.job(&asked)).await?;
        if job.kind == kind { Ok(job) } else { Err(not_found("job", id)) }
    }

    /// Jobs of a kind, the newest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, kind: &'static str, limit: usize) -> Result<Vec<Job>> {
        self.stored(move |store| store.jobs(kind, limit)).await
    }

    /// A job's progress events, from event `first` on.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn events(&self, id: &str, first: u64) -> Result<Vec<(u64, Value)>> {
        let id = id.to_owned();
        self.stored(move |store| store.job_events(&id, first)).await
    }
}

fn how_it_ended(outcome: &Result<Value, Failure>) -> Outcome {
    match outcome {
        Ok(_) => Outcome::Finished,
        Err(Failure::Passing(_) | Failure::NoRoom(_) | Failure::Away(_) | Failure::Lasting(_)) => Outcome::Failed,
        Err(Failure::Moot | Failure::Interrupted) => Outcome::Cancelled,
    }
}

/// Whether a job has ended.
pub fn has_ended(job: &Job) -> bool {
    !matches!(job.state, JobState::Queued | JobState::Running)
}

/// Runs blocking work, such as store calls, where blocking is allowed.
///
/// # Errors
/// The store's own, as the caller is told.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?.map_err(Error::from)
}

fn panic_reason(panic: &(dyn std::any::Any + Send)) -> String {
    format!("a fault of Hearth's own: {}", panic_message(panic))
}

#[cfg(test)]
mod tests;
