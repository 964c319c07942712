//! Jobs, and which of them are held.
//!
//! Leases are in memory and use no clock: no other process has the store open, so a running job without a lease has lost its worker,
//! in this process or in an earlier one, and the next worker takes it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::{Value, json};

use super::{SqliteOwned, SqliteStore, documents};
use crate::store::{Job, JobQueue, JobState, Jobs, Lease, NewJob, Result, StoreError, new_id, now_ms};

const COLUMNS: &str = "id, kind, payload, state, attempts, result, error, created, updated, owner";

fn read_row(row: &Row<'_>) -> rusqlite::Result<Job> {
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let state = match row.get_ref(3)?.as_str()? {
        "running" => JobState::Running,
        "done" => JobState::Done { result: json(row.get(5)?) },
        "failed" => JobState::Failed { error: row.get::<_, Option<String>>(6)?.unwrap_or_default() },
        "cancelled" => JobState::Cancelled,
        _ => JobState::Queued,
    };
    Ok(Job {
        id: row.get(0)?,
        kind: row.get(1)?,
        payload: json(row.get(2)?),
        state,
        attempts: row.get(4)?,
        created_ms: row.get(7)?,
        updated_ms: row.get(8)?,
        owner: row.get(9)?,
    })
}

fn find(connection: &Connection, id: &str) -> Result<Job> {
    let query = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?");
    let found = connection.query_row(&query, [id], read_row).optional()?;
    found.ok_or_else(|| StoreError::NotFound { what: "job", id: id.to_owned() })
}

fn find_owned(connection: &Connection, owner: &str, id: &str) -> Result<Job> {
    let found = find(connection, id)?;
    if found.owner == owner { Ok(found) } else { Err(StoreError::NotFound { what: "job", id: id.to_owned() }) }
}

pub(super) fn enqueue(connection: &Connection, owner: &str, job: &NewJob) -> Result<Job> {
    let (id, now) = (new_id("job_"), now_ms());
    connection.execute(
        "INSERT INTO jobs (id, kind, payload, state, run_after, created, updated, followed_by, owner)
         VALUES (?1, ?2, ?3, 'queued', ?4, ?4, ?4, ?5, ?6)",
        params![id, job.kind, job.payload.to_string(), now, job.followed_by, owner],
    )?;
    find(connection, &id)
}

/// Whether this attempt is the job's current one.
fn is_held(connection: &Connection, job: &Job) -> Result<bool> {
    let held = "SELECT count(*) FROM jobs WHERE id = ? AND attempts = ? AND state = 'running'";
    Ok(connection.query_row(held, params![job.id, job.attempts], |row| row.get::<_, u64>(0))? > 0)
}

/// Enqueues a finished job's follower.
fn enqueue_follower(connection: &Connection, id: &str) -> Result<()> {
    let asked = "SELECT followed_by, owner FROM jobs WHERE id = ?";
    let (kind, owner): (Option<String>, String) =
        connection.query_row(asked, [id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if let Some(kind) = kind {
        enqueue(connection, &owner, &NewJob { kind, payload: json!({"job_id": id}), followed_by: None })?;
    }
    Ok(())
}

/// The jobs held by workers of this process; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Holders>>);

/// Which jobs are held, and which owners had turns.
#[derive(Debug, Default)]
struct Holders {
    /// The owner of each job that is held.
    owners: HashMap<String, String>,
    /// When a job of each owner was last taken.
    turns: HashMap<String, u64>,
    turn: u64,
}

/// Owners whose last turn is remembered; beyond this number all start over as equals.
const TURNS_MAX: usize = 4096;

impl Leases {
    /// `None` if another worker holds the job.
    fn take(&self, id: &str, owner: &str) -> Option<Lease> {
        let holders = &mut *self.0.lock();
        match holders.owners.entry(id.to_owned()) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => place.insert(owner.to_owned()),
        };
        if holders.turns.len() >= TURNS_MAX {
            holders.turns.clear();
        }
        holders.turn += 1;
        holders.turns.insert(owner.to_owned(), holders.turn);
        Some(Lease::new(Hold { leases: self.clone(), id: id.to_owned() }))
    }

    /// Orders owners by turn: fewest jobs held first, among equals the longest waiting.
    fn in_turn(&self, owners: &mut [String]) {
        let holders = &*self.0.lock();
        owners.sort_by_cached_key(|owner| {
            let held = holders.owners.values().filter(|holder| *holder == owner).count();
            (held, holders.turns.get(owner).copied().unwrap_or(0))
        });
    }
}

/// What a [`Lease`] holds.
struct Hold {
    leases: Leases,
    id: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.leases.0.lock().owners.remove(&self.id);
    }
}

/// How long a finished job is remembered.
const REMEMBERED_MS: i64 = 30 * 24 * 3600 * 1000;

