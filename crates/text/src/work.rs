//! Where texts are processed: short ones directly on a blocking thread, long ones in a small thread pool.
//!
//! A request may bring megabytes of text, and tokenizing them takes seconds of a core. Nothing else may wait for that:
//! not the engine, which computes and samples on its own threads (`kernels/pool.rs`), and not a request with a short
//! text. So the pool has a quarter of the compute threads, at least two, at a lower priority if the system has thread
//! priorities. It takes a limited number of requests, and refuses further ones with the time until it expects a place.
//! A request's pieces of work, one text each, queue behind those submitted earlier by other requests, so that requests
//! take turns. Work whose caller has left is not started, and running work asks [`Wanted`] whether to continue.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use hearth_domain::error::{Error, ErrorKind, Result};
use hearth_kernels::pool;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

/// A request with at most this many bytes of text does not go to the pool: that is a few milliseconds of work, and more
/// than most contexts hold. In the pool, texts that are no longer than this together form one piece of work.
pub const SHORT_BYTES: usize = 64 * 1024;
/// Short texts processed at the same time per core; further ones wait, so that a flood of them does not starve the
/// process's other threads.
const SHORT_AT_A_TIME: usize = 2;
/// Maximum requests in the pool, running and waiting.
const MAX_REQUESTS: usize = 64;
/// Number of compute threads per thread of this pool.
const COMPUTE_THREADS_EACH: usize = 4;
/// With a single thread, one long text would hold up those of all other requests.
const MIN_THREADS: usize = 2;
/// Bounds of the wait reported to a refused request.
const ESTIMATED_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How far these threads yield to the compute threads: they get a quarter of a core if both want all of it.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 6;

/// Whether the caller still waits for the result.
#[derive(Clone, Debug)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// For work whose caller does not leave.
    pub fn always() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub fn still(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Returns an error if the caller has left, which ends the work.
    ///
    /// # Errors
    /// If the caller has left.
    pub fn check(&self) -> Result<()> {
        if self.still() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::DeadlineExceeded, "The request ended before its text was read."))
    }
}

/// The caller's side of [`Wanted`]: dropped when the caller leaves or has received its answer.
struct Waits(Wanted);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// Work that no thread has started yet. Its data, which may be megabytes, is dropped when its caller leaves, even if no
/// thread would take the work for a long time.
struct Untaken<W>(Arc<Mutex<Option<W>>>);

impl<W> Drop for Untaken<W> {
    fn drop(&mut self) {
        drop(self.0.lock().take());
    }
}

/// Runs work over texts of `bytes` bytes: on a blocking thread, or in the process's pool for long texts. Dropping the
/// future abandons the work.
///
/// # Errors
/// An error of the work itself; a full pool; a panic in the work.
pub async fn off_the_async_threads<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes > SHORT_BYTES {
        return LongTexts::shared()?.admit(bytes)?.run(bytes, work).await;
    }
    static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
        Arc::new(Semaphore::new(SHORT_AT_A_TIME * thread::available_parallelism().map_or(1, NonZero::get)))
    });
    let waits = Waits(Wanted::always());
    let wanted = waits.0.clone();
    // The semaphore is never closed. The work keeps its permit until it ends, even if its caller leaves.
    let place = PLACES.clone().acquire_owned().await.map_err(Error::internal)?;
    let work = move || {
        let _place = place;
        work(&wanted)
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// Runs the same work over each of a request's texts, passing the text's index: sequentially on a blocking thread or,
/// if they are long in total, several at a time in the pool.
///
/// # Errors
/// The first error of the work, in the order of the texts; a full pool; a panic in the work.
pub async fn each_off_the_async_threads<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    bytes_of: impl Fn(&I) -> usize,
    work: impl Fn(usize, I, &Wanted) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>> {
    let total = items.iter().map(&bytes_of).sum();
    let work = Arc::new(work);
    let piece_of_work = |first: usize, items: Vec<I>| {
        let work = work.clone();
        move |wanted: &Wanted| -> Result<Vec<T>> {
            let one = |(index, item)| wanted.check().and_then(|()| work(index, item, wanted));
            (first..).zip(items).map(one).collect()
        }
    };
    if total <= SHORT_BYTES {
        return off_the_async_threads(total, piece_of_work(0, items)).await;
    }
    let place = LongTexts::shared()?.admit(total)?;
    let runs = pieces(items, bytes_of)
        .into_iter()
        .map(|(first, bytes, items)| place.run(bytes, piece_of_work(first, items)))
        .collect::<Vec<_>>();
    stream::iter(runs).buffered(place.pool.num_threads).try_concat().await
}

/// The pool for long texts.
#[derive(Debug)]
pub struct LongTexts {
    threads: rayon::ThreadPool,
    num_threads: usize,
    max_requests: usize,
    requests: AtomicUsize,
    /// Total bytes of the requests in the pool.
    bytes: AtomicUsize,
    pace: Pace,
}

/// How fast texts have been processed so far.
#[derive(Debug, Default)]
struct Pace {
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl LongTexts {
    /// The process-wide pool.
    ///
    /// # Errors
    /// If the system refuses to start the threads.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Option<LongTexts>> = OnceLock::new();
        let num_threads = || (pool::threads() / COMPUTE_THREADS_EACH).max(MIN_THREADS);
        SHARED
            .get_or_init(|| Self::new(num_threads(), MAX_REQUESTS).ok())
            .as_ref()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("the threads that read long texts could not be started")))
    }

    /// A pool for at most `max_requests` concurrent requests.
    ///
    /// # Errors
    /// If the system refuses to start the threads.
    pub fn new(num_threads: usize, max_requests: usize) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .thread_name(|index| format!("long-text-{index}"))
            .start_handler(|_| step_back())
            .build()
            .map_err(|error| {
                Error::internal(anyhow::Error::new(error).context("starting the threads for long texts"))
            })?;
        Ok(Self {
            threads,
            num_threads,
            max_requests,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            pace: Pace::default(),
        })
    }

    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Reserves a place for a request with `bytes` bytes of text, until the place is dropped.
    ///
    /// # Errors
    /// 503 with the time until a place is expected, if the pool is full.
    pub fn admit(&'static self, bytes: usize) -> Result<WorkPermit> {
        let one_more = |requests: usize| (requests < self.max_requests).then_some(requests + 1);
        if self.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_err() {
            let message = format!(
                "{} requests with long texts are being read, which is all that this server reads at a time. Try again \
                 shortly, or send less text.",
                self.max_requests
            );
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry_after(self.estimated_wait()));
        }
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(WorkPermit { pool: self, bytes })
    }

    /// When a place is expected to become free: an even share of the current bytes, at the pace so far.
    fn estimated_wait(&self) -> Duration {
        let (shortest, longest) = ESTIMATED_WAIT;
        let done = self.pace.bytes.load(Ordering::Relaxed);
        if done == 0 {
            return shortest;
        }
        let seconds_per_byte = self.pace.micros.load(Ordering::Relaxed) as f64 / 1e6 / done as f64;
        let bytes_per_request = self.bytes.load(Ordering::Acquire) as f64 / self.max_requests as f64;
        let seconds = seconds_per_byte * bytes_per_request / self.num_threads as f64;
        Duration::from_secs_f64(seconds.clamp(shortest.as_secs_f64(), longest.as_secs_f64()))
    }
}

