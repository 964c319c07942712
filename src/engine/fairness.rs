//! Fair sharing: callers share the engine by the tokens computed for them.
//!
//! The caller that has been served least comes first. A caller that returns after a pause starts no lower than the
//! least served active one, so that idling earns no right to shut the others out later.

use std::collections::HashMap;

/// Counters of absent callers that are remembered, so that leaving and returning clears no debt.
const MAX_ABSENT_COUNTERS: usize = 4096;

/// Identifies a caller while it has sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CallerId(u64);

#[derive(Debug)]
struct TokenCounter {
    name: String,
    num_sequences: usize,
    /// Tokens computed, since some common origin.
    served: u64,
}

#[derive(Debug, Default)]
pub(super) struct Callers {
    ids: HashMap<String, CallerId>,
    counters: HashMap<CallerId, TokenCounter>,
    next: u64,
}

impl Callers {
    /// Opens `num_sequences` sequences on the caller's counter.
    pub(super) fn enter(&mut self, name: &str, num_sequences: usize) -> CallerId {
        let floor = self.least_served_active();
        let id = match self.ids.get(name) {
            Some(id) => *id,
            None => {
                let id = CallerId(self.next);
                self.next += 1;
                self.ids.insert(name.to_owned(), id);
                self.counters.insert(id, TokenCounter { name: name.to_owned(), num_sequences: 0, served: 0 });
                id
            }
        };
        let counter = self.counters.get_mut(&id).expect("every id has a counter");
        if counter.num_sequences == 0 {
            counter.served = counter.served.max(floor.unwrap_or(0));
        }
        counter.num_sequences += num_sequences;
        id
    }

    /// Closes one sequence.
    pub(super) fn leave(&mut self, id: CallerId) {
        let counter = self.counters.get_mut(&id).expect("a sequence's caller has a counter");
        counter.num_sequences -= 1;
        if counter.num_sequences > 0 {
            return;
        }
        match self.least_served_active() {
            // No other caller to be fair to: the counters are reset.
            None => {
                self.counters.clear();
                self.ids.clear();
            }
            Some(floor) => self.forget_absent(floor),
        }
    }

    pub(super) fn charge(&mut self, id: CallerId, num_tokens: usize) {
        if let Some(counter) = self.counters.get_mut(&id) {
            counter.served += num_tokens as u64;
        }
    }

    pub(super) fn served(&self, id: CallerId) -> u64 {
        self.counters.get(&id).map_or(0, |counter| counter.served)
    }

    fn least_served_active(&self) -> Option<u64> {
        self.counters.values().filter(|counter| counter.num_sequences > 0).map(|counter| counter.served).min()
    }

    /// Accounts at or below the floor would restart at the floor anyway.
    fn forget_absent(&mut self, floor: u64) {
        let absent = self.counters.values().filter(|counter| counter.num_sequences == 0).count();
        let keep_debts = absent <= MAX_ABSENT_COUNTERS;
        self.counters.retain(|_, counter| counter.num_sequences > 0 || keep_debts && counter.served > floor);
        let Self { ids, counters, .. } = self;
        ids.retain(|_, id| counters.contains_key(id));
        debug_assert!(counters.values().all(|counter| ids.contains_key(&counter.name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_starts_at_the_least_served_active_caller() {
        let mut callers = Callers::default();
        let a = callers.enter("a", 1);
        callers.charge(a, 1000);
        let b = callers.enter("b", 1);
        assert_eq!(callers.served(b), 1000);
    }

    #[test]
    fn leaving_and_coming_back_clears_no_debt() {
        let mut callers = Callers::default();
        let a = callers.enter("a", 1);
        let b = callers.enter("b", 1);
        callers.charge(a, 500);
        callers.charge(b, 100);
        callers.leave(a);
        let a = callers.enter("a", 2);
        assert_eq!((callers.served(a), callers.served(b)), (500, 100));
    }

    #[test]
    fn an_idle_engine_forgets_everybody() {
        let mut callers = Callers::default();
        let a = callers.enter("a", 1);
        callers.charge(a, 500);
        callers.leave(a);
        assert!(callers.counters.is_empty() && callers.ids.is_empty());
    }
}
