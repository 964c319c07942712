//! The part of the hub's HTTP interface that fetching a model needs: which commit, which files, their bytes.
//!
//! Implemented here rather than left to the hub's own client (the crate hf-hub, whose layout of the cache `cache.rs`
//! uses), because that client starts over after an interruption, checks neither length nor checksum, reads answers of
//! any length into memory, and takes settings from the environment. The interface is documented at
//! <https://huggingface.co/docs/hub/api>: `GET /api/models/R/revision/V` has the commit as `sha`,
//! `GET /api/models/R/tree/C?recursive=true` lists the files, with a `Link` header to its next page, and
//! `/R/resolve/C/PATH` has a large file's sha256 in `X-Linked-ETag` before it redirects to the bytes.
//!
//! The token goes to the hub's own origin only: descriptions are read from there alone, and the HTTP client drops the
//! token when a redirect to a file's bytes leaves it.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, header, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use super::{HubSettings, PullError, cache::is_plain_path};

/// Maximum entries of a listing, files and directories.
const ENTRIES_MAX: usize = 100_000;
/// Maximum pages of a listing; the hub's pages have a thousand entries.
const PAGES_MAX: usize = 1000;
/// Maximum size of one answer that describes a repository.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause within a file.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Retries of a request to describe a repository that failed for a transient reason.
const RETRIES: usize = 2;
/// Redirects within the hub, from a repository's old name to its new one.
const REDIRECTS_MAX: usize = 10;
/// How much of a refusal's body is read for its message.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Maximum length of the hub's message about a refusal, in characters.
const MESSAGE_LENGTH_MAX: usize = 300;
const USER_AGENT: &str = concat!("hearth/", env!("CARGO_PKG_VERSION"));

pub(super) struct Hub {
    /// For file contents: follows redirects to any server.
    client: Client,
    /// For the hub's own answers about a repository or a file: follows redirects within the hub only.
    stays: Client,
    endpoint: Url,
    token: Option<String>,
    retry_wait: Duration,
}

/// The answer of `/api/models/R/revision/V`.
#[derive(Deserialize)]
struct Revision {
    #[serde(default)]
    sha: String,
}

/// An entry of `/api/models/R/tree/C`.
#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    size: u64,
}

/// A file of a repository, as its listing describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Git's hash of the file, or of the pointer file that replaces a large one.
    pub(super) git_hash: String,
    pub(super) is_large: bool,
}

/// A file that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// Only large files have one.
    pub(super) sha256: Option<String>,
    /// The hub's name for these bytes: the sha256 of a large file, git's hash of a small one.
    pub(super) etag: String,
}

impl Hub {
    pub(super) fn new(settings: &HubSettings) -> Result<Self, PullError> {
        let wrong = |problem: String| PullError::Endpoint { url: settings.endpoint.clone(), problem };
        let endpoint = Url::parse(&settings.endpoint).map_err(|error| wrong(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(wrong("it must begin with https:// or http://".to_owned()));
        }
        if settings
            .token
            .as_ref()
            .is_some_and(|token| token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(PullError::Token);
        }
        let client = || Client::builder().user_agent(USER_AGENT).connect_timeout(CONNECT_TIMEOUT);
        let within_the_hub = redirect::Policy::custom(|attempt| {
            let last = attempt.previous().last().map(Url::origin);
            if last != Some(attempt.url().origin()) || attempt.previous().len() > REDIRECTS_MAX {
                attempt.stop()
            } else {
                attempt.follow()
            }
        });
        let unusable = |error: reqwest::Error| PullError::Unreachable {
            url: settings.endpoint.clone(),
            source: anyhow::Error::from(error),
        };
        Ok(Self {
            client: client().read_timeout(READ_TIMEOUT).build().map_err(unusable)?,
            stays: client().timeout(ANSWER_TIMEOUT).redirect(within_the_hub).build().map_err(unusable)?,
            endpoint,
            token: settings.token.clone(),
            retry_wait: settings.retry_wait,
        })
    }

    fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("http addresses have paths").pop_if_empty().extend(segments);
        url
    }

    pub(super) fn file_url(&self, repository: &str, commit: &str, path: &str) -> Url {
        self.url(repository.split('/').chain(["resolve", commit]).chain(path.split('/')))
    }

