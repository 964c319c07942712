//! The replicas that share the database: each says every second that it is there, which also shows whether the database is. Duties
//! that belong to none of them are done by the one that first finds them due.

use std::{
    fs::File,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use deadpool_postgres::Pool;
use tokio::sync::watch;

use super::{SharedStore, connect, documents, values, vectors, within, write};
use crate::store::{Result, StoreError};
use hearth_domain::part::PartReport;

/// How often a replica says that it is there, and looks whether keys are asked for.
const ANNOUNCED_EVERY: Duration = Duration::from_secs(1);
/// One that has been silent for so long is gone.
const GONE_AFTER_MS: i64 = 15_000;
/// Pause before the connection that receives notifications is made again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How often a replica looks for duties that are due.
const LOOKED_EVERY: Duration = Duration::from_secs(60);
/// How often upkeep is due.
const UPKEEP_EVERY_MS: i64 = 3_600_000;
/// How long a finished job is remembered, and the rights of a token's caller.
const REMEMBERED_MS: i64 = 30 * 24 * 3_600_000;
/// Rows that one statement of upkeep deletes.
const DELETED_AT_ONCE: i64 = 5_000;

/// What job changes are announced on.
pub(super) const CHANNEL: &str = "hearth_jobs";

/// This replica among the others; see the module.
#[derive(Debug)]
pub(super) struct Presence {
    id: String,
    name: String,
    replicas: AtomicU32,
    is_away: AtomicBool,
    has_keys: AtomicBool,
    job_changes: watch::Sender<u64>,
    /// Held as long as the store is open: the data directory is this process's.
    _lock: File,
}

impl Presence {
    pub(super) fn new(id: String, name: String, lock: File) -> Arc<Self> {
        let (job_changes, _) = watch::channel(0);
        let (replicas, is_away, has_keys) = (AtomicU32::new(1), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { id, name, replicas, is_away, has_keys, job_changes, _lock: lock })
    }

    /// Says that this replica is there, and counts the others.
    pub(super) async fn announce(&self, pool: &Pool) -> Result<()> {
        let client = pool.get().await?;
        let announce = "WITH here AS (
                INSERT INTO replicas (id, name, seen) VALUES ($1, $2, now_ms())
                ON CONFLICT (id) DO UPDATE SET seen = excluded.seen)
             SELECT count(*), EXISTS (SELECT 1 FROM keys) FROM replicas WHERE id <> $1 AND seen > now_ms() - $3";
        let rows = client.query_typed(announce, values![TEXT self.id, TEXT self.name, INT8 GONE_AFTER_MS]).await?;
        self.has_keys.fetch_or(rows.first().is_some_and(|row| row.get(1)), Relaxed);
        let others = rows.first().map_or(0, |row| row.get::<_, i64>(0));
        let replicas = u32::try_from(others).unwrap_or(u32::MAX - 1) + 1;
        if self.replicas.swap(replicas, Relaxed) != replicas {
            tracing::info!(replicas, "servers share the database");
        }
        Ok(())
    }

    /// Says that this replica ends.
    pub(super) async fn leave(&self, pool: &Pool) -> Result<()> {
        pool.get().await?.execute_typed("DELETE FROM replicas WHERE id = $1", values![TEXT self.id]).await?;
        Ok(())
    }

    /// Refuses what would only wait: the database did not answer lately. It is asked again every second.
    pub(super) fn refuse_if_away(&self) -> Result<()> {
        if self.is_away.load(Relaxed) {
            return Err(StoreError::Unavailable("it has not answered for a while".to_owned()));
        }
        Ok(())
    }

    pub(super) fn report(&self) -> PartReport {
        let failure = self.is_away.load(Relaxed).then(|| {
            "The database that the servers share cannot be reached; requests that need it are refused until it is back.".to_owned()
        });
        PartReport { name: "store".to_owned(), panics: 0, failure }
    }

    pub(super) fn num_replicas(&self) -> u32 {
        self.replicas.load(Relaxed)
    }

    pub(super) fn has_keys(&self) -> bool {
        self.has_keys.load(Relaxed)
    }

    pub(super) fn job_changes(&self) -> watch::Receiver<u64> {
        self.job_changes.subscribe()
    }
}

/// Announces a replica until its store is dropped.
pub(super) async fn keep(presence: Weak<Presence>, pool: Pool) {
    loop {
        tokio::time::sleep(ANNOUNCED_EVERY).await;
        let Some(presence) = presence.upgrade() else { return };
        if pool.is_closed() {
            return;
        }
        match within(presence.announce(&pool)).await {
            Ok(()) => {
                if presence.is_away.swap(false, Relaxed) {
                    tracing::info!("the database is back");
                }
            }
            Err(error) => {
                if !presence.is_away.swap(true, Relaxed) {
                    tracing::error!(%error, "the database does not answer");
                }
            }
        }
    }
}

/// Hears of job changes at other replicas until the store is dropped.
pub(super) async fn listen(presence: Weak<Presence>, shared: SharedStore) {
    loop {
        let hears = presence.clone();
        let received = move |_: &str| {
            if let Some(presence) = hears.upgrade() {
                presence.job_changes.send_modify(|changes| *changes += 1);
            }
        };
        let heard = async {
            let (client, connection) = connect::listener(&shared, received).await?;
            client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
            Ok::<_, StoreError>((client, connection))
        };
        if let Ok((_client, mut connection)) = heard.await {
            // The store may be dropped while nothing is said.
            while presence.strong_count() > 0 {
                if tokio::time::timeout(LISTEN_PAUSE, &mut connection).await.is_ok() {
                    break;
                }
            }
            connection.abort();
        }
        if presence.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

/// Does the duties that are due and that no other replica does, until the store is dropped.
pub(super) async fn keep_up(presence: Weak<Presence>, pool: Pool, shared: SharedStore) {
    while presence.strong_count() > 0 && !pool.is_closed() {
        if let Err(error) = vectors::build_indexes(&shared, vectors::INDEXED_FROM).await {
            tracing::warn!(%error, "indexes of vectors could not be built; searches are exact meanwhile, and slower");
        }
        if let Err(error) = clean(&pool).await {
            tracing::warn!(%error, "what is old could not be deleted");
        }
        tokio::time::sleep(LOOKED_EVERY).await;
    }
}

/// Deletes what is old, and gives documents that wait without a job one, if that is due.
async fn clean(pool: &Pool) -> Result<()> {
    let take = "UPDATE duties SET due = now_ms() + $1 WHERE name = 'upkeep' AND due <= now_ms()";
    if pool.get().await?.execute_typed(take, values![INT8 UPKEEP_EVERY_MS]).await? == 0 {
        return Ok(());
    }
    let unread = write(pool, async |transaction| documents::enqueue_unread(transaction).await).await?;
    if unread > 0 {
        tracing::warn!(documents = unread, "documents were waiting to be read without a job; they have one now");
    }
    for old in [
        "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE ready_at IS NULL AND updated < (SELECT now_ms()) - $1 LIMIT $2)",
        "DELETE FROM token_callers WHERE caller IN (SELECT caller FROM token_callers WHERE seen < (SELECT now_ms()) - $1 LIMIT $2)",
        "DELETE FROM replicas WHERE id IN (SELECT id FROM replicas WHERE seen < (SELECT now_ms()) - $1 LIMIT $2)",
    ] {
        // In small pieces, so that no transaction is long.
        while pool.get().await?.execute_typed(old, values![INT8 REMEMBERED_MS, INT8 DELETED_AT_ONCE]).await?
            == DELETED_AT_ONCE as u64
        {}
    }
    Ok(())
}
