//! Model files and the networks in them: what is on disk, and the forward pass over it.
//!
//! Configuration, weights and state are three types: weights are shared and immutable, the KV cache is
//! borrowed into each step.

#![deny(unsafe_code)]

pub mod batch;
pub mod decoder;
pub mod encoder;
pub mod gguf;
pub mod kv_cache;
pub mod manifest;
pub mod pull;
pub mod selection;
pub mod store;
