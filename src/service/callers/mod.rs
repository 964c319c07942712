//! Who calls: keys and tokens, and what they come to.

use std::sync::Arc;

use crate::{
    domain::{Caller, LOCAL},
    store::Store,
};

/// The callers that a server knows.
#[derive(Debug)]
pub struct Callers {
    _store: Arc<Store>,
}

impl Callers {
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { _store: store })
    }

    /// The caller of this id, for work in its name that goes on after its request. One who has no key any more may do
    /// nothing.
    pub fn of_id(&self, id: &str) -> Arc<Caller> {
        let local = Caller::local();
        Arc::new(if id == LOCAL { local } else { Caller { id: id.to_owned(), ..local } })
    }
}
