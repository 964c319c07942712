//! Tests through the public boundary, in one binary: one module an area.

mod chat_templates;
mod decoder_files;
mod engine_decoder;
mod embeddings;
mod gguf;
mod logits;
mod pull;
mod store;
mod support;
mod tokenizers;
