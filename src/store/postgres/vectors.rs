//! Search by vectors, with pgvector.
//!
//! One table has the vectors of all embedding models. A column whose vectors differ in length cannot be indexed; an expression can, so
//! each model, a *space*, gets an HNSW index of its own once it has many vectors. PostgreSQL uses that index only for a statement that
//! names space and dimensions as literals; both come from the database, never from a request.
//!
//! An index finds the nearest of all collections, and most of these are of others. With pgvector's defaults a search in one of 200
//! collections finds a sixth of what it should, without an error. So small collections, and those that a filter leaves small, are searched
//! exactly, by their own b-tree index; large ones by scanning the graph on and on until enough of the collection's vectors have come; and
//! exactly again where that scan ends too early.

use tokio_postgres::{Client, Transaction};

use super::{
    PostgresStore,
    attributes::{Parameters, condition},
    connect, values,
};
use crate::store::{Result, Scope, SharedStore, VectorSearch};
use hearth_domain::documents::EmbeddingIdentity;

/// Up to this many vectors that pass, a search is exact.
const EXACT_MAX: i64 = 10_000;
/// Candidates that a scan of the graph keeps at a time (pgvector's `hnsw.ef_search`). With 100, a search whose filter one in ten of
/// 100,000 vectors pass found 0.94 of the ten nearest, with 400 0.98.
const CANDIDATES: usize = 400;
/// Vectors that a scan may visit (`hnsw.max_scan_tuples`) before the search is exact instead.
const VISITED_MAX: usize = 200_000;
/// A space gets an index when it has this many vectors.
pub(super) const INDEXED_FROM: i64 = 20_000;
/// The most dimensions of half-precision floats that pgvector's HNSW takes.
const DIMENSIONS_MAX: i32 = 4_000;
/// The memory in which the graph is built.
const BUILD_MEMORY: &str = "1GB";
/// The key of the lock that a server holds while it builds: "Heart" and 1.
const LOCK: i64 = 0x4865_6172_7401;

/// The space of an embedding model.
pub(super) async fn space(transaction: &Transaction<'_>, embedding: &EmbeddingIdentity) -> Result<i32> {
    let dimensions = embedding.dimensions as i32;
    let find = "SELECT space FROM spaces WHERE embedding = $1 AND dimensions = $2";
    let found = transaction.query_typed(find, values![TEXT embedding.name, INT4 dimensions]).await?;
    if let Some(row) = found.first() {
        return Ok(row.get(0));
    }
    let insert = "INSERT INTO spaces (embedding, dimensions) VALUES ($1, $2)
         ON CONFLICT (embedding, dimensions) DO UPDATE SET embedding = excluded.embedding RETURNING space";
    let rows = transaction.query_typed(insert, values![TEXT embedding.name, INT4 dimensions]).await?;
    Ok(rows.first().map(|row| row.get(0)).unwrap_or_default())
}

/// That a vector's document passes the filter, for a statement that begins with the documents: there are few.
fn of_passing_documents(scope: Scope<'_>, parameters: &mut Parameters) -> String {
    let Some(filter) = scope.filter else { return String::new() };
    let condition = condition(filter, parameters);
    // An array is looked up in the index by document; joined, the planner takes half of all documents to pass, and reads everything.
    format!(
        "AND file_id = ANY (ARRAY (SELECT documents.file_id FROM documents WHERE documents.collection_id = $1 AND {condition}))"
    )
}

/// The same, for a statement that begins with the nearest vectors and looks at one document after the other.
fn passes_one_by_one(scope: Scope<'_>, parameters: &mut Parameters) -> String {
    let Some(filter) = scope.filter else { return String::new() };
    let condition = condition(filter, parameters);
    format!(
        "AND (SELECT {condition} FROM documents
            WHERE documents.collection_id = vectors.collection_id AND documents.file_id = vectors.file_id)"
    )
}

