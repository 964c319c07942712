//! Jobs: work that outlives the request that asked for it, and the process.
//!
//! A worker that takes a job gets a [`Lease`] with it and holds the job until the lease is dropped, for whatever
//! reason. The attempt number tells the current holder from earlier ones, whose reports are ignored. A job's progress events
//! are kept in order. Follow-up work at a job's end, such as a notification, is another job that is enqueued in the same
//! transaction.

use std::{any::Any, fmt};

use serde_json::Value;

use super::Result;

/// A job to be enqueued.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewJob {
    /// Selects the worker, such as `ingest`.
    pub kind: String,
    /// What the worker needs to know.
    pub payload: Value,
    /// The kind of the job that is enqueued when this one has ended, however it ended, with the payload `{"job_id":
    /// ...}`.
    pub followed_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: String,
    pub kind: String,
    pub payload: Value,
    /// The caller on whose behalf it runs.
    pub owner: String,
    pub state: JobState,
    /// The number of attempts so far.
    pub attempts: u32,
    pub created_ms: i64,
    pub updated_ms: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    Queued,
    Running,
    Done { result: Value },
    Failed { error: String },
    Cancelled,
}

/// A worker's hold on a job. When it is dropped, an unfinished job can be taken again.
pub struct Lease {
    _held: Box<dyn Any + Send + Sync>,
}

impl Lease {
    /// `held` releases the job when it is dropped.
    pub(super) fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// The jobs of all owners, as workers see them.
pub trait JobQueue {
    /// Takes a job of a kind that has lost its worker, or else the one that has waited longest. `None` if there is
    /// nothing to do now. The caller holds the job as long as it keeps the lease.
    fn lease_job(&self, kind: &str) -> Result<Option<(Job, Lease)>>;

    /// Whether this attempt is the job's current one: a cancelled job has none.
    fn holds_job(&self, job: &Job) -> Result<bool>;

    /// Ends a job that this worker holds. `false` if it no longer holds it.
    fn finish_job(&self, job: &Job, result: Value) -> Result<bool>;

    /// Records a failed attempt: the job waits for a retry or, with `retry_after_ms` of `None`, fails for good. `false`
    /// if this worker no longer holds it.
    fn fail_job(&self, job: &Job, error: &str, retry_after_ms: Option<i64>) -> Result<bool>;

    /// Cancels a job that this worker holds and whose work has become moot. `false` if the worker no longer holds it.
    fn drop_job(&self, job: &Job) -> Result<bool>;

    /// Uncounts an attempt that was interrupted through no fault of the job. The job still runs.
    fn forget_attempt(&self, job: &Job) -> Result<bool>;

    /// Delays a job for lack of disk space: the attempt does not count. `false` if this worker no longer holds it.
    fn put_off_job(&self, job: &Job, reason: &str, for_ms: i64) -> Result<bool>;

    /// Unfinished jobs of a kind: of all owners, and of this one.
    fn num_unended_jobs(&self, kind: &str, owner: &str) -> Result<(usize, usize)>;

    /// Appends a progress event; returns its number, from 0, or `None` if this worker no longer holds the job: a
    /// finished job reports nothing more.
    fn add_job_event(&self, job: &Job, event: &Value) -> Result<Option<u64>>;
}

/// The jobs of an owner.
pub trait Jobs {
    fn enqueue(&self, job: NewJob) -> Result<Job>;

    /// Ends an unfinished job. `false` if it has ended already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn cancel_job(&self, id: &str) -> Result<bool>;

    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn job(&self, id: &str) -> Result<Job>;

    /// Jobs of a kind, the newest first.
    fn jobs(&self, kind: &str, limit: usize) -> Result<Vec<Job>>;

    /// A job's progress events, from event `first` on.
    fn job_events(&self, id: &str, first: u64) -> Result<Vec<(u64, Value)>>;
}
