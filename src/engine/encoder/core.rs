//! The loop of the encoder's thread: receive, drop abandoned requests, compute one batch, answer.
//!
//! A batch that panics fails its own requests. A panic anywhere else fails every open request, and the loop restarts
//! with an empty queue, unless it has panicked too often.

use std::{
    collections::HashMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use hearth_domain::{
    error::{Error, ErrorKind, Result},
    part::panic_message,
    usage::UsageRecord,
};
use hearth_kernels::device::{Aside, threads};
use tokio::sync::oneshot;

use super::{
    Command, Encoded, EncoderModel, EncoderState, OpenTexts, Submission, draining, metrics,
    pace::Pace,
    queue::{BatchMember, EncoderQueue, Priority},
    stats::add,
};
use crate::engine::StepError;

/// An idle loop wakes this often, so that its heartbeat shows that it is alive.
const IDLE_TURN: Duration = Duration::from_secs(1);

pub(super) struct Core {
    model: Box<dyn EncoderModel>,
    shared: Arc<EncoderState>,
    inbox: Receiver<Command>,
    queue: EncoderQueue,
    open: HashMap<u64, Open>,
    drain: Option<Drain>,
    /// When background texts may be computed again.
    background_rests_until: Option<Instant>,
}

/// An accepted, unanswered request.
struct Open {
    texts: Vec<Vec<u32>>,
    /// In the order of `texts`; empty until computed.
    vectors: Vec<Vec<f32>>,
    remaining: usize,
    reply: oneshot::Sender<Result<Encoded>>,
    deadline: Option<Instant>,
    submitted: Instant,
    started: Option<Instant>,
    compute: Duration,
    record: UsageRecord,
    places: OpenTexts,
}

struct Drain {
    until: Instant,
    done: Vec<oneshot::Sender<()>>,
}

impl Core {
    pub fn new(model: Box<dyn EncoderModel>, shared: Arc<EncoderState>, inbox: Receiver<Command>) -> Self {
        Self {
            model,
            shared,
            inbox,
            queue: EncoderQueue::default(),
            open: HashMap::new(),
            drain: None,
            background_rests_until: None,
        }
    }

    /// Returns when every handle is gone and the queue is empty, when drained, or when the loop has panicked too often.
    pub fn run(mut self) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_until_done())) {
            let goes_on = self.shared.part.panicked(&*panic);
            self.begin_again();
            if !goes_on {
                break;
            }
        }
        metrics::publish(&self.shared.snapshot());
    }

    /// After a panic outside a batch the queue is suspect, so every request ends.
    fn begin_again(&mut self) {
        self.queue = EncoderQueue::default();
        self.background_rests_until = None;
        *self.shared.stats.batch_started.lock() = None;
        for open in mem::take(&mut self.open).into_values() {
            let error = Error::internal(anyhow::anyhow!("the encoder's loop panicked while this request was open"));
            drop(open.places);
            let _cancelled = open.reply.send(Err(error));
        }
    }

    fn run_until_done(&mut self) {
        loop {
            self.shared.stats.turn();
            metrics::publish(&self.shared.snapshot());
            if self.queue.is_empty() && self.drain.is_none() {
                match self.inbox.recv_timeout(IDLE_TURN) {
                    Ok(command) => self.take_in(command),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else if let Some(rest) = self.rest() {
                match self.inbox.recv_timeout(rest) {
                    Ok(command) => self.take_in(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => self.background_rests_until = None,
                }
            }
            // The handles are gone, but futures may still wait: the queue is finished first.
            while let Ok(command) = self.inbox.try_recv() {
                self.take_in(command);
            }
            self.drop_abandoned();
            if self.finish_drain() {
                return;
            }
            if self.rest().is_some() {
                continue;
            }
            let pace = match self.queue.next_turn() {
                Priority::Interactive => Pace::Full,
                Priority::Background => self.shared.gives_way.pace(),
            };
            let batch = self.queue.next_batch(pace.batch_tokens(self.shared.config.max_batch_tokens));
            if !batch.is_empty() {
                let aside = (pace != Pace::Full).then(Aside::step);
                let began = Instant::now();
                self.step(&batch);
                drop(aside);
                let rest = pace.rest(began.elapsed(), threads());
                self.background_rests_until = (!rest.is_zero()).then(|| Instant::now() + rest);
            }
        }
    }

    /// How long to compute nothing: only background texts wait, and they rest. A drain waits for them.
    fn rest(&self) -> Option<Duration> {
        let until = self.background_rests_until.filter(|_| self.queue.is_background_only() && self.drain.is_none())?;
        until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    }

    fn take_in(&mut self, command: Command) {
        match command {
            Command::Submit(Submission { id, request, reply, submitted, places }) => {
                let lengths = request.texts.iter().map(Vec::len);
                self.queue.push(id, request.caller, request.priority, lengths);
                let open = Open {
                    vectors: vec![Vec::new(); request.texts.len()],
                    remaining: request.texts.len(),
                    texts: request.texts,
                    reply,
                    deadline: request.deadline,
                    submitted,
                    started: None,
                    compute: Duration::ZERO,
                    record: request.record,
                    places,
                };
                self.open.insert(id, open);
            }
            Command::Drain { until, done } => match &mut self.drain {
                Some(drain) => {
                    drain.until = drain.until.min(until);
                    drain.done.push(done);
                }
                None => self.drain = Some(Drain { until, done: vec![done] }),
            },
        }
    }

    /// Requests whose receiver is gone or whose deadline has passed.
    fn drop_abandoned(&mut self) {
        let now = Instant::now();
        let expired = |open: &Open| open.deadline.is_some_and(|deadline| deadline <= now);
        let abandoned: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.reply.is_closed() || expired(open))
            .map(|(request, _)| *request)
            .collect();
        for request in abandoned {
            add(&self.shared.stats.abandoned_requests, 1);
            self.fail(request, || {
                Error::new(ErrorKind::DeadlineExceeded, "The request's deadline passed before its texts were embedded.")
            });
        }
    }

    /// Answers the drain requests once the queue is empty.
    fn finish_drain(&mut self) -> bool {
        let Some(drain) = &self.drain else { return false };
        if !self.open.is_empty() && Instant::now() < drain.until {
            return false;
        }
        for request in self.open.keys().copied().collect::<Vec<_>>() {
            self.fail(request, draining);
        }
        for done in self.drain.take().into_iter().flat_map(|drain| drain.done) {
            // The receiver may have stopped waiting.
            let _gone = done.send(());
        }
        true
    }

    fn step(&mut self, batch: &[BatchMember]) {
        let started = Instant::now();
        let (mut tokens, mut lengths) = (Vec::new(), Vec::with_capacity(batch.len()));
        for member in batch {
            if let Some(open) = self.open.get_mut(&member.request) {
                if open.started.is_none() {
                    open.started = Some(started);
                    metrics::queued(started.duration_since(open.submitted));
                }
                // The tokens are not needed again.
                let text = mem::take(&mut open.texts[member.text]);
                lengths.push(text.len());
                tokens.extend(text);
            }
        }
        *self.shared.stats.batch_started.lock() = Some(started);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.model.embed(&tokens, &lengths)));
        let elapsed = started.elapsed();
        self.shared.stats.batch_ended(elapsed);
        metrics::batch(elapsed);
        // A failed batch is charged, too: the device has worked for it.
        for (member, length) in batch.iter().zip(&lengths) {
            if let Some(open) = self.open.get_mut(&member.request) {
                let share = elapsed.mul_f64(*length as f64 / tokens.len().max(1) as f64);
                open.compute += share;
                open.record.record_compute(share);
            }
        }

        let vectors = match outcome {
            Ok(Ok(vectors)) if vectors.len() == batch.len() => vectors,
            Ok(Ok(vectors)) => {
                let (found, expected) = (vectors.len(), batch.len());
                return self.fail_batch(batch, &StepError::Failed(format!("{found} vectors for {expected} texts")));
            }
            Ok(Err(error)) => return self.fail_batch(batch, &error),
            Err(panic) => {
                let cause = format!("the batch panicked: {}", panic_message(&*panic));
                return self.fail_batch(batch, &StepError::Failed(cause));
            }
        };
        self.shared.stats.batch_succeeded(batch.len(), tokens.len());
        for (member, vector) in batch.iter().zip(vectors) {
            let Some(open) = self.open.get_mut(&member.request) else { continue };
            open.vectors[member.text] = vector;
            open.remaining -= 1;
            if open.remaining == 0 {
                self.answer(member.request);
            }
        }
    }

    fn answer(&mut self, request: u64) {
        let Some(open) = self.open.remove(&request) else { return };
        add(&self.shared.stats.finished_requests, 1);
        let started = open.started.unwrap_or(open.submitted);
        let encoded = Encoded {
            vectors: open.vectors,
            queue: started.duration_since(open.submitted),
            running: started.elapsed(),
            compute: open.compute,
        };
        // The places come back before the caller can submit again.
        drop(open.places);
        // A caller that left during the last batch gets no answer.
        let _cancelled = open.reply.send(Ok(encoded));
    }

    fn fail(&mut self, request: u64, error: impl FnOnce() -> Error) {
        self.queue.remove(request);
        let Some(open) = self.open.remove(&request) else { return };
        drop(open.places);
        let _cancelled = open.reply.send(Err(error()));
    }

    fn fail_batch(&mut self, batch: &[BatchMember], error: &StepError) {
        tracing::error!(texts = batch.len(), %error, "a batch of texts could not be embedded");
        self.shared.stats.batch_failed();
        for member in batch {
            self.fail(member.request, || match error {
                StepError::OutOfMemory(_) => Error::new(
                    ErrorKind::OutOfMemory,
                    "There is not enough memory to embed these texts now. Send fewer or shorter ones.",
                )
                .with_source(anyhow::Error::new(error.clone())),
                StepError::Failed(_) => Error::internal(anyhow::Error::new(error.clone())),
            });
        }
    }
}

impl Drop for Core {
    /// However the thread ends, its heartbeat must not look alive.
    fn drop(&mut self) {
        self.shared.stats.end();
    }
}
