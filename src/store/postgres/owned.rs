//! One caller's rows: every statement names the owner.

use tokio_postgres::Transaction;

use super::{PostgresStore, values};
use crate::store::{Access, Owned, Result, StoreError};
use hearth_domain::StorageQuota;

/// The store as an owner sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PostgresOwned<'a> {
    pub(super) store: &'a PostgresStore,
    pub(super) access: Access<'a>,
}

impl Owned for PostgresOwned<'_> {}

/// Lets one transaction of an owner at a time go on from here, so that what it counts stays what it counted.
pub(super) async fn one_at_a_time(transaction: &Transaction<'_>, what: &str, owner: &str, name: &str) -> Result<()> {
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1 || chr(1) || $2 || chr(1) || $3, 0))";
    transaction.query_typed(lock, values![TEXT what, TEXT owner, TEXT name]).await?;
    Ok(())
}

/// Refuses a file that has pushed its owner's bytes over the quota; the caller must roll the transaction back.
pub(super) async fn refuse_bytes_over(
    quota: StorageQuota,
    transaction: &Transaction<'_>,
    owner: &str,
    added: u64,
) -> Result<()> {
    let Some(limit) = quota.bytes else { return Ok(()) };
    one_at_a_time(transaction, "bytes", owner, "").await?;
    let sum = "SELECT coalesce(sum(bytes), 0)::bigint FROM files WHERE owner = $1";
    let sum =
        transaction.query_typed(sum, values![TEXT owner]).await?.first().map_or(0, |row| row.get::<_, i64>(0)) as u64;
    if sum <= limit {
        return Ok(());
    }
    Err(StoreError::Quota { what: "bytes of files", used: sum.saturating_sub(added), limit, more: added })
}

/// Refuses a change that has pushed its owner's documents over the quota; the caller must roll the transaction back.
pub(super) async fn refuse_documents_over(
    quota: StorageQuota,
    transaction: &Transaction<'_>,
    owner: &str,
) -> Result<()> {
    let Some(limit) = quota.documents else { return Ok(()) };
    one_at_a_time(transaction, "documents", owner, "").await?;
    let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
         WHERE collections.owner = $1";
    let used =
        transaction.query_typed(count, values![TEXT owner]).await?.first().map_or(0, |row| row.get::<_, i64>(0)) as u64;
    if used <= limit {
        Ok(())
    } else {
        Err(StoreError::Quota { what: "documents", used: limit, limit, more: used - limit })
    }
}
