//! Orchestration between the contract and the models: which model serves a request, what is checked before admission,
//! how several generations become one answer. Knows the traits of [`crate::providers`] but not their implementations,
//! and nothing about HTTP.

pub mod analysis;
pub mod ask;
pub mod callers;
pub mod chat;
pub mod completions;
pub mod deadline;
pub mod documents;
pub mod embed;
pub mod findings;
pub mod health;
pub mod jobs;
pub mod models;
pub mod quote;
pub mod rerank;
pub mod semantic;
pub mod spending;
pub mod webhook;
