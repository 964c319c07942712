//! What a template can show, determined by rendering small conversations and looking for their words in the prompt.
//! Reading the source would be guessing; a trial render knows.

use serde_json::{Map, Value, json};

use super::ChatTemplate;

/// See [`ChatTemplate::capabilities`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// System messages reach the prompt.
    pub system: bool,
    /// Tool definitions reach the prompt.
    pub tools: bool,
    /// The assistant's earlier calls reach the prompt.
    pub tool_calls: bool,
    /// Content may be a list of parts.
    pub content_parts: bool,
    /// Call ids must be nine letters and digits.
    pub short_call_ids: bool,
    /// How the template shows a call's arguments that are JSON text.
    pub text_arguments: TextArguments,
    /// The template deals with thinking.
    pub reasoning: bool,
}

/// How a template shows arguments that are text: `{"a": 1}` unchanged, or as `"{\"a\": 1}"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextArguments {
    /// Unchanged.
    Verbatim,
    /// Quoted again, or not at all: the arguments have to be parsed first.
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

/// A word that no template contains.
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
    // The strictest templates accept only ids of nine letters and digits.
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

/// Whether the template prints a list of parts as data, brackets, quotes and all: one that concatenates content does.
fn renders_parts_as_data(template: &ChatTemplate) -> bool {
    let parts = json!({"role": "user", "content": [{"type": "text", "text": NEEDLE}]});
    template
        .render(&[parts], &[], true, &Map::new())
        .is_ok_and(|prompt| prompt.contains(&format!("'{NEEDLE}'")) || prompt.contains(&format!("\"{NEEDLE}\"")))
}

/// Thinking is detected in the source, since many templates only remove it.
fn has_reasoning(template: &ChatTemplate) -> bool {
    ["<think>", "</think>", "enable_thinking", "reasoning_content", "<|channel|>analysis", "[THINK]", "<|think|>"]
        .iter()
        .any(|mark| template.source().contains(mark))
}
