CREATE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE
    AS $$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE TABLE collections (
    id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    embedding text COLLATE "C",
    dimensions int,
    version bigint NOT NULL DEFAULT 0,
    created bigint NOT NULL
);
CREATE INDEX collections_by_owner ON collections (owner, name);

CREATE TABLE files (
    id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    filename text COLLATE "C" NOT NULL,
    purpose text COLLATE "C" NOT NULL,
    bytes bigint NOT NULL,
    sha256 bytea NOT NULL,
    created bigint NOT NULL
);
CREATE INDEX files_by_owner ON files (owner, sha256);

CREATE TABLE file_pieces (
    file_id text COLLATE "C" NOT NULL REFERENCES files ON DELETE CASCADE,
    number int NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (file_id, number)
);
-- Files are compressed already, or read whole.
ALTER TABLE file_pieces ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE documents (
    collection_id text COLLATE "C" NOT NULL REFERENCES collections ON DELETE CASCADE,
    file_id text COLLATE "C" NOT NULL REFERENCES files,
    status text COLLATE "C" NOT NULL CHECK (status IN ('processing', 'ready', 'failed', 'cancelled')),
    error_code text COLLATE "C",
    error_reason text COLLATE "C",
    attributes jsonb NOT NULL DEFAULT '{}',
    local_only boolean NOT NULL DEFAULT false,
    created bigint NOT NULL,
    updated bigint NOT NULL,
    PRIMARY KEY (collection_id, file_id)
);
CREATE INDEX documents_by_file ON documents (file_id);
CREATE INDEX documents_unread ON documents (created) WHERE status = 'processing';

CREATE TABLE chunks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id text COLLATE "C" NOT NULL,
    file_id text COLLATE "C" NOT NULL,
    position int NOT NULL,
    heading text COLLATE "C" NOT NULL,
    text text COLLATE "C" NOT NULL,
    place int,
    tokens int NOT NULL,
    FOREIGN KEY (collection_id, file_id) REFERENCES documents ON DELETE CASCADE
);
CREATE INDEX chunks_by_document ON chunks (collection_id, file_id, position);

-- The words of chunks, with all that ranking needs, so that it reads the index alone.
CREATE TABLE postings (
    collection_id text COLLATE "C" NOT NULL,
    term text COLLATE "C" NOT NULL,
    chunk_id bigint NOT NULL REFERENCES chunks ON DELETE CASCADE,
    frequency real NOT NULL,
    tokens int NOT NULL,
    PRIMARY KEY (collection_id, term, chunk_id) INCLUDE (frequency, tokens)
);
CREATE INDEX postings_by_chunk ON postings (chunk_id);

-- One embedding model each; an index is made for a space when it has many vectors.
CREATE TABLE spaces (
    space int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedding text COLLATE "C" NOT NULL,
    dimensions int NOT NULL,
    UNIQUE (embedding, dimensions)
);

