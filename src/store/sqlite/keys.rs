//! API keys: what the server reads through its store, and the [`SqliteKeyTable`] of commands, a connection of its own, so that keys can be
//! made and revoked while a server uses the directory.

use std::{fs::File, path::Path};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::{DATABASE, SqliteStore, configure, named, opening, schema};
use crate::store::{
    KeyManagement, Keys, Result, StoreError, StoredKey,
    disk::{Disk, Growth},
    now_ms,
};

const COLUMNS: &str = "id, caller, name, hash, rights, created, expires, revoked, last_used";

fn read_row(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    Ok(StoredKey {
        id: row.get(0)?,
        caller: row.get(1)?,
        name: row.get(2)?,
        hash: row.get(3)?,
        rights: row.get(4)?,
        created_ms: row.get(5)?,
        expires_ms: row.get(6)?,
        revoked_ms: row.get(7)?,
        last_used_ms: row.get(8)?,
    })
}

/// If a damaged database yields two keys with one id, the first stays.
fn insert(connection: &Connection, key: &StoredKey) -> Result<bool> {
    let insert = format!("INSERT OR IGNORE INTO keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
    let StoredKey { id, caller, name, hash, rights, created_ms, expires_ms, revoked_ms, last_used_ms } = key;
    let values = params![id, caller, name, hash, rights, created_ms, expires_ms, revoked_ms, last_used_ms];
    Ok(connection.execute(&insert, values)? == 1)
}

fn find(connection: &Connection, id: &str) -> Result<Option<StoredKey>> {
    let mut query = connection.prepare(&format!("SELECT {COLUMNS} FROM keys WHERE id = ?"))?;
    Ok(query.query_row([id], read_row).optional()?)
}

impl Keys for SqliteStore {
    fn key(&self, id: &str) -> Result<Option<StoredKey>> {
        self.read(|connection| find(connection, id))
    }

    fn keys_of(&self, caller: &str) -> Result<Vec<StoredKey>> {
        self.read(|connection| {
            let query = format!("SELECT {COLUMNS} FROM keys WHERE caller = ? ORDER BY created DESC, id");
            Ok(connection.prepare(&query)?.query_map([caller], read_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn has_keys(&self) -> Result<bool> {
        self.read(|connection| Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))?))
    }

    fn token_rights(&self, caller: &str) -> Result<Option<String>> {
        self.read(|connection| {
            let rights = "SELECT rights FROM token_callers WHERE caller = ?";
            Ok(connection.query_row(rights, [caller], |row| row.get(0)).optional()?)
        })
    }

    fn keep_token_rights(&self, caller: String, rights: String) -> Result<()> {
        self.write(move |transaction| {
            let keep = "INSERT INTO token_callers (caller, rights, seen) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET rights = excluded.rights, seen = excluded.seen";
            transaction.execute(keep, params![caller, rights, now_ms()])?;
            Ok(())
        })
    }

    fn key_was_used(&self, id: String) -> Result<()> {
        self.write(move |transaction| {
            transaction.execute("UPDATE keys SET last_used = ? WHERE id = ?", params![now_ms(), id])?;
            Ok(())
        })
    }
}

/// The keys of a data directory, for commands; see the module.
#[derive(Debug)]
pub struct SqliteKeyTable {
    connection: Connection,
    disk: Disk,
    /// If no server uses the directory, none may start while the schema changes.
    _lock: Option<File>,
}

impl SqliteKeyTable {
    /// # Errors
    /// If the database is damaged, not Hearth's, or of another version than this program and in use.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(DATABASE);
        let disk = Disk::new(directory, None);
        let (lock, connection) = match opening::take_directory(directory) {
            Ok(lock) => (Some(lock), opening::open_database(directory, &disk)?),
            Err(StoreError::Locked { .. }) => {
                let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                let checked = configure(&connection).map_err(StoreError::from);
                let checked = checked.and_then(|()| schema::refuse_unless_current(&connection, &path));
                checked.map_err(|error| named(error, &path))?;
                (None, connection)
            }
            Err(error) => return Err(error),
        };
        Ok(Self { connection, disk, _lock: lock })
    }
}

impl KeyManagement for SqliteKeyTable {
    fn insert(&self, key: &StoredKey) -> Result<bool> {
        insert(&self.connection, key)
    }

    fn list(&self) -> Result<Vec<StoredKey>> {
        let query = format!("SELECT {COLUMNS} FROM keys ORDER BY created, id");
        Ok(self.connection.prepare(&query)?.query_map([], read_row)?.collect::<rusqlite::Result<_>>()?)
    }

    fn revoke(&self, id: &str) -> Result<bool> {
        self.disk.prepare(Growth::Essential, || ())?;
        let update = "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL";
        let has_changed = self.connection.execute(update, params![now_ms(), id])? == 1;
        if !has_changed && find(&self.connection, id)?.is_none() {
            return Err(StoreError::NotFound { what: "key", id: id.to_owned() });
        }
        Ok(has_changed)
    }

    /// The secret is in the data directory, which has one server.
    fn agrees_on_secret(&self, _check: &[u8; 32]) -> Result<bool> {
        Ok(true)
    }
}
