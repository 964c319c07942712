//! Text on its way to token ids and back: tokenizers, chat templates, the languages that constrained output
//! belongs to, stop strings, and the tool calls and thinking found in what a model says; and documents on their way
//! to text; and the threads on which that is done.
//!
//! Nothing here touches a tensor or a socket.

#![forbid(unsafe_code)]

pub mod chat_template;
pub mod chunker;
pub mod detokenizer;
pub mod extract;
pub mod grammar;
pub mod sentences;
pub mod stop;
pub mod tokenizer;
pub mod tool_calls;
pub mod work;
