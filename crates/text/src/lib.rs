//! Text to token ids and back: tokenizers, chat templates, the languages that constrain output, stop strings, and the
//! tool calls and thinking in a model's answer; documents to text; and the threads that do this work.
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
