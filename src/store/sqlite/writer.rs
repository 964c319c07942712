//! The writer thread: one change after the other, each in a transaction.
//!
//! A change that panics is rolled back and fails alone; the connection, which it may have left in any state, is
//! replaced. While no connection can be opened every change is refused with the reason, and each one tries to
//! reconnect.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{BUSY_TIMEOUT, configure, named};
use crate::store::{
    Result, StoreError,
    disk::{Disk, Growth},
};
use hearth_domain::part::{Part, PartReport};

/// Changes that may wait; callers beyond that block until there is room.
const QUEUE: usize = 64;
/// Length to which the log is truncated after a checkpoint, in bytes.
const LOG_BYTES_KEPT: u64 = 64 << 20;

type Change = Box<dyn FnOnce(&mut Connection) + Send>;

struct Work {
    growth: Growth,
    change: Change,
    /// Reports that the change is not made, and why.
    refuse: Box<dyn FnOnce(StoreError) + Send>,
}

/// A handle on the thread.
pub(super) struct Writer {
    path: PathBuf,
    sender: Mutex<Option<SyncSender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    part: Arc<Part>,
    /// Why there is no connection, if there is none.
    problem: Arc<Mutex<Option<String>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, path: &Path, disk: Disk) -> std::io::Result<Self> {
        let (sender, work) = sync_channel::<Work>(QUEUE);
        let (problem, part) = (Arc::new(Mutex::new(None)), Part::new("store"));
        let state = Loop {
            connection: Some(connection),
            path: path.to_owned(),
            disk,
            part: part.clone(),
            problem: problem.clone(),
        };
        let thread = std::thread::Builder::new().name("hearth-store".to_owned()).spawn(move || state.run(work))?;
        Ok(Self {
            path: path.to_owned(),
            sender: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            part,
            problem,
        })
    }

    /// Runs a change in a transaction. On success the change is on the disk; an error leaves nothing of it.
    pub(super) fn write<T: Send + 'static>(
        &self,
        growth: Growth,
        change: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let refusal = answer.clone();
        let run = move |connection: &mut Connection| {
            let done = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(StoreError::from)
                .and_then(|transaction| {
                    let done = change(&transaction)?;
                    transaction.commit()?;
                    Ok(done)
                });
            // The caller may have stopped waiting; the change stands or falls regardless.
            let _ = answer.send(done);
        };
        let refuse = move |error| drop(refusal.send(Err(error)));
        let sender = self.sender.lock().clone().ok_or(StoreError::Stopped)?;
        let work = Work { growth, change: Box::new(run), refuse: Box::new(refuse) };
        sender.send(work).map_err(|_| StoreError::Stopped)?;
        drop(sender);
        let done = answered.recv().map_err(|_| StoreError::Panicked)?;
        done.map_err(|error| named(error, &self.path))
    }

    /// The thread's entry in the health report.
    pub(super) fn report(&self) -> PartReport {
        let mut report = self.part.report();
        report.failure = self.problem.lock().clone().or(report.failure);
        report
    }

    /// Applies the queued changes, checkpoints the log and closes the database. Later changes are refused.
    pub(super) fn close(&self) {
        self.sender.lock().take();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's thread failed");
        }
    }
}

/// The thread's own state.
struct Loop {
    connection: Option<Connection>,
    path: PathBuf,
    disk: Disk,
    part: Arc<Part>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Loop {
    fn run(mut self, work: Receiver<Work>) {
        self.limit_log();
        for Work { growth, change, refuse } in work {
            if let Err(error) = self.reopen_if_lost() {
                refuse(error);
                continue;
            }
            let Some(connection) = &mut self.connection else { continue };
            let shorten = || {
                shorten_log(connection, Duration::ZERO);
            };
            if let Err(error) = self.disk.prepare(growth, shorten) {
                refuse(error);
                continue;
            }
            // What a panic leaves behind is dropped with the connection.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| change(connection))) {
                // Rolled back, and the connection replaced.
                self.part.panicked(&*panic);
                self.connection = None;
                continue;
            }
            self.part.works();
            if self.disk.is_tight() {
                shorten_log(connection, Duration::ZERO);
                self.disk.restore();
            }
        }
        if let Some(connection) = self.connection.take() {
            if !shorten_log(&connection, BUSY_TIMEOUT) {
                tracing::warn!("another process reads the database: its log stays beside it, and belongs to it");
            }
            if let Err((_, error)) = connection.close() {
                tracing::error!(%error, "the database could not be closed");
            }
        }
    }

    fn limit_log(&self) {
        if let Some(connection) = &self.connection
            && let Err(error) = connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)
        {
            tracing::warn!(%error, "the log's length cannot be limited");
        }
    }

    fn reopen_if_lost(&mut self) -> Result<()> {
        if self.connection.is_some() {
            return Ok(());
        }
        let opened = Connection::open(&self.path).and_then(|connection| configure(&connection).map(|()| connection));
        *self.problem.lock() = opened.as_ref().err().map(|error| {
            tracing::error!(%error, "the database cannot be opened");
            "The database cannot be opened, so that nothing can be stored; the log has the cause.".to_owned()
        });
        self.connection = Some(opened?);
        self.limit_log();
        Ok(())
    }
}

/// Checkpoints and truncates the log; `false` if a reader, such as a backup, prevents it for this long.
fn shorten_log(connection: &Connection, patience: Duration) -> bool {
    let shortened = connection.busy_timeout(patience).and_then(|()| {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0))
    });
    let restored = connection.busy_timeout(BUSY_TIMEOUT);
    shortened.and_then(|shortened| restored.map(|()| shortened)).unwrap_or_else(|error| {
        tracing::warn!(%error, "the database's log could not be taken into it");
        false
    })
}
