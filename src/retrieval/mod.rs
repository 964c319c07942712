//! From a question to the passages that may answer it, and from passages to the context of a prompt.
//!
//! `search.rs` searches by vectors and by words and fuses both (`fusion.rs`); neighbouring chunks become one passage
//! (`passages.rs`); `context.rs` writes as many as fit, `sentences.rs` rates their sentences, on the one scale that
//! `scale.rs` maps all embedding models to. `indexes.rs` keeps each collection's vector index in step with the store,
//! which is the source of truth.

pub mod context;
mod fusion;
pub mod indexes;
pub mod passages;
mod scale;
pub mod search;
pub mod sentences;

#[cfg(test)]
mod tests;
