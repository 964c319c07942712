//! Jobs, leased by the database's clock.
//!
//! One column says when a job may be taken: `ready_at` is when it may be tried while it waits, when its lease ends while it runs, and
//! NULL once it has ended. A replica renews its leases while it lives; one that dies or is cut off loses them after seconds, and what it
//! reports then is ignored, because a lease is its worker and the number of the attempt. A lease that is dropped is given back by the
//! next statement about leases.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use deadpool_postgres::Pool;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_postgres::{GenericClient, Row, Transaction};

use super::{PostgresStore, owned::PostgresOwned, presence::CHANNEL, storable, values, within};
use crate::store::{Job, JobQueue, JobState, Jobs, Lease, NewJob, Result, StoreError, new_id};

/// How long a lease lasts that is not renewed.
const LEASE_MS: i64 = 20_000;
/// How often leases are renewed: a renewal may fail three times.
const RENEWAL: Duration = Duration::from_millis(LEASE_MS as u64 / 4);

/// Pause after a renewal that failed.
const AFTER_FAULT: Duration = Duration::from_secs(1);

const COLUMNS: &str = "id, kind, payload, state, attempts, result, error, created, updated, owner";

fn read_row(row: &Row) -> Job {
    let state = match row.get(3) {
        "running" => JobState::Running,
        "done" => JobState::Done { result: row.get::<_, Option<Value>>(5).unwrap_or_default() },
        "failed" => JobState::Failed { error: row.get::<_, Option<String>>(6).unwrap_or_default() },
        "cancelled" => JobState::Cancelled,
        _ => JobState::Queued,
    };
    Job {
        id: row.get(0),
        kind: row.get(1),
        payload: row.get(2),
        state,
        attempts: row.get::<_, i32>(4) as u32,
        created_ms: row.get(7),
        updated_ms: row.get(8),
        owner: row.get(9),
    }
}

fn not_found(id: &str) -> StoreError {
    StoreError::NotFound { what: "job", id: id.to_owned() }
}

async fn find_owned(client: &impl GenericClient, owner: &str, id: &str) -> Result<Job> {
    let query = format!("SELECT {COLUMNS} FROM jobs WHERE id = $1 AND owner = $2");
    let rows = client.query_typed(&query, values![TEXT id, TEXT owner]).await?;
    rows.first().map(read_row).ok_or_else(|| not_found(id))
}

pub(super) async fn enqueue(transaction: &Transaction<'_>, owner: &str, job: &NewJob) -> Result<Job> {
    let insert = format!(
        "WITH now AS (SELECT now_ms() AS ms)
         INSERT INTO jobs (id, owner, kind, payload, state, ready_at, followed_by, created, updated)
         SELECT $1, $2, $3, $4, 'queued', ms, $5, ms, ms FROM now RETURNING {COLUMNS}"
    );
    let id = new_id("job_");
    let parameters = values![TEXT id, TEXT owner, TEXT job.kind, JSON job.payload, TEXT job.followed_by];
    let rows = transaction.query_typed(&insert, parameters).await?;
    say_changed(transaction).await?;
    rows.first().map(read_row).ok_or_else(|| not_found(&id))
}

/// Tells all replicas, once this transaction is committed, that a job was enqueued or has ended.
async fn say_changed(transaction: &Transaction<'_>) -> Result<()> {
    transaction.query_typed("SELECT pg_notify($1, '')", values![TEXT CHANNEL]).await?;
    Ok(())
}

/// Enqueues a finished job's follower.
async fn enqueue_follower(transaction: &Transaction<'_>, id: &str) -> Result<()> {
    let asked = "SELECT followed_by, owner FROM jobs WHERE id = $1";
    let rows = transaction.query_typed(asked, values![TEXT id]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    if let Some(kind) = row.get::<_, Option<String>>(0) {
        let follower = NewJob { kind, payload: json!({"job_id": id}), followed_by: None };
        enqueue(transaction, row.get(1), &follower).await?;
    }
    Ok(())
}

/// The leases of this process.
#[derive(Debug)]
pub(super) struct Leases {
    /// Names this process's leases.
    worker: String,
    held: Mutex<HeldLeases>,
    is_dropped: Notify,
    /// Held by what gives back or renews, so that no lease is renewed that was given back.
    changing: tokio::sync::Mutex<()>,
}

/// The jobs and attempts that are held.
#[derive(Debug, Default)]
struct HeldLeases {
    /// By a number of each lease: after an attempt that does not count, the next one has the same number.
    by_number: HashMap<u64, (String, i32)>,
    next: u64,
    /// Dropped, and not given back yet.
    dropped: Vec<(String, i32)>,
}

impl Leases {
    pub(super) fn new(worker: String) -> Arc<Self> {
        let (held, changing) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self { worker, held, is_dropped: Notify::new(), changing })
    }

    fn hold(self: &Arc<Self>, job: &Job) -> Lease {
        let held = &mut *self.held.lock();
        held.next += 1;
        held.by_number.insert(held.next, (job.id.clone(), job.attempts as i32));
        Lease::new(Hold { leases: Arc::downgrade(self), number: held.next })
    }

    /// The number of this attempt's lease. Found before the attempt ends: another one may have its job and its number of attempts then.
    fn number(&self, job: &Job) -> Option<u64> {
        let held = self.held.lock();
        held.by_number
            .iter()
            .find(|(_, (id, attempts))| *id == job.id && *attempts == job.attempts as i32)
            .map(|(n, _)| *n)
    }

    /// The attempt has ended: there is nothing to renew, or to give back.
    fn forget(&self, number: Option<u64>) {
        drop(number.and_then(|number| self.held.lock().by_number.remove(&number)));
    }
}

