//! Tests through the public boundary, in one binary: one module an area.

mod chat_templates;
mod gguf;
mod logits;
mod support;