/// The next job of a kind, with its lease: first jobs that have lost their worker, then the oldest of the owner whose
/// turn it is, so that an owner with thousands of documents does not block one with a few.
fn next_job(transaction: &Transaction<'_>, kind: &str, leases: &Leases) -> Result<Option<(String, Lease)>> {
    let mut lost = transaction
        .prepare("SELECT id, owner FROM jobs WHERE kind = ? AND state = 'running' ORDER BY run_after, id")?;
    let mut rows = lost.query([kind])?;
    while let Some(row) = rows.next()? {
        let (id, owner): (String, String) = (row.get(0)?, row.get(1)?);
        if let Some(lease) = leases.take(&id, &owner) {
            return Ok(Some((id, lease)));
        }
    }
    let mut owners = waiting_owners(transaction, kind)?;
    leases.in_turn(&mut owners);
    // A job whose last change lies in the future was delayed before the clock was set back. It may be taken at once, so
    // that no wait becomes longer than intended.
    let mut waiting = transaction.prepare(
        "SELECT id FROM jobs WHERE kind = ?1 AND state = 'queued' AND owner = ?2 AND (run_after <= ?3 OR updated > ?3)
         ORDER BY run_after, id",
    )?;
    let now = now_ms();
    for owner in owners {
        let mut rows = waiting.query(params![kind, owner, now])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            if let Some(lease) = leases.take(&id, &owner) {
                return Ok(Some((id, lease)));
            }
        }
    }
    Ok(None)
}

