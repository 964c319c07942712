//! One caller's rows: every statement names the owner.

use rusqlite::Connection;

use super::SqliteStore;
use crate::store::{Access, Owned, Result, StoreError};
use hearth_domain::StorageQuota;

/// The store as an owner sees it.
#[derive(Clone, Copy, Debug)]
pub struct SqliteOwned<'a> {
    pub(super) store: &'a SqliteStore,
    pub(super) access: Access<'a>,
}

impl Owned for SqliteOwned<'_> {}

/// Refuses a file that exceeds what is left of its owner's quota.
pub(super) fn refuse_bytes_over(quota: StorageQuota, connection: &Connection, owner: &str, more: u64) -> Result<()> {
    let Some(limit) = quota.bytes else { return Ok(()) };
    let sum = "SELECT coalesce(sum(bytes), 0) FROM files WHERE owner = ?";
    let used: u64 = connection.query_row(sum, [owner], |row| row.get(0))?;
    if used.saturating_add(more) <= limit {
        return Ok(());
    }
    Err(StoreError::Quota { what: "bytes of files", used, limit, more })
}

/// Refuses a change that has pushed its owner's documents over the quota; the caller must roll the transaction back.
pub(super) fn refuse_documents_over(quota: StorageQuota, connection: &Connection, owner: &str) -> Result<()> {
    let Some(limit) = quota.documents else { return Ok(()) };
    let count = "SELECT count(*) FROM documents JOIN collections ON collections.id = documents.collection_id
         WHERE collections.owner = ?";
    let used: u64 = connection.query_row(count, [owner], |row| row.get(0))?;
    if used <= limit {
        Ok(())
    } else {
        Err(StoreError::Quota { what: "documents", used: limit, limit, more: used - limit })
    }
}
