//! How the engine is asked to stop.
//!
//! Separate from the command channel, so that a full channel cannot delay a shutdown.

use std::{mem, time::Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Default)]
pub(super) struct DrainRequest(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Running,
    Asked {
        until: Instant,
        done: Vec<oneshot::Sender<()>>,
    },
    Stopped,
}

impl DrainRequest {
    /// Asks the loop to end by `until`; the earliest request counts. The receiver resolves when the thread has dropped
    /// the model. `None` if it already has.
    pub(super) fn request(&self, until: Instant) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        let state = &mut *self.0.lock();
        match state {
            State::Running => *state = State::Asked { until, done: vec![sender] },
            State::Asked { until: earliest, done } => {
                *earliest = until.min(*earliest);
                done.push(sender);
            }
            State::Stopped => return None,
        }
        Some(receiver)
    }

    /// When the loop is to end.
    pub(super) fn until(&self) -> Option<Instant> {
        match &*self.0.lock() {
            State::Asked { until, .. } => Some(*until),
            State::Running | State::Stopped => None,
        }
    }

    pub(super) fn stopped(&self) {
        let state = mem::replace(&mut *self.0.lock(), State::Stopped);
        if let State::Asked { done, .. } = state {
            for sender in done {
                // The receiver may have stopped waiting.
                let _gone = sender.send(());
            }
        }
    }
}