/// A request's place in the pool.
#[derive(Debug)]
pub struct WorkPermit {
    pool: &'static LongTexts,
    bytes: usize,
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        self.pool.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.pool.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WorkPermit {
    /// Runs one piece of work, over `bytes` of the request's bytes, behind the pieces that other requests submitted
    /// earlier. Dropping the future abandons it.
    ///
    /// # Errors
    /// An error of the work itself; a panic in the work.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let waits = Waits(Wanted::always());
        let untaken = Untaken(Arc::new(Mutex::new(Some(work))));
        let (wanted, given, pace) = (waits.0.clone(), untaken.0.clone(), &self.pool.pace);
        let (reply, answer) = oneshot::channel();
        self.pool.threads.spawn_fifo(move || {
            let Some(work) = given.lock().take() else { return };
            let began = Instant::now();
            // A panic ends only this piece of work: its reply is dropped, which the caller notices.
            if let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| work(&wanted))) {
                pace.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                pace.micros.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                // The caller may have left meanwhile.
                let _unwanted = reply.send(outcome);
            }
        });
        answer.await.map_err(|_| Error::internal(anyhow::anyhow!("reading a long text panicked")))?
    }
}

/// Consecutive items with the index of the first, and their total bytes: small items together, a large one alone.
fn pieces<I>(items: Vec<I>, bytes_of: impl Fn(&I) -> usize) -> Vec<(usize, usize, Vec<I>)> {
    let mut pieces: Vec<(usize, usize, Vec<I>)> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let bytes = bytes_of(&item);
        match pieces.last_mut() {
            Some((_, total, piece)) if *total + bytes <= SHORT_BYTES => {
                *total += bytes;
                piece.push(item);
            }
            _ => pieces.push((index, bytes, vec![item])),
        }
    }
    pieces
}

