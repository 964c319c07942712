//! What one caller sees of the store: what is the caller's own, and nothing else.
//!
//! Whatever is found, listed, changed or deleted in a caller's name goes through an [`Owned`], so that the owner cannot be
//! forgotten. What belongs to another is not there: the error is the one for what never was. Work in the background
//! goes through one as well, in the name of its job's owner.

use super::Store;

/// A store as its owner sees it.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    pub(super) store: &'a Store,
    pub(super) owner: &'a str,
}

impl Store {
    /// What this caller owns.
    pub fn of<'a>(&'a self, owner: &'a str) -> Owned<'a> {
        Owned { store: self, owner }
    }
}
