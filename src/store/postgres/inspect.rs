//! What a shared database is, for `hearth doctor`. Nothing is changed in it.

use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::{Background, connect, keys, values};
use crate::store::{DatabaseReport, Result, SharedStore};

/// Servers that were there within this time are counted.
const SEEN_WITHIN_MS: i64 = 15_000;

/// Asks the database what it is.
///
/// # Errors
/// If it cannot be reached or used.
pub(in crate::store) fn inspect(shared: &SharedStore) -> Result<DatabaseReport> {
    let runtime = Background::start()?;
    let pool = {
        let _in_runtime = runtime.0.as_ref().map(Runtime::enter);
        connect::pool(shared, 1)?
    };
    runtime.block_on(async { report(&**pool.get().await?).await })
}

async fn report(client: &Client) -> Result<DatabaseReport> {
    let about = "SELECT current_setting('server_version'), current_setting('fsync') = 'on',
            current_setting('synchronous_commit') IN ('on', 'remote_apply') AND current_setting('synchronous_standby_names') <> '',
            (SELECT extversion FROM pg_extension WHERE extname = 'vector'), to_regclass('replicas') IS NOT NULL";
    let rows = client.query_typed(about, &[]).await?;
    let Some(row) = rows.first() else { return Ok(DatabaseReport::default()) };
    let mut report = DatabaseReport {
        version: row.get(0),
        syncs: row.get(1),
        has_synchronous_standby: row.get(2),
        pgvector: row.get(3),
        ..DatabaseReport::default()
    };
    if row.get(4) {
        let seen = "SELECT name FROM replicas WHERE seen > now_ms() - $1 ORDER BY name";
        let rows = client.query_typed(seen, values![INT8 SEEN_WITHIN_MS]).await?;
        report.replicas = rows.iter().map(|row| row.get(0)).collect();
        let secret = "SELECT value FROM agreed WHERE name = $1";
        let rows = client.query_typed(secret, values![TEXT keys::SECRET]).await?;
        report.secret_check = rows.first().and_then(|row| row.get::<_, &[u8]>(0).try_into().ok());
    }
    Ok(report)
}
