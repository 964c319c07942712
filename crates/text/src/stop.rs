//! Stop strings: where generated text ends, even if the model would continue.
//!
//! A stop string may begin in one token and end in another, so text that could still become one is held back until it
//! is a stop string or can no longer be one. The engine ends sequences at token ids; stop strings are found here, after
//! tokens have become text. The choices of a request share its stop strings.

use std::sync::Arc;

/// Finds the first of several stop strings in text that arrives in pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Arc<[String]>,
    /// Text that could be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// The result of one more piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certainly part of the answer.
    pub text: String,
    /// A stop string has appeared; what follows `text` is not part of the answer.
    pub stopped: bool,
}

impl StopMatcher {
    /// Empty strings match nothing.
    pub fn new(stops: Arc<[String]>) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Accepts more text. Once a stop string has appeared, no more text comes out.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { text: String::new(), stopped: true };
        }
        if self.stops.is_empty() {
            return StopOutcome { text: text.to_owned(), stopped: false };
        }
        self.held.push_str(text);
        if let Some(at) = first_to_complete(&self.held, &self.stops) {
            self.stopped = true;
            self.held.truncate(at);
            return StopOutcome { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        StopOutcome { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Accepts text without looking for stop strings, because the answer has not reached its minimum length.
    pub fn push_unmatched(&mut self, text: &str) -> String {
        let mut out = std::mem::take(&mut self.held);
        out.push_str(text);
        out
    }

    /// Returns the text still held back, once no more text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest suffix of the held text with which a stop string begins.
    fn longest_beginning(&self) -> usize {
        let longest_stop = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest_stop.saturating_sub(1));
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

/// The start of the first stop string to be completed: the one that a character-by-character reader would see first,
/// however the text was cut. If two end together, the longer one.
fn first_to_complete(text: &str, stops: &[String]) -> Option<usize> {
    let stops = stops.iter().filter(|stop| !stop.is_empty());
    let found = stops.filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at)));
    found.min().map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads character by character and checks every end.
    fn reference(text: &str, stops: &[String]) -> String {
        let stops: Vec<_> = stops.iter().filter(|stop| !stop.is_empty()).collect();
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(longest) = ending.map(|stop| stop.len()).max() {
                return text[..end - longest].to_owned();
            }
        }
        text.to_owned()
    }

    fn run(pieces: &[String], stops: &[String]) -> String {
        let mut matcher = StopMatcher::new(stops.into());
        let mut out = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            out.push_str(&outcome.text);
            if outcome.stopped {
                return out;
            }
        }
        out + &matcher.finish()
    }

    #[test]
    fn text_that_cannot_become_a_stop_is_not_held() {
        let mut matcher = StopMatcher::new(["\n\nUser:".to_owned()].into());
        assert_eq!(matcher.push("Hello\n").text, "Hello");
        assert_eq!(matcher.push("there").text, "\nthere");
        assert_eq!(matcher.push("é\n\nUs").text, "é");
        let outcome = matcher.push("er: no");
        assert!(outcome.stopped);
        assert_eq!(outcome.text, "");
    }

    #[test]
    fn matchers_share_the_strings_they_look_for() {
        let stops: Arc<[String]> = ["x".repeat(1024)].into();
        let matchers: Vec<_> = (0..128).map(|_| StopMatcher::new(stops.clone())).collect();
        assert!(matchers.iter().all(|matcher| Arc::ptr_eq(&matcher.stops, &stops)));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,3}", 0..4),
        ) {
            prop_assert_eq!(run(&pieces, &stops), reference(&pieces.concat(), &stops));
        }
    }
}
