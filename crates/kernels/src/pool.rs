//! The compute pool shared by chat and embeddings.
//!
//! A region is a number of independent chunks that threads claim one at a time. The calling thread works too, so a
//! region never waits for a worker that the operating system has not scheduled: it waits only for chunks already
//! claimed. Workers spin for a few microseconds between regions, because a decode step is hundreds of short ones, and
//! then sleep. Several threads may run regions at once, and a panicking chunk fails its own region with an error and
//! nothing else.

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

type Work = *const (dyn Fn(usize) + Sync);

/// One open region.
struct Slot {
    /// Held by a caller for the duration of its region.
    taken: AtomicBool,
    /// High half: the region's number; low half: chunks not yet claimed.
    state: AtomicU64,
    finished: AtomicU32,
    /// Written by the caller before `state` is published; read only by threads that hold a claimed chunk.
    region: UnsafeCell<Option<(Work, u32)>>,
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
            region: UnsafeCell::new(None),
            panic: Mutex::new(None),
        }
    }

    /// Claims and runs chunks until none is left; returns whether there was one.
    fn work(&self) -> bool {
        let mut worked = false;
        let mut state = self.state.load(Ordering::Acquire);
        while state & u64::from(u32::MAX) != 0 {
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    worked = true;
                    self.run_chunk((state & u64::from(u32::MAX)) as u32);
                    state = self.state.load(Ordering::Acquire);
                }
                Err(now) => state = now,
            }
        }
        worked
    }

    fn run_chunk(&self, remaining: u32) {
        // SAFETY: this thread holds a claimed chunk, so the region was published and its caller still waits.
        let (work, chunks) = unsafe { (*self.region.get()).expect("a published region has its work") };
        let chunk = (chunks - remaining) as usize;
        // SAFETY: the closure lives on the stack of the caller, which waits for this chunk.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*work)(chunk) }));
        if let Err(payload) = outcome {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic_message(&*payload));
        }
        self.finished.fetch_add(1, Ordering::Release);
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

struct Pool {
    slots: [Slot; SLOTS],
    /// Counts regions, so that a worker about to sleep notices a region opened meanwhile.
    opened: AtomicU64,
    sleeping: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    /// Inactive workers wait here, where regions do not wake them.
    rested: Condvar,
    spawned: Mutex<usize>,
    spawned_hint: AtomicUsize,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        slots: std::array::from_fn(|_| Slot::new()),
        opened: AtomicU64::new(0),
        sleeping: AtomicUsize::new(0),
        lock: Mutex::new(()),
        wake: Condvar::new(),
        rested: Condvar::new(),
        spawned: Mutex::new(0),
        spawned_hint: AtomicUsize::new(0),
    })
}

/// Runs `work(0)`, `work(1)`, ... `work(chunks - 1)` on the pool's threads and on the calling thread.
///
/// # Errors
/// If a chunk panicked; the other chunks have run nevertheless.
pub fn run(chunks: usize, work: impl Fn(usize) + Sync) -> candle_core::Result<()> {
    let pool = pool();
    let alone = chunks <= 1 || threads() <= 1 || IS_ASIDE.get();
    let slot = if alone {
        None
    } else {
        pool.slots.iter().find(|slot| {
            !slot.taken.load(Ordering::Relaxed)
                && slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    };
    let Some(slot) = slot else {
        return catch_unwind(AssertUnwindSafe(|| (0..chunks).for_each(&work))).map_err(|payload| failed(&*payload));
    };
    pool.ensure_workers(threads() - 1);
    let chunks = u32::try_from(chunks).map_err(candle_core::Error::wrap)?;
    let erased: &(dyn Fn(usize) + Sync) = &work;
    // SAFETY: only the lifetime is erased; this function does not return before every chunk has finished.
    let erased: Work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(erased) };
    // SAFETY: the slot is ours and its unclaimed count is zero, so no thread reads the region.
    unsafe { *slot.region.get() = Some((erased, chunks)) };
    slot.finished.store(0, Ordering::Relaxed);
    let generation = (slot.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
    slot.state.store(generation << 32 | u64::from(chunks), Ordering::Release);
    pool.open();
    slot.work();
    let mut spins = 0u32;
    while slot.finished.load(Ordering::Acquire) != chunks {
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
    fn open(&self) {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
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
                let worked = self.slots.iter().filter(|slot| slot.work()).count() > 0;
                if !is_active(index) {
                    continue 'turns;
                }
                if worked {
                    idle_since = Instant::now();
                } else if idle_since.elapsed() > SPIN {
                    break;
                }
                for _ in 0..16 {
                    hint::spin_loop();
                }
            }
            let seen = self.opened.load(Ordering::SeqCst);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            // If a region opened after `seen` was read, either the loop condition sees it or its notification arrives.
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            let open = self.slots.iter().any(|slot| slot.state.load(Ordering::SeqCst) as u32 != 0);
            while !open && self.opened.load(Ordering::SeqCst) == seen {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
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
