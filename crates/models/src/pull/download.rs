//! Downloads one file from the hub to disk: resumes, measures and checks it, then renames it into place.
//!
//! A large file grows under a temporary name, over any number of connections and runs of the program; its sha256 is
//! checked at the end. A small file has no published sha256 that would prove two partial downloads belong together, so
//! it starts over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{Response, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use url::Url;

use super::{
    PullError, PullProgress,
    cache::create_parent,
    hub::{Hub, RemoteFile, is_passing, refuse_errors},
};

/// Consecutive attempts that bring no new byte.
const ATTEMPTS_MAX: u32 = 5;
/// The longest wait between two attempts, even if the server asks for more.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) repository: &'a str,
    pub(super) file: &'a RemoteFile,
    pub(super) url: Url,
    /// The path of the partial file.
    pub(super) incomplete: PathBuf,
    /// The path of the finished file.
    pub(super) destination: PathBuf,
    pub(super) retry_wait: Duration,
    pub(super) progress: &'a dyn PullProgress,
}

/// Why an attempt ended before the file was complete.
enum Failure {
    /// Another attempt may succeed, after this wait if the server gives one.
    Transient {
        problem: String,
        wait: Option<Duration>,
    },
    Final(PullError),
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::Final(error)
    }
}

impl Download<'_> {
    pub(super) async fn run(&self) -> Result<(), PullError> {
        create_parent(&self.incomplete).map_err(|error| self.disk(error))?;
        create_parent(&self.destination).map_err(|error| self.disk(error))?;
        let mut have = self.usable_bytes().map_err(|error| self.disk(error))?;
        let had = have;
        self.progress.begin(&self.file.path, self.file.bytes, have);
        self.fetch(&mut have).await?;
        if let Err(error) = self.verify().await {
            self.remove_incomplete()?;
            // The bytes of an earlier run may be at fault: try once more from the start.
            if had == 0 || !matches!(error, PullError::WrongChecksum { .. }) {
                return Err(error);
            }
            have = 0;
            self.progress.begin(&self.file.path, self.file.bytes, 0);
            self.fetch(&mut have).await?;
            if let Err(error) = self.verify().await {
                self.remove_incomplete()?;
                return Err(error);
            }
        }
        rename(&self.incomplete, &self.destination).map_err(|error| self.disk(error))?;
        self.progress.finish(&self.file.path);
        Ok(())
    }

    /// How many bytes of an earlier attempt can be resumed from; a partial file that cannot be resumed is deleted.
    fn usable_bytes(&self) -> io::Result<u64> {
        match fs::metadata(&self.incomplete) {
            Ok(about) if self.file.sha256.is_some() && about.len() <= self.file.bytes => Ok(about.len()),
            Ok(_) => fs::remove_file(&self.incomplete).map(|()| 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Repeats attempts until all bytes are present. `have` counts them.
    async fn fetch(&self, have: &mut u64) -> Result<(), PullError> {
        let mut fruitless = 0;
        while *have < self.file.bytes || !self.incomplete.exists() {
            let before = *have;
            let (problem, wait) = match self.attempt(have).await {
                Ok(()) => continue,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient { problem, wait }) => (problem, wait),
            };
            fruitless = if *have > before { 1 } else { fruitless + 1 };
            if fruitless >= ATTEMPTS_MAX {
                let (file, total) = (self.file.path.clone(), self.file.bytes);
                return Err(PullError::Interrupted { file, have: *have, total, problem });
            }
            tracing::info!(file = self.file.path, have = *have, problem, "download interrupted, trying again");
            let doubled = self.retry_wait.saturating_mul(1 << (fruitless - 1));
            tokio::time::sleep(wait.unwrap_or(doubled).min(RETRY_WAIT_MAX)).await;
        }
        Ok(())
    }

    /// One request for the missing bytes.
    async fn attempt(&self, have: &mut u64) -> Result<(), Failure> {
        let response = match self.hub.get(&self.url, (*have > 0).then_some(*have)).await {
            Ok(response) => response,
            Err(PullError::Unreachable { source, .. }) => {
                return Err(Failure::Transient { problem: format!("{source:#}"), wait: None });
            }
            Err(error) => return Err(error.into()),
        };
        let response = self.accept(response, have).await?;

        let wrong_length = |found: String| PullError::WrongLength {
            file: self.file.path.clone(),
            url: self.url.to_string(),
            expected: self.file.bytes,
            found,
            content_type: header_text(&response, header::CONTENT_TYPE).unwrap_or("of unknown type").to_owned(),
        };
        let missing = self.file.bytes - *have;
        if let Some(announced) = response.content_length().filter(|announced| *announced != missing) {
            return Err(wrong_length((*have + announced).to_string()).into());
        }
        let too_long = wrong_length(format!("more than {}", self.file.bytes));

        let mut file = self.open(*have).await.map_err(|error| self.disk(error))?;
        let mut body = response.bytes_stream();
        let mut outcome = Ok(());
        while let Some(chunk) = body.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    let problem = format!("{:#}", anyhow::Error::from(error.without_url()));
                    outcome = Err(Failure::Transient { problem, wait: None });
                    break;
                }
            };
            if chunk.len() as u64 > self.file.bytes - *have {
                drop(file);
                self.remove_incomplete()?;
                return Err(too_long.into());
            }
            file.write_all(&chunk).await.map_err(|error| self.disk(error))?;
            *have += chunk.len() as u64;
            self.progress.advance(chunk.len() as u64);
        }
        file.flush().await.map_err(|error| self.disk(error))?;
        outcome?;
        if *have < self.file.bytes {
            return Err(Failure::Transient { problem: "the connection was closed early".to_owned(), wait: None });
        }
        file.into_inner().sync_all().await.map_err(|error| self.disk(error))?;
        Ok(())
    }

    /// Checks that this answer is the bytes from `have` on. If it is the file from its start, `have` is reset to 0.
    async fn accept(&self, response: Response, have: &mut u64) -> Result<Response, Failure> {
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT if *have > 0 => {
                let expected = format!("bytes {have}-{}/{}", self.file.bytes - 1, self.file.bytes);
                match header_text(&response, header::CONTENT_RANGE) {
                    Some(range) if range == expected => Ok(response),
                    other => {
                        let problem = format!("the server sends the range {other:?} instead of {expected:?}");
                        self.start_over(have)?;
                        Err(Failure::Transient { problem, wait: None })
                    }
                }
            }
            StatusCode::OK => {
                // The server does not support ranges.
                if *have > 0 {
                    self.start_over(have)?;
                }
                Ok(response)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.start_over(have)?;
                Err(Failure::Transient { problem: "the server refuses to go on from there".to_owned(), wait: None })
            }
            _ if is_passing(status) => {
                let wait = header_text(&response, header::RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
                let problem = format!("the server answers {status}");
                Err(Failure::Transient { problem, wait: wait.map(Duration::from_secs) })
            }
            _ if status.is_success() => {
                let problem = format!("{status} is no answer to a request for a file");
                Err(PullError::Answer { url: self.url.to_string(), problem }.into())
            }
            _ => {
                let what = format!("file {} in {}", self.file.path, self.repository);
                Ok(refuse_errors(response, &self.url, self.repository, &what).await?)
            }
        }
    }

    fn start_over(&self, have: &mut u64) -> Result<(), PullError> {
        self.remove_incomplete()?;
        *have = 0;
        self.progress.begin(&self.file.path, self.file.bytes, 0);
        Ok(())
    }

    async fn open(&self, have: u64) -> io::Result<tokio::io::BufWriter<tokio::fs::File>> {
        let mut options = tokio::fs::OpenOptions::new();
        if have > 0 {
            options.append(true);
        } else {
            options.write(true).create(true).truncate(true);
        }
        Ok(tokio::io::BufWriter::with_capacity(1 << 20, options.open(&self.incomplete).await?))
    }

    /// Checks the file against the length and the checksum that the hub published.
    async fn verify(&self) -> Result<(), PullError> {
        let Some(expected) = &self.file.sha256 else { return Ok(()) };
        self.progress.verify(&self.file.path);
        let path = self.incomplete.clone();
        let found = tokio::task::spawn_blocking(move || sha256_of(&path)).await;
        let found = found.map_err(io::Error::other).and_then(|sum| sum).map_err(|error| self.disk(error))?;
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(PullError::WrongChecksum { file: self.file.path.clone(), expected: expected.clone(), found })
    }

    fn remove_incomplete(&self) -> Result<(), PullError> {
        match fs::remove_file(&self.incomplete) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.disk(error)),
            _ => Ok(()),
        }
    }

    fn disk(&self, source: io::Error) -> PullError {
        PullError::Disk { path: self.incomplete.clone(), source }
    }
}

fn header_text(response: &Response, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// The sha256 of a file in lower-case hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut io::BufReader::with_capacity(1 << 20, fs::File::open(path)?), &mut HashWriter(&mut hasher))?;
    Ok(hex(&hasher.finalize()))
}

/// Renames a file durably: its new name is on disk when this returns, where the file system supports that.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    // Not every file system can sync a folder; the file is complete in any case.
    #[cfg(unix)]
    if let Some(folder) = to.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
    {
        drop(fs::File::open(folder).and_then(|folder| folder.sync_all()));
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
