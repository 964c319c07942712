//! The ways in which a request may ask for text in a formal language: OpenAI's `response_format`,
//! llama-server's `json_schema`, vLLM's `guided_*` and `structured_outputs`, and a plain `grammar`.
//!
//! At most one of them may be given. The compiler decides whether a schema or grammar compiles.

use hearth_domain::{Constraint, error::Result};
use serde_json::Value;

use super::{
    body::unsupported,
    fields::{Fields, bad_value, shortened, wrong_type},
};

pub(super) fn read(fields: &mut Fields) -> Result<Option<Constraint>> {
    let candidates = [
        ("response_format", read_response_format(fields)?),
        ("json_schema", fields.map("json_schema")?.map(|schema| Constraint::JsonSchema(Value::Object(schema)))),
        ("guided_json", read_schema(fields, "guided_json")?),
        ("guided_regex", fields.string("guided_regex")?.map(Constraint::Regex)),
        ("guided_choice", read_choice(fields, "guided_choice")?),
        ("structured_outputs", read_structured_outputs(fields)?),
        ("grammar", read_grammar(fields)?),
    ];
    let mut found: Option<(&str, Constraint)> = None;
    for (name, constraint) in candidates {
        let Some(constraint) = constraint else { continue };
        if let Some((earlier, _)) = found {
            return Err(bad_value(name, format!("`{name}` cannot be combined with `{earlier}`; give one of them.")));
        }
        found = Some((name, constraint));
    }
    Ok(found.map(|(_, constraint)| constraint))
}

fn read_response_format(fields: &mut Fields) -> Result<Option<Constraint>> {
    let Some(mut format) = fields.nested("response_format")? else { return Ok(None) };
    let kind = format.required_string("type")?;
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => {
            Ok(Some(format.map("schema")?.map_or(Constraint::JsonObject, |s| Constraint::JsonSchema(Value::Object(s)))))
        }
        "json_schema" => {
            // llama-server accepts the schema beside `type` as well.
            if let Some(schema) = format.map("schema")? {
                return Ok(Some(Constraint::JsonSchema(Value::Object(schema))));
            }
            let missing = format.missing("json_schema");
            let mut outer = format.nested("json_schema")?.ok_or(missing)?;
            let missing = outer.missing("schema");
            let schema = outer.map("schema")?.ok_or(missing)?;
            Ok(Some(Constraint::JsonSchema(Value::Object(schema))))
        }
        other => Err(bad_value(
            "response_format.type",
            format!(
                "`response_format.type` must be `text`, `json_object` or `json_schema`, but is {}.",
                shortened(&Value::String(other.to_owned()))
            ),
        )),
    }
}

/// A schema as an object or, as vLLM accepts, as its JSON text.
fn read_schema(fields: &mut Fields, name: &str) -> Result<Option<Constraint>> {
    let path = fields.path(name);
    match fields.take(name) {
        None => Ok(None),
        Some(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema))),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema))),
            _ => Err(bad_value(path.clone(), format!("`{path}` must be a JSON schema or the text of one."))),
        },
        Some(other) => Err(wrong_type(&path, "a JSON schema", &other)),
    }
}

fn read_choice(fields: &mut Fields, name: &str) -> Result<Option<Constraint>> {
    let path = fields.path(name);
    let Some(items) = fields.array(name)? else { return Ok(None) };
    if items.is_empty() {
        return Err(bad_value(path.clone(), format!("`{path}` must name at least one string.")));
    }
    let mut choices = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Value::String(text) => choices.push(Value::String(text)),
            other => return Err(wrong_type(&format!("{path}[{index}]"), "a string", &other)),
        }
    }
    let pattern = choices.iter().filter_map(Value::as_str).map(escape_regex).collect::<Vec<_>>().join("|");
    Ok(Some(Constraint::Regex(format!("({pattern})"))))
}

/// Escapes the characters that are special in a regular expression.
fn escape_regex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$/-#&~".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn read_structured_outputs(fields: &mut Fields) -> Result<Option<Constraint>> {
    let Some(mut options) = fields.nested("structured_outputs")? else { return Ok(None) };
    let json_object = options.boolean("json_object")?.unwrap_or(false).then_some(Constraint::JsonObject);
    let mut found = [
        json_object,
        read_schema(&mut options, "json")?,
        options.string("regex")?.map(Constraint::Regex),
        read_choice(&mut options, "choice")?,
    ]
    .into_iter()
    .flatten();
    let first = found.next();
    if found.next().is_some() {
        return Err(bad_value("structured_outputs", "`structured_outputs` must name one kind of constraint."));
    }
    for name in ["grammar", "structural_tag"] {
        if options.peek(name).is_some() {
            let path = options.path(name);
            return Err(unsupported(&path, &format!("`{path}` is not supported. Use `grammar` with `type` `lark`.")));
        }
    }
    Ok(first)
}

fn read_grammar(fields: &mut Fields) -> Result<Option<Constraint>> {
    let Some(value) = fields.take("grammar") else { return Ok(None) };
    if let Value::String(text) = &value {
        // llama-server's clients send an empty string for "none".
        if text.is_empty() {
            return Ok(None);
        }
        return Err(unsupported(
            "grammar",
            "A GBNF `grammar` is not supported. Use {\"type\": \"lark\", \"value\": ...} or `response_format`.",
        ));
    }
    let mut grammar = Fields::object(value, "grammar")?;
    let kind = grammar.required_string("type")?;
    let value = grammar.required("value")?;
    match (kind.as_str(), value) {
        ("regex", Value::String(pattern)) => Ok(Some(Constraint::Regex(pattern))),
        ("lark", Value::String(source)) => Ok(Some(Constraint::Lark(source))),
        ("json_schema", schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema))),
        ("regex" | "lark", other) => Err(wrong_type("grammar.value", "a string", &other)),
        ("json_schema", other) => Err(wrong_type("grammar.value", "a JSON schema", &other)),
        (other, _) => Err(bad_value(
            "grammar.type",
            format!(
                "`grammar.type` must be `regex`, `lark` or `json_schema`, but is {}.",
                shortened(&Value::String(other.to_owned()))
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_from(value: Value) -> Result<Option<Constraint>> {
        read(&mut Fields::body(value).unwrap())
    }

    #[test]
    fn each_form_is_understood() {
        let schema = json!({"type": "object"});
        let expected = Some(Constraint::JsonSchema(schema.clone()));
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            json!({"json_schema": schema}),
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema}}),
            json!({"grammar": {"type": "json_schema", "value": schema}}),
        ] {
            assert_eq!(read_from(body.clone()).unwrap(), expected, "{body}");
        }
        assert_eq!(read_from(json!({"response_format": {"type": "text"}})).unwrap(), None);
        assert_eq!(
            read_from(json!({"guided_choice": ["a.b", "c"]})).unwrap(),
            Some(Constraint::Regex(r"(a\.b|c)".to_owned()))
        );
    }

    #[test]
    fn mistakes_are_named() {
        let param = |body| read_from(body).unwrap_err().param().map(str::to_owned);
        assert_eq!(param(json!({"response_format": {"type": "xml"}})).as_deref(), Some("response_format.type"));
        assert_eq!(
            param(json!({"response_format": {"type": "json_schema", "json_schema": {}}})).as_deref(),
            Some("response_format.json_schema.schema")
        );
        assert_eq!(param(json!({"grammar": "root ::= x"})).as_deref(), Some("grammar"));
        assert_eq!(param(json!({"guided_regex": "a", "json_schema": {}})).as_deref(), Some("guided_regex"));
    }
}
