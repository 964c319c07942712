//! How many bytes of large bodies may be in progress at the same time.
//!
//! While a body is read, parsed and tokenized it costs many times its size: a single one-megabyte word takes sixty. A
//! body that costs more than usual once parsed (`json_cost.rs`) counts for more. With a limit per body alone, a few
//! clients with the largest bodies could take all the memory there is. So large bodies share a fixed room, and one that
//! does not fit is refused at once, for the client to retry. Ordinary requests are not counted.

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

/// What every body gets for free: the prompt of a 256k-token context.
const FREE_BYTES: usize = 1024 * 1024;

/// The room holds this many bodies of the largest size.
const LARGEST_BODIES: usize = 2;

/// The granularity of the room.
const UNIT_BYTES: usize = 1024;

/// A body larger than this leaves so much freed memory behind that it is returned to the system as soon as the burst
/// that the body may be part of is over.
const LARGE_BYTES: usize = 64 * 1024;
const AFTER_LARGE: Duration = Duration::from_secs(2);

/// After other requests. The allocator keeps an arena for each of many threads; without this, a server under mixed load
/// grew by 5 % in half an hour while the memory in use stayed the same (`benches/runs/`).
const AFTER_SMALL: Duration = Duration::from_secs(60);

/// The room that all requests share.
#[derive(Clone, Debug)]
pub(super) struct BodyRoom {
    free: Arc<Semaphore>,
    /// Whether freed memory is about to be returned, after a large body and after others.
    gives_back: Arc<[AtomicBool; 2]>,
}

impl BodyRoom {
    pub(super) fn new(body_limit_bytes: usize) -> Self {
        let units = (body_limit_bytes / UNIT_BYTES).saturating_mul(LARGEST_BODIES);
        Self { free: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))), gives_back: Arc::default() }
    }

    /// Returns freed memory, once for all requests that arrive in the meantime.
    fn give_back_soon(&self, after_large: bool) {
        let kind = usize::from(after_large);
        if self.gives_back[kind].swap(true, Ordering::AcqRel) {
            return;
        }
        let room = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(if after_large { AFTER_LARGE } else { AFTER_SMALL }).await;
            room.gives_back[kind].store(false, Ordering::Release);
            // No code of ours makes it panic, and nothing is lost if it does.
            drop(tokio::task::spawn_blocking(freed_memory::give_back).await);
        });
    }
}

/// One request's share of the room, returned when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct BodyShare {
    room: BodyRoom,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    /// The largest size the body has been counted as.
    bytes: Arc<AtomicUsize>,
}

impl BodyShare {
    /// Grows the share to this many bytes; false if the room is too full.
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

/// The layer: a request keeps its share until its response head is ready, which is after all work on its body.
pub(super) async fn with_body_share(State(room): State<BodyRoom>, mut request: Request, next: Next) -> Response {
    let share = BodyShare { room, held: Arc::default(), bytes: Arc::default() };
    request.extensions_mut().insert(share.clone());
    let response = next.run(request).await;
    share.room.give_back_soon(share.bytes.load(Ordering::Relaxed) > LARGE_BYTES);
    response
}
