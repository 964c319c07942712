//! What the last token of each caller allows, for background work on the caller's behalf.
//!
//! A token's rights are in the token alone, and jobs outlive both the request that brought it and this process. The
//! rights are stored when they change: at once, and again at most once a second, so that a caller that alternates two
//! tokens does not write at every request. `local_only` does not wait: what must stay on this machine must not depend
//! on when the process ends.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hearth_domain::Caller;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{remember, rights::Rights};
use crate::store::Store;

/// The shortest time between two changes that are stored, unless the second forbids to leave this machine.
const STORED_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct TokenRights {
    store: Arc<Store>,
    callers: Mutex<HashMap<String, LastToken>>,
}

#[derive(Clone, Debug)]
struct LastToken {
    caller: Arc<Caller>,
    /// While its rights are being stored.
    writer: Option<Arc<Writer>>,
}

/// The task that stores a caller's rights until they have stopped changing.
#[derive(Debug)]
struct Writer {
    newest: Mutex<Arc<Caller>>,
    hurry: Notify,
}

impl TokenRights {
    pub(super) fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { store, callers: Mutex::default() })
    }

    /// The caller of this id as its last token describes it, if this process has seen one lately.
    pub(super) fn last(&self, id: &str) -> Option<Arc<Caller>> {
        self.callers.lock().get(id).map(|last| last.caller.clone())
    }

    /// Keeps the rights of a token that was just presented. Must be called on the runtime.
    pub(super) fn keep(self: &Arc<Self>, caller: &Arc<Caller>) {
        let mut callers = self.callers.lock();
        let known = callers.get(&caller.id);
        let is_news = known.is_none_or(|known| Rights::of(&known.caller) != Rights::of(caller));
        let running = known.and_then(|known| known.writer.clone());
        let writer = match (running, is_news) {
            (Some(writer), true) => {
                *writer.newest.lock() = caller.clone();
                if caller.local_only {
                    writer.hurry.notify_one();
                }
                Some(writer)
            }
            (None, true) => {
                let writer = Arc::new(Writer { newest: Mutex::new(caller.clone()), hurry: Notify::new() });
                tokio::spawn(self.clone().write(writer.clone()));
                Some(writer)
            }
            (running, false) => running,
        };
        remember(&mut callers, caller.id.clone(), LastToken { caller: caller.clone(), writer });
    }

    /// Stores what the tasks have not stored yet. Blocks.
    pub(super) fn flush(&self) {
        let callers: Vec<_> = self.callers.lock().values().filter_map(|last| last.writer.clone()).collect();
        for writer in callers {
            let caller = writer.newest.lock().clone();
            self.store(&caller);
        }
    }

    fn store(&self, caller: &Caller) {
        if let Err(error) = self.store.keep_token_rights(caller.id.clone(), Rights::of(caller).to_json()) {
            tracing::warn!(%error, "a token's rights could not be stored: after a restart its caller's jobs may do less");
        }
    }

    async fn write(self: Arc<Self>, writer: Arc<Writer>) {
        loop {
            let caller = writer.newest.lock().clone();
            let written = Rights::of(&caller);
            let (this, stored) = (self.clone(), caller.clone());
            // A panic of the store's is in the log already.
            drop(tokio::task::spawn_blocking(move || this.store(&stored)).await);
            let until = tokio::time::Instant::now() + STORED_WITHIN;
            loop {
                let is_time = tokio::time::timeout_at(until, writer.hurry.notified()).await.is_err();
                let mut callers = self.callers.lock();
                let newest = writer.newest.lock().clone();
                let is_stricter = newest.local_only && !written.local_only;
                if is_stricter || (is_time && Rights::of(&newest) != written) {
                    break;
                }
                if is_time {
                    if let Some(last) = callers.get_mut(&caller.id) {
                        last.writer.take_if(|of_last| Arc::ptr_eq(of_last, &writer));
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn stored(rights: &TokenRights) -> Option<Rights> {
        rights.store.token_rights("c").unwrap().map(|json| Rights::from_json(&json).unwrap())
    }

    async fn until(rights: &TokenRights, wanted: &Rights) {
        while stored(rights).as_ref() != Some(wanted) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_last_rights_are_stored_and_local_only_ones_at_once() {
        let directory = TempDir::new().unwrap();
        let kept = TokenRights::new(Store::open(directory.path()).unwrap());
        let open = Rights::default();
        let strict = Rights { local_only: true, ..Rights::default() };
        let caller = |rights: &Rights| Arc::new(rights.clone().caller("c".to_owned(), None));
        kept.keep(&caller(&open));
        assert_eq!(kept.last("c").unwrap().local_only, open.local_only);
        until(&kept, &open).await;
        kept.keep(&caller(&strict));
        until(&kept, &strict).await;
        for _ in 0..1000 {
            kept.keep(&caller(&open));
            kept.keep(&caller(&strict));
            kept.keep(&caller(&open));
        }
        until(&kept, &open).await;
        assert_eq!(kept.last("c").unwrap().local_only, open.local_only);
        assert!(kept.last("d").is_none());
    }
}
