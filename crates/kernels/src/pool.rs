//! The compute pool shared by chat and embeddings.
//!
//! A region is one or more phases, each a number of independent chunks that threads claim one at a time. A phase begins
//! when every chunk of the one before has finished: the thread that finishes the last one opens it. What is counted is
//! chunks and not threads, so neither a phase nor a region waits for a worker that the operating system has not scheduled,
//! unless it holds a chunk; and the calling thread works too. A step of a model is one region of a few hundred phases.
//!
//! Workers spin for a few microseconds after a region, and as long as a region has phases left, and then sleep. Several
//! threads may run regions at once, and a panicking chunk fails its own region with an error and nothing else.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    hint,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How long an idle worker spins before it sleeps: longer than the gap between two regions of a step.
const SPIN: Duration = Duration::from_micros(40);
/// Regions that can be open at once; a further region runs on its caller's thread alone.
const SLOTS: usize = 8;
/// The maximum number of threads.
const MAX_THREADS: usize = 256;

static REQUESTED: AtomicUsize = AtomicUsize::new(0);
/// Number of live [`Aside`] values.
static ASIDE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets the total number of threads the CPU kernels use; 0 restores the default.
pub fn set_threads(n: usize) {
    REQUESTED.store(n.min(MAX_THREADS), Ordering::SeqCst);
    pool().call_back();
}

/// While it exists, regions of the thread that created it run on that thread alone, and the regions of other threads
/// have one worker less. Work that can wait thus takes one core from work that cannot, and no two threads share a core:
/// a worker preempted in the middle of a chunk would hold up its whole region.
#[derive(Debug)]
pub struct Aside {
    was_aside: bool,
    /// Makes the type `!Send`: the value belongs to the thread that created it.
    _thread: PhantomData<*const ()>,
}

impl Aside {
    pub fn step() -> Self {
        ASIDE.fetch_add(1, Ordering::SeqCst);
        Self { was_aside: IS_ASIDE.replace(true), _thread: PhantomData }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        IS_ASIDE.set(self.was_aside);
        ASIDE.fetch_sub(1, Ordering::SeqCst);
        pool().call_back();
    }
}

/// Whether the worker with this number currently takes part in regions.
fn is_active(worker: usize) -> bool {
    worker + 1 + ASIDE.load(Ordering::SeqCst) < threads()
}

/// Number of threads the CPU kernels use: the configured number, or the physical cores this process may use.
pub fn threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    match REQUESTED.load(Ordering::Relaxed) {
        0 => *DEFAULT.get_or_init(|| usable_cores().min(MAX_THREADS)),
        n => n,
    }
}

/// Physical cores, limited by the process's affinity and its cgroup quota.
fn usable_cores() -> usize {
    // The standard library accounts for affinity and quota, but counts hardware threads.
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut cores = std::collections::HashSet::new();
    for cpu in 0..4096 {
        match std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    if cores.is_empty() { allowed } else { allowed.min(cores.len()) }
}

type Work = *const (dyn Fn(usize, usize) + Sync);

/// One open region.
struct Slot {
    /// Held by a caller for the duration of its region.
    taken: AtomicBool,
    /// High half: the phase; low half: chunks of it not yet claimed.
    state: AtomicU64,
    /// Chunks of the phase that have finished.
    finished: AtomicU32,
    /// Until the last chunk of the last phase has finished.
    open: AtomicBool,
    /// Whether phases follow the one that is running.
    has_more: AtomicBool,
    /// Written by the caller before `state` is published; read only by threads that hold a claimed chunk. The work, and the
    /// number of chunks of each phase.
    region: UnsafeCell<Option<(Work, *const [u32])>>,
    /// Whether a chunk has panicked; the region's other chunks are then claimed, and not run.
    failed: AtomicBool,
    panic: Mutex<Option<String>>,
}

// SAFETY: `region` is written only by the caller that took the slot, while no chunk is claimable; it is read only
// by a thread that claimed a chunk, which the caller outlives because it waits for every claimed chunk.
unsafe impl Sync for Slot {}
// SAFETY: the pointer in `region` is to a `Sync` closure and is used only while the region lasts.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            state: AtomicU64::new(0),
            finished: AtomicU32::new(0),
            open: AtomicBool::new(false),
            has_more: AtomicBool::new(false),
            region: UnsafeCell::new(None),
            failed: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Claims and runs chunks until none is left; returns whether there was one.
    fn work(&self, pool: &Pool) -> bool {
        let mut worked = false;
        let mut state = self.state.load(Ordering::Acquire);
        while state as u32 != 0 {
            // A state that comes back between the two is as good: the claim is of the phase that it names.
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    worked = true;
                    self.run_chunk(pool, (state >> 32) as usize, state as u32);
                    state = self.state.load(Ordering::Acquire);
                }
                Err(now) => state = now,
            }
        }
        worked
    }

    fn run_chunk(&self, pool: &Pool, phase: usize, remaining: u32) {
        // SAFETY: this thread holds a claimed chunk, so the region was published and its caller still waits.
        let (work, phases) = unsafe { (*self.region.get()).expect("a published region has its work") };
        // SAFETY: as above; the caller holds the slice as long.
        let phases = unsafe { &*phases };
        let chunk = (phases[phase] - remaining) as usize;
        if !self.failed.load(Ordering::Relaxed) {
            // SAFETY: the closure lives on the stack of the caller, which waits for this chunk.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*work)(phase, chunk) }));
            if let Err(payload) = outcome {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic_message(&*payload));
                self.failed.store(true, Ordering::Relaxed);
            }
        }
        // The thread that finishes the last chunk sees, through this counter, what all the others wrote.
        if self.finished.fetch_add(1, Ordering::AcqRel) + 1 == phases[phase] {
            self.begin(pool, phases, phase + 1);
        }
    }

    /// Publishes the first phase that has chunks, from this one on, or the end of the region. Called while no chunk is claimed.
    fn begin(&self, pool: &Pool, phases: &[u32], from: usize) {
        let Some(phase) = (from..phases.len()).find(|&phase| phases[phase] > 0) else {
            self.has_more.store(false, Ordering::Relaxed);
            // From here on the caller may return, and nothing of the region may be touched.
            return self.open.store(false, Ordering::Release);
        };
        self.finished.store(0, Ordering::Relaxed);
        self.has_more.store(phase + 1 < phases.len(), Ordering::Relaxed);
        self.state.store((phase as u64) << 32 | u64::from(phases[phase]), Ordering::SeqCst);
        pool.wake();
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

struct Pool {
    slots: [Slot; SLOTS],
    sleeping: AtomicUsize,
    lock: Mutex<()>,
    called: Condvar,
    /// Inactive workers wait here, where regions do not wake them.
    rested: Condvar,
    spawned: Mutex<usize>,
    spawned_hint: AtomicUsize,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        slots: std::array::from_fn(|_| Slot::new()),
        sleeping: AtomicUsize::new(0),
        lock: Mutex::new(()),
        called: Condvar::new(),
        rested: Condvar::new(),
        spawned: Mutex::new(0),
        spawned_hint: AtomicUsize::new(0),
    })
}

