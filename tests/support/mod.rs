//! What several areas of tests share.

pub mod api;
pub mod fake_hub;
pub mod gguf_writer;
pub mod running_server;
pub mod scripted_server;
pub mod scripted_upstream;
