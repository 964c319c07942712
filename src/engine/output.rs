//! The engine's end of a stream.
//!
//! The engine's thread is the only sender, so room seen before a step is still there after it: sequences are scheduled
//! only while [`Output::has_room`] holds, and sending never blocks and never fails for lack of room.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use tokio::sync::mpsc;

use super::{
    RequestPlace,
    request::{StreamSide, TokenEvent},
};
use hearth_domain::error::{Error, Result};

/// Events of one step and of the stream's end: a token and a finish for each choice, then `Prefilled` and
/// `Done` or an error.
fn events_per_step(num_choices: usize) -> usize {
    2 * num_choices + 2
}

/// Slots of the channel, so that a stream may fall `event_buffer` events behind.
pub(super) fn channel_capacity(event_buffer: usize, num_choices: usize) -> usize {
    event_buffer + events_per_step(num_choices)
}

pub(super) struct Output {
    sender: mpsc::Sender<Result<TokenEvent>>,
    side: Arc<StreamSide>,
    num_choices: usize,
    _open: RequestPlace,
}

impl Output {
    pub(super) fn new(
        sender: mpsc::Sender<Result<TokenEvent>>,
        side: Arc<StreamSide>,
        open: RequestPlace,
        num_choices: usize,
    ) -> Self {
        Self { sender, side, num_choices, _open: open }
    }

    /// The reader is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether there is room for all events of the next step. If not, the reader wakes the engine when it reads.
    pub(super) fn has_room(&self) -> bool {
        let needed = events_per_step(self.num_choices);
        if self.sender.capacity() >= needed {
            return true;
        }
        self.side.paused.store(true, Ordering::SeqCst);
        // Orders the flag before the second look, as the reader orders its read before its look at the flag.
        fence(Ordering::SeqCst);
        // The reader may have read between the two, and then sends no wake-up.
        self.sender.capacity() >= needed
    }

    /// Choices whose remaining tokens the reader does not want, each once.
    pub(super) fn take_unwanted(&self) -> Vec<usize> {
        let mut unwanted = std::mem::take(&mut *self.side.unwanted.lock());
        unwanted.sort_unstable();
        unwanted.dedup();
        unwanted
    }

    pub(super) fn send(&self, event: TokenEvent) {
        // A closed channel is a cancelled request, which the next reap removes.
        let _cancelled = self.sender.try_send(Ok(event));
    }

    /// Ends the stream.
    pub(super) fn fail(self, error: Error) {
        let _cancelled = self.sender.try_send(Err(error));
    }
}
