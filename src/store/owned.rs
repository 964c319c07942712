//! One caller's part of the store: what the caller owns, and nothing else.
//!
//! Everything that is found, listed, changed or deleted on a caller's behalf goes through an [`Owned`], so that the
//! owner cannot be forgotten. Another caller's data does not exist here: the error is the same as for an unknown id.
//! Background work uses one as well, on behalf of its job's owner.

use super::{Batches, Collections, Documents, Files, Jobs, OwnedChunks};
use hearth_domain::StorageQuota;

/// On whose behalf the store is used, and within which limits.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub owner: &'a str,
    pub quota: StorageQuota,
    /// Whether the request must stay on this machine: documents that it adds must, too.
    pub is_local_only: bool,
}

impl<'a> Access<'a> {
    /// Without limits.
    pub fn of(owner: &'a str) -> Self {
        Self { owner, quota: StorageQuota::default(), is_local_only: false }
    }
}

/// A store as an owner sees it; see the module.
pub trait Owned: Collections + Documents + Batches + Files + OwnedChunks + Jobs {}
