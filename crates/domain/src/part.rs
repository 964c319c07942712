//! Long-running parts of the server, such as an engine's loop, and what happens when one panics.
//!
//! A loop handles the failures it expects itself. A panic beyond those is a bug in Hearth, and may have left the loop's
//! state inconsistent, so the loop restarts with fresh state. A part that panics more than [`RESTARTS_MAX`] times
//! within [`WINDOW`] has failed, and readiness reports it: it either stops, or retries after pauses and recovers with
//! the first work it completes. The log has each panic's message; the health report does not, since the message may
//! contain a caller's text.

use std::{
    any::Any,
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Panics within [`WINDOW`] after which a part restarts; with one more it has failed.
pub const RESTARTS_MAX: usize = 3;
/// How long a panic counts.
pub const WINDOW: Duration = Duration::from_secs(10 * 60);

/// One part; see the module.
#[derive(Debug)]
pub struct Part {
    name: String,
    panics: Mutex<Panics>,
    has_failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Panics {
    /// Panics within the window, oldest first.
    recent: VecDeque<Instant>,
    total: u64,
}

/// What the health report says about a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReport {
    /// Such as `chat engine`.
    pub name: String,
    /// Panics since the start.
    pub panics: u64,
    /// Why the part does not work, if so, and what to do.
    pub failure: Option<String>,
}

impl Part {
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), panics: Mutex::default(), has_failed: AtomicBool::new(false) })
    }

    /// Records a panic of the part: `false` if the part has thereby failed.
    pub fn panicked(&self, panic: &(dyn Any + Send)) -> bool {
        self.panicked_at(Instant::now(), panic)
    }

    fn panicked_at(&self, now: Instant, panic: &(dyn Any + Send)) -> bool {
        let mut panics = self.panics.lock();
        panics.total += 1;
        panics.recent.push_back(now);
        while panics.recent.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            panics.recent.pop_front();
        }
        let goes_on = panics.recent.len() <= RESTARTS_MAX;
        self.has_failed.store(!goes_on, Ordering::Release);
        let (part, cause, times) = (&self.name, panic_message(panic), panics.recent.len());
        drop(panics);
        if goes_on {
            tracing::error!(part, cause, times, "a fault of Hearth's own: this part begins again");
        } else {
            tracing::error!(part, cause, times, "a fault of Hearth's own: this part has failed; restart the server");
        }
        goes_on
    }

    /// Records that the part completed work. Costs next to nothing while the part is healthy.
    pub fn works(&self) {
        if self.has_failed.load(Ordering::Acquire) {
            self.panics.lock().recent.clear();
            self.has_failed.store(false, Ordering::Release);
        }
    }

    pub fn report(&self) -> PartReport {
        let panics = self.panics.lock().total;
        let failure = self.has_failed.load(Ordering::Acquire).then(|| {
            let minutes = WINDOW.as_secs() / 60;
            format!(
                "The {} failed more than {RESTARTS_MAX} times within {minutes} minutes; the log has the causes. Restart \
                 the server.",
                self.name
            )
        });
        PartReport { name: self.name.clone(), panics, failure }
    }
}

/// The message of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_fails_by_many_panics_in_a_short_time_and_is_well_again_when_it_works() {
        let part = Part::new("mill");
        let begun = Instant::now();
        for number in 0..10 {
            let now = begun + WINDOW / RESTARTS_MAX as u32 * number + Duration::from_secs(u64::from(number));
            assert!(part.panicked_at(now, &"rarely"), "three of them are a little longer than the window apart");
        }
        assert_eq!(part.report(), PartReport { name: "mill".into(), panics: 10, failure: None });
        let now = begun + 10 * WINDOW;
        assert_eq!([0, 1, 2, 3, 4].map(|_| part.panicked_at(now, &"often")), [true, true, true, false, false]);
        let said = part.report().failure.expect("it has failed");
        assert!(said.starts_with("The mill failed more than 3 times within 10 minutes") && !said.contains("often"));
        part.works();
        assert_eq!(part.report().failure, None);
        assert!(part.panicked_at(now, &"once more"));
    }

    #[test]
    fn a_panic_says_what_it_was_given() {
        assert_eq!(panic_message(&"plain"), "plain");
        assert_eq!(panic_message(&"made".to_owned()), "made");
        assert_eq!(panic_message(&7), "a panic without a message");
    }
}
