//! Tests through the public boundary, in one binary: one module an area.

mod architecture;
mod chat_templates;
mod decoder_files;
mod embeddings;
mod engine_decoder;
mod gguf;
mod logits;
mod pull;
mod store;
mod support;
mod tokenizers;
