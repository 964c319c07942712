//! The ledger's writer: a request hands its row over when it ends, on any thread, and a dedicated thread writes it.
//!
//! A row waits in memory for at most [`FLUSH_INTERVAL`] and is written in a batch with the rows that arrived meanwhile,
//! so a killed process loses at most the rows of that interval plus one write. While the store cannot write, for
//! example because the disk is full, up to [`ROWS_WAITING_MAX`] rows wait; rows beyond that are counted as lost and
//! logged. A write that panics counts as a failed write. Handing over a row never waits for the disk.
//!
//! A caller over a limit could fill the disk with the rows of its refusals, which cost it nothing. So equal ones share a row, which
//! waits for [`REFUSALS_INTERVAL`].
//!
//! The totals of the whole ledger are kept in memory: they are read from the store once, and each accepted row is added
//! to them. A lost row is not in them. Where servers share the store, they are read from it each time.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, UNIX_EPOCH},
};

use hearth_domain::{
    part::{Part, panic_message},
    usage::{ModelUsage, Outcome, Receipt, UsageMeter},
};
use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::store::{LedgerRow, LedgerTotals, Store, StoreError};

/// How long a row waits for others to share its write.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// How long the first refusal of a request over a limit waits for equal ones to share its row.
pub const REFUSALS_INTERVAL: Duration = Duration::from_secs(10);
/// This many rows are written at once, before the interval has passed.
const BATCH: usize = 512;
/// Rows that may wait in memory, a few hundred bytes each.
pub const ROWS_WAITING_MAX: usize = 65_536;
/// Delay after a failed write.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub const ROWS_TOTAL: &str = "hearth_ledger_rows_total";
pub const ROWS_LOST_TOTAL: &str = "hearth_ledger_rows_lost_total";
pub const COST_MICRO_USD_TOTAL: &str = "hearth_cost_micro_usd_total";

/// Registers each metric's help text.
pub fn describe_metrics() {
    metrics::describe_counter!(ROWS_TOTAL, "Requests that ended, by how they did.");
    metrics::describe_counter!(ROWS_LOST_TOTAL, "Rows of the ledger that could not be kept.");
    metrics::describe_counter!(COST_MICRO_USD_TOTAL, "What requests cost, in millionths of a US dollar.");
}

/// Accepts the rows; see the module.
pub struct Ledger {
    shared: Arc<RowQueue>,
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("store", &self.store).finish_non_exhaustive()
    }
}

struct RowQueue {
    state: Mutex<State>,
    /// Wakes the writer: there are rows to write now, or the ledger is closing.
    work: Condvar,
    /// Signals that rows were written.
    written: Condvar,
    rows_waiting_max: usize,
    part: Arc<Part>,
}

#[derive(Default)]
struct State {
    waiting: Vec<LedgerRow>,
    /// When they are to be written.
    rows_due: Option<Instant>,
    /// Refusals of requests over a limit.
    refusals: HashMap<Refusal, LedgerRow>,
    refusals_due: Option<Instant>,
    /// Rows that are being written.
    taken: usize,
    totals: LedgerTotals,
    lost: u64,
    /// Callers of `flush` that wait for the rows to be written.
    flushing: usize,
    closing: bool,
    has_failed: bool,
}

/// What refusals that share a row have in common.
#[derive(PartialEq, Eq, Hash)]
struct Refusal {
    caller: String,
    key_id: Option<String>,
    route: String,
    error_code: Option<String>,
}

