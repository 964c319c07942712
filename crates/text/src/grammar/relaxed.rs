//! Relaxes tool schemas that ask for more than the grammar can enforce.
//!
//! Clients send what their schema library produces (`propertyNames` of a record, `uniqueItems` of a set, a validator's
//! own formats), and the model gets most of it right on its own. So a tool that is not `strict` keeps what can be
//! enforced, and the rest is left out and named. A `strict` tool is refused instead.

use serde_json::{Map, Value, json};

use super::json_schema::{
    MAX_DEPTH, NOT_ENFORCED, ONE_SCHEMA, SCHEMA_ARRAYS, SCHEMA_MAPS, escaped, is_idle, unresolved,
};

/// A schema without the parts that [`super::json_schema::check`] refuses, and the JSON pointers of those parts.
pub(super) fn relaxed(schema: &Value) -> (Value, Vec<String>) {
    let mut left_out = Vec::new();
    let relaxed = relax(schema, schema, "", 0, &mut left_out);
    (relaxed, left_out)
}

fn relax(root: &Value, schema: &Value, pointer: &str, depth: usize, left_out: &mut Vec<String>) -> Value {
    let anything = |left_out: &mut Vec<String>| {
        left_out.push(pointer.to_owned());
        anything_at(pointer)
    };
    let object = match schema {
        // A property that nothing satisfies must be absent, which the compiler supports.
        Value::Bool(_) => return schema.clone(),
        Value::Object(object) if depth <= MAX_DEPTH => object,
        _ => return anything(left_out),
    };
    if unresolved(root, object).is_some() {
        return anything(left_out);
    }
    let mut kept = Map::new();
    for (keyword, value) in object {
        let place = format!("{pointer}/{}", escaped(keyword));
        if NOT_ENFORCED.contains(&keyword.as_str()) {
            if !is_idle(keyword, value) {
                left_out.push(place);
            }
            continue;
        }
        let name = keyword.as_str();
        let value = match value {
            Value::Array(parts) if SCHEMA_ARRAYS.contains(&name) || name == "items" => {
                let parts = parts.iter().enumerate();
                parts.map(|(index, part)| relax(root, part, &format!("{place}/{index}"), depth + 1, left_out)).collect()
            }
            Value::Object(parts) if SCHEMA_MAPS.contains(&name) => {
                let relax = |(name, part): (&String, &Value)| {
                    (name.clone(), relax(root, part, &format!("{place}/{}", escaped(name)), depth + 1, left_out))
                };
                Value::Object(parts.iter().map(relax).collect())
            }
            _ if ONE_SCHEMA.contains(&name) => relax(root, value, &place, depth + 1, left_out),
            // The value has the wrong type for the keyword.
            _ if SCHEMA_ARRAYS.contains(&name) || SCHEMA_MAPS.contains(&name) => {
                left_out.push(place);
                continue;
            }
            _ => value.clone(),
        };
        kept.insert(keyword.clone(), value);
    }
    Value::Object(kept)
}

/// Removes the most likely fault from a subschema that does not compile, everywhere in the schema where it occurs with
/// the same value, and returns the places.
pub(super) fn weaken(schema: &mut Value, pointer: &str) -> Vec<String> {
    let Some(part) = schema.pointer_mut(pointer) else { return Vec::new() };
    let Some(object) = part.as_object_mut() else { return Vec::new() };
    // Overlapping alternatives: one of them, or several.
    if let Some(alternatives) = object.remove("oneOf") {
        let either = json!({"anyOf": alternatives});
        match object.get_mut("allOf") {
            Some(Value::Array(all)) => all.push(either),
            _ => drop(object.insert("allOf".to_owned(), json!([either]))),
        }
        return vec![format!("{pointer}/oneOf")];
    }
    for keyword in ["format", "pattern", "patternProperties", "minProperties", "maxProperties", "multipleOf"] {
        if let Some(value) = object.get(keyword).cloned() {
            let mut removed = Vec::new();
            remove_everywhere(schema, "", keyword, &value, &mut removed);
            return removed;
        }
    }
    *part = anything_at(pointer);
    vec![pointer.to_owned()]
}

/// A schema that accepts anything; for the whole schema, any object, since arguments always are one.
fn anything_at(pointer: &str) -> Value {
    if pointer.is_empty() { json!({"type": "object"}) } else { json!({}) }
}

fn remove_everywhere(schema: &mut Value, pointer: &str, keyword: &str, value: &Value, removed: &mut Vec<String>) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get(keyword) == Some(value) {
        object.remove(keyword);
        removed.push(format!("{pointer}/{keyword}"));
    }
    for (name, part) in object {
        let place = format!("{pointer}/{}", escaped(name));
        let name = name.as_str();
        match part {
            Value::Object(parts) if SCHEMA_MAPS.contains(&name) => {
                for (name, part) in parts {
                    remove_everywhere(part, &format!("{place}/{}", escaped(name)), keyword, value, removed);
                }
            }
            Value::Array(parts) if SCHEMA_ARRAYS.contains(&name) || name == "items" => {
                for (index, part) in parts.iter_mut().enumerate() {
                    remove_everywhere(part, &format!("{place}/{index}"), keyword, value, removed);
                }
            }
            part if ONE_SCHEMA.contains(&name) => remove_everywhere(part, &place, keyword, value, removed),
            _ => {}
        }
    }
}
