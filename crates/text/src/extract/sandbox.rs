//! A child process that reads one document and may die doing so.
//!
//! The parent starts its own program with the hidden subcommand [`CHILD_COMMAND`], writes a request to its standard
//! input and reads the answer from its standard output, both as JSON. The child has an empty environment, since the
//! parent's may contain secrets. It sets limits on its memory, processor time and files, reads the document's bytes,
//! and gives up everything else (`lockdown.rs`) before it looks at them; the parent enforces the time limit and the
//! size of the answer. A crash, an exhausted limit or a forged answer is an error of that one document.
//!
//! The limits are those of POSIX `setrlimit`. Where there is no `setrlimit`, the limits on time and answer size still
//! apply.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{ExtractError, Extracted, Limit, Limits, Lockdown, extract_unprotected, lockdown::lock_down, read_whole};

/// The subcommand that runs as the child.
pub const CHILD_COMMAND: &str = "extract-child";

/// Maximum length of a dying child's error output, in bytes.
const COMPLAINT_BYTES: u64 = 16 * 1024;

/// How to start a child.
#[derive(Clone, Debug)]
pub struct Sandbox {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Where the loader finds the program's libraries (`LD_LIBRARY_PATH`): the one variable that the child may need to
    /// start.
    library_path: Option<OsString>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// `None` asks what the child can give up; no document is read.
    path: Option<PathBuf>,
    file_name: String,
    limits: Limits,
}

#[derive(serde::Serialize, serde::Deserialize)]
enum ReaderAnswer {
    Document(Result<Extracted, ExtractError>),
    Lockdown(Lockdown),
}

impl Sandbox {
    /// Children that run the current program.
    ///
    /// # Errors
    /// If the system does not provide the program's path.
    pub fn of_this_program() -> io::Result<Self> {
        // This link keeps referring to the running program when its file is replaced by a newer version.
        let link = Path::new("/proc/self/exe");
        let program = if link.exists() { link.to_owned() } else { std::env::current_exe()? };
        Ok(Self::of_program(program, [CHILD_COMMAND]))
    }

    /// Children that run another program, which must answer as [`serve_one`] does.
    pub fn of_program(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item: Into<OsString>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program: program.into(), arguments, library_path: None }
    }

    /// Sets where the children find the program's libraries.
    #[must_use]
    pub fn with_library_path(self, library_path: Option<OsString>) -> Self {
        Self { library_path, ..self }
    }

    /// Reads one document in a child process and waits for it, at most [`Limits::wall_time`].
    ///
    /// # Errors
    /// What the child found wrong with the document, or how the child itself died.
    pub fn extract(&self, path: &Path, file_name: &str, limits: &Limits) -> Result<Extracted, ExtractError> {
        // The child says what is wrong with a file that cannot be opened.
        let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
        match self.ask(Some(path), file_name, &limits.for_file(bytes))? {
            ReaderAnswer::Document(document) => document,
            ReaderAnswer::Lockdown(_) => {
                Err(ExtractError::Crashed { how: "answered what it was not asked".to_owned() })
            }
        }
    }

    /// What child processes give up on this machine.
    ///
    /// # Errors
    /// If a child cannot be started.
    pub fn lockdown(&self, limits: &Limits) -> Result<Lockdown, ExtractError> {
        match self.ask(None, "", limits)? {
            ReaderAnswer::Lockdown(lockdown) => Ok(lockdown),
            ReaderAnswer::Document(_) => Err(no_reader(&"it answered what it was not asked")),
        }
    }

    fn ask(&self, path: Option<&Path>, file_name: &str, limits: &Limits) -> Result<ReaderAnswer, ExtractError> {
        let deadline = Instant::now() + limits.wall_time;
        let request =
            Request { path: path.map(Path::to_owned), file_name: file_name.to_owned(), limits: limits.clone() };
        let request = serde_json::to_vec(&request).map_err(|error| no_reader(&error))?;
        let mut child = RunningChild(
            Command::new(&self.program)
                .args(&self.arguments)
                .env_clear()
                .envs(self.library_path.iter().map(|path| ("LD_LIBRARY_PATH", path)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| no_reader(&error))?,
        );
        let answer_bytes = answer_limit(limits);
        let answer = read_aside(child.0.stdout.take(), answer_bytes + 1);
        let complaint = read_aside(child.0.stderr.take(), COMPLAINT_BYTES);
        if let Some(mut input) = child.0.stdin.take() {
            // If the child has already ended, its exit status says why.
            let _ = input.write_all(&request);
        }
        let over = |limit, allowed| Err(ExtractError::OverLimit { limit, allowed, found: None });
        let Ok(answer) = answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            return over(Limit::WallSeconds, limits.wall_time.as_secs());
        };
        if answer.len() as u64 > answer_bytes {
            return over(Limit::AnswerBytes, answer_bytes);
        }
        let Some(status) = child.wait_until(deadline) else {
            return over(Limit::WallSeconds, limits.wall_time.as_secs());
        };
        // The last line: a library may have printed something before it.
        let line = answer.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        if status.success()
            && let Ok(answer) = serde_json::from_slice::<ReaderAnswer>(line)
        {
            return Ok(answer);
        }
        let complaint = complaint.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        Err(ended(status, &String::from_utf8_lossy(&complaint), limits))
    }
}

