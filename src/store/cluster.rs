//! A store that several servers share: where it is, and what it says about them.

use std::{fmt, path::PathBuf};

use tokio::sync::watch;

use super::Result;

/// The database that several servers share.
#[derive(Clone)]
pub struct SharedStore {
    /// `postgres://...`
    pub url: String,
    /// Certificates in PEM that sign the database's; `None` are those of the system.
    pub ca_file: Option<PathBuf>,
    /// Connections at most.
    pub connections: usize,
    /// What this server is called among the others.
    pub name: String,
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").field("connections", &self.connections).finish_non_exhaustive()
    }
}

/// What a shared database is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseReport {
    /// Of PostgreSQL.
    pub version: String,
    /// The version of the extension, if it is there.
    pub pgvector: Option<String>,
    /// Whether an acknowledged change is on the disk.
    pub syncs: bool,
    /// Whether an acknowledged change is on a standby's disk as well.
    pub has_synchronous_standby: bool,
    /// Names of the servers that share it now.
    pub replicas: Vec<String>,
    /// The check value of the secret that they hash keys with, if one was made.
    pub secret_check: Option<[u8; 32]>,
}

impl SharedStore {
    /// Asks the database what it is, without changing anything in it.
    ///
    /// # Errors
    /// If it cannot be reached or used.
    pub fn inspect(&self) -> Result<DatabaseReport> {
        #[cfg(feature = "cluster")]
        return super::postgres::inspect(self);
        #[cfg(not(feature = "cluster"))]
        Err(super::not_built())
    }
}

/// The servers that share a store. Each is a replica: they are equal.
pub trait Cluster: Send + Sync {
    /// How many replicas there are now, this one included.
    fn num_replicas(&self) -> u32;

    /// Whether a key was ever made, as far as this replica has heard; it looks every second.
    fn has_keys(&self) -> bool;

    /// Changes after a job was enqueued or has ended at any of them. A change may be missed: a reader looks from time to time as well.
    fn job_changes(&self) -> watch::Receiver<u64>;

    /// Whether this is the check value of the secret with which all servers hash keys; the first one is kept.
    ///
    /// # Errors
    /// If the database cannot be written.
    fn agrees_on_secret(&self, check: &[u8; 32]) -> Result<bool>;
}
