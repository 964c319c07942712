//! How much a model should think: one setting, for which clients have three fields.
//!
//! `reasoning_effort` is OpenAI's, `reasoning` OpenRouter's, `thinking` DeepSeek's and Z.ai's. All map to the chat
//! template variables that models read: `reasoning_effort` (gpt-oss) and `enable_thinking` (Qwen3).

use hearth_domain::error::Result;
use serde_json::{Map, Value};

use super::fields::{Fields, bad_value};

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Reads the three fields into template variables. The caller's `chat_template_kwargs` win, then `reasoning_effort`,
/// then `reasoning`, then `thinking`.
pub(super) fn read_reasoning(fields: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<()> {
    let mut effort = read_effort(fields, "reasoning_effort")?;
    let mut is_enabled = None;
    if let Some(mut reasoning) = fields.nested("reasoning")? {
        let own = read_effort(&mut reasoning, "effort")?;
        effort = effort.or(own);
        is_enabled = reasoning.boolean("enabled")?;
        if reasoning.boolean("exclude")? == Some(true) {
            let path = reasoning.path("exclude");
            let message = format!("`{path}` is not honoured: thinking is always reported, as `reasoning_content`.");
            return Err(bad_value(path, message).with_code("unsupported_parameter"));
        }
    }
    if let Some(mut thinking) = fields.nested("thinking")? {
        let kind = thinking.required_string("type")?;
        let asked = match &*kind {
            "enabled" | "adaptive" => true,
            "disabled" => false,
            _ => {
                let path = thinking.path("type");
                return Err(bad_value(path.clone(), format!("`{path}` must be `enabled`, `adaptive` or `disabled`.")));
            }
        };
        is_enabled = is_enabled.or(Some(asked));
    }
    if effort.as_deref() == Some("none") {
        is_enabled = Some(false);
    }
    if let Some(is_enabled) = is_enabled {
        kwargs.entry("enable_thinking").or_insert(Value::Bool(is_enabled));
    }
    if let Some(effort) = effort {
        kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(())
}

fn read_effort(fields: &mut Fields, name: &str) -> Result<Option<String>> {
    let Some(effort) = fields.string(name)? else { return Ok(None) };
    if !EFFORTS.contains(&effort.as_str()) {
        let path = fields.path(name);
        return Err(bad_value(path.clone(), format!("`{path}` must be one of {}.", EFFORTS.join(", "))));
    }
    Ok(Some(effort))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Value> {
        let mut fields = Fields::body(body)?;
        let mut kwargs = fields.map("chat_template_kwargs")?.unwrap_or_default();
        read_reasoning(&mut fields, &mut kwargs)?;
        Ok(Value::Object(kwargs))
    }

    #[test]
    fn three_fields_are_one_wish() {
        for (body, variables) in [
            (json!({}), json!({})),
            (json!({"reasoning_effort": "max"}), json!({"reasoning_effort": "max"})),
            (json!({"reasoning_effort": "none"}), json!({"reasoning_effort": "none", "enable_thinking": false})),
            (json!({"reasoning": {"effort": "low", "max_tokens": 100}}), json!({"reasoning_effort": "low"})),
            (json!({"reasoning": {"enabled": false}}), json!({"enable_thinking": false})),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), json!({"enable_thinking": true})),
            (json!({"thinking": {"type": "disabled"}}), json!({"enable_thinking": false})),
            (json!({"reasoning": null, "thinking": null}), json!({})),
            (
                json!({"reasoning_effort": "high", "reasoning": {"effort": "low"}, "thinking": {"type": "disabled"}}),
                json!({"reasoning_effort": "high", "enable_thinking": false}),
            ),
            (
                json!({"chat_template_kwargs": {"enable_thinking": true}, "thinking": {"type": "disabled"}}),
                json!({"enable_thinking": true}),
            ),
        ] {
            assert_eq!(read(body.clone()).unwrap(), variables, "{body}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (body, param) in [
            (json!({"reasoning_effort": "heroic"}), "reasoning_effort"),
            (json!({"reasoning": {"effort": "heroic"}}), "reasoning.effort"),
            (json!({"reasoning": {"exclude": true}}), "reasoning.exclude"),
            (json!({"reasoning": "high"}), "reasoning"),
            (json!({"thinking": {}}), "thinking.type"),
            (json!({"thinking": {"type": "deep"}}), "thinking.type"),
        ] {
            assert_eq!(read(body).unwrap_err().param(), Some(param));
        }
    }
}