/// Owners with waiting jobs of a kind. Each step is one index look-up for the next owner, however many jobs an owner
/// has.
fn waiting_owners(transaction: &Transaction<'_>, kind: &str) -> Result<Vec<String>> {
    let mut query = transaction.prepare(
        "WITH RECURSIVE waiting (owner) AS (
            SELECT min(owner) FROM jobs WHERE kind = ?1 AND state = 'queued'
            UNION ALL
            SELECT (SELECT min(owner) FROM jobs WHERE kind = ?1 AND state = 'queued' AND owner > waiting.owner)
            FROM waiting WHERE owner IS NOT NULL
         ) SELECT owner FROM waiting WHERE owner IS NOT NULL",
    )?;
    Ok(query.query_map([kind], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

impl SqliteStore {
    /// No other process has this store open: jobs that ran before this start are not running any more and can be taken
    /// again. An unread document without a job gets a new one. Jobs that ended long ago are deleted, and so are the rights of
    /// tokens that were presented as long ago.
    pub(super) fn take_over_jobs(&self) -> Result<()> {
        let unread = self.write_essential(|transaction| {
            // What a document was to supersede is recorded in its earlier jobs.
            let unread = documents::enqueue_unread(transaction)?;
            let forget = "DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND updated < ?";
            transaction.execute(forget, [now_ms() - REMEMBERED_MS])?;
            // Their jobs have ended by now.
            transaction.execute("DELETE FROM token_callers WHERE seen < ?", [now_ms() - REMEMBERED_MS])?;
            Ok(unread)
        })?;
        if unread > 0 {
            tracing::warn!(documents = unread, "documents were waiting to be read without a job; they have one now");
        }
        Ok(())
    }
}

impl JobQueue for SqliteStore {
    fn lease_job(&self, kind: &str) -> Result<Option<(Job, Lease)>> {
        let (kind, leases) = (kind.to_owned(), self.leases.clone());
        self.write(move |transaction| {
            let Some((id, lease)) = next_job(transaction, &kind, &leases)? else { return Ok(None) };
            let take = "UPDATE jobs SET state = 'running', attempts = attempts + 1, updated = ? WHERE id = ?";
            transaction.execute(take, params![now_ms(), id])?;
            Ok(Some((find(transaction, &id)?, lease)))
        })
    }

    fn holds_job(&self, job: &Job) -> Result<bool> {
        self.read(|connection| is_held(connection, job))
    }

    fn finish_job(&self, job: &Job, result: Value) -> Result<bool> {
        let (id, attempts) = (job.id.clone(), job.attempts);
        self.write(move |transaction| {
            let finish = "UPDATE jobs SET state = 'done', result = ?, updated = ?
                 WHERE id = ? AND attempts = ? AND state = 'running'";
            let ended = transaction.execute(finish, params![result.to_string(), now_ms(), id, attempts])? > 0;
            if ended {
                enqueue_follower(transaction, &id)?;
            }
            Ok(ended)
        })
    }

    fn fail_job(&self, job: &Job, error: &str, retry_after_ms: Option<i64>) -> Result<bool> {
        let (id, attempts, error) = (job.id.clone(), job.attempts, error.to_owned());
        self.write(move |transaction| {
            let now = now_ms();
            let state = if retry_after_ms.is_some() { "queued" } else { "failed" };
            let fail = "UPDATE jobs SET state = ?, error = ?, run_after = ?, updated = ?
                 WHERE id = ? AND attempts = ? AND state = 'running'";
            let run_after = now + retry_after_ms.unwrap_or(0);
            let failed = transaction.execute(fail, params![state, error, run_after, now, id, attempts])? > 0;
            if failed && retry_after_ms.is_none() {
                enqueue_follower(transaction, &id)?;
            }
            Ok(failed)
        })
    }

    fn drop_job(&self, job: &Job) -> Result<bool> {
        let (id, attempts) = (job.id.clone(), job.attempts);
        self.write(move |transaction| {
            let drop = "UPDATE jobs SET state = 'cancelled', updated = ?
                 WHERE id = ? AND attempts = ? AND state = 'running'";
            let ended = transaction.execute(drop, params![now_ms(), id, attempts])? > 0;
            if ended {
                enqueue_follower(transaction, &id)?;
            }
            Ok(ended)
        })
    }

    fn forget_attempt(&self, job: &Job) -> Result<bool> {
        let (id, attempts) = (job.id.clone(), job.attempts);
        self.write(move |transaction| {
            let forget = "UPDATE jobs SET attempts = attempts - 1 WHERE id = ? AND attempts = ? AND state = 'running'";
            Ok(transaction.execute(forget, params![id, attempts])? > 0)
        })
    }

    fn put_off_job(&self, job: &Job, reason: &str, for_ms: i64) -> Result<bool> {
        let (id, attempts, reason) = (job.id.clone(), job.attempts, reason.to_owned());
        self.write(move |transaction| {
            let now = now_ms();
            let put_off =
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1, error = ?, run_after = ?, updated = ?
                 WHERE id = ? AND attempts = ? AND state = 'running'";
            Ok(transaction.execute(put_off, params![reason, now + for_ms, now, id, attempts])? > 0)
        })
    }

    fn num_unended_jobs(&self, kind: &str, owner: &str) -> Result<(usize, usize)> {
        self.read(|connection| {
            let count = "SELECT count(*), count(*) FILTER (WHERE owner = ?) FROM jobs
                WHERE kind = ? AND state IN ('queued', 'running')";
            Ok(connection.query_row(count, [owner, kind], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })
    }

    fn add_job_event(&self, job: &Job, event: &Value) -> Result<Option<u64>> {
        let (job, event) = (job.clone(), event.to_string());
        self.write(move |transaction| {
            if !is_held(transaction, &job)? {
                return Ok(None);
            }
            let next = "SELECT coalesce(max(number) + 1, 0) FROM job_events WHERE job_id = ?";
            let number: u64 = transaction.query_row(next, [&job.id], |row| row.get(0))?;
            let insert = "INSERT INTO job_events (job_id, number, event, created) VALUES (?, ?, ?, ?)";
            transaction.execute(insert, params![job.id, number, event, now_ms()])?;
            Ok(Some(number))
        })
    }
}

impl Jobs for SqliteOwned<'_> {
    fn enqueue(&self, job: NewJob) -> Result<Job> {
        let owner = self.access.owner.to_owned();
        self.store.grow(0, move |transaction| enqueue(transaction, &owner, &job))
    }

    fn cancel_job(&self, id: &str) -> Result<bool> {
        let (owner, id) = (self.access.owner.to_owned(), id.to_owned());
        self.store.write_essential(move |transaction| {
            find_owned(transaction, &owner, &id)?;
            let cancel =
                "UPDATE jobs SET state = 'cancelled', updated = ? WHERE id = ? AND state IN ('queued', 'running')";
            let ended = transaction.execute(cancel, params![now_ms(), id])? > 0;
            if ended {
                enqueue_follower(transaction, &id)?;
            }
            Ok(ended)
        })
    }

    fn job(&self, id: &str) -> Result<Job> {
        self.store.read(|connection| find_owned(connection, self.access.owner, id))
    }

    fn jobs(&self, kind: &str, limit: usize) -> Result<Vec<Job>> {
        self.store.read(|connection| {
            let order = "ORDER BY created DESC, id DESC LIMIT ?";
            let sql = format!("SELECT {COLUMNS} FROM jobs WHERE owner = ? AND kind = ? {order}");
            let mut query = connection.prepare(&sql)?;
            Ok(query.query_map(params![self.access.owner, kind, limit], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn job_events(&self, id: &str, first: u64) -> Result<Vec<(u64, Value)>> {
        self.store.read(|connection| {
            let sql = "SELECT number, event FROM job_events JOIN jobs ON jobs.id = job_id
                 WHERE job_id = ? AND owner = ? AND number >= ? ORDER BY number";
            let mut query = connection.prepare(sql)?;
            let events = query.query_map(params![id, self.access.owner, first], |row| {
                let event: String = row.get(1)?;
                Ok((row.get(0)?, serde_json::from_str(&event).unwrap_or_default()))
            })?;
            Ok(events.collect::<rusqlite::Result<_>>()?)
        })
    }
}

#[cfg(test)]
mod tests;
