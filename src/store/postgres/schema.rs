//! The schema's steps. Each is applied once, in order, by one server at a time; a database with newer steps is refused.
//!
//! A step only adds: servers of the release before it still run on the new schema, so that they can be replaced one after the other.

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio_postgres::GenericClient;

use super::values;
use crate::store::{Result, StoreError};

const STEPS: [&str; 1] = [include_str!("schema/001_initial.sql")];

/// The first version of pgvector that scans an index on until enough rows pass a filter.
const PGVECTOR_MIN: (u32, u32) = (0, 8);

/// The key of the lock that a server holds while it applies steps: "Hearth" in ASCII.
const LOCK: i64 = 0x4865_6172_7468;
/// A lock that is waited for inside the database blocks an index that is built concurrently, so it is asked for again and again.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// Brings the database to this version's schema.
///
/// # Errors
/// [`StoreError::NewerShared`] if it has steps that this version does not know; [`StoreError::Address`] without a suitable pgvector.
pub(super) async fn migrate(pool: &Pool) -> Result<()> {
    let mut client = pool.get().await?;
    if applied(&**client).await? == STEPS.len() {
        return Ok(());
    }
    loop {
        let client: &mut tokio_postgres::Client = &mut client;
        let transaction = client.transaction().await?;
        let lock = "SELECT pg_try_advisory_xact_lock($1)";
        let rows = transaction.query_typed(lock, values![INT8 LOCK]).await?;
        if !rows.first().is_some_and(|row| row.get(0)) {
            drop(transaction);
            tokio::time::sleep(LOCK_PAUSE).await;
            continue;
        }
        let extension = transaction.batch_execute("CREATE EXTENSION IF NOT EXISTS vector").await;
        extension.map_err(|error| {
            let reason =
                error.as_db_error().map_or_else(|| error.to_string(), |reported| reported.message().to_owned());
            StoreError::Address(format!(
                "it needs the extension pgvector ({reason}); install it and run CREATE EXTENSION vector"
            ))
        })?;
        check_pgvector(&transaction).await?;
        let table = "CREATE TABLE IF NOT EXISTS schema_steps (number int PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())";
        transaction.batch_execute(table).await?;
        for (number, step) in STEPS.iter().enumerate().skip(applied(&transaction).await?) {
            transaction.batch_execute(step).await?;
            let done = "INSERT INTO schema_steps (number) VALUES ($1)";
            transaction.execute_typed(done, values![INT4 number as i32]).await?;
        }
        transaction.commit().await?;
        return Ok(());
    }
}

async fn check_pgvector(client: &impl GenericClient) -> Result<()> {
    let version = "SELECT extversion FROM pg_extension WHERE extname = 'vector'";
    let rows = client.query_typed(version, &[]).await?;
    let found: String = rows.first().map(|row| row.get(0)).unwrap_or_default();
    let mut numbers = found.split('.').map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= PGVECTOR_MIN {
        return Ok(());
    }
    let (major, minor) = PGVECTOR_MIN;
    let advice = "install a newer one and run ALTER EXTENSION vector UPDATE";
    Err(StoreError::Address(format!(
        "its pgvector is {found}, and searches with filters need {major}.{minor}: {advice}"
    )))
}

/// How many steps the database has.
async fn applied(client: &impl GenericClient) -> Result<usize> {
    let exists = client.query_typed("SELECT to_regclass('schema_steps') IS NOT NULL", &[]).await?;
    if !exists.first().is_some_and(|row| row.get(0)) {
        return Ok(0);
    }
    let rows = client.query_typed("SELECT count(*) FROM schema_steps", &[]).await?;
    let found: i64 = rows.first().map_or(0, |row| row.get(0));
    let supported = STEPS.len() as i64;
    if found > supported {
        return Err(StoreError::NewerShared { found, supported });
    }
    Ok(found as usize)
}
