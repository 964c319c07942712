//! The fuzz targets of Hearth, for `cargo fuzz` and for the test that replays the corpus (`tests/fuzz_corpus.rs`).

#[expect(dead_code, reason = "it serves the integration tests, which use more of it")]
#[path = "../../tests/support/scripted_server.rs"]
mod scripted_server;
pub mod targets;
