//! Which waiting texts are computed together: pure, without tensors or a clock.
//!
//! Callers take turns. The caller whose turn it is sets the batch's length bucket by its longest waiting text; then
//! every request contributes its texts in that bucket, until the token budget is spent. Tokens are packed without
//! padding, so buckets save no arithmetic: they keep a short question out of a batch of long documents, whose latency
//! it would share. Interactive requests go before background ones, which keep a fixed share so that they finish.

use std::collections::VecDeque;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A caller waits for the answer.
    #[default]
    Interactive,
    /// Indexing and re-embedding: runs when no interactive text waits, and in one batch of [`BACKGROUND_TURN`].
    Background,
}

/// While interactive texts wait, one batch in this many is a background one.
pub const BACKGROUND_TURN: usize = 8;

/// One text of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchMember {
    pub request: u64,
    /// The text's index in its request.
    pub text: usize,
}

/// A request's texts that have not been computed yet.
#[derive(Debug)]
struct Waiting {
    request: u64,
    caller: String,
    /// `(tokens, index in the request)`, shortest first.
    texts: Vec<(usize, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct EncoderQueue {
    interactive: VecDeque<Waiting>,
    background: VecDeque<Waiting>,
    /// Interactive batches since the last background one.
    interactive_turns: usize,
}

impl EncoderQueue {
    pub fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.background.is_empty()
    }

    /// `lengths` are the token counts of the request's texts, at least one text.
    pub fn push(&mut self, request: u64, caller: String, priority: Priority, lengths: impl Iterator<Item = usize>) {
        let mut texts: Vec<(usize, usize)> = lengths.enumerate().map(|(text, length)| (length, text)).collect();
        texts.sort_unstable();
        let class = match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Background => &mut self.background,
        };
        class.push_back(Waiting { request, caller, texts });
    }

    /// Removes a request that was cancelled, expired or failed.
    pub fn remove(&mut self, request: u64) {
        self.interactive.retain(|waiting| waiting.request != request);
        self.background.retain(|waiting| waiting.request != request);
    }

    /// The priority of the next batch.
    pub fn next_turn(&self) -> Priority {
        let is_due = self.interactive_turns + 1 >= BACKGROUND_TURN && !self.background.is_empty();
        if self.interactive.is_empty() || is_due { Priority::Background } else { Priority::Interactive }
    }

    /// Whether only background texts wait.
    pub fn is_background_only(&self) -> bool {
        self.interactive.is_empty() && !self.background.is_empty()
    }

    /// The next texts to compute: at least one if any waits, at most `budget` tokens in total unless a single text is
    /// longer.
    pub fn next_batch(&mut self, budget: usize) -> Vec<BatchMember> {
        match self.next_turn() {
            Priority::Background => {
                self.interactive_turns = 0;
                take(&mut self.background, budget)
            }
            Priority::Interactive => {
                self.interactive_turns += 1;
                take(&mut self.interactive, budget)
            }
        }
    }
}

