//! Nothing that was acknowledged is lost, nothing that was deleted comes back, and nothing is half there.
//!
//! The server, and the commands that work on its data directory, fail at random instants: the process is killed, or the
//! whole machine loses its power (`machine.rs`). `clients.rs` change documents meanwhile and know what was acknowledged,
//! and `checks.rs` holds a server against that. Each other file is one thing that may be under way.
//!
//! `KILLS` and `POWER_CUTS` set how often each test fails, `KILL_SEED` what happens; `scripts/full` runs the hundreds.

mod backup;
mod checks;
mod clients;
mod documents;
#[cfg(target_os = "linux")]
mod full_disk;
mod keys;
mod ledger;
mod machine;
mod recovery;
mod upgrade;

#[expect(clippy::disallowed_methods, reason = "how long a test goes on is no setting of the server")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}")))
}

/// A test of this module on each machine: the function takes the machine, how often it is to fail, and the seed.
macro_rules! on_each_machine {
    ($scenario:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn killed() {
            let (failures, seed) = (crate::durability::setting("KILLS", 5), crate::durability::setting("KILL_SEED", 1));
            $scenario(crate::durability::machine::Machine::of_processes_killed(), failures, seed).await;
        }

        #[cfg(target_os = "linux")]
        #[tokio::test(flavor = "multi_thread")]
        async fn without_power() {
            let (failures, seed) =
                (crate::durability::setting("POWER_CUTS", 5), crate::durability::setting("KILL_SEED", 1));
            if let Some(machine) = crate::durability::machine::Machine::of_power_cuts() {
                $scenario(machine, failures, seed).await;
            }
        }
    };
}
use on_each_machine;
