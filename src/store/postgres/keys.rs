//! API keys, and the rights of callers that present tokens: what servers read, and the [`PostgresKeyTable`] of commands.

use deadpool_postgres::Pool;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Row};

use super::{Background, PostgresStore, SharedStore, connect, schema, storable, values, write};
use crate::store::{KeyManagement, Keys, Result, StoreError, StoredKey};

const COLUMNS: &str = "id, caller, name, hash, rights, created, expires, revoked, last_used";

fn read_row(row: &Row) -> StoredKey {
    StoredKey {
        id: row.get(0),
        caller: row.get(1),
        name: row.get(2),
        hash: row.get::<_, &[u8]>(3).try_into().unwrap_or_default(),
        rights: row.get(4),
        created_ms: row.get(5),
        expires_ms: row.get(6),
        revoked_ms: row.get(7),
        last_used_ms: row.get(8),
    }
}

/// Whether this value is the one that all agreed on under a name; the first one is kept.
pub(super) async fn agree(client: &Client, name: &str, value: &[u8]) -> Result<bool> {
    let keep = "INSERT INTO agreed (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    client.execute_typed(keep, values![TEXT name, BYTEA value]).await?;
    let rows = client.query_typed("SELECT value FROM agreed WHERE name = $1", values![TEXT name]).await?;
    Ok(rows.first().is_some_and(|row| row.get::<_, &[u8]>(0) == value))
}

/// The name of the check value of the secret of keys.
pub(super) const SECRET: &str = "key secret";

impl Keys for PostgresStore {
    fn key(&self, id: &str) -> Result<Option<StoredKey>> {
        self.read(async |client| {
            let query = format!("SELECT {COLUMNS} FROM keys WHERE id = $1");
            Ok(client.query_typed(&query, values![TEXT id]).await?.first().map(read_row))
        })
    }

    fn keys_of(&self, caller: &str) -> Result<Vec<StoredKey>> {
        self.read(async |client| {
            let query = format!("SELECT {COLUMNS} FROM keys WHERE caller = $1 ORDER BY created DESC, id");
            Ok(client.query_typed(&query, values![TEXT caller]).await?.iter().map(read_row).collect())
        })
    }

    fn has_keys(&self) -> Result<bool> {
        self.read(async |client| {
            let rows = client.query_typed("SELECT EXISTS (SELECT 1 FROM keys)", &[]).await?;
            Ok(rows.first().is_some_and(|row| row.get(0)))
        })
    }

    fn token_rights(&self, caller: &str) -> Result<Option<String>> {
        self.read(async |client| {
            let rights = "SELECT rights FROM token_callers WHERE caller = $1";
            Ok(client.query_typed(rights, values![TEXT caller]).await?.first().map(|row| row.get(0)))
        })
    }

    fn keep_token_rights(&self, caller: String, rights: String) -> Result<()> {
        self.read(async |client| {
            let keep = "INSERT INTO token_callers (caller, rights, seen) VALUES ($1, $2, now_ms())
                 ON CONFLICT (caller) DO UPDATE SET rights = excluded.rights, seen = excluded.seen";
            client.execute_typed(keep, values![TEXT caller, TEXT rights]).await?;
            Ok(())
        })
    }

    fn key_was_used(&self, id: String) -> Result<()> {
        self.read(async |client| {
            client.execute_typed("UPDATE keys SET last_used = now_ms() WHERE id = $1", values![TEXT id]).await?;
            Ok(())
        })
    }
}

/// The keys of a shared database, for commands; see the module.
pub struct PostgresKeyTable {
    pool: Pool,
    runtime: Background,
}

impl PostgresKeyTable {
    /// # Errors
    /// If the database cannot be reached, or its schema is of a newer version.
    pub fn open(shared: &SharedStore) -> Result<Self> {
        let runtime = Background::start()?;
        let pool = {
            let _in_runtime = runtime.0.as_ref().map(Runtime::enter);
            connect::pool(shared, 1)?
        };
        runtime.block_on(schema::migrate(&pool))?;
        Ok(Self { pool, runtime })
    }

    fn run<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
        self.runtime.block_on(async { work(&**self.pool.get().await?).await })
    }
}

impl std::fmt::Debug for PostgresKeyTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresKeyTable").finish_non_exhaustive()
    }
}

impl KeyManagement for PostgresKeyTable {
    fn insert(&self, key: &StoredKey) -> Result<bool> {
        let StoredKey { id, caller, name, hash, rights, created_ms, expires_ms, revoked_ms, last_used_ms } = key;
        let inserted = write(&self.pool, async |transaction| {
            let insert = format!(
                "INSERT INTO keys ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING"
            );
            let name = storable(name);
            let parameters = values![
                TEXT id, TEXT caller, TEXT &*name, BYTEA &hash[..], TEXT rights, INT8 created_ms, INT8 expires_ms, INT8 revoked_ms,
                INT8 last_used_ms
            ];
            Ok(transaction.execute_typed(&insert, parameters).await? == 1)
        });
        self.runtime.block_on(inserted)
    }

    fn list(&self) -> Result<Vec<StoredKey>> {
        self.run(async |client| {
            let query = format!("SELECT {COLUMNS} FROM keys ORDER BY created, id");
            Ok(client.query_typed(&query, &[]).await?.iter().map(read_row).collect())
        })
    }

    fn revoke(&self, id: &str) -> Result<bool> {
        self.run(async |client| {
            let revoke = "UPDATE keys SET revoked = now_ms() WHERE id = $1 AND revoked IS NULL";
            let has_changed = client.execute_typed(revoke, values![TEXT id]).await? == 1;
            let find = "SELECT 1 FROM keys WHERE id = $1";
            if !has_changed && client.query_typed(find, values![TEXT id]).await?.is_empty() {
                return Err(StoreError::NotFound { what: "key", id: id.to_owned() });
            }
            Ok(has_changed)
        })
    }

    fn agrees_on_secret(&self, check: &[u8; 32]) -> Result<bool> {
        self.run(async |client| agree(client, SECRET, check).await)
    }
}
