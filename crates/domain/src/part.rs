//! Parts of the server that work for as long as it runs, such as an engine's loop, and what becomes of one that panics.
//!
//! What a loop expects to fail it guards itself. A panic beyond that is a fault of Hearth's own, and may have broken the
//! loop's books; so the loop begins again with new ones. One that panics more than [`RESTARTS_MAX`] times within
//! [`WINDOW`] has failed, and readiness says so: it either ends, or goes on trying after pauses and is well again with the
//! first work that it gets done. The log has each panic's message; health has none, since it may hold a caller's words.

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

/// Panics within [`WINDOW`] after which a part begins again; with one more it has failed.
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
    /// Those within the window, the oldest first.
    recent: VecDeque<Instant>,
    total: u64,
}

/// What health says of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReport {
    /// Such as `chat engine`.
    pub name: String,
    /// Panics since the start.
    pub panics: u64,
    /// Why it does not work, if it does not, and what to do.
    pub failure: Option<String>,
}

impl Part {
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), panics: Mutex::default(), has_failed: AtomicBool::new(false) })
    }

    /// The part has panicked: `false` if it has failed by that.
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

    /// The part has got work done. Costs next to nothing while it is well.
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

/// What a panic said.
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