    /// The commit that a branch, tag or commit currently resolves to.
    pub(super) async fn commit(&self, repository: &str, revision: &str) -> Result<String, PullError> {
        let url = self.url(["api", "models"].into_iter().chain(repository.split('/')).chain(["revision", revision]));
        let what = format!("repository {repository} at {revision}");
        let (about, _) = self.description::<Revision>(&url, repository, &what).await?;
        let commit = about.sha;
        if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(PullError::Answer { url: url.into(), problem: format!("{commit:?} is no commit") });
        }
        Ok(commit)
    }

    /// All files of a commit, sorted by path.
    pub(super) async fn files(&self, repository: &str, commit: &str) -> Result<Vec<ListedFile>, PullError> {
        let what = format!("repository {repository}");
        let mut url = self.url(["api", "models"].into_iter().chain(repository.split('/')).chain(["tree", commit]));
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        let mut entries = 0;
        for _ in 0..PAGES_MAX {
            let wrong = |problem: String| PullError::Answer { url: url.to_string(), problem };
            let (page, headers) = self.description::<Vec<TreeEntry>>(&url, repository, &what).await?;
            entries += page.len();
            if entries > ENTRIES_MAX {
                return Err(wrong(format!("it lists more than {ENTRIES_MAX} files")));
            }
            for entry in page.into_iter().filter(|entry| entry.kind == "file") {
                let bytes = entry.lfs.as_ref().map_or(entry.size, |large| large.size);
                let file = ListedFile { path: entry.path, bytes, git_hash: entry.oid, is_large: entry.lfs.is_some() };
                check_listed(&file).map_err(wrong)?;
                files.push(file);
            }
            let Some(next) = next_page(&headers) else {
                files.sort_by(|a, b| a.path.cmp(&b.path));
                return Ok(files);
            };
            // The request carries the token, so a listing that continues on another server is not followed there.
            let next =
                url.join(next).map_err(|error| wrong(format!("its next page {next:?} is no address: {error}")))?;
            if next.origin() != self.endpoint.origin() {
                return Err(wrong(format!("its next page, {next}, is on another server")));
            }
            url = next;
        }
        Err(PullError::Answer { url: url.into(), problem: format!("it has more than {PAGES_MAX} pages") })
    }

    /// What the hub says about a file: its length, its entity tag and, for a large file, its checksum.
    pub(super) async fn describe(
        &self,
        repository: &str,
        commit: &str,
        file: &ListedFile,
    ) -> Result<RemoteFile, PullError> {
        let ListedFile { path, bytes, git_hash, is_large } = file.clone();
        if !is_large {
            return Ok(RemoteFile { path, bytes, sha256: None, etag: git_hash });
        }
        let url = self.file_url(repository, commit, &path);
        let response = self.ask(&url, |client| client.head(url.clone())).await?;
        let response = match response.status().is_redirection() {
            true => response,
            false => refuse_errors(response, &url, repository, &format!("file {path} in {repository}")).await?,
        };
        let sha256 = linked_sha256(response.headers())
            .ok_or_else(|| PullError::NoChecksum { file: path.clone(), url: url.to_string() })?;
        Ok(RemoteFile { path, bytes, etag: sha256.clone(), sha256: Some(sha256) })
    }

    /// The hub's JSON answer at an address, and the headers of the answer.
    async fn description<T: DeserializeOwned>(
        &self,
        url: &Url,
        repository: &str,
        what: &str,
    ) -> Result<(T, header::HeaderMap), PullError> {
        let response = self.ask(url, |client| client.get(url.clone())).await?;
        let wrong = |problem: String| PullError::Answer { url: url.to_string(), problem };
        if response.status().is_redirection() {
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            return Err(wrong(format!("it redirects to {to:?}, which is another server; set HF_ENDPOINT to that one")));
        }
        let mut response = refuse_errors(response, url, repository, what).await?;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| unreachable(url, error))? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(wrong(format!("it is longer than {} MiB", ANSWER_BYTES_MAX >> 20)));
            }
            body.extend_from_slice(&piece);
        }
        let described = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        Ok((described, std::mem::take(response.headers_mut())))
    }

    /// Sends a request to the hub itself, and retries where the failure may be transient.
    async fn ask(&self, url: &Url, request: impl Fn(&Client) -> RequestBuilder) -> Result<Response, PullError> {
        let mut attempt = 0;
        loop {
            let answer = self.authorized(request(&self.stays)).send().await;
            let is_passing = match &answer {
                Ok(response) => is_passing(response.status()),
                Err(error) => error.is_connect() || error.is_timeout() || error.is_request(),
            };
            if !is_passing || attempt == RETRIES {
                return answer.map_err(|error| unreachable(url, error));
            }
            tokio::time::sleep(self.retry_wait * (1 << attempt)).await;
            attempt += 1;
        }
    }

    /// Requests an address, from byte `from` on if given. Any status is an `Ok`.
    pub(super) async fn get(&self, url: &Url, from: Option<u64>) -> Result<Response, PullError> {
        let mut request = self.authorized(self.client.get(url.clone()));
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.send().await.map_err(|error| unreachable(url, error))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.header(header::ACCEPT_ENCODING, "identity");
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// Whether the same request may succeed a little later.
pub(super) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

fn unreachable(url: &Url, error: reqwest::Error) -> PullError {
    PullError::Unreachable { url: url.to_string(), source: error.without_url().into() }
}

/// Checks what the hub says about a file before any of it becomes a path.
fn check_listed(file: &ListedFile) -> Result<(), String> {
    if !is_plain_path(&file.path) {
        return Err(format!("it lists a file at {:?}, outside of its repository", file.path));
    }
    let hash = &file.git_hash;
    if hash.is_empty() || hash.len() > 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("{hash:?} of {} is no checksum", file.path));
    }
    Ok(())
}

