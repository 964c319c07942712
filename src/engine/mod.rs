//! The engine: continuous batching of token sequences over one model.
//!
//! It speaks token ids; text, templates and stop strings live in the layers above. An [`Engine`] is a clonable handle
//! on one OS thread that owns the model and its KV cache: no other thread touches either, so there is no lock around a
//! model and no compute on an async worker. A request goes in through [`Engine::submit`], which refuses early, and
//! comes back as a [`TokenStream`]; dropping the stream cancels the request, in the queue, between prefill chunks and
//! between decode steps.
//!
//! Reading order: [`request`] (what goes in and out), `core` (the loop: schedule, forward, sample, emit), `scheduler`
//! (which sequence computes what in a step; no tensors, no clock), `sequence`, `blocks` (the KV blocks and the prefix
//! cache), `sampler` and `logits_processors` (from logits to a token), `stats` and `metrics`.

mod blocks;
mod chunk_size;
mod core;
mod drain;
pub mod encoder;
mod fairness;
mod logits_processors;
pub mod metrics;
pub mod model;
mod open_request;
mod output;
pub mod request;
mod sampler;
mod sampling;
mod scheduler;
mod sequence;
pub mod sizing;
pub mod stats;
mod warpers;

#[cfg(test)]
mod mock_model;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use hearth_domain::{
    error::{Error, ErrorKind, Result},
    part::Part,
};
use hearth_models::batch::Batch;
use thiserror::Error;
use tokio::sync::mpsc;

pub use self::{
    model::DecoderModel,
    request::{ScoredToken, SequenceRequest, SubmitError, TokenEvent, TokenStream},
    stats::{EngineStats, Heartbeat},
};
use self::{request::StreamSide, stats::SharedStats};

/// A model that computes one step. The decoder implements it; tests use a mock.
pub trait StepModel: Send {
    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Computes the batch's tokens, writes their keys and values into the blocks that the batch names, and
    /// returns `batch.num_logits() * vocab_size()` logits, row by row in the order of the tokens.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, StepError>;
}

/// Why a step failed. Its requests get an error; the engine goes on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StepError {
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    #[error("{0}")]
    Failed(String),
}

/// The engine's limits, nearly all of them counts.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// KV blocks in the cache that the model holds.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Sequences that hold blocks and take part in steps at the same time (`--parallel`).
    pub max_running_sequences: usize,
    /// Requests that may wait beyond those that could run; one more is refused.
    pub max_waiting: usize,
    /// Tokens of one step over all sequences. Raised to `max_running_sequences` if it is lower.
    pub max_batch_tokens: usize,
    /// While streams are running, prefill chunks are sized so that a step takes about this long.
    pub target_step: Duration,
    /// Rows of logits that a step may hold when prompts are scored (`vocab_size * 4` bytes each).
    pub max_logits_rows: usize,
    /// Tokens of a sequence, prompt and answer together.
    pub context_length: usize,
    /// Share the KV blocks of common prefixes between requests of one scope.
    pub prefix_cache: bool,
    /// Events that a stream buffers before its sequences pause.
    pub event_buffer: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            num_blocks: 256,
            block_tokens: 16,
            max_running_sequences: 8,
            max_waiting: 64,
            max_batch_tokens: 512,
            target_step: Duration::from_millis(150),
            max_logits_rows: 64,
            context_length: 4096,
            prefix_cache: true,
            event_buffer: 64,
        }
    }
}

impl EngineConfig {
    fn validated(mut self) -> Result<Self> {
        let zero = [
            ("num_blocks", self.num_blocks),
            ("block_tokens", self.block_tokens),
            ("max_running_sequences", self.max_running_sequences),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_logits_rows", self.max_logits_rows),
            ("context_length", self.context_length),
        ]
        .into_iter()
        .find(|(_, value)| *value == 0);
        if let Some((name, _)) = zero {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("The engine's {name} is 0; it must be at least 1."),
            ));
        }
        if u32::try_from(self.num_blocks).is_err() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "A KV cache of {} blocks is too large; it can have 2^32 - 1. Lower --ctx-size.",
                    self.num_blocks
                ),
            ));
        }
        self.max_batch_tokens = self.max_batch_tokens.max(self.max_running_sequences);
        Ok(self)
    }

    /// Requests that may be in the engine at once, waiting ones included.
    fn max_open_requests(&self) -> usize {
        self.max_running_sequences + self.max_waiting
    }

    /// Tokens that the whole KV cache can hold.
    pub fn cache_tokens(&self) -> usize {
        self.num_blocks * self.block_tokens
    }
}

/// A handle on the engine's thread. The thread ends when every handle and every stream is gone, or when
/// [`Engine::drain`] is done.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    shared: Arc<EngineState>,
}

/// State shared by the handles and the engine's thread.
pub(crate) struct EngineState {
    config: EngineConfig,
    vocab_size: usize,
    /// Requests accepted and not yet ended; bounds the queue at the moment of submission.
    open_requests: AtomicUsize,
    draining: AtomicBool,
    /// A [`Command::Wake`] is on its way; one is enough, whatever else changes before it arrives.
    wake_sent: AtomicBool,
    drain: drain::DrainRequest,
    stats: SharedStats,
    part: Arc<Part>,
}

