//! Messages as callers of the OpenAI contract write them, and as templates expect them.
//!
//! The contract writes a call's arguments as JSON text, and content as text or as a list of parts. Templates
//! differ: most print arguments through `tojson`, which would quote that text once more, and many
//! concatenate content, which fails on a list. Each change here is made only where a trial render has shown
//! that the template needs it.

use serde_json::{Map, Value};

use super::capabilities::{Capabilities, TextArguments};

/// Names that a message's thinking goes by; the first is the one most templates read.
const REASONING_NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The messages with content and arguments in the form that a template with these capabilities shows best.
pub(super) fn fitted(messages: &[Value], capabilities: &Capabilities) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        if !capabilities.content_parts {
            join_text_parts(message);
        }
        if capabilities.text_arguments == TextArguments::QuotedTwice {
            parse_arguments(message);
        }
    }
    messages
}

/// What `transformers` does before every render: thinking under any of its names is also there under
/// `reasoning_content`, and under `thinking`, which some templates read.
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

/// A list of parts that are all text becomes their concatenation; with any other part it stays, and the
/// template says what it cannot show.
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

/// Arguments that are the text of a JSON object become the object.
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
