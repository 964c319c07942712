//! A disk that forgets what was not synced when the power fails: a file system in memory, mounted with FUSE.
//!
//! A process that is killed loses nothing that it has written, since the kernel has it. A machine that loses its power
//! keeps what was synced, and of the rest whatever happened to be written by then. This is such a machine's disk; what it
//! promises is said in `tree.rs` and `contents.rs`, which know nothing of FUSE. It has a capacity, so that it can also be
//! full.
//!
//! Mounting takes `/dev/fuse`, and root's rights or `fusermount3`.

mod callbacks;
mod contents;
mod power;
mod tests;
mod tree;

use std::{path::Path, sync::Arc, time::Duration};

use fuser::{BackgroundSession, Config, MountOption};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

pub use self::tree::Unsynced;
use self::{callbacks::Callbacks, power::Powered, tree::Tree};

/// See the module.
#[derive(Debug)]
pub struct PowerCutDisk {
    powered: Arc<Powered>,
    session: Option<BackgroundSession>,
    mounted_at: TempDir,
}

impl PowerCutDisk {
    /// An empty disk of `bytes` bytes; `None`, which is said on standard error, on a machine without FUSE. Where the
    /// environment says `CI`, FUSE must be there.
    pub fn mount(capacity: u64) -> Option<Self> {
        if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            let needed = "tests of power failures need FUSE: `modprobe fuse`, and root's rights or fusermount3";
            assert!(std::env::var_os("CI").is_none(), "/dev/fuse: {error}; {needed}");
            eprintln!("skipped: /dev/fuse: {error}; {needed}");
            return None;
        }
        let mounted_at = tempfile::tempdir().expect("a temporary directory");
        let powered = Arc::new(Powered::new(Tree::new(contents::pages_of(capacity))));
        let session = Some(mount(&powered, mounted_at.path()));
        Some(Self { powered, session, mounted_at })
    }

    /// Where the disk is mounted. The path stays the same when the power has failed and is back.
    pub fn path(&self) -> &Path {
        self.mounted_at.path()
    }

    /// Makes everything durable, as an orderly shutdown does.
    pub fn sync(&self) {
        let synced = self.powered.look(|tree| {
            tree.sync_all();
            Ok(())
        });
        synced.expect("the power is on");
    }

    /// Lets the power fail after this many changes more. What uses the disk then stands still; the test kills it and calls
    /// [`PowerCutDisk::cut`].
    pub fn fail_after(&self, changes: u64) {
        self.powered.fail_after(changes);
    }

    /// Whether the power has failed by the end of this time.
    pub fn fails_within(&self, time: Duration) -> bool {
        self.powered.fails_within(time)
    }

    /// Turns the power off, waits until `stopped` has seen the end of the processes that use the disk, which must have
    /// been killed, and turns it on again.
    pub fn cut(&mut self, unsynced: Unsynced<'_>, stopped: impl FnOnce()) {
        let last = self.powered.turn_off();
        stopped();
        self.unmount();
        self.powered = Arc::new(Powered::new(last.after_power_cut(unsynced)));
        self.session = Some(mount(&self.powered, self.mounted_at.path()));
    }

    fn unmount(&mut self) {
        // Detached, so that it does not matter who still has a file open. Without root's rights fuser does it, by the
        // program that mounted it.
        let _refused = rustix::mount::unmount(self.mounted_at.path(), UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

impl Drop for PowerCutDisk {
    fn drop(&mut self) {
        self.powered.turn_off();
        self.unmount();
    }
}

fn mount(powered: &Arc<Powered>, at: &Path) -> BackgroundSession {
    let mut options = Config::default();
    options.mount_options = vec![MountOption::FSName("power-cut".to_owned()), MountOption::DefaultPermissions];
    fuser::spawn_mount(Callbacks::new(powered.clone()), at, &options).expect("FUSE mounts")
}
