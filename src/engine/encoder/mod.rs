//! The embedding model's thread: tokens go in, vectors come out.
//!
//! An [`EncoderHandle`] is a clonable handle on one OS thread that owns the model. [`EncoderHandle::submit`] refuses
//! early: the queue has a limit in texts. The thread merges waiting requests into batches (`queue` says which); a
//! text's vector does not depend on its batch. Dropping the returned future cancels the request between batches. A
//! panic or an error in a batch fails the requests in that batch, and the thread goes on; a panic of the loop itself
//! fails all requests, and the loop restarts.

mod core;
pub(super) mod metrics;
mod pace;
mod queue;
mod stats;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use hearth_domain::{
    error::{Error, ErrorKind, Result},
    part::Part,
    usage::UsageRecord,
};
use hearth_models::encoder::Encoder;
use tokio::sync::oneshot;

use self::{core::Core, pace::GivesWay, stats::SharedStats};
pub use self::{
    pace::Foreground,
    queue::{BACKGROUND_TURN, Priority},
    stats::EncoderStats,
};
use super::{Heartbeat, StepError};

/// A model that turns packed texts into vectors. [`Encoder`] implements it; tests use a mock.
pub trait EncoderModel: Send {
    /// `tokens` holds `lengths.len()` texts, one after another; the answer is one vector per text, in order.
    fn embed(&mut self, tokens: &[u32], lengths: &[usize]) -> Result<Vec<Vec<f32>>, StepError>;
}

impl EncoderModel for Arc<Encoder> {
    fn embed(&mut self, tokens: &[u32], lengths: &[usize]) -> Result<Vec<Vec<f32>>, StepError> {
        Encoder::embed(self, tokens, lengths).map_err(|error| StepError::Failed(error.to_string()))
    }
}

/// The encoder's limits, all of them counts.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    /// Texts that may wait or run, over all requests; a request that would exceed it is refused.
    pub max_waiting_texts: usize,
    /// Tokens of one batch. A single longer text is a batch of its own.
    pub max_batch_tokens: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self { max_waiting_texts: 16_384, max_batch_tokens: 2048 }
    }
}

/// Texts to embed together.
#[derive(Clone, Debug, Default)]
pub struct EncodeRequest {
    /// Token ids of each text, complete with special tokens, at least one.
    pub texts: Vec<Vec<u32>>,
    pub priority: Priority,
    /// The key of fair scheduling between callers.
    pub caller: String,
    /// Where the request's share of each batch is recorded.
    pub record: UsageRecord,
    /// The request ends with an error at this instant, unless its last batch is being computed.
    pub deadline: Option<Instant>,
}

/// A finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// One per text, in the order of the request.
    pub vectors: Vec<Vec<f32>>,
    /// Time until its first text was computed.
    pub queue: Duration,
    /// Time from then to the end.
    pub running: Duration,
    /// Its share, by tokens, of its batches' time.
    pub compute: Duration,
}

/// A handle on the encoder's thread. The thread ends when every handle is gone and all accepted work is done, or when
/// [`EncoderHandle::drain`] is done.
#[derive(Clone)]
pub struct EncoderHandle {
    commands: Sender<Command>,
    shared: Arc<EncoderState>,
}

/// State shared by the handles and the thread.
struct EncoderState {
    config: EncoderConfig,
    /// Texts accepted and not yet answered; bounds the queue at the moment of submission.
    open_texts: AtomicUsize,
    next_request: AtomicU64,
    draining: AtomicBool,
    gives_way: GivesWay,
    stats: SharedStats,
    part: Arc<Part>,
}

/// Commands to the thread.
enum Command {
    Submit(Submission),
    Drain { until: Instant, done: oneshot::Sender<()> },
}

/// A request on its way to the thread.
struct Submission {
    id: u64,
    request: EncodeRequest,
    reply: oneshot::Sender<Result<Encoded>>,
    submitted: Instant,
    places: OpenTexts,
}

