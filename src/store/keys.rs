//! API keys: their owners, their rights, and their validity. The keys themselves are not stored, only keyed hashes of
//! them. Of callers that present tokens, the rights of the last token are stored, for work on their behalf that outlives
//! the process.

use std::fmt::Debug;

use super::{Result, now_ms};

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// The part of the key that may be shown.
    pub id: String,
    /// The key's owner.
    pub caller: String,
    /// The owner's name for it.
    pub name: String,
    pub hash: [u8; 32],
    /// JSON.
    pub rights: String,
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
    pub revoked_ms: Option<i64>,
    pub last_used_ms: Option<i64>,
}

impl StoredKey {
    /// Neither revoked nor expired.
    pub fn is_valid(&self) -> bool {
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|expires| now_ms() < expires)
    }
}

/// The keys of all callers, as the server reads them. Commands make and revoke keys by a [`KeyTable`].
pub trait Keys {
    /// # Errors
    /// If the database cannot be read.
    fn key(&self, id: &str) -> Result<Option<StoredKey>>;

    /// All keys of a caller, the newest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn keys_of(&self, caller: &str) -> Result<Vec<StoredKey>>;

    /// Whether a key was ever made, even one that has been revoked since.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn has_keys(&self) -> Result<bool>;

    /// The rights of the last token that this caller presented, as JSON.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn token_rights(&self, caller: &str) -> Result<Option<String>>;

    /// # Errors
    /// If the database cannot be written.
    fn keep_token_rights(&self, caller: String, rights: String) -> Result<()>;

    /// Records that a key was just used.
    ///
    /// # Errors
    /// If the database cannot be written.
    fn key_was_used(&self, id: String) -> Result<()>;
}

/// The keys of all callers, as commands make, list and revoke them while servers run.
pub type KeyTable = dyn KeyManagement;

/// What a [`KeyTable`] can do.
pub trait KeyManagement: Debug {
    /// Adds a key. `false` if there is one with its id.
    ///
    /// # Errors
    /// If the database cannot be written.
    fn insert(&self, key: &StoredKey) -> Result<bool>;

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn list(&self) -> Result<Vec<StoredKey>>;

    /// Revokes a key for good. `false` if it is no longer valid.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](super::StoreError::NotFound)
    fn revoke(&self, id: &str) -> Result<bool>;

    /// Whether this is the check value of the secret with which all servers of the store hash keys; the first one is kept.
    ///
    /// # Errors
    /// If the database cannot be written.
    fn agrees_on_secret(&self, check: &[u8; 32]) -> Result<bool>;
}
