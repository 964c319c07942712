//! The conversation: OpenAI's messages, checked and turned into what a chat template expects.
//!
//! Templates are written for `transformers`: content is a string, a call's arguments are an object, and the
//! instructions' role is `system`. So text parts are joined, arguments are parsed, and `developer` becomes `system`.
//! Content that a template cannot take (an image, audio, a file) is refused by name.

use serde_json::{Map, Value};

use super::{
    body::{Component, unsupported},
    fields::{Fields, bad_value, shortened, wrong_type},
};

/// The component that bodies with messages reference.
pub const COMPONENT: Component = (
    "ChatMessage",
    r##"{"anyOf":[
        {"type":"object","required":["role","content"],"properties":{
            "role":{"enum":["system","developer","user","tool"]},
            "content":{"$ref":"#/components/schemas/MessageContent"},
            "name":{"type":["string","null"]},
            "tool_call_id":{"type":["string","null"],"description":"Of `tool` messages: the call that this is the result of."}
        }},
        {"type":"object","required":["role"],"properties":{
            "role":{"const":"assistant"},
            "content":{"anyOf":[{"$ref":"#/components/schemas/MessageContent"},{"type":"null"}]},
            "name":{"type":["string","null"]},
            "refusal":{"type":["string","null"]},
            "reasoning_content":{"type":["string","null"]},
            "reasoning":{"type":["string","null"]},
            "audio":{"type":"null"},
            "function_call":{"type":"null"},
            "tool_calls":{"anyOf":[{"type":"null"},{"type":"array","items":{"type":"object","required":["function"],"properties":{
                "id":{"type":["string","null"]},
                "type":{"enum":["function",null]},
                "function":{"type":"object","required":["name"],"properties":{
                    "name":{"type":"string"},
                    "arguments":{"type":["string","object","null"],"description":"JSON text, or the object itself."}
                }}
            }}}]}
        }}
    ]}"##,
);

/// The component that messages reference.
pub const CONTENT_COMPONENT: Component = (
    "MessageContent",
    r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"anyOf":[
        {"type":"object","required":["type","text"],"properties":{"type":{"enum":["text","input_text","output_text"]},"text":{"type":"string"}}},
        {"type":"object","required":["type","refusal"],"properties":{"type":{"const":"refusal"},"refusal":{"type":"string"}}}
    ]}}]}"#,
);
use hearth_domain::error::Result;

/// Reads `messages` from a body.
pub(super) fn read_messages(fields: &mut Fields) -> Result<Vec<Value>> {
    let path = fields.path("messages");
    let missing = fields.missing("messages");
    let items = fields.array("messages")?.ok_or(missing)?;
    if items.is_empty() {
        return Err(bad_value(path, "`messages` must have at least one message."));
    }
    items.into_iter().enumerate().map(|(index, item)| read_message(item, &format!("{path}[{index}]"))).collect()
}

fn read_message(item: Value, place: &str) -> Result<Value> {
    let mut fields = Fields::object(item, place)?;
    let role = fields.required_string("role")?;
    let mut message = Map::new();
    let template_role = match role.as_str() {
        "developer" => "system",
        known @ ("system" | "user" | "assistant" | "tool") => known,
        other => {
            return Err(bad_value(
                format!("{place}.role"),
                format!(
                    "`{place}.role` must be `system`, `developer`, `user`, `assistant` or `tool`, but is {}.",
                    shortened(&Value::String(other.to_owned()))
                ),
            ));
        }
    };
    message.insert("role".to_owned(), Value::String(template_role.to_owned()));

    let content =
        fields.take("content").map(|content| read_content(content, &format!("{place}.content"))).transpose()?;
    let content = match (content, template_role) {
        (Some(content), _) => content,
        (None, "assistant") => String::new(),
        (None, _) => return Err(fields.missing("content")),
    };
    message.insert("content".to_owned(), Value::String(content));

    if let Some(name) = fields.string("name")? {
        message.insert("name".to_owned(), Value::String(name));
    }
    match template_role {
        "assistant" => read_assistant_fields(&mut fields, &mut message, place)?,
        "tool" => {
            if let Some(id) = fields.string("tool_call_id")? {
                message.insert("tool_call_id".to_owned(), Value::String(id));
            }
        }
        _ => {}
    }
    // Templates know fields that the contract does not, such as `thinking`: those pass through unchanged.
    for (name, value) in fields.rest() {
        message.entry(name).or_insert(value);
    }
    Ok(Value::Object(message))
}