/// Runs `work(0)`, `work(1)`, ... `work(chunks - 1)` on the pool's threads and on the calling thread.
///
/// # Errors
/// If a chunk panicked. Chunks that had not begun by then may not have run.
pub fn run(chunks: usize, work: impl Fn(usize) + Sync) -> candle_core::Result<()> {
    let chunks = u32::try_from(chunks).map_err(candle_core::Error::wrap)?;
    run_phases(&[chunks], |_, chunk| work(chunk))
}

/// Runs `work(phase, chunk)` for every chunk of every phase, of which `phases` has the numbers of chunks. Phases run one after
/// the other.
///
/// # Errors
/// If a chunk panicked. Chunks that had not begun by then have not run.
pub fn run_phases(phases: &[u32], work: impl Fn(usize, usize) + Sync) -> candle_core::Result<()> {
    let pool = pool();
    let alone = phases.iter().all(|&chunks| chunks <= 1) || threads() <= 1 || IS_ASIDE.get();
    let slot = if alone {
        None
    } else {
        pool.slots.iter().find(|slot| {
            !slot.taken.load(Ordering::Relaxed)
                && slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    };
    let Some(slot) = slot else {
        let all = || {
            for (phase, &chunks) in phases.iter().enumerate() {
                (0..chunks as usize).for_each(|chunk| work(phase, chunk));
            }
        };
        return catch_unwind(AssertUnwindSafe(all)).map_err(|payload| failed(&*payload));
    };
    pool.ensure_workers(threads() - 1);
    let erased: &(dyn Fn(usize, usize) + Sync) = &work;
    // SAFETY: only the lifetime is erased; this function does not return before every chunk has finished.
    let erased: Work = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Work>(erased) };
    // SAFETY: the slot is ours and its unclaimed count is zero, so no thread reads the region.
    unsafe { *slot.region.get() = Some((erased, phases)) };
    slot.failed.store(false, Ordering::Relaxed);
    slot.open.store(true, Ordering::Relaxed);
    slot.begin(pool, phases, 0);
    let mut spins = 0u32;
    while slot.open.load(Ordering::Acquire) {
        if slot.work(pool) {
            continue;
        }
        spins += 1;
        if spins.is_multiple_of(4096) {
            std::thread::yield_now();
        }
        hint::spin_loop();
    }
    let panic = slot.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    slot.taken.store(false, Ordering::Release);
    match panic {
        None => Ok(()),
        Some(message) => Err(candle_core::Error::msg(format!("a compute kernel failed: {message}"))),
    }
}

fn failed(payload: &(dyn Any + Send)) -> candle_core::Error {
    candle_core::Error::msg(format!("a compute kernel failed: {}", panic_message(payload)))
}

impl Pool {
    /// Called after chunks were published. A worker about to sleep counts itself before it looks for chunks the last time, so
    /// that one of the two sees the other.
    fn wake(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.called.notify_all();
        }
    }

    /// Wakes the workers that may have become active.
    fn call_back(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.rested.notify_all();
    }

    fn ensure_workers(&'static self, wanted: usize) {
        if self.spawned_hint.load(Ordering::Relaxed) >= wanted {
            return;
        }
        let mut spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        while *spawned < wanted {
            let index = *spawned;
            let worker = move || self.worker(index);
            // Without the thread there is only less parallelism: the caller runs every chunk that no worker claims.
            if let Err(error) = std::thread::Builder::new().name(format!("compute-{index}")).spawn(worker) {
                tracing::warn!(%error, "a compute thread could not be started");
                break;
            }
            *spawned += 1;
        }
        self.spawned_hint.store(*spawned, Ordering::Relaxed);
    }

    fn worker(&self, index: usize) {
        'turns: loop {
            // A worker beyond the configured number rests, so that the number can be lowered.
            if !is_active(index) {
                let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
                while !is_active(index) {
                    guard = self.rested.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let mut idle_since = Instant::now();
            loop {
                let worked = self.slots.iter().filter(|slot| slot.work(self)).count() > 0;
                if !is_active(index) {
                    continue 'turns;
                }
                if worked {
                    idle_since = Instant::now();
                } else if idle_since.elapsed() > SPIN {
                    if !self.slots.iter().any(|slot| slot.has_more.load(Ordering::Relaxed)) {
                        break;
                    }
                    std::thread::yield_now();
                }
                for _ in 0..16 {
                    hint::spin_loop();
                }
            }
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            while self.slots.iter().all(|slot| slot.state.load(Ordering::SeqCst) as u32 == 0) {
                guard = self.called.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            drop(guard);
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_from_several_callers_at_the_same_time() {
        std::thread::scope(|scope| {
            for caller in 0..12 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let chunks = (caller * 7 + round) % 40;
                        let counts: Vec<AtomicU32> = (0..chunks).map(|_| AtomicU32::new(0)).collect();
                        run(chunks, |chunk| _ = counts[chunk].fetch_add(1, Ordering::Relaxed)).expect("nothing panics");
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_phase_begins_when_all_chunks_of_the_one_before_have_finished() {
        std::thread::scope(|scope| {
            for caller in 0..3u32 {
                scope.spawn(move || {
                    for round in 0..300u32 {
                        let phases: Vec<u32> = (0..20).map(|phase| (caller + round + 7 * phase) % 9).collect();
                        let counts: Vec<AtomicU32> = phases.iter().map(|_| AtomicU32::new(0)).collect();
                        run_phases(&phases, |phase, _| {
                            for before in 0..phase {
                                assert_eq!(counts[before].load(Ordering::Relaxed), phases[before], "phase {before}");
                            }
                            counts[phase].fetch_add(1, Ordering::Relaxed);
                        })
                        .expect("nothing panics");
                        assert!(
                            counts.iter().zip(&phases).all(|(count, chunks)| count.load(Ordering::Relaxed) == *chunks)
                        );
                    }
                });
            }
        });
        let begun = AtomicU32::new(0);
        let failed = run_phases(&[4, 4, 4], |phase, chunk| {
            begun.fetch_max(phase as u32, Ordering::Relaxed);
            assert!(phase != 1 || chunk != 2, "the third of the second");
        });
        assert!(failed.expect_err("a chunk panicked").to_string().contains("the third of the second"));
        assert_eq!(begun.into_inner(), 1, "no chunk runs after the phase that failed");
        run_phases(&[0, 0], |_, _| panic!("there is none")).expect("nothing to do");
    }

    #[test]
    fn a_panic_is_an_error_of_its_own_region_only() {
        for _ in 0..3 {
            let error = run(16, |chunk| assert!(chunk != 5, "chunk five")).expect_err("a chunk panicked");
            assert!(error.to_string().contains("chunk five"));
            run(16, |_| {}).expect("the next region is untouched");
        }
    }

    #[test]
    fn who_computes_aside_computes_alone_and_the_others_go_on() {
        let everywhere = || {
            let threads = Mutex::new(std::collections::HashSet::new());
            run(64, |_| _ = threads.lock().expect("no panic").insert(std::thread::current().id())).expect("no panic");
            threads.into_inner().expect("no panic")
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..200 {
                    let aside = Aside::step();
                    let here = std::collections::HashSet::from([std::thread::current().id()]);
                    assert_eq!(everywhere(), here);
                    drop(aside);
                    assert!(everywhere().contains(&std::thread::current().id()) || threads() > 1);
                }
            });
            for _ in 0..2000 {
                let total = AtomicUsize::new(0);
                run(40, |_| _ = total.fetch_add(1, Ordering::Relaxed)).expect("nothing panics");
                assert_eq!(total.into_inner(), 40);
            }
        });
    }

    #[test]
    fn regions_nest() {
        let total = AtomicUsize::new(0);
        let count = |_| _ = total.fetch_add(1, Ordering::Relaxed);
        run(6, |_| run(5, count).expect("nothing panics")).expect("nothing panics");
        assert_eq!(total.into_inner(), 30);
    }
}
