//! The encoder thread's counts and state, for `/health/deep`, `/metrics` and `Retry-After`.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::engine::Heartbeat;

/// Counts since the start, and the current state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EncoderStats {
    /// Texts that wait or are being computed.
    pub open_texts: usize,
    pub finished_texts: u64,
    pub finished_tokens: u64,
    pub finished_requests: u64,
    /// Requests whose caller went away, or whose deadline passed.
    pub abandoned_requests: u64,
    pub batches: u64,
    pub failed_batches: u64,
    /// Time spent in batches.
    pub busy: Duration,
}

/// Written by the thread alone, read by all.
#[derive(Debug)]
pub(super) struct SharedStats {
    ended: AtomicBool,
    last_turn: Mutex<Instant>,
    consecutive_failures: AtomicU64,
    finished_texts: AtomicU64,
    finished_tokens: AtomicU64,
    pub finished_requests: AtomicU64,
    pub abandoned_requests: AtomicU64,
    batches: AtomicU64,
    failed_batches: AtomicU64,
    busy_micros: AtomicU64,
    pub batch_started: Mutex<Option<Instant>>,
}

impl Default for SharedStats {
    fn default() -> Self {
        Self {
            ended: AtomicBool::new(false),
            last_turn: Mutex::new(Instant::now()),
            consecutive_failures: AtomicU64::new(0),
            finished_texts: AtomicU64::new(0),
            finished_tokens: AtomicU64::new(0),
            finished_requests: AtomicU64::new(0),
            abandoned_requests: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            failed_batches: AtomicU64::new(0),
            busy_micros: AtomicU64::new(0),
            batch_started: Mutex::new(None),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl SharedStats {
    pub fn snapshot(&self, open_texts: usize) -> EncoderStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EncoderStats {
            open_texts,
            finished_texts: read(&self.finished_texts),
            finished_tokens: read(&self.finished_tokens),
            finished_requests: read(&self.finished_requests),
            abandoned_requests: read(&self.abandoned_requests),
            batches: read(&self.batches),
            failed_batches: read(&self.failed_batches),
            busy: Duration::from_micros(read(&self.busy_micros)),
        }
    }

    /// Records a turn of the loop.
    pub fn turn(&self) {
        *self.last_turn.lock() = Instant::now();
    }

    /// The thread is about to end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub fn batch_ended(&self, elapsed: Duration) {
        *self.batch_started.lock() = None;
        add(&self.batches, 1);
        add(&self.busy_micros, u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn batch_failed(&self) {
        add(&self.failed_batches, 1);
        add(&self.consecutive_failures, 1);
    }

    pub fn batch_succeeded(&self, texts: usize, tokens: usize) {
        self.consecutive_failures.store(0, Ordering::Relaxed);
        add(&self.finished_texts, texts as u64);
        add(&self.finished_tokens, tokens as u64);
    }

    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            alive: !self.ended.load(Ordering::Relaxed),
            steps: self.batches.load(Ordering::Relaxed),
            in_step: self.batch_started.lock().map(|started| started.elapsed()),
            since_last_turn: self.last_turn.lock().elapsed(),
            consecutive_failures: self.consecutive_failures.load(Ordering::Relaxed),
        }
    }

    /// When `open` texts will have been computed, at the pace so far; a second before there is one.
    pub fn estimated_wait(&self, open: usize) -> Duration {
        let finished = self.finished_texts.load(Ordering::Relaxed);
        if finished == 0 {
            return Duration::from_secs(1);
        }
        let seconds_per_text = self.busy_micros.load(Ordering::Relaxed) as f64 / 1e6 / finished as f64;
        Duration::from_secs_f64((seconds_per_text * open as f64).clamp(1.0, 60.0))
    }
}
