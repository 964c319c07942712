//! The store in PostgreSQL, which equal servers share. Cargo feature `cluster`.
//!
//! The tables are those of `sqlite/`, with what several writers need: a lock on a row, or a constraint, wherever one writer thread made
//! a check safe, and leases of jobs by the database's clock. No replica's clock counts. Transactions lock in one order: collection,
//! document, file, job. One that collides with another is repeated. Statements say the types of their values, so that none has to be
//! prepared: poolers in transaction mode do not support prepared statements.
//!
//! Calls block like those of the other store; the connections live on a small runtime of their own.

mod attributes;
mod batches;
mod chunks;
mod collections;
mod connect;
mod documents;
mod files;
mod inspect;
mod jobs;
mod keys;
mod ledger;
mod owned;
mod pages;
mod presence;
mod reembedded;
mod schema;
mod search;
mod vectors;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use deadpool_postgres::{Client, Pool, PoolError};
use tokio::{runtime::Runtime, sync::watch};
use tokio_postgres::{IsolationLevel, Transaction, error::SqlState};

pub(super) use self::inspect::inspect;
pub use self::keys::PostgresKeyTable;
use self::{jobs::Leases, owned::PostgresOwned, presence::Presence};
use super::{Access, Cluster, Owned, Result, SharedStore, Storage, StoreError, VectorSearch, disk::Disk, new_id};
use hearth_domain::part::PartReport;

/// How often a change that collides with another one, or loses its connection before it is committed, is repeated.
const REPEATS: u32 = 4;
/// How long what keeps a server going waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Connections that are kept for it.
const DUTY_CONNECTIONS: usize = 2;
/// The first pause before a change is repeated; each further one is twice as long.
const REPEAT_PAUSE: Duration = Duration::from_millis(10);

/// Values of a statement with their types.
macro_rules! values {
    ($($kind:ident $value:expr),* $(,)?) => {
        &[$((&$value as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::$kind)),*]
    };
}
use values;

/// See the module.
pub struct PostgresStore {
    directory: PathBuf,
    disk: Disk,
    pool: Pool,
    /// For what must not wait for requests: leases, and the signs of life.
    duties: Pool,
    leases: Arc<Leases>,
    presence: Arc<Presence>,
    runtime: Background,
}

/// The runtime of the connections. Dropping it does not wait, so that it may be dropped on a thread of another runtime.
struct Background(Option<Runtime>);

