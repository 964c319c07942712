//! Why the store cannot do what was asked, and what the caller of a request is told of it.

use std::{io, path::PathBuf, time::Duration};

use hearth_domain::error::{Error, ErrorKind};

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "another hearth uses the data directory {path}: stop it, or choose another one with --data-dir",
        path = .path.display()
    )]
    Locked { path: PathBuf },
    #[error(
        "{path} was written by a newer version of Hearth (schema {found}, this one knows {supported}): use that version, \
         or another --data-dir",
        path = .path.display()
    )]
    Newer { path: PathBuf, found: i64, supported: i64 },
    #[error(
        "the server that uses {path} is of another version of Hearth (schema {found}, this one knows {supported}): stop \
         it, or use that version for this command, too",
        path = .path.display()
    )]
    InUseByOther { path: PathBuf, found: i64, supported: i64 },
    #[error("{path} is not a database of Hearth; move it away, or choose another --data-dir", path = .path.display())]
    Foreign { path: PathBuf },
    #[error(
        "the database {path} is damaged ({problem}): stop the server and run `hearth recover` with the same --data-dir, which \
         saves what can be read and reads all documents again, or bring the directory back from a backup",
        path = .path.display()
    )]
    Corrupt { path: PathBuf, problem: String },
    #[error(
        "{directory} has had a database, with {uploads} uploads that are still there, and hearth.sqlite3 is missing or \
         empty. Bring it back from a backup (`hearth restore`, or hearth.sqlite3 together with hearth.sqlite3-wal), or run \
         `hearth recover` with the same --data-dir, which makes a database that knows the uploads. Nothing was changed",
        directory = .directory.display()
    )]
    Lost { directory: PathBuf, uploads: usize },
    #[error(
        "a restore into {directory} was cut off: run `hearth restore` with the same backup again",
        directory = .directory.display()
    )]
    HalfRestored { directory: PathBuf },
    #[error("{0}")]
    Backup(String),
    #[error(
        "the disk of {directory} is full: {free} bytes are free and {needed} are needed. Delete documents, make room on the \
         disk, or move the data directory to a larger one",
        directory = .directory.display()
    )]
    Full { directory: PathBuf, free: u64, needed: u64 },
    #[error("{used} of {limit} {what} are in use, and {more} more do not fit")]
    Quota { what: &'static str, used: u64, limit: u64, more: u64 },
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("there is a collection called {0:?} already; choose another name")]
    NameTaken(String),
    #[error(
        "the collection's vectors were made with {stored}, and the embedding model is now {asked}: start with the model \
         that made them, or make them again with `hearth reindex`"
    )]
    OtherEmbedding { stored: String, asked: String },
    #[error("the shared database cannot be used: {0}")]
    Address(String),
    #[error("the database cannot be reached now ({0}); the request can be sent again")]
    Unavailable(String),
    #[error("an id or a name has a NUL character, and nothing in the shared database has")]
    Unstorable,
    #[error("the disk of the database is full ({0}): make room there, or delete documents")]
    DatabaseFull(String),
    #[error(
        "the shared database has {found} schema steps and this version of Hearth knows {supported}: start the version that the other \
         servers run"
    )]
    NewerShared { found: i64, supported: i64 },
    #[error("the store is closed")]
    Stopped,
    #[error("a fault of Hearth's own: a change of the store panicked and was rolled back; the log has the cause")]
    Panicked,
    #[error("the database: {}", sentence(&**.0))]
    Database(Box<dyn std::error::Error + Send + Sync>),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// An error and its cause, which the error of a PostgreSQL driver leaves out.
fn sentence(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// When a request is worth another try while the database is away: failing over takes seconds.
const AWAY_RETRY_AFTER: Duration = Duration::from_secs(2);

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what, id } => not_found(what, &id),
            StoreError::NameTaken(_) => Self::invalid("name", format!("{error}.")).with_code("already_exists"),
            StoreError::OtherEmbedding { .. } => Self::new(ErrorKind::Conflict, format!("{error}.")),
            StoreError::Quota { what, used, limit, more } => {
                let message = format!(
                    "You may store {limit} {what} here; {used} are in use, and this takes {more} more. Delete documents \
                     that you do not need, or ask the operator for more."
                );
                Self::new(ErrorKind::InsufficientStorage, message).with_code("storage_quota_exceeded")
            }
            StoreError::Full { .. } | StoreError::DatabaseFull(_) => {
                let message = "The server's disk has no room for this. Delete documents that are not needed, or ask the \
                               operator to make room; the server's log says how much.";
                Self::new(ErrorKind::InsufficientStorage, message).with_source(error)
            }
            // What is stored has none: the text is the id or the name of something that is not there.
            StoreError::Unstorable => {
                Self::new(ErrorKind::NotFound, "There is nothing whose id or name has a NUL character.")
                    .with_code("not_found")
            }
            StoreError::Unavailable(_) | StoreError::Stopped => {
                let message = "The database cannot be reached now. Nothing was changed, unless the connection broke while the change was \
                               committed; send the request again.";
                Self::new(ErrorKind::Unavailable, message).with_retry_after(AWAY_RETRY_AFTER).with_source(error)
            }
            error @ StoreError::Io { .. } => Self::internal(error).with_code("storage_error"),
            error => Self::internal(error),
        }
    }
}

/// There is no such thing, as the caller is told.
pub fn not_found(what: &str, id: &str) -> Error {
    let shown: String = id.chars().take(120).collect();
    Error::new(ErrorKind::NotFound, format!("There is no {what} `{shown}`.")).with_code("not_found")
}