impl VectorSearch for PostgresStore {
    fn nearest(
        &self,
        scope: Scope<'_>,
        embedding: &EmbeddingIdentity,
        vector: &[f32],
        limit: usize,
    ) -> Result<Vec<u64>> {
        let (dimensions, rows) = (embedding.dimensions as i32, limit as i64);
        // Each statement numbers its values after its own.
        let mut of_count = Parameters::after(1);
        let passing = of_passing_documents(scope, &mut of_count);
        let count = format!(
            "SELECT count(*) FROM (SELECT 1 FROM vectors WHERE collection_id = $1 {passing} LIMIT {}) AS few",
            EXACT_MAX + 1
        );
        let mut of_exact = Parameters::after(3);
        let passing = of_passing_documents(scope, &mut of_exact);
        // `+ 0` keeps any index of vectors away from an exact search.
        let exact = format!(
            "SELECT chunk_id FROM vectors WHERE collection_id = $1 AND space = {{space}} {passing}
             ORDER BY (vector <=> $2::vector) + 0, chunk_id LIMIT $3"
        );
        let mut of_scan = Parameters::after(3);
        let passes = passes_one_by_one(scope, &mut of_scan);
        self.read_in_transaction(async |transaction| {
            let space = "SELECT space FROM spaces WHERE embedding = $1 AND dimensions = $2";
            let space = transaction.query_typed(space, values![TEXT embedding.name, INT4 dimensions]).await?;
            let Some(space) = space.first().map(|row| row.get::<_, i32>(0)) else { return Ok(Vec::new()) };
            let mut all = values![TEXT scope.collection_id].to_vec();
            all.extend(of_count.with_types());
            let passing: i64 = transaction.query_typed(&count, &all).await?.first().map_or(0, |row| row.get(0));
            let own = values![TEXT scope.collection_id, FLOAT4_ARRAY vector, INT8 rows];
            if passing > EXACT_MAX && dimensions <= DIMENSIONS_MAX {
                let settings = format!(
                    "SET LOCAL hnsw.iterative_scan = strict_order; SET LOCAL hnsw.ef_search = {}; SET LOCAL hnsw.max_scan_tuples = {VISITED_MAX}",
                    CANDIDATES.max(limit.min(1_000))
                );
                transaction.batch_execute(&settings).await?;
                // Half-precision floats choose the candidates; their order is that of the vectors themselves.
                let scan = format!(
                    "SELECT chunk_id FROM (
                        SELECT chunk_id, vector FROM vectors WHERE collection_id = $1 AND space = {space} {passes}
                        ORDER BY vector::halfvec({dimensions}) <=> $2::vector::halfvec({dimensions}) LIMIT $3
                     ) AS nearest ORDER BY (vector <=> $2::vector) + 0, chunk_id"
                );
                let mut all = own.to_vec();
                all.extend(of_scan.with_types());
                let found = transaction.query_typed(&scan, &all).await?;
                if found.len() as i64 >= rows.min(passing) {
                    return Ok(ids(&found));
                }
            }
            let mut all = own.to_vec();
            all.extend(of_exact.with_types());
            let exact = exact.replace("{space}", &space.to_string());
            Ok(ids(&transaction.query_typed(&exact, &all).await?))
        })
    }

    fn versions(&self, collection_ids: &[&str]) -> Result<Vec<u64>> {
        self.read(async |client| {
            let versions = "SELECT id, version FROM collections WHERE id = ANY ($1)";
            let rows = client.query_typed(versions, values![TEXT_ARRAY collection_ids]).await?;
            let of =
                |id: &&str| rows.iter().find(|row| row.get::<_, &str>(0) == *id).map_or(0, |row| row.get::<_, i64>(1));
            Ok(collection_ids.iter().map(|id| of(id) as u64).collect())
        })
    }
}

fn ids(rows: &[tokio_postgres::Row]) -> Vec<u64> {
    rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect()
}

/// Builds the indexes of spaces with at least `from` vectors, one after the other, if no other replica builds one: two at once would wait
/// for each other. On a connection of its own, because building takes minutes, cannot be in a transaction, and is this server's as long as the
/// connection holds the lock.
pub(super) async fn build_indexes(shared: &SharedStore, from: i64) -> Result<()> {
    let (client, connection) = connect::listener(shared, |_| ()).await?;
    let built = async {
        let rows = client.query_typed("SELECT pg_try_advisory_lock($1)", values![INT8 LOCK]).await?;
        if !rows.first().is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        let missing = "SELECT space, dimensions FROM spaces WHERE dimensions <= $1 AND
                (SELECT count(*) FROM (SELECT 1 FROM vectors WHERE vectors.space = spaces.space LIMIT $2) AS few) >= $2 AND
                NOT EXISTS (
                    SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                    WHERE indrelid = 'vectors'::regclass AND relname = 'vectors_s' || space AND indisvalid)";
        let rows = client.query_typed(missing, values![INT4 DIMENSIONS_MAX, INT8 from]).await?;
        let mut built = Ok(());
        for row in &rows {
            let (space, dimensions): (i32, i32) = (row.get(0), row.get(1));
            tracing::info!(space, dimensions, "an index of vectors is built");
            built = build(&client, space, dimensions, "").await;
            if built.is_err() {
                // Shared memory for several processes may be what is missing.
                built = build(&client, space, dimensions, "SET max_parallel_maintenance_workers = 0").await;
            }
            if built.is_err() {
                // What is there is maintained by every insert, and used by no search.
                drop(client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS vectors_s{space}")).await);
            }
        }
        // A pooler may give the session to others.
        client.batch_execute("RESET ALL").await?;
        client.query_typed("SELECT pg_advisory_unlock($1)", values![INT8 LOCK]).await?;
        built
    };
    let built = built.await;
    connection.abort();
    built
}

async fn build(client: &Client, space: i32, dimensions: i32, setting: &str) -> Result<()> {
    let settings = format!("SET statement_timeout = 0; SET maintenance_work_mem = '{BUILD_MEMORY}'; {setting}");
    client.batch_execute(&settings).await?;
    // One that was cut off is there, but is not used.
    client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS vectors_s{space}")).await?;
    let index = format!(
        "CREATE INDEX CONCURRENTLY vectors_s{space} ON vectors USING hnsw ((vector::halfvec({dimensions})) halfvec_cosine_ops)
         WITH (m = 16, ef_construction = 128) WHERE space = {space}"
    );
    client.batch_execute(&index).await?;
    tracing::info!(space, "the index of vectors is built");
    Ok(())
}