CREATE TABLE vectors (
    chunk_id bigint PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
    collection_id text COLLATE "C" NOT NULL,
    file_id text COLLATE "C" NOT NULL,
    space int NOT NULL REFERENCES spaces,
    vector vector NOT NULL
);
CREATE INDEX vectors_by_document ON vectors (collection_id, file_id);
CREATE INDEX vectors_by_space ON vectors (space);
-- Deleted vectors stay in a graph until vacuum removes them.
ALTER TABLE vectors SET (autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE reembedded (
    chunk_id bigint PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
    embedding text COLLATE "C" NOT NULL,
    vector vector NOT NULL
);

CREATE TABLE batches (
    id text COLLATE "C" PRIMARY KEY,
    collection_id text COLLATE "C" NOT NULL REFERENCES collections ON DELETE CASCADE,
    cancelled boolean NOT NULL DEFAULT false,
    created bigint NOT NULL
);
CREATE INDEX batches_by_collection ON batches (collection_id);

CREATE TABLE batch_documents (
    batch_id text COLLATE "C" NOT NULL REFERENCES batches ON DELETE CASCADE,
    collection_id text COLLATE "C" NOT NULL,
    file_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (batch_id, file_id),
    FOREIGN KEY (collection_id, file_id) REFERENCES documents ON DELETE CASCADE
);
CREATE INDEX batch_documents_by_document ON batch_documents (collection_id, file_id);

-- ready_at: when it may be taken while it waits, when its lease ends while it runs, NULL once it has ended. taken: when it was taken last.
-- worker and attempts together name a lease. The JSON is kept as it was written, not as jsonb, which orders names and refuses NUL.
CREATE TABLE jobs (
    id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    payload json NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts int NOT NULL DEFAULT 0,
    ready_at bigint,
    taken bigint,
    worker text COLLATE "C",
    result json,
    error text COLLATE "C",
    followed_by text COLLATE "C",
    events bigint NOT NULL DEFAULT 0,
    created bigint NOT NULL,
    updated bigint NOT NULL
);
CREATE INDEX jobs_to_take ON jobs (kind, owner, state DESC, ready_at, id) WHERE ready_at IS NOT NULL;
CREATE INDEX jobs_by_turn ON jobs (kind, owner, taken) WHERE taken IS NOT NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, kind, created);
CREATE INDEX jobs_by_document ON jobs ((payload ->> 'collection_id'), (payload ->> 'file_id')) WHERE kind = 'ingest';
CREATE INDEX jobs_by_file ON jobs ((payload ->> 'file_id')) WHERE kind = 'ingest';
CREATE INDEX jobs_ended ON jobs (updated) WHERE ready_at IS NULL;

CREATE TABLE job_events (
    job_id text COLLATE "C" NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number bigint NOT NULL,
    event json NOT NULL,
    created bigint NOT NULL,
    PRIMARY KEY (job_id, number)
);

CREATE TABLE keys (
    id text COLLATE "C" PRIMARY KEY,
    caller text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL DEFAULT '',
    hash bytea NOT NULL UNIQUE,
    rights text COLLATE "C" NOT NULL,
    created bigint NOT NULL,
    expires bigint,
    revoked bigint,
    last_used bigint
);
CREATE INDEX keys_by_caller ON keys (caller);

CREATE TABLE token_callers (
    caller text COLLATE "C" PRIMARY KEY,
    rights text COLLATE "C" NOT NULL,
    seen bigint NOT NULL
);

CREATE INDEX token_callers_by_age ON token_callers (seen);

CREATE TABLE ledger (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    row_id uuid UNIQUE NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    caller text COLLATE "C" NOT NULL,
    key_id text COLLATE "C",
    route text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    served_by text COLLATE "C" NOT NULL,
    fallback_reason text COLLATE "C",
    attempts bigint NOT NULL,
    cache text COLLATE "C",
    outcome text COLLATE "C" NOT NULL,
    error_code text COLLATE "C",
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    queue_us bigint NOT NULL,
    prefill_us bigint NOT NULL,
    decode_us bigint NOT NULL,
    compute_us bigint NOT NULL,
    latency_us bigint NOT NULL,
    bytes_out bigint NOT NULL,
    cost_micro_usd bigint NOT NULL,
    began bigint NOT NULL,
    repeats bigint NOT NULL
);
CREATE INDEX ledger_by_time ON ledger (began);
CREATE INDEX ledger_by_caller ON ledger (caller, began);

-- Sums of the ledger's rows by caller, day (of 86,400,000 ms) and outcome.
CREATE TABLE spent (
    caller text COLLATE "C" NOT NULL,
    day bigint NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    requests numeric NOT NULL,
    prompt_tokens numeric NOT NULL,
    cached_tokens numeric NOT NULL,
    completion_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    compute_us numeric NOT NULL,
    latency_us numeric NOT NULL,
    bytes_out numeric NOT NULL,
    cost_micro_usd numeric NOT NULL,
    PRIMARY KEY (caller, day, outcome)
);
CREATE INDEX spent_by_day ON spent (day);

-- The servers that share this database.
CREATE TABLE replicas (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    seen bigint NOT NULL
);

-- What some server must do, and when next.
CREATE TABLE duties (
    name text COLLATE "C" PRIMARY KEY,
    due bigint NOT NULL
);
INSERT INTO duties (name, due) VALUES ('upkeep', 0);

-- What all servers must agree on, such as the check value of the secret of their keys.
CREATE TABLE agreed (
    name text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL
);
