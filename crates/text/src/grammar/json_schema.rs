//! Prepares JSON schemas for compilation: finds what cannot be enforced, with its location, and bounds white space.

use serde_json::{Map, Value, json};

/// Keywords that constrain an instance and that the compiler does not support. Ignoring one would let through what the
/// caller has forbidden.
pub(super) const NOT_ENFORCED: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "contentSchema",
];

/// Keywords whose value is a schema, an array of schemas, or a map of schemas.
pub(super) const ONE_SCHEMA: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
pub(super) const SCHEMA_ARRAYS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
pub(super) const SCHEMA_MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Subschemas that are compiled separately to find the faulty one.
const MAX_PARTS_TRIED: usize = 64;
/// Nesting limit of subschemas; with it the compiler's recursion fits its stack.
pub(super) const MAX_DEPTH: usize = 64;

/// How much white space the model may write between JSON's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    /// One line break with its indentation, or one or two spaces: enough to write JSON in any style, but not to write
    /// blanks without end.
    Flexible,
    /// As `json.dumps` writes it, which is how chat templates print JSON.
    Fixed,
}

const FLEXIBLE_SPACE: &str = r"[ ]{1,2}|\n[ \t]{0,40}";

/// All 64-bit ids except the very largest are below it, and a double represents it exactly.
const INTEGER_MAX: i64 = 9_000_000_000_000_000_000;

/// Bounds an unbounded integer, for which a model might write digits without end.
fn bound(object: &mut Map<String, Value>) {
    let is_free = !["enum", "const", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
        .iter()
        .any(|keyword| object.contains_key(*keyword));
    if is_free && object.get("type").is_some_and(|kind| *kind == "integer") {
        object.insert("minimum".to_owned(), (-INTEGER_MAX).into());
        object.insert("maximum".to_owned(), INTEGER_MAX.into());
    }
}

/// The schema with the compiler's options added.
pub(super) fn prepared(schema: &Value, spacing: Spacing) -> Value {
    let mut root = match schema {
        Value::Object(root) => prepared_part(root, true),
        // `true`; `false` has already been refused.
        _ => Map::new(),
    };
    let options = match spacing {
        Spacing::Flexible => json!({"whitespace_flexible": true, "whitespace_pattern": FLEXIBLE_SPACE}),
        Spacing::Fixed => json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
    };
    root.insert("x-guidance".to_owned(), options);
    Value::Object(root)
}

/// Whether a keyword with this value constrains nothing.
pub(super) fn is_idle(keyword: &str, value: &Value) -> bool {
    keyword == "uniqueItems" && *value == Value::Bool(false)
}

/// A subschema and its subschemas in the form the compiler accepts. `uniqueItems: false` and the like constrain
/// nothing, but the compiler refuses them by name. A subschema that applies together with another one (`is_alone` is
/// false) gets no bounds, since they could contradict the other one's.
fn prepared_part(object: &Map<String, Value>, is_alone: bool) -> Map<String, Value> {
    let keep = |(key, value): &(&String, &Value)| !is_idle(key, value);
    let mut part: Map<String, Value> = object
        .iter()
        .filter(keep)
        .map(|(key, value)| {
            let value = match value {
                Value::Object(inner) if key != "const" => Value::Object(prepared_part(inner, true)),
                Value::Array(items) if SCHEMA_ARRAYS.contains(&key.as_str()) => items
                    .iter()
                    .map(|item| {
                        let prepared = |part| Value::Object(prepared_part(part, key != "allOf"));
                        item.as_object().map_or_else(|| item.clone(), prepared)
                    })
                    .collect(),
                _ => value.clone(),
            };
            (key.clone(), value)
        })
        .collect();
    if is_alone && !["allOf", "anyOf", "oneOf", "$ref"].iter().any(|keyword| part.contains_key(*keyword)) {
        bound(&mut part);
    }
    part
}

/// Refuses what cannot be enforced: returns its location, as a JSON pointer, and the reason.
pub(super) fn check(schema: &Value) -> Result<(), (String, String)> {
    if *schema == Value::Bool(false) {
        return Err((String::new(), "nothing satisfies `false`".to_owned()));
    }
    visit(schema, "", 0, &mut |pointer, part| {
        let object = match part {
            Value::Bool(_) => return Ok(()),
            Value::Object(object) => object,
            _ => return Err((pointer.to_owned(), "a schema is an object or a boolean".to_owned())),
        };
        for keyword in NOT_ENFORCED {
            if object.get(keyword).is_some_and(|value| !is_idle(keyword, value)) {
                return Err((format!("{pointer}/{keyword}"), format!("the keyword {keyword:?} is not supported")));
            }
        }
        check_reference(schema, pointer, object)
    })
}

fn check_reference(root: &Value, pointer: &str, object: &Map<String, Value>) -> Result<(), (String, String)> {
    unresolved(root, object).map_or(Ok(()), |reason| Err((format!("{pointer}/$ref"), reason)))
}

/// The fault of a subschema's reference, if it has one that cannot be resolved.
pub(super) fn unresolved(root: &Value, object: &Map<String, Value>) -> Option<String> {
    let Some(reference) = object.get("$ref")?.as_str() else { return Some("it must be a string".to_owned()) };
    let Some(fragment) = reference.strip_prefix('#') else {
        let elsewhere =
            || format!("{reference:?} is in another document, and only references within the schema are followed");
        return reference.contains("://").then(elsewhere);
    };
    let is_missing = (fragment.is_empty() || fragment.starts_with('/')) && resolved(root, reference).is_none();
    is_missing.then(|| format!("{reference:?} is not in the schema"))
}

/// The subschema that a reference names by its pointer.
pub(super) fn resolved<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(&pointer.replace("%25", "%").replace("%20", " ").replace("%22", "\""))
}

