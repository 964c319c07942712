//! Fair sharing: callers share the engine by the tokens computed for them.
//!
//! The caller that has been served least comes first. A caller that returns after a pause starts no lower than the
//! least served active one, so that idling earns no right to shut the others out later.

use std::collections::HashMap;

/// Accounts of absent callers that are remembered, so that leaving and returning clears no debt.
const MAX_ABSENT_ACCOUNTS: usize = 4096;

/// Identifies a caller while it has sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CallerId(u64);

#[derive(Debug)]
struct Account {
    name: String,
    num_sequences: usize,
    /// Tokens computed, since some common origin.
    served: u64,
}

#[derive(Debug, Default)]
pub(super) struct Callers {
    ids: HashMap<String, CallerId>,
    accounts: HashMap<CallerId, Account>,
    next: u64,
}

impl Callers {
    /// Opens `num_sequences` sequences on the caller's account.
    pub(super) fn enter(&mut self, name: &str, num_sequences: usize) -> CallerId {
        let floor = self.least_served_active();
        let id = match self.ids.get(name) {
            Some(id) => *id,
            None => {
                let id = CallerId(self.next);
                self.next += 1;
                self.ids.insert(name.to_owned(), id);
                self.accounts.insert(id, Account { name: name.to_owned(), num_sequences: 0, served: 0 });
                id
            }
        };
        let account = self.accounts.get_mut(&id).expect("every id has an account");
        if account.num_sequences == 0 {
            account.served = account.served.max(floor.unwrap_or(0));
        }
        account.num_sequences += num_sequences;
        id
    }

    /// Closes one sequence.
    pub(super) fn leave(&mut self, id: CallerId) {
        let account = self.accounts.get_mut(&id).expect("a sequence's caller has an account");
        account.num_sequences -= 1;
        if account.num_sequences > 0 {
            return;
        }
        match self.least_served_active() {
            // No other caller to be fair to: the accounts are reset.
            None => {
                self.accounts.clear();
                self.ids.clear();
            }
            Some(floor) => self.forget_absent(floor),
        }
    }

    pub(super) fn charge(&mut self, id: CallerId, num_tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&id) {
            account.served += num_tokens as u64;
        }
    }

    pub(super) fn served(&self, id: CallerId) -> u64 {
        self.accounts.get(&id).map_or(0, |account| account.served)
    }

    fn least_served_active(&self) -> Option<u64> {
        self.accounts.values().filter(|account| account.num_sequences > 0).map(|account| account.served).min()
    }

    /// Accounts at or below the floor would restart at the floor anyway.
    fn forget_absent(&mut self, floor: u64) {
        let absent = self.accounts.values().filter(|account| account.num_sequences == 0).count();
        let keep_debts = absent <= MAX_ABSENT_ACCOUNTS;
        self.accounts.retain(|_, account| account.num_sequences > 0 || keep_debts && account.served > floor);
        let Self { ids, accounts, .. } = self;
        ids.retain(|_, id| accounts.contains_key(id));
        debug_assert!(accounts.values().all(|account| ids.contains_key(&account.name)));
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
        assert!(callers.accounts.is_empty() && callers.ids.is_empty());
    }
}
