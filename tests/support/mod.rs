//! What several areas of tests share.

pub mod gguf_writer;
