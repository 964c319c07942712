//! Checks the arguments of a tool call against the parts of the tool's schema that the grammar does not enforce.
//!
//! The check runs after the model has made the call, on the thread that reads the tokens, so its work is bounded: a schema that
//! is recursive, or large once its references are followed, is not checked. The parts that are not enforced are named in either case.

use jsonschema::{PatternOptions, Validator, error::ValidationErrorKind};
use serde_json::Value;

use super::json_schema::{MAX_DEPTH, resolved};

/// Values in a schema whose references are followed, times values in the arguments.
const WORK_MAX: usize = 2_000_000;
/// Values in a schema whose references are followed.
const SCHEMA_VALUES_MAX: usize = 5_000;
/// Violations that are reported of a call.
const REPORTED_MAX: usize = 16;
/// Steps of a pattern with look-around.
const BACKTRACKING_MAX: usize = 10_000;
/// Memory of a pattern's automaton, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The check of one tool's arguments.
#[derive(Debug)]
pub struct ArgumentsCheck {
    /// The tool's index in the request.
    tool: usize,
    validator: Validator,
    /// Values in the schema whose references are followed.
    schema_values: usize,
}

/// A value in the arguments of a call, and the part of the schema that it violates. Both are dotted paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// From the arguments on: empty for the arguments as a whole.
    pub argument: String,
    /// From the request on, as in [`CompiledConstraint::unenforced`](super::CompiledConstraint::unenforced).
    pub rule: String,
}

impl ArgumentsCheck {
    /// `None` if the schema is no valid JSON Schema, or is too much to check.
    pub(super) fn of(tool: usize, schema: &Value) -> Option<Self> {
        let mut schema_values = 0;
        if !count(schema, schema, 0, &mut schema_values) {
            return None;
        }
        let patterns = PatternOptions::fancy_regex()
            .backtrack_limit(BACKTRACKING_MAX)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX);
        let options = jsonschema::options().should_validate_formats(true).with_pattern_options(patterns);
        let validator = options.build(schema).ok()?;
        Some(Self { tool, validator, schema_values })
    }

    /// What the arguments violate. Nothing, if they are not JSON: they were cut off.
    pub fn violations(&self, arguments: &str) -> Vec<Violation> {
        let Ok(arguments) = serde_json::from_str::<Value>(arguments) else { return Vec::new() };
        if self.schema_values.saturating_mul(values(&arguments)) > WORK_MAX {
            return Vec::new();
        }
        let is_known = |kind: &ValidationErrorKind| !matches!(kind, ValidationErrorKind::BacktrackLimitExceeded { .. });
        self.validator
            .iter_errors(&arguments)
            .filter(|error| is_known(error.kind()))
            .take(REPORTED_MAX)
            .map(|error| Violation {
                argument: dotted(error.instance_path().as_str()),
                rule: super::place_of(self.tool, error.schema_path().as_str()),
            })
            .collect()
    }
}

fn dotted(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

/// Counts the values of a schema, following its references. `false` if they are too many, or a reference leads elsewhere.
fn count(root: &Value, schema: &Value, depth: usize, counted: &mut usize) -> bool {
    *counted += 1;
    if *counted > SCHEMA_VALUES_MAX || depth > 2 * MAX_DEPTH {
        return false;
    }
    let mut parts: Vec<&Value> = match schema {
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => {
            // They change what a reference means.
            if ["$dynamicRef", "$recursiveRef", "$id"].iter().any(|keyword| members.contains_key(*keyword)) {
                return false;
            }
            members.values().collect()
        }
        _ => return true,
    };
    if let Some(Value::String(reference)) = schema.get("$ref") {
        let Some(part) = resolved(root, reference) else { return false };
        parts.push(part);
    }
    parts.into_iter().all(|part| count(root, part, depth + 1, counted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violations(schema: &Value, arguments: &Value) -> Vec<(String, String)> {
        let check = ArgumentsCheck::of(3, schema).expect("a check");
        let found = check.violations(&arguments.to_string()).into_iter();
        found.map(|violation| (violation.argument, violation.rule.replace("tools.3.function.parameters", ""))).collect()
    }

    #[test]
    fn what_arguments_violate_is_named_with_its_place() {
        let schema = json!({"type": "object", "properties": {
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "uniqueItems": true},
            "env": {"type": "object", "propertyNames": {"pattern": "^(?=[A-Z])"}},
            "day": {"type": "string", "format": "date"},
        }, "if": {"required": ["env"]}, "then": {"required": ["day"]}, "$defs": {"tag": {"type": "string", "maxLength": 3}}});
        let named = |places: &[(&str, &str)]| {
            places.iter().map(|&(argument, rule)| (argument.to_owned(), rule.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(violations(&schema, &json!({"tags": ["a", "b"], "env": {"A": 1}, "day": "2026-01-31"})), []);
        assert_eq!(
            violations(&schema, &json!({"tags": ["a", "a"]})),
            named(&[("tags", ".properties.tags.uniqueItems")])
        );
        assert_eq!(violations(&schema, &json!({"day": "today"})), named(&[("day", ".properties.day.format")]));
        assert_eq!(violations(&schema, &json!({"env": {}})), named(&[("", ".then.required")]));
        let found = violations(&schema, &json!({"env": {"a": 1}, "day": "2026-01-31", "tags": ["long"]}));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|(argument, _)| argument == "tags.0"), "{found:?}");
    }

    #[test]
    fn what_could_take_long_is_not_checked() {
        for schema in [
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
            json!({"properties": {"a": {"$ref": "#"}}}),
            json!({"$ref": "https://example.com/other"}),
            json!({"type": "nonsense"}),
            Value::Object(
                (0..20)
                    .map(|n| {
                        (
                            format!("d{n}"),
                            json!({"anyOf": [{"$ref": format!("#/d{}", n + 1)}, {"$ref": format!("#/d{}", n + 1)}]}),
                        )
                    })
                    .chain([("d20".to_owned(), json!({})), ("$ref".to_owned(), json!("#/d0"))])
                    .collect(),
            ),
        ] {
            assert!(ArgumentsCheck::of(0, &schema).is_none(), "{schema}");
        }
        let check = ArgumentsCheck::of(0, &json!({"items": {"not": {"type": "string"}}})).expect("a check");
        assert_eq!(check.violations("[\"a\""), [], "cut off");
        assert_eq!(check.violations(&json!(vec!["a"; 1000]).to_string()).len(), REPORTED_MAX);
        assert_eq!(check.violations(&json!(vec!["a"; WORK_MAX]).to_string()), [], "too much");
        let backtracks = json!({"properties": {"a": {"pattern": r"^(a|a)*\1b"}}});
        assert_eq!(
            violations(&backtracks, &json!({"a": format!("{}!", "a".repeat(30))})),
            [],
            "a pattern that gives up says nothing"
        );
    }
}
