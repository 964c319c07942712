//! The engine's report on itself: counts as of the end of the last step, and whether the loop is alive.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::EngineConfig;

/// Counts as of the end of the last step. Totals are since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub running_sequences: usize,
    /// Sequences that wait for a place or for blocks, preempted ones included.
    pub waiting_sequences: usize,
    /// Requests of which no sequence has been admitted yet.
    pub waiting_requests: usize,
    pub open_requests: usize,
    pub blocks_total: usize,
    /// Blocks that some sequence holds.
    pub blocks_used: usize,
    /// Free blocks whose contents the prefix cache can hand out.
    pub blocks_cached: usize,
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the prefix cache.
    pub prefix_hit_tokens: u64,
    pub generated_tokens: u64,
    pub steps: u64,
    pub preemptions: u64,
    pub failed_steps: u64,
    /// Consecutive failed steps.
    pub consecutive_failures: u64,
    /// Time spent in steps.
    pub busy: Duration,
    /// Time per token in steps that computed parts of prompts, over recent steps; zero before the first.
    pub prefill_per_token: Duration,
    /// Time per token in steps that only decoded.
    pub decode_per_token: Duration,
    /// When a refused request may expect a place in the queue.
    pub estimated_wait: Duration,
}

/// Whether the loop is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The thread is running; false after a drain, or when the loop has panicked too often.
    pub alive: bool,
    pub steps: u64,
    /// How long the step in progress has taken so far; `None` between steps.
    pub in_step: Option<Duration>,
    /// Time since the loop's last turn. At most about a second while no step is in progress.
    pub since_last_turn: Duration,
    /// Consecutive failed steps.
    pub consecutive_failures: u64,
}

/// Written by the engine's thread, read by all.
pub(super) struct SharedStats {
    started: Instant,
    stats: Mutex<EngineStats>,
    /// Microseconds after `started`; 0 while no step is in progress.
    step_began: AtomicU64,
    last_turn: AtomicU64,
    alive: AtomicU64,
}

impl SharedStats {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let stats = EngineStats {
            blocks_total: config.num_blocks,
            estimated_wait: Duration::from_secs(1),
            ..EngineStats::default()
        };
        Self {
            started: Instant::now(),
            stats: Mutex::new(stats),
            step_began: AtomicU64::new(0),
            last_turn: AtomicU64::new(0),
            alive: AtomicU64::new(1),
        }
    }

    pub(super) fn snapshot(&self) -> EngineStats {
        self.stats.lock().clone()
    }

    pub(super) fn heartbeat(&self) -> Heartbeat {
        let now = self.micros_now();
        let since = |then: u64| Duration::from_micros(now.saturating_sub(then));
        let step_began = self.step_began.load(Ordering::Acquire);
        let stats = self.stats.lock();
        Heartbeat {
            alive: self.alive.load(Ordering::Acquire) == 1,
            steps: stats.steps,
            in_step: (step_began > 0).then(|| since(step_began)),
            since_last_turn: since(self.last_turn.load(Ordering::Acquire)),
            consecutive_failures: stats.consecutive_failures,
        }
    }

    pub(super) fn publish(&self, stats: EngineStats) {
        *self.stats.lock() = stats;
        self.last_turn.store(self.micros_now(), Ordering::Release);
    }

    pub(super) fn step_begins(&self) {
        self.step_began.store(self.micros_now().max(1), Ordering::Release);
    }

    pub(super) fn step_ends(&self) {
        self.step_began.store(0, Ordering::Release);
    }

    /// The thread is gone, and with it everything that it held.
    pub(super) fn stopped(&self) {
        let stats = &mut *self.stats.lock();
        (stats.running_sequences, stats.waiting_sequences, stats.waiting_requests) = (0, 0, 0);
        (stats.open_requests, stats.blocks_used, stats.blocks_cached) = (0, 0, 0);
        self.step_ends();
        self.alive.store(0, Ordering::Release);
    }

    fn micros_now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
