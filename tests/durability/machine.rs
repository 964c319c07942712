//! A machine on which processes fail: they are killed one by one, or its power is cut.
//!
//! To kill a process at a random instant tests that what it leaves behind at any time can be gone on with. A power cut
//! tests more: that what was acknowledged had been synced.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::support::power_cut_fs::{PowerCutDisk, Unsynced};
use crate::support::running_server::{Served, hearth};

/// Room that these tests do not fill.
#[cfg(target_os = "linux")]
const CAPACITY: u64 = 4 << 30;

#[derive(Debug)]
enum Ground {
    /// A directory of this machine.
    Directory(TempDir),
    #[cfg(target_os = "linux")]
    Disk(PowerCutDisk),
}

/// See the module.
#[derive(Debug)]
pub struct Machine(Ground);

/// By when something fails, each drawn from zero.
#[derive(Clone, Copy, Debug)]
pub struct Within {
    /// A process is killed within this time. The power, which fails by changes, is cut after ten times that at the latest.
    pub time: Duration,
    /// The power fails within this many changes of the disk.
    pub changes: u64,
}

impl Machine {
    pub fn of_processes_killed() -> Self {
        Self(Ground::Directory(tempfile::tempdir().expect("a temporary directory")))
    }

    /// `None`, which has been said, where there is no FUSE.
    #[cfg(target_os = "linux")]
    pub fn of_power_cuts() -> Option<Self> {
        Some(Self(Ground::Disk(PowerCutDisk::mount(CAPACITY)?)))
    }

    /// A folder on the machine's disk.
    pub fn path(&self) -> &Path {
        match &self.0 {
            Ground::Directory(directory) => directory.path(),
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) => disk.path(),
        }
    }

    /// The data directory, which Hearth makes itself.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Makes durable what a test has prepared.
    pub fn sync(&self) {
        match &self.0 {
            Ground::Directory(_) => {}
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) => disk.sync(),
        }
    }

    /// Kills the processes at a random instant, and cuts the power if that is what fails. If the first one ends before, the
    /// instant is then; how it ended is returned.
    pub async fn fail(
        &mut self,
        processes: &mut [&mut Child],
        within: Within,
        random: &mut StdRng,
    ) -> Option<ExitStatus> {
        let began = Instant::now();
        let time = within.time.mul_f64(random.random());
        let is_now = |ground: &Ground| match ground {
            Ground::Directory(_) => began.elapsed() >= time,
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) => disk.fails_within(Duration::ZERO) || began.elapsed() >= 10 * within.time,
        };
        match &self.0 {
            Ground::Directory(_) => {}
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) => disk.fail_after(random.random_range(0..within.changes)),
        }
        let mut ended = None;
        while ended.is_none() && !is_now(&self.0) {
            tokio::time::sleep(Duration::from_micros(500)).await;
            ended = processes[0].try_wait().expect("it was started");
        }
        for process in &mut *processes {
            process.kill().expect("it was started");
        }
        let mut wait = || {
            for process in &mut *processes {
                process.wait().expect("it was started");
            }
        };
        match &mut self.0 {
            Ground::Directory(_) => wait(),
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) if random.random_bool(0.25) => disk.cut(Unsynced::Lost, wait),
            #[cfg(target_os = "linux")]
            Ground::Disk(disk) => disk.cut(Unsynced::Drawn(random), wait),
        }
        ended
    }
}

/// A command of Hearth on a data directory, on its way; what it says is read when it has ended.
pub fn command(data: &Path, arguments: &[&str]) -> Command {
    let mut command = hearth();
    command.args(arguments).env("HEARTH_DATA_DIR", data).stdin(Stdio::null());
    command
}

pub fn spawn(mut command: Command) -> Served {
    Served(command.spawn().expect("the binary runs"))
}