/// What a [`Lease`] holds.
struct Hold {
    leases: Weak<Leases>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(leases) = self.leases.upgrade() else { return };
        let held = &mut *leases.held.lock();
        if let Some(unended) = held.by_number.remove(&self.number) {
            held.dropped.push(unended);
            leases.is_dropped.notify_one();
        }
    }
}

/// Gives dropped leases back, so that an unfinished job can be taken at once.
pub(super) async fn give_back(leases: &Leases, pool: &Pool) -> Result<()> {
    if leases.held.lock().dropped.is_empty() {
        return Ok(());
    }
    let _changing = leases.changing.lock().await;
    let dropped = std::mem::take(&mut leases.held.lock().dropped);
    let given = async {
        let (ids, attempts): (Vec<&str>, Vec<i32>) = dropped.iter().map(|(id, number)| (&**id, *number)).unzip();
        let free = "UPDATE jobs SET ready_at = now_ms() FROM unnest($1::text[], $2::int[]) AS dropped (id, attempts)
             WHERE jobs.id = dropped.id AND jobs.attempts = dropped.attempts AND worker = $3 AND state = 'running'";
        let parameters = values![TEXT_ARRAY ids, INT4_ARRAY attempts, TEXT leases.worker];
        pool.get().await?.execute_typed(free, parameters).await?;
        Ok(())
    };
    let given = given.await;
    if given.is_err() {
        leases.held.lock().dropped.extend(dropped);
    }
    given
}

/// Renews the leases of this process, and gives back those that are dropped, until its store is dropped.
pub(super) async fn renew(leases: Weak<Leases>, pool: Pool) {
    let mut renewed_at = Instant::now();
    loop {
        let Some(here) = leases.upgrade() else { return };
        // Either is a reason to look.
        let _either =
            tokio::time::timeout(RENEWAL.saturating_sub(renewed_at.elapsed()), here.is_dropped.notified()).await;
        if pool.is_closed() {
            return;
        }
        let is_due = renewed_at.elapsed() >= RENEWAL;
        let done = async {
            give_back(&here, &pool).await?;
            let _changing = here.changing.lock().await;
            let (ids, attempts): (Vec<String>, Vec<i32>) = here.held.lock().by_number.values().cloned().unzip();
            if is_due && !ids.is_empty() {
                // A job that a transaction is changing is passed over: what it waits for must not end the other leases.
                let renew = "UPDATE jobs SET ready_at = now_ms() + $4 WHERE id IN (
                        SELECT jobs.id FROM jobs JOIN unnest($1::text[], $2::int[]) AS held (id, attempts)
                            ON jobs.id = held.id AND jobs.attempts = held.attempts
                        WHERE worker = $3 AND state = 'running' ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED)";
                let parameters = values![TEXT_ARRAY ids, INT4_ARRAY attempts, TEXT here.worker, INT8 LEASE_MS];
                pool.get().await?.execute_typed(renew, parameters).await?;
            }
            Ok::<_, StoreError>(())
        };
        match within(done).await {
            Ok(()) if is_due => renewed_at = Instant::now(),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "leases of jobs could not be renewed; another server takes the jobs when the leases end");
                tokio::time::sleep(AFTER_FAULT).await;
            }
        }
    }
}

