//! How many bytes of large bodies may be in work at the same time.
//!
//! While a body is read, parsed and tokenized it costs many times its size: a single word of a megabyte takes sixty. One that costs
//! more than usual once it is parsed (`json_cost.rs`) counts for more.
//! With a bound on one body alone, a few clients with the largest bodies would take all the memory there is. So large
//! bodies share a fixed room, and one that does not fit in it is refused at once, to be sent again. Ordinary requests
//! are not counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use hearth_kernels::freed_memory;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is free for every body: the prompt of a context of 256k tokens.
const FREE_BYTES: usize = 1024 * 1024;

/// The room is this many bodies of the largest size.
const LARGEST_BODIES: usize = 2;

/// Room is counted in these.
const UNIT_BYTES: usize = 1024;

/// A body of more than this leaves so much freed memory behind that it is given back as soon as the burst is over that the body
/// may be part of.
const LARGE_BYTES: usize = 64 * 1024;
const AFTER_LARGE: Duration = Duration::from_secs(2);

/// After other requests. The allocator keeps an arena for each of many threads, and without this a server under mixed load grew
/// by 5 % in half an hour, while what it had in use stayed the same (`benches/runs/`).
const AFTER_SMALL: Duration = Duration::from_secs(60);

/// The room that all requests share.
#[derive(Clone, Debug)]
pub(super) struct BodyRoom {
    free: Arc<Semaphore>,
    /// Memory is going to be given back, after a large body and after others.
    gives_back: Arc<[AtomicBool; 2]>,
}

impl BodyRoom {
    pub(super) fn new(body_limit_bytes: usize) -> Self {
        let units = (body_limit_bytes / UNIT_BYTES).saturating_mul(LARGEST_BODIES);
        Self { free: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))), gives_back: Arc::default() }
    }

    /// Gives freed memory back, once for all requests that come meanwhile.
    fn give_back_soon(&self, after_large: bool) {
        let kind = usize::from(after_large);
        if self.gives_back[kind].swap(true, Ordering::AcqRel) {
            return;
        }
        let room = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(if after_large { AFTER_LARGE } else { AFTER_SMALL }).await;
            room.gives_back[kind].store(false, Ordering::Release);
            // It panics for no reason of ours, and nothing is lost if it did.
            drop(tokio::task::spawn_blocking(freed_memory::give_back).await);
        });
    }
}

/// One request's share of the room. It is given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct BodyShare {
    room: BodyRoom,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    /// The most that the body was counted as.
    bytes: Arc<AtomicUsize>,
}

impl BodyShare {
    /// Makes the share large enough for so many bytes; false if there is no room for them.
    pub(super) fn grow_to(&self, bytes: usize) -> bool {
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
        let held = &mut *self.held.lock();
        let needed = bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let missing = needed.saturating_sub(held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if missing == 0 {
            return true;
        }
        let Ok(missing) = u32::try_from(missing) else { return false };
        let Ok(more) = Arc::clone(&self.room.free).try_acquire_many_owned(missing) else { return false };
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        true
    }

    pub(super) fn give_back(&self) {
        drop(self.held.lock().take());
    }
}

/// The layer: a request keeps its share until the head of its answer is ready, which is after all work on its body.
pub(super) async fn with_body_share(State(room): State<BodyRoom>, mut request: Request, next: Next) -> Response {
    let share = BodyShare { room, held: Arc::default(), bytes: Arc::default() };
    request.extensions_mut().insert(share.clone());
    let response = next.run(request).await;
    share.room.give_back_soon(share.bytes.load(Ordering::Relaxed) > LARGE_BYTES);
    response
}
