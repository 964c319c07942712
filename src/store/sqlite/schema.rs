//! The tables, and the migrations of an older database.

use std::path::Path;

use rusqlite::Connection;

use crate::store::{Result, StoreError};

/// Marks a database as ours: `HRTH`.
pub(super) const APPLICATION_ID: i64 = 0x4852_5448;

/// Each step migrates the schema from its index to the next number. A released step is never changed.
pub(super) const MIGRATIONS: [&str; 13] = [
    INITIAL,
    REEMBEDDED,
    FOLLOWED_BY,
    BATCHES,
    OWNERS,
    KEYS,
    LEDGER,
    DELETED_FILES,
    TURNS,
    TOTALS,
    ROW_IDS,
    TOKENS,
    LOCAL_DOCUMENTS,
];

/// Times are milliseconds since 1970; attributes and metadata are JSON objects; vectors are little-endian floats of
/// unit length. Chunk ids are never reused, so that an index can be matched with the table by ids alone.
const INITIAL: &str = "
CREATE TABLE collections (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    metadata TEXT NOT NULL DEFAULT '{}',
    embedding TEXT,
    dimensions INTEGER,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX files_by_hash ON files (sha256);

CREATE TABLE documents (
    collection_id TEXT NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    file_id TEXT NOT NULL REFERENCES files (id),
    status TEXT NOT NULL CHECK (status IN ('processing', 'ready', 'failed', 'cancelled')),
    error_code TEXT,
    error_reason TEXT,
    attributes TEXT NOT NULL DEFAULT '{}',
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    PRIMARY KEY (collection_id, file_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX documents_by_file ON documents (file_id);

CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection_id TEXT NOT NULL,
    file_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    heading TEXT NOT NULL,
    text TEXT NOT NULL,
    place INTEGER,
    tokens INTEGER NOT NULL,
    FOREIGN KEY (collection_id, file_id) REFERENCES documents (collection_id, file_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX chunks_by_document ON chunks (collection_id, file_id, position);

CREATE TABLE vectors (
    chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;

CREATE VIRTUAL TABLE chunk_words USING fts5 (
    heading, text, content = 'chunks', content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunk_words_insert AFTER INSERT ON chunks BEGIN
    INSERT INTO chunk_words (rowid, heading, text) VALUES (new.id, new.heading, new.text);
END;
CREATE TRIGGER chunk_words_delete AFTER DELETE ON chunks BEGIN
    INSERT INTO chunk_words (chunk_words, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
END;

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0,
    run_after INTEGER NOT NULL,
    leased_until INTEGER,
    result TEXT,
    error TEXT,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
) STRICT;
CREATE INDEX jobs_waiting ON jobs (state, run_after);

CREATE TABLE job_events (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    event TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (job_id, number)
) STRICT, WITHOUT ROWID;
";

/// Vectors of another embedding model, which wait until every chunk has one.
const REEMBEDDED: &str = "
CREATE TABLE reembedded (
    chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
    embedding TEXT NOT NULL,
    vector BLOB NOT NULL
) STRICT;
";

/// The kind of the job that is enqueued when a job ends.
const FOLLOWED_BY: &str = "ALTER TABLE jobs ADD COLUMN followed_by TEXT;";

/// Batches of documents that were added together. Also drops the unique constraint on collection names, since OpenAI's
/// vector stores may share a name or have none; SQLite drops a constraint only with its table.
const BATCHES: &str = "
CREATE TABLE new_collections (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    metadata TEXT NOT NULL DEFAULT '{}',
    embedding TEXT,
    dimensions INTEGER,
    created INTEGER NOT NULL
) STRICT;
INSERT INTO new_collections SELECT id, name, metadata, embedding, dimensions, created FROM collections;
DROP TABLE collections;
ALTER TABLE new_collections RENAME TO collections;
CREATE INDEX collections_by_name ON collections (name);

CREATE TABLE batches (
    id TEXT PRIMARY KEY,
    collection_id TEXT NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    cancelled INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX batches_by_collection ON batches (collection_id);

CREATE TABLE batch_documents (
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    collection_id TEXT NOT NULL,
    file_id TEXT NOT NULL,
    PRIMARY KEY (batch_id, file_id),
    FOREIGN KEY (collection_id, file_id) REFERENCES documents (collection_id, file_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_documents_by_document ON batch_documents (collection_id, file_id);
";

/// The owner of each row. Rows from before there were callers belong to the keyless caller.
const OWNERS: &str = "
ALTER TABLE collections ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
ALTER TABLE files ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
DROP INDEX collections_by_name;
CREATE INDEX collections_by_owner ON collections (owner, name);
DROP INDEX files_by_hash;
CREATE INDEX files_by_owner ON files (owner, sha256);
CREATE INDEX jobs_by_owner ON jobs (owner, kind);
";

/// API keys. The key itself is not stored: `hash` is keyed with a secret that is not in the database. `rights` is JSON.
const KEYS: &str = "
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    name TEXT NOT NULL DEFAULT '',
    hash BLOB NOT NULL UNIQUE,
    rights TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER,
    last_used INTEGER
) STRICT;
";

/// One row per request, however it ended. Money is in millionths of a US dollar, durations in microseconds.
const LEDGER: &str = "
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    caller TEXT NOT NULL,
    key_id TEXT,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    served_by TEXT NOT NULL,
    fallback_reason TEXT,
    attempts INTEGER NOT NULL,
    cache TEXT,
    outcome TEXT NOT NULL,
    error_code TEXT,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    queue_us INTEGER NOT NULL,
    prefill_us INTEGER NOT NULL,
    decode_us INTEGER NOT NULL,
    compute_us INTEGER NOT NULL,
    latency_us INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    cost_micro_usd INTEGER NOT NULL,
    began INTEGER NOT NULL
) STRICT;
CREATE INDEX ledger_by_time ON ledger (began);
CREATE INDEX ledger_by_caller ON ledger (caller, began);
";

/// Tombstones: files whose rows are deleted and whose bytes may still exist. The transaction that deletes a file's row
/// writes its tombstone, and nothing else allows an upload to be unlinked.
const DELETED_FILES: &str = "
CREATE TABLE deleted_files (
    id TEXT PRIMARY KEY,
    deleted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Indexes for taking jobs by turns of their owners, and for finding a document's job by the document.
const TURNS: &str = "
CREATE INDEX jobs_by_turn ON jobs (kind, state, owner, run_after);
CREATE INDEX jobs_by_document ON jobs (kind, payload ->> 'collection_id', payload ->> 'file_id');
";

/// The ledger's totals, in the order of [`LedgerTotals`](crate::store::LedgerTotals), and the rows that stand for several refusals.
const TOTALS: &str = "
ALTER TABLE ledger ADD COLUMN repeats INTEGER NOT NULL DEFAULT 0;
CREATE TABLE ledger_totals (
    requests INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    timed_out INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    compute_us INTEGER NOT NULL,
    latency_us INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    cost_micro_usd INTEGER NOT NULL
) STRICT;
INSERT INTO ledger_totals
    SELECT count(*), count(*) FILTER (WHERE outcome = 'finished'), count(*) FILTER (WHERE outcome = 'refused'),
        count(*) FILTER (WHERE outcome = 'failed'), count(*) FILTER (WHERE outcome = 'cancelled'),
        count(*) FILTER (WHERE outcome = 'timed_out'), ifnull(sum(prompt_tokens), 0), ifnull(sum(cached_tokens), 0),
        ifnull(sum(completion_tokens), 0), ifnull(sum(reasoning_tokens), 0), ifnull(sum(compute_us), 0),
        ifnull(sum(latency_us), 0), ifnull(sum(bytes_out), 0), ifnull(sum(cost_micro_usd), 0)
    FROM ledger;
CREATE TRIGGER ledger_adds_up AFTER INSERT ON ledger BEGIN
    UPDATE ledger_totals SET
        requests = requests + 1 + NEW.repeats,
        finished = finished + (1 + NEW.repeats) * (NEW.outcome = 'finished'),
        refused = refused + (1 + NEW.repeats) * (NEW.outcome = 'refused'),
        failed = failed + (1 + NEW.repeats) * (NEW.outcome = 'failed'),
        cancelled = cancelled + (1 + NEW.repeats) * (NEW.outcome = 'cancelled'),
        timed_out = timed_out + (1 + NEW.repeats) * (NEW.outcome = 'timed_out'),
        prompt_tokens = prompt_tokens + NEW.prompt_tokens,
        cached_tokens = cached_tokens + NEW.cached_tokens,
        completion_tokens = completion_tokens + NEW.completion_tokens,
        reasoning_tokens = reasoning_tokens + NEW.reasoning_tokens,
        compute_us = compute_us + NEW.compute_us,
        latency_us = latency_us + NEW.latency_us,
        bytes_out = bytes_out + NEW.bytes_out,
        cost_micro_usd = cost_micro_usd + NEW.cost_micro_usd;
END;
";

/// An id for each row of the ledger, so that a row that is written twice counts once. Older rows have none.
const ROW_IDS: &str = "
ALTER TABLE ledger ADD COLUMN row_id BLOB;
CREATE UNIQUE INDEX ledger_by_row_id ON ledger (row_id);
";

/// The rights of callers that present tokens, as their last token had them, for work on their behalf that outlives the process.
/// `rights` is JSON.
const TOKENS: &str = "
CREATE TABLE token_callers (
    caller TEXT PRIMARY KEY,
    rights TEXT NOT NULL,
    seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Documents that were added by a request that had to stay on this machine: their texts must, too.
const LOCAL_DOCUMENTS: &str = "
ALTER TABLE documents ADD COLUMN local_only INTEGER NOT NULL DEFAULT 0;
";

/// For a connection beside the server's, which alone may change the schema.
pub(super) fn refuse_unless_current(connection: &Connection, path: &Path) -> Result<()> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let supported = MIGRATIONS.len() as i64;
    if found == supported { Ok(()) } else { Err(StoreError::InUseByOther { path: path.to_owned(), found, supported }) }
}

/// Whether a database has no tables, like one that SQLite has just created.
pub(super) fn is_empty(connection: &Connection) -> Result<bool> {
    Ok(connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, u64>(0))? == 0)
}

/// The version of the schema, if it is an older one with tables.
///
/// # Errors
/// [`StoreError::Foreign`], [`StoreError::Newer`]
pub(super) fn version_before_upgrade(connection: &Connection, path: &Path) -> Result<Option<i64>> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let is_empty = is_empty(connection)?;
    if application != APPLICATION_ID && !is_empty {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let supported = MIGRATIONS.len() as i64;
    if version > supported {
        return Err(StoreError::Newer { path: path.to_owned(), found: version, supported });
    }
    Ok((version < supported && !is_empty).then_some(version))
}

/// Migrates the database to the newest schema, in one transaction.
///
/// # Errors
/// As [`version_before_upgrade`].
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    version_before_upgrade(connection, path)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let supported = MIGRATIONS.len() as i64;
    if version == supported {
        return Ok(());
    }
    // While foreign keys are enforced, replacing a table deletes the rows that refer to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    let transaction = connection.transaction()?;
    for migration in &MIGRATIONS[version.max(0) as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", supported)?;
    transaction.commit()?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}
