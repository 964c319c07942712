//! Tests through the public boundary, in one binary: one module an area.

mod analysis;
mod architecture;
mod ask;
mod chat_templates;
mod contract;
mod decoder_files;
mod documents;
mod embeddings;
mod endings;
mod engine_decoder;
mod files;
mod gguf;
mod logits;
mod malformed;
mod metrics;
mod openapi;
mod pull;
mod server;
mod startup;
mod store;
mod streaming;
mod support;
mod tokenizers;
mod unkind_input;
mod vector_stores;
