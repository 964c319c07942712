//! How background batches make way for those who chat.
//!
//! What a machine can compute in a second is shared by the chat engine and the encoder, and people notice a pause
//! between two tokens where nobody notices that a document is ready later. So while sequences are generated, a
//! background batch computes aside, on one thread that the engine does without; and it is small, for a question's own
//! text must not wait long behind it. While sequences wait for a place the machine is full: background batches keep
//! their turn and no more, and rest between two of them.

use std::{fmt, sync::OnceLock, time::Duration};

use super::queue::BACKGROUND_TURN;

/// A background batch beside a chat has at most this part of the usual tokens.
const SMALLER: usize = 8;
/// Threads of which one may always be given to the background. Where there are fewer, it rests so long that it has a
/// quarter of the machine's time, too.
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
    /// On one thread, beside sequences that run.
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

    /// Tokens of a batch, of those that a batch may have.
    pub fn batch_tokens(self, at_most: usize) -> usize {
        match self {
            Self::Full => at_most,
            Self::Aside | Self::Rarely => (at_most / SMALLER).max(1),
        }
    }

    /// How long the background rests after a batch that took so long, on a machine of so many threads.
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

/// Where the encoder looks for what the chat engine is doing. Before it is told, there is none.
#[derive(Default)]
pub(super) struct GivesWay(OnceLock<Box<dyn Fn() -> Foreground + Send + Sync>>);

impl GivesWay {
    /// Told twice, it keeps to the first.
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