fn read_assistant_fields(fields: &mut Fields, message: &mut Map<String, Value>, place: &str) -> Result<()> {
    for name in ["audio", "function_call"] {
        if fields.take(name).is_some() {
            let path = fields.path(name);
            return Err(unsupported(&path, &format!("`{path}` is not supported by this server.")));
        }
    }
    fields.take("annotations");
    if let Some(refusal) = fields.string("refusal")?
        && message.get("content").and_then(Value::as_str).is_some_and(str::is_empty)
    {
        message.insert("content".to_owned(), Value::String(refusal));
    }
    // vLLM and OpenRouter write `reasoning`; templates read `reasoning_content`.
    let reasoning = fields.string("reasoning_content")?;
    if let Some(reasoning) = reasoning.or(fields.string("reasoning")?) {
        message.insert("reasoning_content".to_owned(), Value::String(reasoning));
    }
    let Some(calls) = fields.array("tool_calls")? else { return Ok(()) };
    if calls.is_empty() {
        return Ok(());
    }
    let calls = calls
        .into_iter()
        .enumerate()
        .map(|(index, call)| read_tool_call(call, &format!("{place}.tool_calls[{index}]")))
        .collect::<Result<Vec<_>>>()?;
    message.insert("tool_calls".to_owned(), Value::Array(calls));
    Ok(())
}

fn read_tool_call(call: Value, place: &str) -> Result<Value> {
    let mut fields = Fields::object(call, place)?;
    let id = fields.string("id")?;
    let kind = fields.string("type")?.unwrap_or_else(|| "function".to_owned());
    if kind != "function" {
        return Err(unsupported(&format!("{place}.type"), &format!("`{place}.type` must be \"function\".")));
    }
    let missing = fields.missing("function");
    let mut function = fields.nested("function")?.ok_or(missing)?;
    let name = function.required_string("name")?;
    let arguments = match function.take("arguments") {
        None => Value::Object(Map::new()),
        Some(object @ Value::Object(_)) => object,
        // The contract has the arguments as JSON text, which a model may have written wrongly: then the template gets
        // the text.
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(object @ Value::Object(_)) => object,
            _ if text.trim().is_empty() => Value::Object(Map::new()),
            _ => Value::String(text),
        },
        Some(other) => {
            return Err(wrong_type(&format!("{place}.function.arguments"), "a string of JSON", &other));
        }
    };
    let mut out = Map::new();
    if let Some(id) = id {
        out.insert("id".to_owned(), Value::String(id));
    }
    out.insert("type".to_owned(), Value::String(kind));
    out.insert("function".to_owned(), serde_json::json!({"name": name, "arguments": arguments}));
    Ok(Value::Object(out))
}

/// A string, or the text parts of an array joined.
fn read_content(content: Value, place: &str) -> Result<String> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(place, "a string or an array of parts", &other)),
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let part_place = format!("{place}[{index}]");
        let mut part = match part {
            Value::String(plain) => {
                text.push_str(&plain);
                continue;
            }
            other => Fields::object(other, &part_place)?,
        };
        let kind = part.required_string("type")?;
        match kind.as_str() {
            "text" | "input_text" | "output_text" => text.push_str(&part.required_string("text")?),
            "refusal" => text.push_str(&part.required_string("refusal")?),
            "image_url" | "input_image" | "input_audio" | "file" | "input_file" | "video_url" | "audio_url" => {
                let instead = match kind.as_str() {
                    "image_url" | "input_image" => "Describe the picture in words, or send the text that is in it",
                    "input_audio" | "audio_url" => "Send a transcript of it",
                    "video_url" => "Send a transcript or a description of it",
                    // `/ask` reads these.
                    _ => "Upload the file to /v1/files or /api/v1/documents/upload and ask /ask, or send its text",
                };
                let message = format!(
                    "`{part_place}` is a part of type `{kind}`, and the models of this server read text only. {instead}."
                );
                return Err(unsupported(&part_place, &message));
            }
            other => {
                return Err(bad_value(
                    format!("{part_place}.type"),
                    format!(
                        "`{part_place}.type` must be `text`, but is {}.",
                        shortened(&Value::String(other.to_owned()))
                    ),
                ));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> Result<Vec<Value>> {
        read_messages(&mut Fields::body(json!({"messages": messages})).unwrap())
    }

    #[test]
    fn parts_are_joined_arguments_parsed_and_roles_mapped() {
        let messages = read(json!([
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "assistant", "content": null, "refusal": null,
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
        ]))
        .unwrap();
        assert_eq!(
            messages,
            [
                json!({"role": "system", "content": "be brief"}),
                json!({"role": "assistant", "content": "",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}),
                json!({"role": "tool", "content": "4", "tool_call_id": "c1"}),
            ]
        );
    }

    #[test]
    fn mistakes_carry_their_path() {
        let param = |messages| read(messages).unwrap_err().param().map(str::to_owned);
        assert_eq!(param(json!([])).as_deref(), Some("messages"));
        assert_eq!(
            param(json!([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}])).as_deref(),
            Some("messages[1].role")
        );
        assert_eq!(param(json!([{"role": "user"}])).as_deref(), Some("messages[0].content"));
        assert_eq!(param(json!(["x"])).as_deref(), Some("messages[0]"));
        assert_eq!(
            param(json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]))
                .as_deref(),
            Some("messages[0].content[0]")
        );
    }
}
