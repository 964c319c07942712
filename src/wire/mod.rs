//! The JSON contracts: what a body may contain, and what an answer looks like. Serde only.
//!
//! Tolerant in, exact out. A request is read field by field from a JSON object, because the contract requires what a
//! derived reader cannot give: `null` means absent everywhere, an error names the path of the field
//! (`messages[2].role`), and each field has a policy (honoured, ignored, refused) that the caller can rely on. [`body`]
//! explains how: the fields are tables beside the readers, from which the OpenAPI document is generated. An answer is a
//! struct whose nullable fields are always written.
//!
//! Nothing here knows HTTP or runs a model: readers produce the types of [`hearth_domain`], writers consume them.

pub mod analysis;
pub mod ask;
pub mod body;
pub mod chat_request;
pub mod chat_response;
pub mod completion_request;
pub mod completion_response;
pub mod constraint;
pub mod documents;
pub mod embeddings;
pub mod error;
pub mod fields;
pub mod files;
pub mod generation;
pub mod health;
pub mod lists;
pub mod lookup;
pub mod me;
pub mod messages;
pub mod models;
pub mod quote;
mod reasoning;
pub mod receipt;
pub mod rerank;
pub mod spending;
pub mod tokens;
pub mod tools;
pub mod usage;
pub mod vector_store_request;
pub mod vector_store_response;

use std::{sync::Arc, time::Instant};

use hearth_domain::Account;

/// What the transport knows about a request and its body does not say.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub account: Arc<Account>,
    /// The server's own bound on how long this request may take; a body's `timeout` can only shorten it.
    pub deadline: Option<Instant>,
    /// Refuse what would otherwise be accepted and ignored.
    pub strict: bool,
}

/// A parsed request, with the names of the fields that were accepted and have no effect.
#[derive(Debug)]
pub struct Parsed<T> {
    pub request: T,
    pub ignored: Vec<String>,
}