impl Background {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hearth-store")
            .enable_all()
            .build();
        Ok(Self(Some(runtime.map_err(|error| StoreError::Database(Box::new(error)))?)))
    }

    /// Waits for a future on this thread, which may belong to another runtime: its own way to wait would panic there. What the future
    /// waits for is done by this runtime's threads.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _in_runtime = self.0.as_ref().map(Runtime::enter);
        futures_executor::block_on(future)
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.as_ref().map(|runtime| runtime.spawn(future)));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl PostgresStore {
    /// Connects to a database and applies the steps that its schema lacks. `directory` is for what a process keeps for itself, such as
    /// uploads that are being received; `reserve` are the bytes that these leave free on the disk.
    ///
    /// # Errors
    /// If the address cannot be used, the database cannot be reached or has no pgvector, or its schema is of a newer version.
    pub fn open(shared: &SharedStore, directory: &Path, reserve: Option<u64>) -> Result<Self> {
        let folder_lock = files::prepare(directory)?;
        let runtime = Background::start()?;
        let (pool, duties) = {
            let _in_runtime = runtime.0.as_ref().map(Runtime::enter);
            (connect::pool(shared, shared.connections)?, connect::pool(shared, DUTY_CONNECTIONS)?)
        };
        runtime.block_on(schema::migrate(&pool))?;
        let replica = new_id("replica_");
        let store = Self {
            directory: directory.to_owned(),
            disk: Disk::new(directory, reserve),
            leases: Leases::new(replica.clone()),
            presence: Presence::new(replica, shared.name.clone(), folder_lock),
            pool,
            duties,
            runtime,
        };
        store.runtime.block_on(store.presence.announce(&store.duties))?;
        store.runtime.spawn(jobs::renew(Arc::downgrade(&store.leases), store.duties.clone()));
        store.runtime.spawn(presence::keep(Arc::downgrade(&store.presence), store.duties.clone()));
        store.runtime.spawn(presence::keep_up(Arc::downgrade(&store.presence), store.pool.clone(), shared.clone()));
        store.runtime.spawn(presence::listen(Arc::downgrade(&store.presence), shared.clone()));
        Ok(store)
    }

    /// Runs queries on a connection, again if it was lost.
    fn read<T>(&self, query: impl AsyncFn(&tokio_postgres::Client) -> Result<T>) -> Result<T> {
        self.presence.refuse_if_away()?;
        self.runtime.block_on(async {
            let client = self.pool.get().await?;
            match query(&**client).await {
                Err(StoreError::Unavailable(_)) if client.is_closed() => {
                    drop(client);
                    query(&**self.pool.get().await?).await
                }
                result => result,
            }
        })
    }

    /// Runs several queries of one connection in a transaction, whose settings hold for them alone.
    fn read_in_transaction<T>(&self, queries: impl AsyncFn(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.write(queries)
    }

    /// Runs a change in a transaction, again if it collides with another one or loses its connection before it is committed. On success
    /// the change is committed; an error leaves nothing of it, except [`StoreError::Unavailable`] of a connection that is lost while it
    /// commits.
    fn write<T>(&self, change: impl AsyncFn(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.presence.refuse_if_away()?;
        self.runtime.block_on(write(&self.pool, change))
    }
}

async fn write<T>(pool: &Pool, change: impl AsyncFn(&Transaction<'_>) -> Result<T>) -> Result<T> {
    let mut repeats = 0;
    loop {
        let mut client = pool.get().await?;
        let mut is_committing = false;
        let result = attempt(&mut client, &change, &mut is_committing).await;
        let is_lost = client.is_closed();
        if matches!(result, Err(StoreError::Unavailable(_))) {
            // Perhaps of a server that is no longer the primary: not for the next one.
            drop(Client::take(client));
        } else {
            drop(client);
        }
        match result {
            Err(error) if repeats < REPEATS && (is_collision(&error) || (is_lost && !is_committing)) => {
                tokio::time::sleep(REPEAT_PAUSE * 2u32.pow(repeats)).await;
                repeats += 1;
            }
            result => return result,
        }
    }
}

/// Lets a transaction take the time that it needs: what is large, or waits for what is.
async fn no_timeout(transaction: &Transaction<'_>) -> Result<()> {
    Ok(transaction.batch_execute("SET LOCAL statement_timeout = 0").await?)
}

/// Work that must not wait long: nothing else happens meanwhile.
async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || StoreError::Unavailable("it does not answer".to_owned());
    tokio::time::timeout(ANSWER_MAX, work).await.unwrap_or_else(|_elapsed| Err(late()))
}

async fn attempt<T>(
    client: &mut Client,
    change: &impl AsyncFn(&Transaction<'_>) -> Result<T>,
    is_committing: &mut bool,
) -> Result<T> {
    let client: &mut tokio_postgres::Client = client;
    let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let result = change(&transaction).await?;
    *is_committing = true;
    transaction.commit().await?;
    Ok(result)
}

/// Whether a transaction failed because of another one: it waited in a circle, or what it refers to was deleted meanwhile.
fn is_collision(error: &StoreError) -> bool {
    const COLLISIONS: [SqlState; 4] = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::FOREIGN_KEY_VIOLATION,
        SqlState::UNIQUE_VIOLATION,
    ];
    let StoreError::Database(source) = error else { return false };
    let code = source.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    code.is_some_and(|code| COLLISIONS.contains(code))
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(reported) = error.as_db_error() else {
            // Neither the database nor this program is at fault where a value could not be converted, but the connection stands.
            let is_lost = error.is_closed()
                || std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
            return if is_lost { Self::Unavailable(error.to_string()) } else { Self::Database(Box::new(error)) };
        };
        let code = reported.code();
        // Class 08 is a broken connection, 57P the end of the server or its start; a read-only server is about to be promoted or was.
        let is_away = code.code().starts_with("08")
            || code.code().starts_with("57P")
            || [SqlState::TOO_MANY_CONNECTIONS, SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::QUERY_CANCELED]
                .contains(code);
        if is_away {
            Self::Unavailable(reported.message().to_owned())
        } else if *code == SqlState::DISK_FULL {
            Self::DatabaseFull(reported.message().to_owned())
        } else if *code == SqlState::CHARACTER_NOT_IN_REPERTOIRE {
            Self::Unstorable
        } else {
            Self::Database(Box::new(error))
        }
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => connect::explained(error),
            PoolError::Closed => Self::Stopped,
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl Storage for PostgresStore {
    fn view<'a>(&'a self, access: Access<'a>) -> Box<dyn Owned + 'a> {
        Box::new(PostgresOwned { store: self, access })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn has_room(&self) -> bool {
        self.disk.refuse_growth(0).is_ok()
    }

    fn report(&self) -> PartReport {
        self.presence.report()
    }

    fn vector_search(&self) -> Option<&dyn VectorSearch> {
        Some(self)
    }

    fn cluster(&self) -> Option<&dyn Cluster> {
        Some(self)
    }

    /// Leases are given back, so that other servers need not wait for their ends.
    fn close(&self) {
        if self.pool.is_closed() {
            return;
        }
        let last_words = async {
            jobs::give_back(&self.leases, &self.duties).await?;
            self.presence.leave(&self.duties).await
        };
        if let Err(error) = self.runtime.block_on(within(last_words)) {
            tracing::warn!(%error, "the jobs of this server are free only when their leases end");
        }
        self.pool.close();
        self.duties.close();
    }

    #[cfg(test)]
    fn tamper(&self, sql: &str) -> usize {
        self.read(async |client| Ok(client.execute(sql, &[]).await? as usize)).unwrap()
    }
}

impl Cluster for PostgresStore {
    fn num_replicas(&self) -> u32 {
        self.presence.num_replicas()
    }

    fn has_keys(&self) -> bool {
        self.presence.has_keys()
    }

    fn job_changes(&self) -> watch::Receiver<u64> {
        self.presence.job_changes()
    }

    fn agrees_on_secret(&self, check: &[u8; 32]) -> Result<bool> {
        self.read(async |client| keys::agree(client, keys::SECRET, check).await)
    }
}

impl Drop for PostgresStore {
    /// A store that was not closed leaves its leases to run out, as a killed process does.
    fn drop(&mut self) {
        self.pool.close();
        self.duties.close();
    }
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Text without the character that PostgreSQL cannot store.
fn storable(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// JSON without that character in its strings and names.
fn storable_json(json: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match json {
        Value::String(text) => Value::String(storable(text).into_owned()),
        Value::Array(values) => Value::Array(values.iter().map(storable_json).collect()),
        Value::Object(members) => Value::Object(
            members.iter().map(|(name, value)| (storable(name).into_owned(), storable_json(value))).collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
pub(super) mod tests;
