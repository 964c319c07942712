//! What several areas of tests share.

use std::{env, path::PathBuf};

pub mod api;
pub mod cluster;
pub mod fake_hub;
pub mod gguf_writer;
#[cfg(target_os = "linux")]
pub mod power_cut_fs;
pub mod running_server;
pub mod scripted_server;
pub mod scripted_upstream;

/// Where `scripts/test.sh` keeps what it fetches and makes for tests: `HEARTH_FIXTURES`, or `target/fixtures`. The folder
/// may not be there.
pub fn fetched_fixtures() -> PathBuf {
    let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/fixtures");
    env::var_os("HEARTH_FIXTURES").map_or_else(usual, PathBuf::from)
}
