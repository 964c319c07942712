//! Fits messages, as callers of the OpenAI contract write them, to what templates expect.
//!
//! The contract has a call's arguments as JSON text, content as text, as a list of parts or as null, and ids of any
//! form. Templates differ: most print arguments through `tojson`, which would quote that text again; many concatenate
//! content, which fails on a list, and print null as `None`; and some refuse ids that are not of one length. Except for
//! null, each change here is made only where a trial render has shown the need.

use hearth_domain::{ChatPrompt, ToolChoice};
use serde_json::{Map, Value};

use super::capabilities::{Capabilities, TextArguments};
use crate::tool_calls;

/// The length of the ids that strict templates accept.
const SHORT_ID_LENGTH: usize = 9;

/// Names under which a message may carry thinking; the first is the one most templates read.
const REASONING_NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The messages in the form that a template with these capabilities shows best, and the tools to show.
pub(super) fn fitted(prompt: &ChatPrompt, capabilities: &Capabilities) -> (Vec<Value>, Vec<Value>) {
    let mut messages = prompt.messages.clone();
    let mut tools = if prompt.tool_choice == ToolChoice::None { Vec::new() } else { prompt.tools.clone() };
    let has_calls = messages.iter().any(|message| message.get("tool_calls").is_some_and(|calls| !calls.is_null()));
    if (!tools.is_empty() && !capabilities.tools) || (has_calls && !capabilities.tool_calls) {
        messages = tool_calls::with_tools_in_text(&messages, &tools, capabilities.system);
        tools.clear();
    }
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        if message.get("content").is_none_or(Value::is_null) {
            message.insert("content".to_owned(), Value::from(""));
        }
        if !capabilities.content_parts {
            join_text_parts(message);
        }
        if capabilities.text_arguments == TextArguments::QuotedTwice {
            parse_arguments(message);
        }
        if capabilities.short_call_ids {
            shorten_ids(message);
        }
    }
    (messages, tools)
}

/// Shortens ids to nine letters and digits; equal ids stay equal.
fn shorten_ids(message: &mut Map<String, Value>) {
    let shorten = |id: &mut Value| {
        if let Value::String(text) = id
            && !(text.len() == SHORT_ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            text.replace_range(.., &blake3::hash(text.as_bytes()).to_hex()[..SHORT_ID_LENGTH]);
        }
    };
    message.get_mut("tool_call_id").map(shorten);
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    calls.into_iter().flatten().filter_map(|call| call.get_mut("id")).for_each(shorten);
}

/// Does what `transformers` does before every render: thinking under any of its names is also provided as
/// `reasoning_content`, and as `thinking`, which some templates read.
pub(super) fn with_reasoning_names(messages: &[Value]) -> Vec<Value> {
    messages
        .iter()
        .map(|message| {
            let Some(fields) = message.as_object() else { return message.clone() };
            let reasoning = REASONING_NAMES.iter().filter_map(|name| fields.get(*name)).find(|value| !value.is_null());
            let Some(reasoning) = reasoning else { return message.clone() };
            let mut named = Map::new();
            named.insert("thinking".to_owned(), reasoning.clone());
            for (name, value) in fields {
                named.insert(name.clone(), value.clone());
            }
            named.insert("reasoning_content".to_owned(), reasoning.clone());
            Value::Object(named)
        })
        .collect()
}

/// Concatenates a list of parts if all are text; a list with any other part stays, and the template reports what it
/// cannot show.
fn join_text_parts(message: &mut Map<String, Value>) {
    let Some(Value::Array(parts)) = message.get("content") else { return };
    let texts: Option<Vec<&str>> = parts
        .iter()
        .map(|part| match part {
            Value::String(text) => Some(text.as_str()),
            _ => part.get("text").and_then(Value::as_str),
        })
        .collect();
    if let Some(texts) = texts {
        let joined = texts.concat();
        message.insert("content".to_owned(), Value::String(joined));
    }
}

/// Parses arguments that are the text of a JSON object into the object.
fn parse_arguments(message: &mut Map<String, Value>) {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else { return };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Value::String(text) = arguments
            && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
        {
            *arguments = parsed;
        }
    }
}