impl State {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.refusals.is_empty()
    }

    fn is_written(&self) -> bool {
        self.is_empty() && self.taken == 0
    }

    /// Rows that wait, or are being written.
    fn rows(&self) -> usize {
        self.waiting.len() + self.refusals.len() + self.taken
    }

    fn is_urgent(&self) -> bool {
        self.closing || self.waiting.len() >= BATCH || (self.flushing > 0 && !self.is_empty())
    }

    /// When the next write is due; `None` if there is nothing to write.
    fn due(&self) -> Option<Instant> {
        [self.rows_due, self.refusals_due].into_iter().flatten().min()
    }

    /// Takes the rows that are to be written now.
    fn take(&mut self) -> Arc<[LedgerRow]> {
        let are_refusals_due = self.refusals_due.is_some_and(|due| due <= Instant::now());
        if are_refusals_due || self.closing || self.flushing > 0 {
            self.refusals_due = None;
            self.waiting.extend(std::mem::take(&mut self.refusals).into_values());
        }
        self.rows_due = None;
        self.taken = self.waiting.len();
        std::mem::take(&mut self.waiting).into()
    }
}

impl Ledger {
    /// # Errors
    /// If the existing rows cannot be read, or the thread cannot be started.
    pub fn open(store: Arc<Store>) -> anyhow::Result<Arc<Self>> {
        Self::with_room(store, ROWS_WAITING_MAX)
    }

    fn with_room(store: Arc<Store>, rows_waiting_max: usize) -> anyhow::Result<Arc<Self>> {
        let state = State { totals: store.ledger_totals()?, ..State::default() };
        let shared = Arc::new(RowQueue::new(state, rows_waiting_max));
        let (writer, writers_store) = (shared.clone(), store.clone());
        let write = move |rows: Arc<[LedgerRow]>| writers_store.add_ledger_rows(rows);
        let thread = std::thread::Builder::new()
            .name("hearth-ledger".to_owned())
            .spawn(move || write_until_closed(&writer, write))?;
        Ok(Arc::new(Self { shared, store, thread: Some(thread) }))
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How often the writer has panicked, and whether it has given up.
    pub fn part(&self) -> &Arc<Part> {
        &self.shared.part
    }

    /// Accepts a row. Never waits for the disk.
    pub fn record(&self, row: LedgerRow) {
        self.shared.record(row);
    }

    /// Accepts the row of a request that was refused because of a limit. Never waits for the disk.
    pub fn record_refusal(&self, row: LedgerRow) {
        self.shared.record_refusal(row);
    }

    /// The totals of all rows, those still waiting to be written included; without the rows that other servers have written since this
    /// one started.
    pub fn totals(&self) -> LedgerTotals {
        self.shared.state.lock().totals
    }

    /// [`Self::totals`] with the rows of other servers that share the store. Then this server's own rows are written first, as far as that
    /// takes no longer than `patience`, and this blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn totals_of_all(&self, patience: Duration) -> Result<LedgerTotals, StoreError> {
        if self.store.cluster().is_none() {
            return Ok(self.totals());
        }
        self.flush(patience);
        self.store.ledger_totals()
    }

    /// Rows lost since the start.
    pub fn lost(&self) -> u64 {
        self.shared.state.lock().lost
    }

    /// Waits until every row accepted before this call is written. `false` if that took longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        state.flushing += 1;
        self.shared.work.notify_one();
        while !state.is_written() {
            if self.shared.written.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.flushing -= 1;
        state.is_written()
    }
}

impl Drop for Ledger {
    /// Accepted rows are written before the ledger closes.
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's thread failed");
        }
    }
}

impl RowQueue {
    fn new(state: State, rows_waiting_max: usize) -> Self {
        let (work, written, part) = (Condvar::new(), Condvar::new(), Part::new("ledger's writer"));
        Self { state: Mutex::new(state), work, written, rows_waiting_max, part }
    }

    /// Writes rows. A panic becomes an ordinary error, because the rows must be written all the same.
    fn try_to_write(&self, write: impl FnOnce() -> Result<(), StoreError>) -> Result<(), String> {
        match catch_unwind(AssertUnwindSafe(write)) {
            Ok(written) => {
                self.part.works();
                written.map_err(|error| error.to_string())
            }
            Err(panic) => {
                self.part.panicked(&*panic);
                Err(panic_message(&*panic).to_owned())
            }
        }
    }

