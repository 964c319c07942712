//! Attributes and metadata as JSON, and filters over them as SQL.

use serde_json::Value;
use tokio_postgres::types::{ToSql, Type};

use super::{storable, storable_json};
use crate::store::{
    Attributes,
    attributes::{from_object, to_object, to_value},
};
use hearth_domain::documents::{AttributeFilter, AttributeValue, Comparison};

pub(super) fn to_json(attributes: &Attributes) -> Value {
    storable_json(&to_object(attributes))
}

/// Reads the output of [`to_json`].
pub(super) fn from_json(json: Value) -> Attributes {
    from_object(json)
}

/// Values of a condition, numbered from `first` on.
pub(super) struct Parameters {
    first: usize,
    values: Vec<Parameter>,
}

enum Parameter {
    Text(String),
    Texts(Vec<String>),
    Json(Value),
}

impl Parameters {
    pub(super) fn after(number: usize) -> Self {
        Self { first: number + 1, values: Vec::new() }
    }

    /// The value's place in the statement.
    fn place(&mut self, value: Parameter) -> String {
        self.values.push(value);
        format!("${}", self.first + self.values.len() - 1)
    }

    pub(super) fn with_types(&self) -> impl Iterator<Item = (&(dyn ToSql + Sync), Type)> {
        self.values.iter().map(|value| match value {
            Parameter::Text(text) => (text as &(dyn ToSql + Sync), Type::TEXT),
            Parameter::Texts(texts) => (texts as _, Type::TEXT_ARRAY),
            Parameter::Json(json) => (json as _, Type::JSONB),
        })
    }
}

/// A condition over the table `documents`.
///
/// A comparison holds for values of its own type only; `Ne` and a negated `In` also hold for documents without the attribute.
pub(super) fn condition(filter: &AttributeFilter, parameters: &mut Parameters) -> String {
    match filter {
        AttributeFilter::Compare { key, comparison, value } => {
            let operator = match comparison {
                Comparison::Eq => "=",
                Comparison::Ne => return format!("NOT {}", compare(key, "=", value, parameters)),
                Comparison::Gt => ">",
                Comparison::Gte => ">=",
                Comparison::Lt => "<",
                Comparison::Lte => "<=",
            };
            compare(key, operator, value, parameters)
        }
        AttributeFilter::In { key, values, negated } => {
            let key = parameters.place(Parameter::Text(storable(key).into_owned()));
            let values =
                parameters.place(Parameter::Json(storable_json(&Value::Array(values.iter().map(to_value).collect()))));
            let not = if *negated { "NOT " } else { "" };
            // A value in an array contains equal ones only, of the same type.
            format!(
                "{not}coalesce(documents.attributes ? {key} AND {values} @> (documents.attributes -> {key}), false)"
            )
        }
        AttributeFilter::All(filters) => {
            let all: Vec<_> = filters.iter().map(|filter| condition(filter, parameters)).collect();
            if all.is_empty() { "true".to_owned() } else { format!("({})", all.join(" AND ")) }
        }
        AttributeFilter::Any(filters) => {
            let any: Vec<_> = filters.iter().map(|filter| condition(filter, parameters)).collect();
            if any.is_empty() { "false".to_owned() } else { format!("({})", any.join(" OR ")) }
        }
        AttributeFilter::Files(ids) => {
            format!(
                "documents.file_id = ANY ({})",
                parameters.place(Parameter::Texts(ids.iter().map(|id| storable(id).into_owned()).collect()))
            )
        }
    }
}

fn compare(key: &str, operator: &str, value: &AttributeValue, parameters: &mut Parameters) -> String {
    let key = parameters.place(Parameter::Text(storable(key).into_owned()));
    let attribute = format!("(documents.attributes -> {key})");
    let kind = match value {
        AttributeValue::Text(_) => "string",
        AttributeValue::Number(_) => "number",
        AttributeValue::Bool(_) => "boolean",
    };
    // Values of one type are ordered as values of their type; text by the database's order, so it is compared as bytes.
    let comparison = if let AttributeValue::Text(text) = value {
        let text = parameters.place(Parameter::Text(storable(text).into_owned()));
        format!("(documents.attributes ->> {key}) COLLATE \"C\" {operator} {text}")
    } else {
        format!("{attribute} {operator} {}", parameters.place(Parameter::Json(storable_json(&to_value(value)))))
    };
    format!("coalesce(jsonb_typeof({attribute}) = '{kind}' AND {comparison}, false)")
}
