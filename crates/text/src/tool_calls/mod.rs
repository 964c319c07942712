//! Tool calls and thinking in a model's answer: the formats they are written in, and a parser that processes the text
//! as it streams.
//!
//! A template teaches its model one format for calls; [`ToolFormat`] names it. The grammars in `text::grammar` enforce
//! the same format, so that the template's next turn reads as the model expects. A template without tools gets the
//! Hermes format, with instructions that `fallback_prompt` adds.

mod call_object;
mod fallback_prompt;
mod format;
mod parser;

pub use self::{
    fallback_prompt::with_tools_in_text,
    format::{Thinking, ToolFormat},
    parser::{OutputParser, ParsedPiece},
};

pub(crate) use self::format::{ARGUMENTS_MARK, Layout, THINK_CLOSE, THINK_OPEN};

#[cfg(test)]
mod tests;
