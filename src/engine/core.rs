//! The loop: schedule, forward, sample, emit.
//!
//! It runs on the one thread that owns the model and everything in this file, so nothing is locked. A step that fails,
//! by an error or by a panic, fails its own requests; their blocks are released and the loop goes on. A panic anywhere
//! else may have corrupted the bookkeeping: every request ends with an error, and the loop restarts with fresh
//! bookkeeping over the same model, unless it has panicked too often. Before each step, requests whose reader is gone
//! or whose deadline has passed are reaped.

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use hearth_domain::{
    FinishReason,
    error::{Error, ErrorKind},
    part::panic_message,
};
use hearth_models::batch::LogitsWanted;

use super::{
    Command, EngineConfig, EngineState, StepError, StepModel, Submission,
    chunk_size::ChunkSize,
    metrics,
    open_request::{OpenRequest, choice_of},
    sampling::{self, StepOutcome},
    scheduler::{ScheduledStep, Scheduler, SchedulerConfig},
    sequence::{NewSequence, SequenceId},
    stats::EngineStats,
};

/// The loop wakes at least this often, so that its heartbeat tells idle from dead.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// A failing model is logged at the first failure and then once per this many failures.
const LOG_EVERY_FAILURES: u64 = 100;

/// The bounds of the wait that a refused caller is told.
const ESTIMATED_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How a turn of the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Computed,
    /// There was nothing to compute; the next turn may block on the inbox.
    Idle,
    /// The last turn.
    Drained,
}

pub(super) struct Core {
    model: Box<dyn StepModel>,
    shared: Arc<EngineState>,
    inbox: Receiver<Command>,
    scheduler: Scheduler,
    /// Keyed by the id of their first sequence.
    requests: BTreeMap<SequenceId, OpenRequest>,
    next_id: u64,
    chunk_size: ChunkSize,
    stats: EngineStats,
    /// How long a request holds the engine, averaged over recent requests.
    service_time: Duration,
}

impl Core {
    pub(super) fn new(model: Box<dyn StepModel>, shared: Arc<EngineState>, inbox: Receiver<Command>) -> Self {
        let scheduler = new_scheduler(&shared.config);
        let chunk_size = new_chunk_size(&shared.config);
        let stats = shared.stats.snapshot();
        Self {
            model,
            shared,
            inbox,
            scheduler,
            requests: BTreeMap::new(),
            next_id: 0,
            chunk_size,
            stats,
            service_time: ESTIMATED_WAIT.0,
        }
    }

