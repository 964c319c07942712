//! Tests through the public boundary, in one binary: one module an area.

mod gguf;
mod logits;
mod support;
