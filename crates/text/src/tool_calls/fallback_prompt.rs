//! Tools for a model whose template does not support them: they are described in the system message, calls are written
//! as text, and results come back as user messages.
//!
//! The wording and the markers are those of the Hermes format, on which more models have been trained than on any
//! other. The model's answer is parsed as that format and, if a call is forced, constrained to it.

use serde_json::{Map, Value, json};

use super::format::ToolFormat;

/// `messages` with the tools described in them, and with calls and results as text. `has_system`: the template shows
/// system messages; without them the description precedes the first user message.
pub fn with_tools_in_text(messages: &[Value], tools: &[Value], has_system: bool) -> Vec<Value> {
    let mut turns: Vec<Map<String, Value>> = Vec::with_capacity(messages.len() + 1);
    for message in messages.iter().filter_map(Value::as_object) {
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        let content = text_of(message.get("content"));
        let turn = match role {
            "tool" => turn("user", format!("<tool_response>\n{content}\n</tool_response>")),
            "assistant" if message.get("tool_calls").is_some_and(Value::is_array) => {
                let separator = if content.is_empty() { "" } else { "\n" };
                turn("assistant", content.clone() + separator + &calls_text(message))
            }
            _ => message.clone(),
        };
        // Templates require alternating roles, so several results, or a result and a question, become one turn.
        let joins = |last: &Map<String, Value>| last.get("role") == turn.get("role") && turn["role"] == "user";
        match turns.last_mut() {
            Some(last) if joins(last) => {
                let joined = format!("{}\n{}", text_of(last.get("content")), text_of(turn.get("content")));
                last.insert("content".to_owned(), Value::String(joined));
            }
            _ => turns.push(turn),
        }
    }
    if !tools.is_empty() {
        describe(&mut turns, &description(tools), has_system);
    }
    turns.into_iter().map(Value::Object).collect()
}

fn turn(role: &str, content: String) -> Map<String, Value> {
    let mut turn = Map::new();
    turn.insert("role".to_owned(), Value::from(role));
    turn.insert("content".to_owned(), Value::String(content));
    turn
}

fn describe(turns: &mut Vec<Map<String, Value>>, description: &str, has_system: bool) {
    let wanted = if has_system { "system" } else { "user" };
    let place = turns.iter().position(|turn| turn.get("role").is_some_and(|role| role == wanted));
    match place {
        Some(place) if has_system => {
            let joined = format!("{}\n\n{description}", text_of(turns[place].get("content")));
            turns[place].insert("content".to_owned(), Value::String(joined));
        }
        Some(place) => {
            let joined = format!("{description}\n\n{}", text_of(turns[place].get("content")));
            turns[place].insert("content".to_owned(), Value::String(joined));
        }
        None => turns.insert(0, turn(wanted, description.to_owned())),
    }
}

fn description(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(Value::to_string).collect();
    format!(
        "You may call one or more functions to help with the request. They are described here, each as JSON:\n\
         <tools>\n{}\n</tools>\n\n\
         To call a function, write its name and its arguments as JSON between these marks, and nothing else:\n\
         <tool_call>\n{{\"name\": \"the function's name\", \"arguments\": {{\"an argument\": \"its value\"}}}}\n</tool_call>",
        tools.join("\n")
    )
}

/// A message's calls, in the form in which the model should write them.
fn calls_text(message: &Map<String, Value>) -> String {
    let calls = message.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut text = String::new();
    for call in calls {
        let function = call.get("function").unwrap_or(call);
        let name = function.get("name").cloned().unwrap_or_default();
        let arguments = match function.get("arguments") {
            Some(Value::String(json)) => json.clone(),
            Some(arguments) => arguments.to_string(),
            None => json!({}).to_string(),
        };
        let marker = ToolFormat::Hermes.marker();
        text += &format!("\n{marker}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>");
    }
    text.trim_start_matches('\n').to_owned()
}

/// Content as text: the text parts of a list.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().concat()
        }
        _ => String::new(),
    }
}
