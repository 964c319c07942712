//! Attributes and metadata as JSON objects.

use serde_json::{Map, Value};

use super::Attributes;
use hearth_domain::documents::AttributeValue;

pub(super) fn to_object(attributes: &Attributes) -> Value {
    Value::Object(attributes.iter().map(|(key, value)| (key.clone(), to_value(value))).collect::<Map<_, _>>())
}

pub(super) fn to_value(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => Value::from(text.as_str()),
        AttributeValue::Number(number) => Value::from(*number),
        AttributeValue::Bool(value) => Value::from(*value),
    }
}

/// Reads the output of [`to_object`].
pub(super) fn from_object(json: Value) -> Attributes {
    let Value::Object(object) = json else { return Attributes::new() };
    let value = |value: Value| match value {
        Value::String(text) => Some(AttributeValue::Text(text)),
        Value::Number(number) => number.as_f64().map(AttributeValue::Number),
        Value::Bool(value) => Some(AttributeValue::Bool(value)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    object.into_iter().filter_map(|(key, found)| Some((key, value(found)?))).collect()
}
