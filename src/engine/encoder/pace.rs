//! How background batches yield to chats.
//!
//! The chat engine and the encoder share the machine, and people notice a pause between two tokens, while a document
//! that is ready a little later goes unnoticed. So while sequences are generated, a background batch runs on one
//! thread, which the engine leaves to it; and the batch is small, because a question's own text must not wait long
//! behind it. While sequences wait for a place the machine is saturated: background batches only keep their share of
//! turns, and rest between two of them.

use std::{fmt, sync::OnceLock, time::Duration};

use super::queue::BACKGROUND_TURN;

/// A background batch beside a chat has at most the usual tokens divided by this.
const SMALLER: usize = 8;
/// From this many threads on, one may always be given to the background. With fewer, the background rests between
/// batches so that it takes a quarter of the machine's time there, too.
const THREADS_FOR_ONE_ASIDE: usize = 4;

/// What the chat engine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreground {
    /// Sequences that are being generated.
    pub running: usize,
    /// Sequences that wait for a place.
    pub waiting: usize,
}

/// How a batch is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// On all threads.
    Full,
    /// On one thread, beside running sequences.
    Aside,
    /// The same, and rarely, while sequences wait.
    Rarely,
}

impl Pace {
    pub fn beside(foreground: Foreground) -> Self {
        match foreground {
            Foreground { waiting: 1.., .. } => Self::Rarely,
            Foreground { running: 1.., .. } => Self::Aside,
            _ => Self::Full,
        }
    }

    /// The token budget of a batch, from the usual one.
    pub fn batch_tokens(self, at_most: usize) -> usize {
        match self {
            Self::Full => at_most,
            Self::Aside | Self::Rarely => (at_most / SMALLER).max(1),
        }
    }

    /// How long the background rests after a batch of this duration, on a machine with this many threads.
    pub fn rest(self, batch: Duration, threads: usize) -> Duration {
        match self {
            Self::Full => Duration::ZERO,
            Self::Aside => {
                let missing = THREADS_FOR_ONE_ASIDE.saturating_sub(threads);
                batch.mul_f64(missing as f64 / threads.max(1) as f64)
            }
            Self::Rarely => batch * (BACKGROUND_TURN as u32 - 1),
        }
    }
}

/// The source of the chat engine's activity. Until it is set, there is none.
#[derive(Default)]
pub(super) struct GivesWay(OnceLock<Box<dyn Fn() -> Foreground + Send + Sync>>);

impl GivesWay {
    /// Only the first call counts.
    pub fn to(&self, foreground: impl Fn() -> Foreground + Send + Sync + 'static) {
        let _told = self.0.set(Box::new(foreground));
    }

    pub fn pace(&self) -> Pace {
        self.0.get().map_or(Pace::Full, |foreground| Pace::beside(foreground()))
    }
}

impl fmt::Debug for GivesWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GivesWay").field(&self.pace()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_steps_back_in_order() {
        let beside = |running, waiting| Pace::beside(Foreground { running, waiting });
        assert_eq!([beside(0, 0), beside(1, 0), beside(8, 3)], [Pace::Full, Pace::Aside, Pace::Rarely]);
        assert_eq!([Pace::Full, Pace::Aside, Pace::Rarely].map(|pace| pace.batch_tokens(2048)), [2048, 256, 256]);
        let batch = Duration::from_millis(80);
        assert_eq!(Pace::Full.rest(batch, 2), Duration::ZERO);
        assert_eq!(Pace::Aside.rest(batch, 16), Duration::ZERO);
        assert_eq!(Pace::Aside.rest(batch, 2), batch, "half of the time, half of the machine");
        assert_eq!(Pace::Rarely.rest(batch, 16), 7 * batch, "one turn of eight");
    }
}