impl EngineState {
    /// Makes the loop wake and look at everything that was changed before.
    fn wake(&self, commands: &SyncSender<Command>) {
        if !self.wake_sent.swap(true, Ordering::AcqRel) {
            // If the channel is closed there is no loop to wake; otherwise it has room for this one.
            let _gone = commands.try_send(Command::Wake);
        }
    }
}

/// Commands to the engine's thread.
enum Command {
    Submit(Box<Submission>),
    /// Something changed that the loop should look at: a stream was dropped or read from.
    Wake,
}

/// A request on its way to the engine's thread.
struct Submission {
    request: SequenceRequest,
    output: output::Output,
    submitted: Instant,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("config", &self.shared.config).field("stats", &self.stats()).finish()
    }
}

impl Engine {
    /// Moves the model to its own thread and starts the loop.
    ///
    /// # Errors
    /// A limit of zero, or a thread that cannot be started.
    pub fn start(model: Box<dyn StepModel>, config: EngineConfig) -> Result<Self> {
        let (engine, core) = Self::assemble(model, config)?;
        std::thread::Builder::new()
            .name("hearth-engine".to_owned())
            .spawn(move || core.run())
            .map_err(|error| Error::internal(anyhow::Error::new(error).context("starting the engine's thread")))?;
        Ok(engine)
    }

    /// A handle, and the loop to run on the engine's thread.
    fn assemble(model: Box<dyn StepModel>, config: EngineConfig) -> Result<(Self, core::Core)> {
        let config = config.validated()?;
        let shared = Arc::new(EngineState {
            vocab_size: model.vocab_size(),
            open_requests: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            wake_sent: AtomicBool::new(false),
            drain: drain::DrainRequest::default(),
            stats: SharedStats::new(&config),
            part: Part::new("chat engine"),
            config,
        });
        // Room for every request that can be open and for the one pending wake-up.
        let (commands, inbox) = sync_channel(shared.config.max_open_requests() + 1);
        let core = core::Core::new(model, shared.clone(), inbox);
        Ok((Self { commands, shared }, core))
    }

    /// Queues the request, within the queue's limit.
    ///
    /// # Errors
    /// Before any work: a prompt that can never fit, a full queue, a draining engine.
    pub fn submit(&self, request: SequenceRequest) -> Result<TokenStream, SubmitError> {
        let config = &self.shared.config;
        request.validate(config, self.shared.vocab_size)?;
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        let limit = config.max_open_requests();
        let admitted = self
            .shared
            .open_requests
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1));
        if admitted.is_err() {
            return Err(self.queue_full());
        }
        // From here on the output's drop releases the place, wherever that happens.
        let (sender, receiver) = mpsc::channel(output::channel_capacity(config.event_buffer, request.n));
        let side = Arc::new(StreamSide::default());
        let output = output::Output::new(sender, side.clone(), RequestPlace(self.shared.clone()), request.n);
        let submission = Box::new(Submission { request, output, submitted: Instant::now() });
        match self.commands.try_send(Command::Submit(submission)) {
            Ok(()) => Ok(TokenStream::new(receiver, side, self.commands.clone(), self.shared.clone())),
            Err(TrySendError::Full(_)) => Err(self.queue_full()),
            Err(TrySendError::Disconnected(_)) => Err(self.stopped()),
        }
    }

    fn queue_full(&self) -> SubmitError {
        let stats = self.stats();
        SubmitError::QueueFull { waiting: stats.waiting_requests, retry_after: stats.estimated_wait }
    }

    fn stopped(&self) -> SubmitError {
        if self.shared.draining.load(Ordering::Acquire) { SubmitError::Draining } else { SubmitError::Stopped }
    }

    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// Counts as of the end of the last step, plus requests accepted since, which wait.
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.shared.stats.snapshot();
        let open = self.shared.open_requests.load(Ordering::Acquire);
        let accepted_since = open.saturating_sub(stats.open_requests);
        stats.waiting_requests += accepted_since;
        stats.waiting_sequences += accepted_since;
        stats.open_requests = open;
        stats
    }

    /// Reports the engine's current activity on each call. It does not keep the engine alive.
    pub fn foreground(&self) -> impl Fn() -> encoder::Foreground + Send + Sync + use<> {
        let shared = self.shared.clone();
        move || {
            let stats = shared.stats.snapshot();
            encoder::Foreground { running: stats.running_sequences, waiting: stats.waiting_sequences }
        }
    }

    /// Whether the loop is alive, and how long the current step has taken.
    pub fn heartbeat(&self) -> Heartbeat {
        self.shared.stats.heartbeat()
    }

    /// How often the loop has panicked, and whether it has given up.
    pub fn part(&self) -> &Arc<Part> {
        &self.shared.part
    }

    /// Refuses new requests, lets the accepted ones finish within `grace`, ends the rest with an error event,
    /// and stops the engine's thread.
    pub async fn drain(&self, grace: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        let Some(finished) = self.shared.drain.request(Instant::now() + grace) else { return };
        self.shared.wake(&self.commands);
        // An error means that the thread is gone already, which is what was asked for.
        let _gone = finished.await;
    }
}

/// One accepted request's place; dropping it releases the place.
pub(crate) struct RequestPlace(Arc<EngineState>);

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.0.open_requests.fetch_sub(1, Ordering::AcqRel);
    }
}