/// Owners with jobs of a kind that can be taken, in their turns: fewest jobs running first, among equals the one whose last job was taken
/// the longest ago. Each step of the recursion is one index look-up for the next owner, however many jobs an owner has.
async fn owners_in_turn(transaction: &Transaction<'_>, kind: &str) -> Result<Vec<String>> {
    let owners = "WITH RECURSIVE clock AS MATERIALIZED (SELECT now_ms() AS ms), waiting (owner) AS (
            (SELECT owner FROM jobs WHERE kind = $1 AND ready_at IS NOT NULL ORDER BY owner LIMIT 1)
            UNION ALL
            SELECT (SELECT owner FROM jobs WHERE kind = $1 AND ready_at IS NOT NULL AND owner > waiting.owner ORDER BY owner LIMIT 1)
            FROM waiting WHERE owner IS NOT NULL
         )
         SELECT owner FROM waiting, clock
         WHERE owner IS NOT NULL AND EXISTS (
            SELECT 1 FROM jobs WHERE kind = $1 AND jobs.owner = waiting.owner AND ready_at <= clock.ms)
         ORDER BY
            (SELECT count(*) FROM jobs
                WHERE kind = $1 AND jobs.owner = waiting.owner AND state = 'running' AND ready_at > clock.ms),
            (SELECT max(taken) FROM jobs WHERE kind = $1 AND jobs.owner = waiting.owner AND taken IS NOT NULL) NULLS FIRST,
            owner";
    Ok(transaction.query_typed(owners, values![TEXT kind]).await?.iter().map(|row| row.get(0)).collect())
}

/// Takes a job of an owner: one that has lost its worker, or else the oldest. `None` if other workers have taken them all.
async fn take(transaction: &Transaction<'_>, kind: &str, owner: &str, worker: &str) -> Result<Option<Job>> {
    // A job that another worker takes is passed over; the conditions are looked at again when the row is locked.
    let take = format!(
        "UPDATE jobs SET state = 'running', attempts = attempts + 1, ready_at = now_ms() + $3, taken = now_ms(), worker = $4,
            updated = now_ms()
         WHERE id = (
            SELECT id FROM jobs WHERE kind = $1 AND owner = $2 AND ready_at <= (SELECT now_ms())
            ORDER BY state DESC, ready_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
         RETURNING {COLUMNS}"
    );
    let rows = transaction.query_typed(&take, values![TEXT kind, TEXT owner, INT8 LEASE_MS, TEXT worker]).await?;
    Ok(rows.first().map(read_row))
}

impl PostgresStore {
    /// Ends an attempt that this worker holds. `false` if it no longer holds it.
    fn end_job(&self, job: &Job, state: &str, result: Option<&Value>, error: Option<&str>) -> Result<bool> {
        let (error, number) = (error.map(storable), self.leases.number(job));
        let ended = self.write(async |transaction| {
            let end = "UPDATE jobs SET state = $4, result = $5, error = coalesce($6, error), ready_at = NULL, updated = now_ms()
                 WHERE id = $1 AND attempts = $2 AND worker = $3 AND state = 'running'";
            let attempts = job.attempts as i32;
            let error = error.as_deref();
            let parameters =
                values![TEXT job.id, INT4 attempts, TEXT self.leases.worker, TEXT state, JSON result, TEXT error];
            let ended = transaction.execute_typed(end, parameters).await? > 0;
            if ended {
                enqueue_follower(transaction, &job.id).await?;
                say_changed(transaction).await?;
            }
            Ok(ended)
        })?;
        self.leases.forget(number);
        Ok(ended)
    }

    /// Puts an attempt that this worker holds off. `false` if it no longer holds it.
    fn wait_again(&self, job: &Job, uncounted: i32, reason: &str, for_ms: i64) -> Result<bool> {
        let (reason, number) = (storable(reason), self.leases.number(job));
        let waits = self.write(async |transaction| {
            let wait = "UPDATE jobs SET state = 'queued', attempts = attempts - $4, error = $5, ready_at = now_ms() + $6,
                    updated = now_ms()
                 WHERE id = $1 AND attempts = $2 AND worker = $3 AND state = 'running'";
            let attempts = job.attempts as i32;
            let parameters =
                values![TEXT job.id, INT4 attempts, TEXT self.leases.worker, INT4 uncounted, TEXT &*reason, INT8 for_ms];
            Ok(transaction.execute_typed(wait, parameters).await? > 0)
        })?;
        self.leases.forget(number);
        Ok(waits)
    }
}

impl JobQueue for PostgresStore {
    fn lease_job(&self, kind: &str) -> Result<Option<(Job, Lease)>> {
        self.runtime.block_on(give_back(&self.leases, &self.duties))?;
        let taken = self.write(async |transaction| {
            for owner in owners_in_turn(transaction, kind).await? {
                if let Some(job) = take(transaction, kind, &owner, &self.leases.worker).await? {
                    return Ok(Some(job));
                }
            }
            Ok(None)
        })?;
        Ok(taken.map(|job| {
            let lease = self.leases.hold(&job);
            (job, lease)
        }))
    }

    fn holds_job(&self, job: &Job) -> Result<bool> {
        self.read(async |client| {
            let held = "SELECT 1 FROM jobs WHERE id = $1 AND attempts = $2 AND worker = $3 AND state = 'running'";
            let parameters = values![TEXT job.id, INT4 job.attempts as i32, TEXT self.leases.worker];
            Ok(!client.query_typed(held, parameters).await?.is_empty())
        })
    }

    fn finish_job(&self, job: &Job, result: Value) -> Result<bool> {
        self.end_job(job, "done", Some(&result), None)
    }

    fn fail_job(&self, job: &Job, error: &str, retry_after_ms: Option<i64>) -> Result<bool> {
        match retry_after_ms {
            Some(after) => self.wait_again(job, 0, error, after),
            None => self.end_job(job, "failed", None, Some(error)),
        }
    }

    fn drop_job(&self, job: &Job) -> Result<bool> {
        self.end_job(job, "cancelled", None, None)
    }

    fn forget_attempt(&self, job: &Job) -> Result<bool> {
        let number = self.leases.number(job);
        let forgotten = self.write(async |transaction| {
            let forget = "UPDATE jobs SET attempts = attempts - 1, ready_at = now_ms()
                 WHERE id = $1 AND attempts = $2 AND worker = $3 AND state = 'running'";
            let parameters = values![TEXT job.id, INT4 job.attempts as i32, TEXT self.leases.worker];
            Ok(transaction.execute_typed(forget, parameters).await? > 0)
        })?;
        self.leases.forget(number);
        Ok(forgotten)
    }

    fn put_off_job(&self, job: &Job, reason: &str, for_ms: i64) -> Result<bool> {
        self.wait_again(job, 1, reason, for_ms)
    }

    fn num_unended_jobs(&self, kind: &str, owner: &str) -> Result<(usize, usize)> {
        self.read(async |client| {
            let count = "SELECT count(*), count(*) FILTER (WHERE owner = $1) FROM jobs WHERE kind = $2 AND ready_at IS NOT NULL";
            let rows = client.query_typed(count, values![TEXT owner, TEXT kind]).await?;
            Ok((rows[0].get::<_, i64>(0) as usize, rows[0].get::<_, i64>(1) as usize))
        })
    }

    fn add_job_event(&self, job: &Job, event: &Value) -> Result<Option<u64>> {
        self.write(async |transaction| {
            // The fence, the number and the order are one locked row.
            let add = "WITH held AS (
                    UPDATE jobs SET events = events + 1 WHERE id = $1 AND attempts = $2 AND worker = $3 AND state = 'running'
                    RETURNING events - 1 AS number)
                 INSERT INTO job_events (job_id, number, event, created) SELECT $1, number, $4, now_ms() FROM held
                 RETURNING number";
            let parameters = values![TEXT job.id, INT4 job.attempts as i32, TEXT self.leases.worker, JSON event];
            let rows = transaction.query_typed(add, parameters).await?;
            Ok(rows.first().map(|row| row.get::<_, i64>(0) as u64))
        })
    }
}