    pub(super) fn run(self) {
        // However the thread ends, it must not look like a busy engine, and a shutdown must not wait for it.
        let _end = EndOfThread(self.shared.clone());
        // Dropped before `_end`.
        let mut core = self;
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| core.run_until_done())) {
            let goes_on = core.shared.part.panicked(&*panic);
            core.begin_again();
            if !goes_on {
                break;
            }
        }
    }

    /// After a panic outside a step the block tables are suspect. Every request ends with an error, and all bookkeeping
    /// is reset. The model's cache needs no reset: a block is read only after it was written again under the new
    /// bookkeeping.
    pub(super) fn begin_again(&mut self) {
        for request in mem::take(&mut self.requests).into_values() {
            let error = Error::internal(anyhow::anyhow!("the engine's loop panicked while this request was open"));
            // Dropping the caller's constraint may panic as well; the error has been sent by then.
            let _panicked = catch_unwind(AssertUnwindSafe(|| request.fail(error)));
        }
        self.scheduler = new_scheduler(&self.shared.config);
        self.chunk_size = new_chunk_size(&self.shared.config);
        self.shared.stats.step_ends();
        self.publish();
    }

    fn run_until_done(&mut self) {
        let mut idle = true;
        while self.receive(idle) {
            match self.turn(Instant::now()) {
                Turn::Computed => idle = false,
                Turn::Idle => idle = true,
                Turn::Drained => break,
            }
        }
        self.stop();
    }

    /// One turn of the loop, between two reads of the inbox.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        self.reap(now);
        if self.is_drained(now) {
            return Turn::Drained;
        }
        let has_computed = self.step();
        self.publish();
        if has_computed { Turn::Computed } else { Turn::Idle }
    }

    /// Receives what was sent, waiting for it if there is nothing to compute. False when all senders are gone.
    pub(super) fn receive(&mut self, idle: bool) -> bool {
        if idle {
            match self.inbox.recv_timeout(self.idle_time(Instant::now())) {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.handle(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Until the next deadline at most.
    fn idle_time(&self, now: Instant) -> Duration {
        let deadlines = self.requests.values().filter_map(|request| request.deadline);
        let next = deadlines.chain(self.shared.drain.until()).min();
        next.map_or(IDLE_TURN, |instant| instant.saturating_duration_since(now).min(IDLE_TURN))
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.enqueue(*submission),
            // Cleared before the loop looks at anything: a later change needs another wake-up.
            Command::Wake => drop(self.shared.wake_sent.swap(false, Ordering::AcqRel)),
        }
    }

    fn enqueue(&mut self, submission: Submission) {
        let request = OpenRequest::new(submission, self.shared.config.context_length);
        let caller = self.scheduler.enter_caller(&request.caller, request.choices.len());
        let root = self.scheduler.root(&request.prefix_scope);
        let first = SequenceId(self.next_id);
        for choice in 0..request.choices.len() {
            self.scheduler.add(NewSequence {
                id: SequenceId(self.next_id),
                caller,
                prompt: request.prompt.clone(),
                root: root.clone(),
                waits_for_prompt: choice > 0,
                scores_prompt: choice == 0 && request.prompt_logprobs.is_some(),
                generates: request.generates(),
            });
            self.next_id += 1;
        }
        self.requests.insert(first, request);
    }

    /// Removes requests whose reader is gone or whose deadline has passed, ends choices whose reader has seen enough,
    /// and pauses those whose reader has fallen behind.
    fn reap(&mut self, now: Instant) {
        let mut cancelled = Vec::new();
        let mut expired = Vec::new();
        let mut unwanted = Vec::new();
        for (first, request) in &self.requests {
            if request.is_cancelled() {
                cancelled.push(*first);
            } else if request.deadline.is_some_and(|deadline| deadline <= now) {
                expired.push(*first);
            } else {
                unwanted.extend(request.take_unwanted().into_iter().map(|choice| SequenceId(first.0 + choice as u64)));
                let paused = !request.has_room();
                for id in Self::sequences(*first, request) {
                    self.scheduler.set_paused(id, paused);
                }
            }
        }
        for id in unwanted {
            self.finish_choice(id, FinishReason::Stop, now);
        }
        for first in cancelled {
            metrics::cancelled();
            self.take(first);
        }
        for first in expired {
            let message = "The request's deadline passed before its answer was complete.";
            self.fail(first, || Error::new(ErrorKind::DeadlineExceeded, message));
        }
    }

    fn sequences(first: SequenceId, request: &OpenRequest) -> impl Iterator<Item = SequenceId> + use<> {
        (first.0..first.0 + request.choices.len() as u64).map(SequenceId)
    }

    /// Removes a request, whatever its state.
    fn take(&mut self, first: SequenceId) -> Option<OpenRequest> {
        let request = self.requests.remove(&first)?;
        for id in Self::sequences(first, &request) {
            self.scheduler.remove(id);
        }
        Some(request)
    }

    fn fail(&mut self, first: SequenceId, error: impl FnOnce() -> Error) {
        if let Some(request) = self.take(first) {
            request.fail(error());
        }
    }

    fn is_drained(&self, now: Instant) -> bool {
        // Accepted requests that the loop has not received yet are open too.
        let is_empty = || self.shared.open_requests.load(Ordering::Acquire) == 0;
        self.shared.drain.until().is_some_and(|until| is_empty() || until <= now)
    }

    /// Computes one step. False when there is nothing to compute.
    fn step(&mut self) -> bool {
        let decoding = self.scheduler.is_decoding();
        let step = self.scheduler.schedule(self.chunk_size.prefill_tokens(decoding));
        let now = Instant::now();
        self.stats.preemptions += step.num_preempted as u64;
        for (id, cached_tokens) in &step.admitted {
            let (_, request) = Self::request_of(&mut self.requests, *id);
            if request.admitted(now, *cached_tokens) {
                self.stats.prompt_tokens += request.prompt.len() as u64;
                self.stats.prefix_hit_tokens += *cached_tokens as u64;
            }
        }
        for id in &step.outgrown {
            self.finish_choice(*id, FinishReason::Length, now);
        }
        if step.sequences.is_empty() {
            return !step.outgrown.is_empty() || step.num_preempted > 0;
        }
        self.shared.stats.step_begins();
        match self.forward(&step) {
            Ok(logits) => {
                self.computed(&step, logits, now);
                // A failed step says nothing about step times.
                self.chunk_size.observe(step.num_tokens(), now.elapsed());
            }
            Err(error) => {
                self.charge(&step, now.elapsed());
                self.step_failed(&step, &error);
            }
        }
        self.shared.stats.step_ends();
        self.stats.steps += 1;
        true
    }

    fn request_of(requests: &mut BTreeMap<SequenceId, OpenRequest>, id: SequenceId) -> (SequenceId, &mut OpenRequest) {
        let (first, request) = requests.range_mut(..=id).next_back().expect("a sequence's request is open");
        (*first, request)
    }

    fn forward(&mut self, step: &ScheduledStep) -> Result<Vec<f32>, StepError> {
        let batch = self.scheduler.batch(step);
        let expected = batch.num_logits() * self.shared.vocab_size;
        // The model's state after a panic is the KV cache; this step's blocks are released below, and none of what it
        // wrote has entered the prefix cache.
        let logits = catch_unwind(AssertUnwindSafe(|| self.model.forward(&batch)))
            .unwrap_or_else(|panic| Err(StepError::Failed(format!("the step panicked: {}", panic_message(&*panic)))))?;
        if logits.len() == expected {
            Ok(logits)
        } else {
            Err(StepError::Failed(format!("the step returned {} logits instead of {expected}", logits.len())))
        }
    }

    fn step_failed(&mut self, step: &ScheduledStep, error: &StepError) {
        self.stats.failed_steps += 1;
        self.stats.consecutive_failures += 1;
        if self.stats.consecutive_failures % LOG_EVERY_FAILURES == 1 {
            tracing::error!(
                error = %error,
                sequences = step.sequences.len(),
                tokens = step.num_tokens(),
                consecutive_failures = self.stats.consecutive_failures,
                "a step failed; its requests get an error and the engine goes on"
            );
        }
        for scheduled in &step.sequences {
            // Another choice's failure may have removed the request already.
            if self.scheduler.get(scheduled.id).is_none() {
                continue;
            }
            let (first, _) = Self::request_of(&mut self.requests, scheduled.id);
            self.fail(first, || match error {
                StepError::OutOfMemory(_) => {
                    let message = "Not enough memory for this request now; retry, or send a shorter prompt.";
                    Error::new(ErrorKind::OutOfMemory, message)
                        .with_retry_after(ESTIMATED_WAIT.0)
                        .with_source(error.clone())
                }
                StepError::Failed(_) => Error::internal(error.clone()),
            });
        }
    }

    fn computed(&mut self, step: &ScheduledStep, logits: Vec<f32>, began: Instant) {
        self.stats.consecutive_failures = 0;
        self.scheduler.computed(step);
        let outcomes = sampling::sample(step, logits, self.shared.vocab_size, |id| {
            let (first, request) = Self::request_of(&mut self.requests, id);
            let sampler = request.choices[choice_of(first, id)].sampler.take();
            (sampler, request.prompt.clone(), request.prompt_logprobs)
        });
        let now = Instant::now();
        self.charge(step, now - began);
        for (scheduled, outcome) in step.sequences.iter().zip(outcomes) {
            // Another choice's failure may have removed the request already.
            if self.scheduler.get(scheduled.id).is_some() {
                self.emit(scheduled.id, scheduled.logits, outcome, now);
            }
        }
    }

    /// Splits a step's time over the requests that took part, by tokens, so that all of it is charged.
    fn charge(&mut self, step: &ScheduledStep, elapsed: Duration) {
        let num_tokens = step.num_tokens().max(1) as f64;
        for scheduled in &step.sequences {
            let (_, request) = Self::request_of(&mut self.requests, scheduled.id);
            request.took_part(elapsed.mul_f64(scheduled.num_tokens as f64 / num_tokens));
        }
        self.stats.busy += elapsed;
        metrics::step(elapsed);
        let has_prefill = step.sequences.iter().any(|scheduled| scheduled.num_tokens > 1);
        let rate = if has_prefill { &mut self.stats.prefill_per_token } else { &mut self.stats.decode_per_token };
        let latest = elapsed.div_f64(num_tokens);
        *rate = if rate.is_zero() { latest } else { (*rate * 7 + latest) / 8 };
    }

    /// Delivers one sequence's outcome of a step to its reader.
    fn emit(&mut self, id: SequenceId, logits: LogitsWanted, outcome: StepOutcome, now: Instant) {
        let (first, request) = Self::request_of(&mut self.requests, id);
        let choice = choice_of(first, id);
        request.choices[choice].sampler = outcome.sampler;
        if logits == LogitsWanted::All {
            // After a preemption some tokens are computed a second time.
            let known = request.prompt_scores.len().saturating_sub(outcome.first_score);
            request.prompt_scores.extend(outcome.prompt_scores.into_iter().skip(known));
        }
        if let Some(Err(error)) = outcome.sampled {
            // Undefined logits come from undefined keys and values: no later request may find those in the cache. If
            // the caller's own constraint failed, the keys and values are sound.
            if error.kind() == ErrorKind::Internal {
                Self::sequences(first, request).for_each(|id| self.scheduler.discard(id));
            }
            self.fail(first, || error);
            return;
        }
        let sequence = self.scheduler.get(id).expect("looked up before");
        if sequence.num_computed >= sequence.prompt.len() && request.prompt_is_computed() {
            for other in Self::sequences(first, request) {
                self.scheduler.prompt_is_computed(other);
            }
            if !request.generates() {
                for choice in 0..request.choices.len() {
                    request.finish(choice, FinishReason::Length, None);
                }
                self.end_request(first, now);
                return;
            }
        }
        if let Some(Ok(sampled)) = outcome.sampled {
            let goes_on = request.sampled(choice, sampled, now);
            self.stats.generated_tokens += 1;
            match goes_on {
                Some(token) => self.scheduler.append(id, token),
                None => self.choice_ended(first, id, now),
            }
        }
    }

    fn finish_choice(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        let (first, request) = Self::request_of(&mut self.requests, id);
        request.finish(choice_of(first, id), reason, None);
        self.choice_ended(first, id, now);
    }

    fn choice_ended(&mut self, first: SequenceId, id: SequenceId, now: Instant) {
        self.scheduler.remove(id);
        if self.requests.get(&first).is_some_and(OpenRequest::is_finished) {
            self.end_request(first, now);
        }
    }

    fn end_request(&mut self, first: SequenceId, now: Instant) {
        if let Some(request) = self.take(first) {
            let held = request.done(now);
            self.service_time = (self.service_time * 7 + held) / 8;
        }
    }

    fn publish(&mut self) {
        let blocks = self.scheduler.blocks();
        // Requests that the loop has not received yet wait as well.
        let open_requests = self.shared.open_requests.load(Ordering::Acquire);
        let admitted = self.requests.values().filter(|request| !request.is_waiting()).count();
        let waiting_requests = open_requests.saturating_sub(admitted);
        let stats = &mut self.stats;
        stats.running_sequences = self.scheduler.num_running();
        stats.waiting_sequences = self.scheduler.num_waiting();
        stats.waiting_requests = waiting_requests;
        stats.open_requests = open_requests;
        stats.blocks_used = blocks.num_used();
        stats.blocks_cached = blocks.num_cached();
        // Half the queue is gone after this long; an earlier retry would be refused again.
        let per_place = self.service_time / u32::try_from(stats.running_sequences.max(1)).unwrap_or(u32::MAX);
        let half_the_queue = u32::try_from(waiting_requests.div_ceil(2).max(1)).unwrap_or(u32::MAX);
        stats.estimated_wait = per_place.saturating_mul(half_the_queue).clamp(ESTIMATED_WAIT.0, ESTIMATED_WAIT.1);
        metrics::publish(stats);
        self.shared.stats.publish(stats.clone());
    }

    /// Ends what is left: the drain's grace is over, or no handle and no reader remain.
    pub(super) fn stop(&mut self) {
        let draining = || {
            let message = "The server shut down before the answer was complete; retry on another instance or later.";
            Error::new(ErrorKind::Draining, message)
        };
        while let Some((&first, _)) = self.requests.first_key_value() {
            self.fail(first, draining);
        }
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Submit(submission) => submission.output.fail(draining()),
                Command::Wake => {}
            }
        }
        self.publish();
    }

    /// Panics when a block has leaked or a count is off.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.scheduler.check();
        assert!(self.requests.len() <= self.shared.open_requests.load(Ordering::Acquire));
        let sequences: usize = self.requests.values().map(|request| request.choices.len()).sum();
        assert!(self.scheduler.num_running() + self.scheduler.num_waiting() <= sequences);
    }
}

fn new_scheduler(config: &EngineConfig) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        num_blocks: config.num_blocks,
        block_tokens: config.block_tokens,
        max_running_sequences: config.max_running_sequences,
        max_batch_tokens: config.max_batch_tokens,
        max_logits_rows: config.max_logits_rows,
        prefix_cache: config.prefix_cache,
    })
}

fn new_chunk_size(config: &EngineConfig) -> ChunkSize {
    ChunkSize::new(config.target_step, config.max_batch_tokens)
}

/// Marks the thread as gone, however it ended. Dropped after the [`Core`], so all streams have ended by then.
struct EndOfThread(Arc<EngineState>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.0.stats.stopped();
        self.0.drain.stopped();
    }
}