/// The address of a listing's next page: `Link: <ADDRESS>; rel="next"` (RFC 8288). An address may contain commas, which
/// otherwise separate links.
fn next_page(headers: &header::HeaderMap) -> Option<&str> {
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split('<').skip(1)).find_map(|link| {
        let (address, parameters) = link.split_once('>')?;
        let mut parameters = parameters.split([';', ',']).map(str::trim);
        parameters.any(|parameter| matches!(parameter, "rel=\"next\"" | "rel=next")).then_some(address)
    })
}

/// The sha256 that the hub sends as a large file's entity tag.
fn linked_sha256(headers: &header::HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG))?.to_str().ok()?;
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// Turns an unsuccessful status into the error that says what to do. The hub's own message is in a header or, from
/// mirrors, in the body as `{"error": "..."}`.
pub(super) async fn refuse_errors(
    mut response: Response,
    url: &Url,
    repository: &str,
    what: &str,
) -> Result<Response, PullError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name: &str| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (code, mut message) = (header("x-error-code"), header("x-error-message"));
    if message.is_empty() {
        let mut body = Vec::new();
        while let Ok(Some(piece)) = response.chunk().await
            && body.len() < REFUSAL_BYTES_MAX
        {
            body.extend_from_slice(&piece);
        }
        message = serde_json::from_slice(&body).map(|refused: Refused| refused.error).unwrap_or_default();
    }
    Err(refusal(status, &code, &message, url, repository, what))
}

fn refusal(status: StatusCode, code: &str, message: &str, url: &Url, repository: &str, what: &str) -> PullError {
    // Untrusted text that will be printed on a terminal.
    let message: String = message.chars().filter(|c| !c.is_control()).take(MESSAGE_LENGTH_MAX).collect();
    let denied = |advice| PullError::Denied {
        repository: repository.to_owned(),
        status: status.as_u16(),
        message: message.clone(),
        advice,
    };
    match status {
        StatusCode::NOT_FOUND => PullError::NotFound {
            what: what.to_owned(),
            url: url.to_string(),
            hint: if code == "EntryNotFound" { ", also of the file" } else { "" },
        },
        _ if code == "GatedRepo" => denied(
            "its owner asks for consent first. Accept the terms on the repository's page while signed in, then set HF_TOKEN \
             to a token of that account",
        ),
        // The hub answers 401 to unauthenticated requests for names that do not exist, so that private names stay
        // private.
        StatusCode::UNAUTHORIZED => denied(
            "it is private or does not exist. Check the spelling; if it is private, set HF_TOKEN to a token that may read it",
        ),
        StatusCode::FORBIDDEN => denied(
            "the token may not read it. Accept the terms on the repository's page, or use a token with more rights",
        ),
        _ => PullError::Server { url: url.to_string(), status: status.as_u16(), message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_read_from_the_linked_tag() {
        let sha256 = "aB".repeat(32);
        let mut headers = header::HeaderMap::new();
        headers.insert(header::ETAG, "\"other\"".parse().unwrap());
        assert_eq!(linked_sha256(&headers), None);
        headers.insert("x-linked-etag", format!("W/\"{sha256}\"").parse().unwrap());
        assert_eq!(linked_sha256(&headers), Some("ab".repeat(32)));
    }

    #[test]
    fn the_next_page_is_the_link_that_says_so() {
        let mut headers = header::HeaderMap::new();
        assert_eq!(next_page(&headers), None);
        headers.insert(header::LINK, "</a?cursor=1>; rel=\"prev\"".parse().unwrap());
        assert_eq!(next_page(&headers), None);
        headers
            .append(header::LINK, "</b>; rel=\"last\", <http://hub/c?cursor=2,3>; x=y; rel=\"next\"".parse().unwrap());
        assert_eq!(next_page(&headers), Some("http://hub/c?cursor=2,3"));
    }

    #[test]
    fn what_the_hub_says_cannot_move_the_cursor() {
        let url = Url::parse("http://hub/api").unwrap();
        let error = refusal(StatusCode::FORBIDDEN, "", "no\u{1b}[2J", &url, "o/n", "repository o/n");
        assert!(error.to_string().contains("403: no[2J"), "{error}");
    }
}