    fn record(&self, row: LedgerRow) {
        count(&row);
        let mut state = self.state.lock();
        if !self.has_room(&mut state) {
            return;
        }
        state.totals.add(&row);
        state.waiting.push(row);
        // With no rows the writer sleeps indefinitely; from the first row on it sleeps for the interval.
        if state.waiting.len() == 1 || state.waiting.len() == BATCH {
            state.rows_due.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
            drop(state);
            self.work.notify_one();
        }
    }

    fn record_refusal(&self, row: LedgerRow) {
        count(&row);
        let refusal = Refusal {
            caller: row.caller.clone(),
            key_id: row.key_id.clone(),
            route: row.route.clone(),
            error_code: row.error_code.clone(),
        };
        let mut state = self.state.lock();
        if let Some(first) = state.refusals.get_mut(&refusal) {
            first.repeats += 1;
            first.latency_us = first.latency_us.saturating_add(row.latency_us).min(FIGURE_MAX);
        } else if self.has_room(&mut state) {
            state.refusals.insert(refusal, row.clone());
        } else {
            return;
        }
        state.totals.add(&row);
        if state.refusals_due.is_none() {
            state.refusals_due = Some(Instant::now() + REFUSALS_INTERVAL);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Whether one more row may wait. If not, it is counted as lost.
    fn has_room(&self, state: &mut State) -> bool {
        if state.rows() < self.rows_waiting_max {
            return true;
        }
        state.lost += 1;
        metrics::counter!(ROWS_LOST_TOTAL).increment(1);
        // Logged once per doubling, so that the log does not fill the disk as well.
        if state.lost.is_power_of_two() {
            tracing::error!(state.lost, "the ledger cannot be written and its room is full: rows of requests are lost");
        }
        false
    }
}

fn count(row: &LedgerRow) {
    metrics::counter!(ROWS_TOTAL, "outcome" => row.outcome.as_str()).increment(1);
    metrics::counter!(COST_MICRO_USD_TOTAL).increment(row.cost_micro_usd);
}

/// The writer's thread.
fn write_until_closed(shared: &RowQueue, write: impl Fn(Arc<[LedgerRow]>) -> Result<(), StoreError>) {
    loop {
        let mut state = shared.state.lock();
        while !state.is_urgent() {
            match state.due() {
                None => shared.work.wait(&mut state),
                Some(due) if shared.work.wait_until(&mut state, due).timed_out() => break,
                Some(_) => {}
            }
        }
        if state.is_empty() {
            return;
        }
        let rows = state.take();
        drop(state);
        let outcome = shared.try_to_write(|| write(rows.clone()));
        let mut state = shared.state.lock();
        state.taken = 0;
        match outcome {
            Ok(()) => {
                state.has_failed = false;
                shared.written.notify_all();
            }
            Err(error) => {
                if !std::mem::replace(&mut state.has_failed, true) {
                    tracing::error!(error, rows = rows.len(), "the ledger cannot be written; its rows wait in memory");
                }
                let since = std::mem::replace(&mut state.waiting, rows.to_vec());
                state.waiting.extend(since);
                state.rows_due = Some(Instant::now());
                if state.closing {
                    let lost = state.rows();
                    tracing::error!(lost, "the server stops with rows of the ledger that cannot be written");
                    metrics::counter!(ROWS_LOST_TOTAL).increment(lost as u64);
                    return;
                }
                shared.work.wait_for(&mut state, RETRY_AFTER);
            }
        }
    }
}

/// The cap on every number in a row, about a hundred days in microseconds and nine million dollars in cost: an
/// upstream's usage report is not verified, and the totals must not overflow.
const FIGURE_MAX: u64 = 1 << 43;

/// Microseconds, rounded to nearest: truncation over ten thousand short requests would show in their sum.
fn microseconds(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX).min(FIGURE_MAX)
}

/// The row that a request writes.
pub fn row(request: &UsageMeter, receipt: &Receipt) -> LedgerRow {
    let main = receipt.main_model();
    let sum =
        |figure: fn(&ModelUsage) -> u64| receipt.models.iter().map(figure).fold(0, u64::saturating_add).min(FIGURE_MAX);
    let time = |figure: fn(&ModelUsage) -> Duration| {
        microseconds(receipt.models.iter().map(figure).fold(Duration::ZERO, Duration::saturating_add))
    };
    let began = receipt.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    LedgerRow {
        id: Some(Uuid::now_v7()),
        request_id: request.context().request_id.clone(),
        caller: request.context().caller.id.clone(),
        key_id: request.context().caller.key_id.clone(),
        route: request.context().route.clone(),
        model: main.map(|record| record.model.clone()).unwrap_or_default(),
        served_by: receipt.served_by().to_owned(),
        fallback_reason: receipt.fallback_reason.clone(),
        attempts: receipt.attempts,
        cache: receipt.cache.map(str::to_owned),
        outcome: receipt.outcome.unwrap_or(Outcome::Cancelled),
        error_code: receipt.error_code.clone(),
        prompt_tokens: sum(|record| record.prompt_tokens),
        cached_tokens: sum(|record| record.cached_tokens),
        completion_tokens: sum(|record| record.completion_tokens),
        reasoning_tokens: sum(|record| record.reasoning_tokens),
        queue_us: time(|record| record.queue),
        prefill_us: time(|record| record.prefill),
        decode_us: time(|record| record.decode),
        compute_us: time(|record| record.compute),
        latency_us: microseconds(receipt.latency),
        bytes_out: receipt.bytes_out.min(FIGURE_MAX),
        cost_micro_usd: receipt.cost_micro_usd.min(FIGURE_MAX),
        began_ms: i64::try_from(began.as_millis()).unwrap_or(i64::MAX),
        repeats: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use hearth_domain::{Account, Usage, part::RESTARTS_MAX, usage::ServedBy};

    fn open() -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    fn finished(cost_micro_usd: u64) -> LedgerRow {
        LedgerRow { outcome: Outcome::Finished, cost_micro_usd, latency_us: 3, ..LedgerRow::default() }
    }

    #[test]
    fn rows_of_many_threads_are_all_written_and_the_sums_are_theirs() {
        let (_directory, store) = open();
        let ledger = Ledger::open(store.clone()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let ledger = &ledger;
                scope.spawn(move || (0..1000).for_each(|number| ledger.record(finished(thread * number))));
            }
        });
        let totals = ledger.totals();
        assert_eq!((totals.requests, totals.cost_micro_usd), (8000, 28 * 999 * 500));
        assert!(ledger.flush(Duration::from_secs(60)));
        assert_eq!(store.ledger_totals().unwrap(), totals);
        ledger.record(finished(1));
        drop(ledger);
        assert_eq!(store.ledger_totals().unwrap().requests, 8001, "what was taken is written before the end");
        assert_eq!(Ledger::open(store).unwrap().totals().requests, 8001, "the sums are those of the whole ledger");
    }

