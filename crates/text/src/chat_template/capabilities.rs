//! What a template can show, found out by rendering small conversations and looking for their words in the
//! prompt. Reading the source would guess; a trial render knows.

use serde_json::{Map, Value, json};

use super::ChatTemplate;

/// See [`ChatTemplate::capabilities`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A system message reaches the prompt.
    pub system: bool,
    /// Definitions of tools reach the prompt.
    pub tools: bool,
    /// An assistant's earlier calls reach the prompt.
    pub tool_calls: bool,
    /// Content may be a list of parts.
    pub content_parts: bool,
    /// Ids of calls must be nine letters and digits.
    pub short_call_ids: bool,
    /// What becomes of a call's arguments when they are JSON text.
    pub text_arguments: TextArguments,
    /// The template has to do with thinking.
    pub reasoning: bool,
}

/// How a template shows arguments that are text: `{"a": 1}` as it is, or as `"{\"a\": 1}"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextArguments {
    /// As they are.
    Verbatim,
    /// Quoted once more, or not at all: they have to be parsed first.
    QuotedTwice,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            system: true,
            tools: false,
            tool_calls: false,
            short_call_ids: false,
            content_parts: false,
            text_arguments: TextArguments::QuotedTwice,
            reasoning: false,
        }
    }
}

/// Words that no template contains.
const NEEDLE: &str = "zqneedle";

pub(super) fn detect(template: &ChatTemplate) -> Capabilities {
    let user = json!({"role": "user", "content": "hello"});
    let shows = |messages: Vec<Value>, tools: &[Value]| {
        template.render(&messages, tools, true, &Map::new()).is_ok_and(|prompt| prompt.contains(NEEDLE))
    };
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "d",
            "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}, "required": ["a"]}}})
    };
    // Nine letters and digits are what the strictest templates accept.
    let turns_with_id = |id: &str, arguments: Value| {
        vec![
            user.clone(),
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}]}),
            json!({"role": "tool", "tool_call_id": id, "name": "f", "content": "done"}),
        ]
    };
    let turns = |arguments: Value| turns_with_id("call12345", arguments);
    let with_text =
        template.render(&turns(Value::String(format!(r#"{{"a": "{NEEDLE}"}}"#))), &[tool("f")], true, &Map::new());
    let with_object = shows(turns(json!({"a": NEEDLE})), &[tool("f")]);
    let verbatim = with_text.as_ref().is_ok_and(|prompt| prompt.contains(&format!(r#"{{"a": "{NEEDLE}"}}"#)));
    Capabilities {
        system: shows(vec![json!({"role": "system", "content": NEEDLE}), user.clone()], &[]),
        tools: shows(vec![user.clone()], &[tool(NEEDLE)]),
        tool_calls: with_object || with_text.is_ok_and(|prompt| prompt.contains(NEEDLE)),
        short_call_ids: with_object && !shows(turns_with_id("call_0123456789", json!({"a": NEEDLE})), &[tool("f")]),
        content_parts: shows(vec![json!({"role": "user", "content": [{"type": "text", "text": NEEDLE}]})], &[])
            && !renders_parts_as_data(template),
        text_arguments: if verbatim || !with_object { TextArguments::Verbatim } else { TextArguments::QuotedTwice },
        reasoning: has_reasoning(template),
    }
}

/// A template that concatenates content prints the list itself, brackets, quotes and all.
fn renders_parts_as_data(template: &ChatTemplate) -> bool {
    let parts = json!({"role": "user", "content": [{"type": "text", "text": NEEDLE}]});
    template
        .render(&[parts], &[], true, &Map::new())
        .is_ok_and(|prompt| prompt.contains(&format!("'{NEEDLE}'")) || prompt.contains(&format!("\"{NEEDLE}\"")))
}

/// Thinking shows in the source alone, since many templates only ever drop it.
fn has_reasoning(template: &ChatTemplate) -> bool {
    ["<think>", "</think>", "enable_thinking", "reasoning_content", "<|channel|>analysis", "[THINK]", "<|think|>"]
        .iter()
        .any(|mark| template.source().contains(mark))
}
