//! What can go wrong between the hub and the disk, each with the next step to take.

use std::path::PathBuf;

/// A model that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(
        "{0:?} names no model: give a known name (`hearth models list` shows them), OWNER/NAME, \
         OWNER/NAME:QUANTIZATION, or OWNER/NAME FILE"
    )]
    Reference(String),

    #[error(
        "{repository} is not in the cache at {cache}, and offline mode is on (HF_HUB_OFFLINE or --offline): turn it off, \
         or bring the file here and run `hearth models import FILE`",
        cache = .cache.display()
    )]
    Offline { repository: String, cache: PathBuf },

    #[error("{url} is not an address of a hub: {problem}; correct HF_ENDPOINT")]
    Endpoint { url: String, problem: String },

    #[error(
        "no connection to the hub ({url}): {source:#}; check the network, or set HF_ENDPOINT to a mirror, or fetch the \
         file elsewhere and run `hearth models import FILE`"
    )]
    Unreachable { url: String, source: anyhow::Error },

    #[error("the hub has no {what} ({url}); check the spelling{hint}")]
    NotFound { what: String, url: String, hint: &'static str },

    #[error(
        "the hub does not give {repository} to you ({status}{message}): {advice}",
        message = parenthesized(.message)
    )]
    Denied { repository: String, status: u16, message: String, advice: &'static str },

    #[error(
        "the hub answered {url} with {status}{message}; it is overloaded or out of order, try again later",
        message = parenthesized(.message)
    )]
    Server { url: String, status: u16, message: String },

    #[error("the hub's answer at {url} is not understood: {problem}; is HF_ENDPOINT a model hub?")]
    Answer { url: String, problem: String },

    #[error(
        "the token for the hub is empty or holds a character that no token has: correct HF_TOKEN, or the file that it is from"
    )]
    Token,

    #[error(
        "the hub gives no sha256 of {file} ({url}), so that nobody could tell whether it arrived whole; use a mirror that \
         passes on X-Linked-ETag, or fetch the file elsewhere and run `hearth models import FILE`"
    )]
    NoChecksum { file: String, url: String },

    #[error("{repository} has nothing that matches {wanted}; it has {available}")]
    NoMatch { repository: String, wanted: String, available: String },

    /// The server sends content of another length, such as an error page.
    #[error(
        "{file} is {expected} bytes on the hub, but {url} sends {found} ({content_type}): a proxy or a sign-in page may \
         stand in between; nothing was kept of it"
    )]
    WrongLength { file: String, url: String, expected: u64, found: String, content_type: String },

    #[error(
        "{file} arrived with the checksum {found} instead of {expected}; it was deleted, pull it again. If that does \
         not help, the mirror or a proxy changes the file"
    )]
    WrongChecksum { file: String, expected: String, found: String },

    #[error(
        "the hub's checksum of {file} is {found}, but its manifest says {expected}: the repository has changed since; \
         pull it by its repository's name if you trust the change"
    )]
    ManifestChecksum { file: String, expected: String, found: String },

    #[error(
        "the download of {file} broke off at {have} of {total} bytes: {problem}; what has arrived is kept, run the \
         command again to go on from there"
    )]
    Interrupted { file: String, have: u64, total: u64, problem: String },

    #[error("cannot write {path}: {source}{advice}", path = .path.display(), advice = disk_advice(.source))]
    Disk { path: PathBuf, source: std::io::Error },
}

/// `: message`, or nothing.
fn parenthesized(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn disk_advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; the disk is full: make room and run the command again, what has arrived is kept"
        }
        std::io::ErrorKind::PermissionDenied => {
            "; choose a directory that you may write to with --to, --models-dir or HF_HUB_CACHE"
        }
        std::io::ErrorKind::ReadOnlyFilesystem => "; choose another directory with --to, --models-dir or HF_HUB_CACHE",
        _ => "",
    }
}
