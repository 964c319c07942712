//! `tools` and `tool_choice`: functions that the model may call.

use hearth_domain::{ToolChoice, error::Result};
use serde_json::{Value, json};

use super::{
    body::{Component, unsupported},
    fields::{Fields, bad_value, shortened, wrong_type},
};

/// The component that bodies with tools reference.
pub const COMPONENT: Component = (
    "Tool",
    r#"{"type":"object","required":["type","function"],"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],"properties":{
        "name":{"type":"string","pattern":"^[A-Za-z0-9_.-]{1,64}$"},
        "description":{"type":["string","null"]},
        "parameters":{"type":["object","null"],"description":"JSON Schema of the arguments."},
        "strict":{"type":["boolean","null"]}
    }}}}"#,
);

/// OpenAI's own bound.
pub const TOOLS_MAX: usize = 128;

/// The tools as a chat template sees them, each checked.
pub(super) fn read_tools(fields: &mut Fields) -> Result<Vec<Value>> {
    let path = fields.path("tools");
    let Some(items) = fields.array("tools")? else { return Ok(Vec::new()) };
    if items.len() > TOOLS_MAX {
        return Err(bad_value(
            path,
            format!("`tools` must have at most {TOOLS_MAX} entries, but has {}.", items.len()),
        ));
    }
    let mut names: Vec<String> = Vec::with_capacity(items.len());
    let mut tools = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("{path}[{index}]");
        let tool = read_tool(item, &place)?;
        let name = tool["function"]["name"].as_str().unwrap_or_default().to_owned();
        if names.contains(&name) {
            return Err(bad_value(format!("{place}.function.name"), format!("Two tools are named \"{name}\".")));
        }
        names.push(name);
        tools.push(tool);
    }
    Ok(tools)
}

fn read_tool(item: Value, place: &str) -> Result<Value> {
    let mut tool = Fields::object(item, place)?;
    let kind = tool.required_string("type")?;
    if kind != "function" {
        return Err(unsupported(
            &format!("{place}.type"),
            &format!("`{place}.type` must be \"function\", but is {}.", shortened(&Value::String(kind))),
        ));
    }
    let missing = tool.missing("function");
    let mut function = tool.nested("function")?.ok_or(missing)?;
    let name = function.required_string("name")?;
    if !is_function_name(&name) {
        return Err(bad_value(
            format!("{place}.function.name"),
            format!("`{place}.function.name` must be 1 to 64 letters, digits, underscores, dashes or dots."),
        ));
    }
    let description = function.string("description")?;
    let parameters = function.map("parameters")?;
    let strict = function.boolean("strict")?;
    let mut entry = json!({"name": name});
    if let Some(description) = description {
        entry["description"] = Value::String(description);
    }
    // Templates print the schema; a function without parameters takes an empty object.
    entry["parameters"] = parameters.map_or_else(|| json!({"type": "object", "properties": {}}), Value::Object);
    if let Some(strict) = strict {
        entry["strict"] = Value::Bool(strict);
    }
    Ok(json!({"type": "function", "function": entry}))
}

fn is_function_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// The caller's tool choice, checked against the tools.
pub(super) fn read_tool_choice(fields: &mut Fields, tools: &[Value]) -> Result<ToolChoice> {
    let choice = match fields.take("tool_choice") {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => ToolChoice::Required,
            other => {
                return Err(bad_value(
                    "tool_choice",
                    format!(
                        "`tool_choice` must be `auto`, `none`, `required` or name a function, but is {}.",
                        shortened(&Value::String(other.to_owned()))
                    ),
                ));
            }
        },
        Some(object @ Value::Object(_)) => read_named_choice(object)?,
        Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    };
    let names = || tools.iter().filter_map(|tool| tool["function"]["name"].as_str());
    match &choice {
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => {
            Err(bad_value("tool_choice", "`tool_choice` asks for a call, but `tools` is empty."))
        }
        ToolChoice::Named(name) if !names().any(|known| known == name) => Err(bad_value(
            "tool_choice.function.name",
            format!("`tool_choice` names {}, which is not among `tools`.", shortened(&Value::String(name.clone()))),
        )),
        _ => Ok(choice),
    }
}

fn read_named_choice(object: Value) -> Result<ToolChoice> {
    let mut choice = Fields::object(object, "tool_choice")?;
    let kind = choice.required_string("type")?;
    match kind.as_str() {
        "function" => {
            let missing = choice.missing("function");
            let mut function = choice.nested("function")?.ok_or(missing)?;
            Ok(ToolChoice::Named(function.required_string("name")?))
        }
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" | "any" => Ok(ToolChoice::Required),
        other => Err(unsupported(
            "tool_choice.type",
            &format!(
                "`tool_choice.type` must be \"function\", but is {}.",
                shortened(&Value::String(other.to_owned()))
            ),
        )),
    }
}