    #[test]
    fn refusals_over_a_limit_share_a_row_and_each_counts() {
        let (_directory, store) = open();
        let ledger = Ledger::open(store.clone()).unwrap();
        let refused = |caller: &str, route: &str| LedgerRow {
            caller: caller.to_owned(),
            route: route.to_owned(),
            outcome: Outcome::Refused,
            error_code: Some("rate_limit_exceeded".to_owned()),
            latency_us: 2,
            ..LedgerRow::default()
        };
        for _ in 0..1000 {
            ledger.record_refusal(refused("a", "POST /ask"));
        }
        ledger.record_refusal(refused("a", "POST /generate"));
        ledger.record_refusal(refused("b", "POST /ask"));
        ledger.record(finished(1));
        let totals = ledger.totals();
        assert_eq!((totals.requests, totals.refused, totals.latency_us), (1003, 1002, 2007));
        assert!(ledger.flush(Duration::from_secs(60)));
        assert_eq!(store.ledger_totals().unwrap(), totals);
        let mut repeats: Vec<u64> = store.ledger_rows(0, 10).unwrap().iter().map(|row| row.repeats).collect();
        repeats.sort_unstable();
        assert_eq!(repeats, [0, 0, 0, 999]);
        ledger.record_refusal(refused("a", "POST /ask"));
        drop(ledger);
        assert_eq!(store.ledger_rows(0, 10).unwrap().len(), 5, "a new interval has a new row, and closing writes it");
    }