/// Every proper subschema with its pointer, innermost first, each with the root's definitions so that it can be
/// compiled on its own.
pub(super) fn parts_innermost_first(schema: &Value) -> Vec<(String, Value)> {
    let mut parts: Vec<(String, Value)> = Vec::new();
    let collected = visit(schema, "", 0, &mut |pointer, part| {
        if let (false, Value::Object(part)) = (pointer.is_empty(), part)
            && !part.is_empty()
        {
            let mut part = part.clone();
            for definitions in ["$defs", "definitions"] {
                if let Some(value) = schema.get(definitions) {
                    part.insert(definitions.to_owned(), value.clone());
                }
            }
            parts.push((pointer.to_owned(), Value::Object(part)));
        }
        Ok(())
    });
    if collected.is_err() {
        return Vec::new();
    }
    parts.retain(|(_, part)| !part.to_string().contains("\"#/properties") && !part.to_string().contains("\"#\""));
    parts.sort_by_key(|(pointer, _)| std::cmp::Reverse(pointer.matches('/').count()));
    parts.truncate(MAX_PARTS_TRIED);
    parts
}

type Visitor<'a> = dyn FnMut(&str, &Value) -> Result<(), (String, String)> + 'a;

/// Calls `visitor` for `schema` and each of its subschemas.
fn visit(schema: &Value, pointer: &str, depth: usize, visitor: &mut Visitor<'_>) -> Result<(), (String, String)> {
    if depth > MAX_DEPTH {
        return Err((pointer.to_owned(), format!("it is nested more than {MAX_DEPTH} deep")));
    }
    visitor(pointer, schema)?;
    let Some(object) = schema.as_object() else { return Ok(()) };
    for (keyword, value) in object {
        let place = format!("{pointer}/{}", escaped(keyword));
        let keyword = keyword.as_str();
        match value {
            Value::Array(parts) if SCHEMA_ARRAYS.contains(&keyword) || keyword == "items" => {
                for (index, part) in parts.iter().enumerate() {
                    visit(part, &format!("{place}/{index}"), depth + 1, visitor)?;
                }
            }
            Value::Object(parts) if SCHEMA_MAPS.contains(&keyword) => {
                for (name, part) in parts {
                    visit(part, &format!("{place}/{}", escaped(name)), depth + 1, visitor)?;
                }
            }
            _ if ONE_SCHEMA.contains(&keyword) => visit(value, &place, depth + 1, visitor)?,
            _ if SCHEMA_ARRAYS.contains(&keyword) => return Err((place, "it must be an array".to_owned())),
            _ if SCHEMA_MAPS.contains(&keyword) => return Err((place, "it must be an object".to_owned())),
            _ => {}
        }
    }
    Ok(())
}

/// Escapes a name for use in a JSON pointer (RFC 6901).
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