/// The child's side: reads a request from `input`, applies the limits to this process, and writes the answer to
/// `output`. The process should exit afterwards.
///
/// # Errors
/// If the request cannot be read, the limits cannot be set or the answer cannot be written.
pub fn serve_one(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut request = Vec::new();
    input.take(1024 * 1024).read_to_end(&mut request)?;
    let Request { path, file_name, limits } = serde_json::from_slice(&request)?;
    take_limits(&limits)?;
    let answer = match path {
        Some(path) => ReaderAnswer::Document(read_whole(&path, &limits).and_then(|bytes| {
            lock_down();
            extract_unprotected(bytes, &file_name, &limits)
        })),
        None => ReaderAnswer::Lockdown(lock_down()),
    };
    output.write_all(b"\n")?;
    serde_json::to_writer(&mut output, &answer)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Two bytes of JSON per byte of text, plus the overhead of each block.
fn answer_limit(limits: &Limits) -> u64 {
    const AROUND_A_BLOCK: u64 = 256;
    limits
        .text_bytes
        .saturating_mul(2)
        .saturating_add(limits.blocks.saturating_mul(AROUND_A_BLOCK))
        .saturating_add(65_536)
}

fn no_reader(error: &dyn std::fmt::Display) -> ExtractError {
    ExtractError::NoReader { reason: error.to_string() }
}

/// Reads a pipe on its own thread and returns its first bytes, at most `most`. The rest is read and discarded: a child
/// whose error output blocks would die of that instead.
fn read_aside(pipe: Option<impl Read + Send + 'static>, most: u64) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        let Some(mut pipe) = pipe else { return };
        let _ = pipe.by_ref().take(most).read_to_end(&mut kept);
        let _ = sender.send(kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
    });
    receiver
}

/// Kills the child when the parent stops waiting for it.
struct RunningChild(Child);

impl RunningChild {
    /// The exit status of a child that has closed its output and is therefore about to exit.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::park_timeout(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }
}

impl Drop for RunningChild {
    fn drop(&mut self) {
        // Neither affects a child that has already been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a child died. The Rust runtime prints two of the reasons to standard error and then aborts.
fn ended(status: ExitStatus, complaint: &str, limits: &Limits) -> ExtractError {
    if complaint.contains("memory allocation of") {
        return ExtractError::OverLimit { limit: Limit::Memory, allowed: limits.memory_bytes, found: None };
    }
    if complaint.contains("has overflowed its stack") {
        return ExtractError::Crashed { how: "ran out of stack, as with parts nested too deep".to_owned() };
    }
    tracing::debug!(%status, complaint, "the reader of a document ended without an answer");
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        if signal == rustix::process::Signal::XCPU.as_raw() {
            return ExtractError::OverLimit {
                limit: Limit::CpuSeconds,
                allowed: limits.cpu_time.as_secs(),
                found: None,
            };
        }
        return ExtractError::Crashed { how: format!("was ended by signal {signal}") };
    }
    if complaint.contains("panicked at") {
        return ExtractError::Crashed { how: "met something it did not expect".to_owned() };
    }
    ExtractError::Crashed { how: format!("ended without an answer ({status})") }
}

/// Sets limits that this process cannot raise again.
#[cfg(unix)]
fn take_limits(limits: &Limits) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let take = |resource, most: u64, slack: u64| -> io::Result<()> {
        // A process cannot raise a hard limit that it was started with.
        let ceiling = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let current = most.min(ceiling);
        let maximum = most.saturating_add(slack).min(ceiling);
        Ok(setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })?)
    };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    take(Resource::Core, 0, 0)?;
    // The pipes and the document, and a few that a library may need.
    take(Resource::Nofile, 16, 0)?;
    // Reading a document never writes files.
    take(Resource::Fsize, 0, 0)?;
    // Exceeding the soft limit raises a specific signal; the hard limit, one second later, does not.
    take(Resource::Cpu, limits.cpu_time.as_secs().max(1), 1)?;
    #[cfg(not(any(target_os = "openbsd", target_os = "macos", target_os = "ios")))]
    take(Resource::As, mapped_bytes().saturating_add(limits.memory_bytes), 0)?;
    Ok(())
}

#[cfg(not(unix))]
fn take_limits(_: &Limits) -> io::Result<()> {
    Ok(())
}

/// Address space that the process uses before it reads anything: its program and libraries, of which a GPU build has
/// many. 0 where the system does not provide it.
#[cfg(all(unix, not(any(target_os = "openbsd", target_os = "macos", target_os = "ios"))))]
fn mapped_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
