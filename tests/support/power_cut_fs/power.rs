//! The power of a disk: on, waiting to fail, or off.
//!
//! The power can be made to fail after a number of changes. Then the disk answers nothing any more, so that what uses it
//! stands still in the middle of what it does, until the test has killed it and turned the power off. With the power off
//! every request fails, and what programs do as they die leaves no trace.

use std::time::Duration;

use fuser::Errno;
use parking_lot::{Condvar, Mutex};

use super::tree::Tree;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// On for this many changes more.
    Failing(u64),
    Failed,
    Off,
}

#[derive(Debug)]
struct State {
    power: Power,
    tree: Tree,
}

/// See the module.
#[derive(Debug)]
pub struct Powered {
    state: Mutex<State>,
    turned: Condvar,
}

impl Powered {
    pub fn new(tree: Tree) -> Self {
        Self { state: Mutex::new(State { power: Power::On, tree }), turned: Condvar::new() }
    }

    /// Something that leaves no trace on the disk.
    pub fn look<T>(&self, look: impl FnOnce(&mut Tree) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.state.lock();
        if state.power == Power::Off { Err(Errno::EIO) } else { look(&mut state.tree) }
    }

    /// Something that changes the disk, or what of it is durable.
    pub fn change<T>(&self, change: impl FnOnce(&mut Tree) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.state.lock();
        if let Power::Failing(more) = state.power {
            state.power = if more == 0 { Power::Failed } else { Power::Failing(more - 1) };
            self.turned.notify_all();
        }
        while state.power == Power::Failed {
            self.turned.wait(&mut state);
        }
        if state.power == Power::Off {
            return Err(Errno::EIO);
        }
        change(&mut state.tree)
    }

    pub fn fail_after(&self, changes: u64) {
        self.state.lock().power = Power::Failing(changes);
    }

    /// Whether the power has failed by the end of this time.
    pub fn fails_within(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        self.turned.wait_while_for(&mut state, |state| state.power != Power::Failed, time);
        state.power == Power::Failed
    }

    /// Turns the power off and says how the tree was last seen.
    pub fn turn_off(&self) -> Tree {
        let mut state = self.state.lock();
        state.power = Power::Off;
        self.turned.notify_all();
        state.tree.clone()
    }
}