    #[test]
    fn rows_wait_for_a_disk_that_fails_and_those_beyond_the_room_are_counted() {
        let shared = RowQueue::new(State::default(), 3);
        let (answers, asked) = mpsc::channel::<Result<(), StoreError>>();
        let (written, rows_written) = mpsc::channel();
        std::thread::scope(|scope| {
            let shared = &shared;
            let write = move |rows: Arc<[LedgerRow]>| {
                written.send(rows.len()).unwrap();
                asked.recv().unwrap()
            };
            scope.spawn(move || write_until_closed(shared, write));
            shared.record(finished(1));
            assert_eq!(rows_written.recv().unwrap(), 1, "the first try");
            (0..4).for_each(|_| shared.record(finished(1)));
            assert_eq!(shared.state.lock().lost, 2, "one is being written, and two wait");
            assert_eq!(shared.state.lock().totals.requests, 3, "what was lost is in no sum");
            answers.send(Err(StoreError::Stopped)).unwrap();
            assert_eq!(rows_written.recv().unwrap(), 3, "nothing that was taken is lost by a failure");
            answers.send(Ok(())).unwrap();
            let mut state = shared.state.lock();
            shared.written.wait_while(&mut state, |state| !state.is_written());
            drop(state);
            shared.record(finished(1));
            shared.state.lock().closing = true;
            shared.work.notify_one();
            assert_eq!(rows_written.recv().unwrap(), 1);
            answers.send(Ok(())).unwrap();
        });
        assert!(shared.state.lock().is_written());
    }

    #[test]
    fn a_writer_that_panics_loses_no_row_and_says_how_it_is() {
        let shared = RowQueue::new(State::default(), 9);
        let (answers, asked) = mpsc::channel::<bool>();
        let (written, rows_written) = mpsc::channel();
        std::thread::scope(|scope| {
            let shared = &shared;
            let write = move |rows: Arc<[LedgerRow]>| {
                written.send(rows.len()).unwrap();
                assert!(asked.recv().unwrap(), "asked to panic");
                Ok(())
            };
            scope.spawn(move || write_until_closed(shared, write));
            shared.record(finished(1));
            for panics in 1..=RESTARTS_MAX + 1 {
                assert_eq!(rows_written.recv().unwrap(), 1, "the row is still there");
                assert_eq!(shared.part.report().failure, None, "after {} panics", panics - 1);
                answers.send(false).unwrap();
                // The writer waits before it retries, unless there is something new to do.
                while shared.part.report().panics < panics as u64 {
                    std::thread::yield_now();
                }
                shared.work.notify_one();
            }
            assert_eq!(rows_written.recv().unwrap(), 1);
            assert!(shared.part.report().failure.is_some_and(|reason| reason.contains("ledger")));
            answers.send(true).unwrap();
            let mut state = shared.state.lock();
            shared.written.wait_while(&mut state, |state| !state.is_written());
            state.closing = true;
            shared.work.notify_one();
        });
        assert_eq!(shared.part.report().failure, None, "it has written since");
    }

    #[test]
    fn what_an_upstream_claims_cannot_overflow_the_sums() {
        let account = Account::unrecorded();
        let record = account.begin_record("m", ServedBy::Upstream { name: "up".into(), engine: None });
        let usage = Usage { prompt_tokens: usize::MAX, completion_tokens: usize::MAX, ..Usage::default() };
        record.set_usage(&usage);
        account.begin_record("m", ServedBy::Upstream { name: "up".into(), engine: None }).set_usage(&usage);
        let row = row(&account, &account.receipt());
        assert_eq!((row.prompt_tokens, row.completion_tokens), (FIGURE_MAX, FIGURE_MAX));
        assert_eq!(row.served_by, "up");
    }
}