fn take(class: &mut VecDeque<Waiting>, budget: usize) -> Vec<BatchMember> {
    let Some((longest, caller)) = class.front().and_then(|first| Some((first.texts.last()?.0, first.caller.clone())))
    else {
        return Vec::new();
    };
    let mut batch = Vec::new();
    let mut tokens = 0;
    for waiting in class.iter_mut() {
        // The bucket is (longest / 2, longest]; it is a run of the sorted texts.
        let start = waiting.texts.partition_point(|(length, _)| *length <= longest / 2);
        let mut end = waiting.texts.partition_point(|(length, _)| *length <= longest);
        while end > start {
            let (length, text) = waiting.texts[end - 1];
            if tokens + length > budget && !batch.is_empty() {
                break;
            }
            waiting.texts.remove(end - 1);
            batch.push(BatchMember { request: waiting.request, text });
            tokens += length;
            end -= 1;
        }
    }
    class.retain(|waiting| !waiting.texts.is_empty());
    // The caller has had its turn: its requests go to the back of the queue, in their order.
    let (served, others): (VecDeque<_>, VecDeque<_>) = class.drain(..).partition(|waiting| waiting.caller == caller);
    *class = others;
    class.extend(served);
    batch
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn requests(batch: &[BatchMember]) -> Vec<u64> {
        batch.iter().map(|member| member.request).collect()
    }

    #[test]
    fn several_requests_share_a_batch_of_one_length_bucket() {
        let mut queue = EncoderQueue::default();
        queue.push(1, "a".into(), Priority::Interactive, [100, 10, 90].into_iter());
        queue.push(2, "b".into(), Priority::Interactive, [60, 12].into_iter());
        assert_eq!(requests(&queue.next_batch(1000)), [1, 1, 2]);
        // b has not yet had a turn that sets the bucket
        assert_eq!(requests(&queue.next_batch(1000)), [2, 1]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_short_request_does_not_wait_for_a_long_one() {
        let mut queue = EncoderQueue::default();
        queue.push(1, "bulk".into(), Priority::Interactive, std::iter::repeat_n(200, 1000));
        assert_eq!(queue.next_batch(1000).len(), 5);
        queue.push(2, "person".into(), Priority::Interactive, std::iter::once(7));
        assert_eq!(requests(&queue.next_batch(1000)), [1; 5], "the bulk caller was first in line");
        assert_eq!(requests(&queue.next_batch(1000)), [2]);
    }

    #[test]
    fn one_caller_with_many_requests_gets_one_turn_of_two() {
        let mut queue = EncoderQueue::default();
        for request in 0..10 {
            queue.push(request, "many".into(), Priority::Interactive, std::iter::once(100));
        }
        queue.push(10, "one".into(), Priority::Interactive, std::iter::once(10));
        assert_eq!(requests(&queue.next_batch(100)), [0]);
        assert_eq!(requests(&queue.next_batch(100)), [10]);
        assert_eq!(requests(&queue.next_batch(100)), [1]);
    }

    #[test]
    fn background_waits_but_is_not_starved() {
        let mut queue = EncoderQueue::default();
        queue.push(0, "ingest".into(), Priority::Background, std::iter::repeat_n(100, 10));
        queue.push(1, "person".into(), Priority::Interactive, std::iter::repeat_n(100, 100));
        let turns: Vec<u64> = (0..2 * BACKGROUND_TURN).map(|_| queue.next_batch(100)[0].request).collect();
        assert_eq!(turns.iter().filter(|request| **request == 0).count(), 2);
        assert_eq!(turns[0], 1);
    }

    #[test]
    fn a_removed_request_is_not_computed() {
        let mut queue = EncoderQueue::default();
        queue.push(1, "a".into(), Priority::Interactive, [5, 6].into_iter());
        queue.push(2, "a".into(), Priority::Background, [5].into_iter());
        queue.remove(1);
        queue.remove(2);
        assert!(queue.is_empty());
        assert!(queue.next_batch(100).is_empty());
    }

    proptest! {
        #[test]
        fn every_text_is_computed_once_and_batches_keep_to_the_budget(
            lengths in prop::collection::vec(prop::collection::vec(1usize..600, 1..40), 1..8),
            budget in 1usize..2000,
        ) {
            let mut queue = EncoderQueue::default();
            for (request, texts) in lengths.iter().enumerate() {
                let priority = if request % 3 == 2 { Priority::Background } else { Priority::Interactive };
                queue.push(request as u64, format!("caller {}", request % 2), priority, texts.iter().copied());
            }
            let mut seen = HashSet::new();
            while !queue.is_empty() {
                let batch = queue.next_batch(budget);
                prop_assert!(!batch.is_empty());
                let tokens: usize = batch.iter().map(|member| lengths[member.request as usize][member.text]).sum();
                prop_assert!(tokens <= budget || batch.len() == 1);
                for member in batch {
                    prop_assert!(seen.insert((member.request, member.text)));
                }
            }
            prop_assert_eq!(seen.len(), lengths.iter().map(Vec::len).sum::<usize>());
        }
    }
}
