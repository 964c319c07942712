//! Attributes and metadata as JSON, and filters over them as SQL.

use std::collections::BTreeMap;

use rusqlite::types::{ToSqlOutput, Value as Sql, ValueRef};
use serde_json::Value;

use crate::store::{
    Attributes,
    attributes::{from_object, to_object, to_value},
};
use hearth_domain::documents::{AttributeFilter, AttributeValue, Comparison};

pub(super) fn to_json(attributes: &Attributes) -> String {
    to_object(attributes).to_string()
}

/// Reads the output of [`to_json`].
pub(super) fn from_json(json: &str) -> Attributes {
    from_object(serde_json::from_str(json).unwrap_or_default())
}

/// A condition over the table `documents`, with its parameters.
///
/// A comparison holds for values of its own type only; `Ne` and a negated `In` also hold for documents without the
/// attribute.
pub(super) fn condition(filter: &AttributeFilter, parameters: &mut Vec<Sql>) -> String {
    match filter {
        AttributeFilter::Compare { key, comparison, value } => {
            let path = json_path(key);
            let operator = match comparison {
                Comparison::Eq => "=",
                Comparison::Ne => return format!("NOT ({})", equals(&path, value, parameters)),
                Comparison::Gt => ">",
                Comparison::Gte => ">=",
                Comparison::Lt => "<",
                Comparison::Lte => "<=",
            };
            compare(&path, operator, value, parameters)
        }
        AttributeFilter::In { key, values, negated } => {
            let path = json_path(key);
            let mut of_type: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for value in values {
                of_type.entry(types(value)).or_default().push(to_value(value));
            }
            let any: Vec<_> = of_type
                .into_iter()
                .map(|(types, values)| {
                    // One expression for any number of values: SQLite's expressions are at most 1000 deep.
                    let values = Sql::Text(Value::Array(values).to_string());
                    parameters.extend([Sql::Text(path.clone()), Sql::Text(path.clone()), values]);
                    has_type(types, "IN (SELECT value FROM json_each(?))")
                })
                .collect();
            format!("{}({})", if *negated { "NOT " } else { "" }, join(&any, " OR ", "0"))
        }
        AttributeFilter::All(filters) => {
            let all: Vec<_> = filters.iter().map(|filter| condition(filter, parameters)).collect();
            join(&all, " AND ", "1")
        }
        AttributeFilter::Any(filters) => {
            let any: Vec<_> = filters.iter().map(|filter| condition(filter, parameters)).collect();
            join(&any, " OR ", "0")
        }
        AttributeFilter::Files(ids) => {
            let marks = vec!["?"; ids.len()].join(", ");
            parameters.extend(ids.iter().map(|id| Sql::Text(id.clone())));
            format!("documents.file_id IN ({marks})")
        }
    }
}

fn equals(path: &str, value: &AttributeValue, parameters: &mut Vec<Sql>) -> String {
    compare(path, "=", value, parameters)
}

/// SQLite reads JSON's `true` as the number 1, and orders text after every number, so the types are compared first.
fn compare(path: &str, operator: &str, value: &AttributeValue, parameters: &mut Vec<Sql>) -> String {
    let sql = match value {
        AttributeValue::Text(text) => Sql::Text(text.clone()),
        AttributeValue::Number(number) => Sql::Real(*number),
        AttributeValue::Bool(value) => Sql::Integer(i64::from(*value)),
    };
    parameters.extend([Sql::Text(path.to_owned()), Sql::Text(path.to_owned()), sql]);
    has_type(types(value), &format!("{operator} ?"))
}

/// The JSON types that a value may be equal to.
fn types(value: &AttributeValue) -> &'static str {
    match value {
        AttributeValue::Text(_) => "'text'",
        AttributeValue::Number(_) => "'integer', 'real'",
        AttributeValue::Bool(_) => "'true', 'false'",
    }
}

/// Takes the attribute's path as two parameters, then those of the comparison.
fn has_type(types: &str, comparison: &str) -> String {
    let json = "documents.attributes";
    format!("(coalesce(json_type({json}, ?), '') IN ({types}) AND json_extract({json}, ?) {comparison})")
}

/// The path of a member, whatever characters its name contains.
fn json_path(key: &str) -> String {
    format!("$.{}", Value::from(key))
}

/// Nests in halves, because SQLite's expressions are at most 1000 deep and a chain is as deep as it is long.
fn join(conditions: &[String], with: &str, nothing: &str) -> String {
    match conditions {
        [] => nothing.to_owned(),
        [one] => one.clone(),
        many => {
            let (first, second) = many.split_at(many.len() / 2);
            format!("({}{with}{})", join(first, with, nothing), join(second, with, nothing))
        }
    }
}

/// A vector as it is stored.
pub(super) struct Vector<'a>(pub &'a [f32]);

impl rusqlite::ToSql for Vector<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(bytemuck::cast_slice(self.0))))
    }
}