impl EncoderHandle {
    /// Moves the model to its own thread and starts the loop. The health report lists it as `name`, such as `embedding
    /// engine`.
    ///
    /// # Errors
    /// A limit of zero, or a thread that cannot be started.
    pub fn start(name: &str, model: Box<dyn EncoderModel>, config: EncoderConfig) -> Result<Self> {
        if config.max_waiting_texts == 0 || config.max_batch_tokens == 0 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "The embedding queue's limits max_waiting_texts and max_batch_tokens must be at least 1.",
            ));
        }
        let shared = Arc::new(EncoderState {
            config,
            open_texts: AtomicUsize::new(0),
            next_request: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            gives_way: GivesWay::default(),
            stats: SharedStats::default(),
            part: Part::new(name),
        });
        // The channel itself is unbounded: a submission has taken its places in the queue before it is sent.
        let (commands, inbox) = channel();
        let core = Core::new(model, shared.clone(), inbox);
        std::thread::Builder::new()
            .name("hearth-encoder".to_owned())
            .spawn(move || core.run())
            .map_err(|error| Error::internal(anyhow::Error::new(error).context("starting the encoder's thread")))?;
        Ok(Self { commands, shared })
    }

    /// Queues the request, within the queue's limit. Dropping the returned future cancels it.
    ///
    /// # Errors
    /// Before any work: a full queue, a draining encoder, a text without tokens.
    pub fn submit(&self, request: EncodeRequest) -> Result<impl Future<Output = Result<Encoded>> + Send + use<>> {
        if request.texts.is_empty() || request.texts.iter().any(Vec::is_empty) {
            return Err(Error::new(ErrorKind::InvalidRequest, "There is nothing to embed: a text has no tokens."));
        }
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(draining());
        }
        let places =
            self.shared.clone().open(request.texts.len()).ok_or_else(|| self.queue_full(request.texts.len()))?;
        let (reply, answer) = oneshot::channel();
        let id = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let submission = Submission { id, request, reply, submitted: Instant::now(), places };
        self.commands.send(Command::Submit(submission)).map_err(|_| self.stopped())?;
        let handle = self.clone();
        Ok(async move { answer.await.unwrap_or_else(|_| Err(handle.unanswered())) })
    }

    fn queue_full(&self, texts: usize) -> Error {
        let (open, limit) = (self.shared.open_texts.load(Ordering::Acquire), self.shared.config.max_waiting_texts);
        if texts > limit {
            return Error::invalid(
                "input",
                format!("The request has {texts} texts, but this server queues at most {limit}. Send fewer at a time."),
            );
        }
        Error::new(
            ErrorKind::Overloaded,
            format!("The embedding queue is full: {open} texts wait and {limit} may. Try again shortly."),
        )
        .with_retry_after(self.shared.stats.estimated_wait(open))
    }

    /// The error of a request that the thread dropped unanswered.
    fn unanswered(&self) -> Error {
        if self.shared.draining.load(Ordering::Acquire) {
            draining()
        } else {
            Error::internal(anyhow::anyhow!("the encoder's loop ended with the request open"))
        }
    }

    fn stopped(&self) -> Error {
        if self.shared.draining.load(Ordering::Acquire) {
            draining()
        } else {
            Error::new(
                ErrorKind::Unavailable,
                "The embedding queue has stopped; the server's log has the cause. Restart it.",
            )
        }
    }

    /// From now on background texts yield to the activity that `foreground` reports. It is asked before each batch.
    pub fn give_way_to(&self, foreground: impl Fn() -> Foreground + Send + Sync + 'static) {
        self.shared.gives_way.to(foreground);
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.shared.config
    }

    /// The current counts.
    pub fn stats(&self) -> EncoderStats {
        self.shared.snapshot()
    }

    /// Whether the loop is alive, and how long the current batch has taken.
    pub fn heartbeat(&self) -> Heartbeat {
        self.shared.stats.heartbeat()
    }

    /// How often the loop has panicked, and whether it has given up.
    pub fn part(&self) -> &Arc<Part> {
        &self.shared.part
    }

    /// Refuses new requests, lets the accepted ones finish within `grace`, ends the rest with an error, and
    /// stops the thread.
    pub async fn drain(&self, grace: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        let (done, finished) = oneshot::channel();
        if self.commands.send(Command::Drain { until: Instant::now() + grace, done }).is_ok() {
            // An error means that the thread is gone already, which is what was asked for.
            let _gone = finished.await;
        }
    }
}

impl fmt::Debug for EncoderHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncoderHandle").field("config", &self.shared.config).field("stats", &self.stats()).finish()
    }
}

fn draining() -> Error {
    Error::new(ErrorKind::Draining, "The server is shutting down. Try again in a moment.")
}

impl EncoderState {
    fn snapshot(&self) -> EncoderStats {
        self.stats.snapshot(self.open_texts.load(Ordering::Acquire))
    }

    fn open(self: Arc<Self>, texts: usize) -> Option<OpenTexts> {
        let limit = self.config.max_waiting_texts;
        self.open_texts
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                open.checked_add(texts).filter(|total| *total <= limit)
            })
            .ok()?;
        Some(OpenTexts { shared: self, texts })
    }
}

/// One accepted request's places; dropping it releases them.
struct OpenTexts {
    shared: Arc<EncoderState>,
    texts: usize,
}

impl Drop for OpenTexts {
    fn drop(&mut self) {
        self.shared.open_texts.fetch_sub(self.texts, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