impl Jobs for PostgresOwned<'_> {
    fn enqueue(&self, job: NewJob) -> Result<Job> {
        self.store.write(async |transaction| enqueue(transaction, self.access.owner, &job).await)
    }

    fn cancel_job(&self, id: &str) -> Result<bool> {
        self.store.write(async |transaction| {
            find_owned(transaction, self.access.owner, id).await?;
            let cancel = "UPDATE jobs SET state = 'cancelled', ready_at = NULL, updated = now_ms()
                 WHERE id = $1 AND state IN ('queued', 'running')";
            let ended = transaction.execute_typed(cancel, values![TEXT id]).await? > 0;
            if ended {
                enqueue_follower(transaction, id).await?;
                say_changed(transaction).await?;
            }
            Ok(ended)
        })
    }

    fn job(&self, id: &str) -> Result<Job> {
        self.store.read(async |client| find_owned(client, self.access.owner, id).await)
    }

    fn jobs(&self, kind: &str, limit: usize) -> Result<Vec<Job>> {
        self.store.read(async |client| {
            let order = "ORDER BY created DESC, id DESC LIMIT $3";
            let sql = format!("SELECT {COLUMNS} FROM jobs WHERE owner = $1 AND kind = $2 {order}");
            let parameters = values![TEXT self.access.owner, TEXT kind, INT8 limit as i64];
            Ok(client.query_typed(&sql, parameters).await?.iter().map(read_row).collect())
        })
    }

    fn job_events(&self, id: &str, first: u64) -> Result<Vec<(u64, Value)>> {
        self.store.read(async |client| {
            let sql = "SELECT number, event FROM job_events JOIN jobs ON jobs.id = job_id
                 WHERE job_id = $1 AND owner = $2 AND number >= $3 ORDER BY number";
            let parameters = values![TEXT id, TEXT self.access.owner, INT8 first as i64];
            let rows = client.query_typed(sql, parameters).await?;
            Ok(rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect())
        })
    }
}
