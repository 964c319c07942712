//! The hub's HTTP interface, as far as fetching a model needs it: which commit, which files, their bytes.
//!
//! `/api/models/R/revision/V` names the commit, `/api/models/R/tree/C` lists path, size and, for large files, the
//! sha256; `/R/resolve/C/PATH` serves the bytes, usually by redirect to another host. The token goes to the hub's own
//! origin only: the HTTP client drops it when a redirect leaves it.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, Response, StatusCode, header};
use serde::Deserialize;
use url::Url;

use super::{HubSettings, PullError, cache::is_plain_path};

/// An answer that describes a repository is not longer than this, in bytes.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Pages of a listing; the hub puts up to 1,000 files on one.
const PAGES_MAX: usize = 100;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
}

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Of large files only.
    pub(super) sha256: Option<String>,
    /// The hub's name for these bytes: the sha256 of a large file, git's own hash of a small one.
    pub(super) etag: String,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Hub {
    pub(super) fn new(settings: &HubSettings) -> Result<Self, PullError> {
        let wrong = |problem: String| PullError::Endpoint { url: settings.endpoint.clone(), problem };
        let endpoint = Url::parse(&settings.endpoint).map_err(|error| wrong(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(wrong("it must begin with https:// or http://".to_owned()));
        }
        let client = Client::builder()
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|error| PullError::Unreachable { url: settings.endpoint.clone(), source: error.into() })?;
        Ok(Self { client, endpoint, token: settings.token.clone() })
    }

    fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("http addresses have paths").pop_if_empty().extend(segments);
        url
    }

    pub(super) fn file_url(&self, repository: &str, commit: &str, path: &str) -> Url {
        self.url(repository.split('/').chain(["resolve", commit]).chain(path.split('/')))
    }

    /// The commit that a branch, tag or commit means now.
    pub(super) async fn commit(&self, repository: &str, revision: &str) -> Result<String, PullError> {
        let url = self.url(["api", "models"].into_iter().chain(repository.split('/')).chain(["revision", revision]));
        let what = format!("repository {repository} at {revision}");
        let (_, body) = self.answer(&url, repository, &what).await?;
        let answer: RevisionAnswer = parse(&url, &body)?;
        if answer.sha.is_empty() || !answer.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(PullError::Answer { url: url.into(), problem: format!("{:?} is no commit", answer.sha) });
        }
        Ok(answer.sha)
    }

    /// All files of a commit, in order of path.
    pub(super) async fn files(&self, repository: &str, commit: &str) -> Result<Vec<RemoteFile>, PullError> {
        let mut url = self.url(["api", "models"].into_iter().chain(repository.split('/')).chain(["tree", commit]));
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..PAGES_MAX {
            let (next, body) = self.answer(&url, repository, &format!("repository {repository}")).await?;
            let entries: Vec<TreeEntry> = parse(&url, &body)?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                files.push(remote_file(entry).map_err(|problem| PullError::Answer { url: url.to_string(), problem })?);
            }
            match next {
                Some(next) => url = next,
                None => break,
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// One JSON answer, and the address of the next page if there is one on this hub.
    async fn answer(&self, url: &Url, repository: &str, what: &str) -> Result<(Option<Url>, Vec<u8>), PullError> {
        let response = self.get(url, None).await?;
        let response = refuse_errors(response, url, repository, what)?;
        let next = next_page(response.headers(), url).filter(|next| next.origin() == self.endpoint.origin());
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| unreachable(url, error))?;
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let problem = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(PullError::Answer { url: url.to_string(), problem });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((next, body))
    }

    /// Asks for an address, from byte `from` on if given. Any status is an `Ok`.
    pub(super) async fn get(&self, url: &Url, from: Option<u64>) -> Result<Response, PullError> {
        let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.send().await.map_err(|error| unreachable(url, error))
    }
}

fn unreachable(url: &Url, error: reqwest::Error) -> PullError {
    PullError::Unreachable { url: url.to_string(), source: error.without_url().into() }
}

fn parse<'a, T: Deserialize<'a>>(url: &Url, body: &'a [u8]) -> Result<T, PullError> {
    serde_json::from_slice(body).map_err(|error| PullError::Answer { url: url.to_string(), problem: error.to_string() })
}

/// Checks what the hub says of a file before any of it becomes a path or a checksum.
fn remote_file(entry: TreeEntry) -> Result<RemoteFile, String> {
    if !is_plain_path(&entry.path) {
        return Err(format!("it lists a file at {:?}, outside of its repository", entry.path));
    }
    let (etag, bytes, sha256) = match entry.lfs {
        Some(lfs) => (lfs.oid.clone(), lfs.size, Some(lfs.oid)),
        None => (entry.oid, entry.size, None),
    };
    let is_hex = |text: &str| !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(&etag) || sha256.as_ref().is_some_and(|sha256| sha256.len() != 64) {
        return Err(format!("{etag:?} of {} is no checksum", entry.path));
    }
    Ok(RemoteFile { path: entry.path, bytes, sha256, etag })
}

/// The address after `rel="next"` in a `Link` header (RFC 8288).
fn next_page(headers: &header::HeaderMap, base: &Url) -> Option<Url> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (address, _) = next.trim().strip_prefix('<')?.split_once('>')?;
    base.join(address).ok()
}

/// Turns a status that is no success into the error that says what to do.
pub(super) fn refuse_errors(
    response: Response,
    url: &Url,
    repository: &str,
    what: &str,
) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name: &str| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.chars().take(300).collect::<String>()
    };
    let (code, message) = (header("x-error-code"), header("x-error-message"));
    let denied = |advice| PullError::Denied {
        repository: repository.to_owned(),
        status: status.as_u16(),
        message: message.clone(),
        advice,
    };
    Err(match status {
        StatusCode::NOT_FOUND => PullError::NotFound {
            what: what.to_owned(),
            url: url.to_string(),
            hint: if code == "EntryNotFound" { ", also of the file" } else { "" },
        },
        _ if code == "GatedRepo" => denied(
            "its owner asks for consent first. Accept the terms on the repository's page while signed in, then set HF_TOKEN \
             to a token of that account",
        ),
        // The hub answers 401 to strangers for names that do not exist, so that private names stay private.
        StatusCode::UNAUTHORIZED => denied(
            "it is private or does not exist. Check the spelling; if it is private, set HF_TOKEN to a token that may read it",
        ),
        StatusCode::FORBIDDEN => denied(
            "the token may not read it. Accept the terms on the repository's page, or use a token with more rights",
        ),
        _ => PullError::Server { url: url.to_string(), status: status.as_u16(), message },
    })
}