/// Lowers the calling thread's priority below that of the compute threads.
fn step_back() {
    #[cfg(target_os = "linux")]
    // On other systems a priority applies to the whole process. Without it there is only less fairness.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "a thread for long texts keeps its usual priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use futures_util::{FutureExt, poll};

    use super::*;

    fn pool(num_threads: usize, max_requests: usize) -> &'static LongTexts {
        Box::leak(Box::new(LongTexts::new(num_threads, max_requests).expect("the system has threads")))
    }

    /// Work that signals that it has begun, and continues when the sender is dropped.
    fn held() -> (Sender<()>, Receiver<()>, impl FnOnce(&Wanted) -> Result<bool> + Send + 'static) {
        let (release, released) = channel::<()>();
        let (began, has_begun) = channel();
        let work = move |wanted: &Wanted| {
            began.send(()).expect("the test waits for it");
            let _dropped = released.recv();
            Ok(wanted.still())
        };
        (release, has_begun, work)
    }

    #[tokio::test]
    async fn one_request_too_many_is_refused_with_a_time_to_wait() {
        let pool = pool(1, 2);
        let first = pool.admit(1 << 20).expect("there is a place");
        let second = pool.admit(1 << 20).expect("there is a place");
        let error = pool.admit(1).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.retry_after().is_some_and(|wait| wait >= Duration::from_secs(1)), "{error:?}");
        assert_eq!(first.run(1 << 20, |_| Ok(7)).await.expect("it runs"), 7);
        drop(second);
        pool.admit(1).expect("a place is free again");
    }

    #[tokio::test]
    async fn work_whose_caller_left_is_not_begun_and_what_has_begun_is_told() {
        let pool = pool(1, 8);
        let (place, other) = (pool.admit(1).expect("a place"), pool.admit(1).expect("a place"));
        let (release, has_begun, work) = held();
        let mut running = place.run(1, work).boxed();
        assert!(poll!(&mut running).is_pending());
        has_begun.recv().expect("it begins");

        let (_never, begins, never_run) = held();
        let mut waiting = other.run(1, never_run).boxed();
        assert!(poll!(&mut waiting).is_pending());
        drop(waiting);
        let behind = other.run(1, |wanted| Ok(wanted.still()));
        drop(release);
        assert!(running.await.expect("it ends"), "its caller waited");
        assert!(behind.await.expect("it ends"));
        begins.recv().expect_err("its caller had left");

        let (release, has_begun, work) = held();
        let (told, was_told) = channel();
        let mut left = place.run(1, move |wanted| told.send(work(wanted)).map_err(Error::internal)).boxed();
        assert!(poll!(&mut left).is_pending());
        has_begun.recv().expect("it begins");
        drop(left);
        drop(release);
        assert!(!was_told.recv().expect("it ends").expect("it says whether"), "its caller has left");
    }

    /// A request's second piece queues behind what others submitted while the first was waiting.
    #[tokio::test]
    async fn requests_take_turns() {
        let pool = pool(1, 8);
        let place = || pool.admit(1).expect("a place");
        let (holder, long, other) = (place(), place(), place());
        let (release, has_begun, work) = held();
        let mut holding = holder.run(1, work).boxed();
        assert!(poll!(&mut holding).is_pending());
        has_begun.recv().expect("it begins");

        let order = Arc::new(Mutex::new(Vec::new()));
        let notes = |name: &'static str| {
            let order = order.clone();
            move |_: &Wanted| -> Result<()> {
                order.lock().push(name);
                Ok(())
            }
        };
        let many = (0..3).map(|_| long.run(1, notes("long"))).collect::<Vec<_>>();
        let mut many = stream::iter(many).buffered(1).try_collect::<Vec<()>>().boxed();
        let mut one = other.run(1, notes("other")).boxed();
        assert!(poll!(&mut many).is_pending() && poll!(&mut one).is_pending());
        drop(release);
        holding.await.expect("it ends");
        futures_util::future::try_join(many, one).await.expect("they run");
        assert_eq!(*order.lock(), ["long", "other", "long", "long"]);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_own_piece() {
        let place = pool(1, 1).admit(1).expect("a place");
        let panicked: Result<()> = place.run(1, |_| panic!("this piece")).await;
        assert_eq!(panicked.expect_err("it panicked").kind(), ErrorKind::Internal);
        assert_eq!(place.run(1, |_| Ok(1)).await.expect("the thread lives"), 1);
    }

    #[tokio::test]
    async fn texts_keep_their_order_and_the_first_error_is_told() {
        let lengths = |texts: Vec<usize>| texts.into_iter().map(|length| "x".repeat(length)).collect::<Vec<_>>();
        for texts in [vec![3, 1, 2], vec![SHORT_BYTES, 5, 7, 2 * SHORT_BYTES, 1, SHORT_BYTES]] {
            let done = each_off_the_async_threads(lengths(texts.clone()), String::len, |index, text, _| {
                Ok((index, text.len()))
            });
            assert_eq!(done.await.expect("it runs"), texts.clone().into_iter().enumerate().collect::<Vec<_>>());
            let refused = each_off_the_async_threads(lengths(texts), String::len, |index, _, _| match index {
                0 => Ok(()),
                _ => Err(Error::invalid(format!("input[{index}]"), "no")),
            });
            assert_eq!(refused.await.expect_err("all but one are refused").param(), Some("input[1]"));
        }
    }

    #[test]
    fn small_texts_are_worked_on_together() {
        let sizes = |lengths: &[usize]| {
            let found = pieces(lengths.to_vec(), |length| *length);
            found.into_iter().map(|(first, bytes, items)| (first, bytes, items.len())).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[1, 2, 3]), [(0, 6, 3)]);
        assert_eq!(
            sizes(&[1, SHORT_BYTES, 2, 3, 9 * SHORT_BYTES]),
            [(0, 1, 1), (1, SHORT_BYTES, 1), (2, 5, 2), (4, 9 * SHORT_BYTES, 1)]
        );
    }
}
