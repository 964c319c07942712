//! What a request body may contain: its fields, and how each is treated: honoured, accepted without effect, or refused
//! by name.
//!
//! A field that would change the text but is not honoured gets a 400 that names it; silence would return a different
//! answer from the one requested. A field that changes nothing (`user`, `store`) is accepted, because SDKs send it
//! unasked. An unknown field is accepted too, because SDKs add fields; the `x-hearth-ignored` header names it. Strict
//! mode refuses everything that has no effect.
//!
//! The fields are data, beside the reader of their body: the OpenAPI document is generated from them, and `docs/API.md`
//! is checked against them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use hearth_domain::error::{Error, ErrorKind, Result};

/// A body with fields: what its reader accepts, and what the OpenAPI document says about it.
pub trait RequestBody {
    /// Its name in the OpenAPI document.
    const NAME: &'static str;
    /// Tables of its fields; bodies share some.
    const FIELDS: &'static [&'static [FieldSpec]];
    /// Fields that must be present and not null.
    const REQUIRED: &'static [&'static str];
    /// Constraints between fields: texts of JSON Schemas, all of which must hold.
    const RULES: &'static [&'static str] = &[];
    /// Whether it is a form, which has no null.
    const IS_FORM: bool = false;

    /// Decides about the fields that the reader did not take; returns the names of those that have no effect.
    ///
    /// 400 for a refused field, and in strict mode for one that has no effect.
    fn ignored(rest: Map<String, Value>, strict: bool) -> Result<Vec<String>> {
        apply(rest, Self::FIELDS, strict)
    }

    /// The fields of a form by name, the last of those that have the same one.
    ///
    /// 400 for an honoured field that is sent twice.
    fn by_name(form: FormFields) -> Result<BTreeMap<String, String>> {
        let mut fields = BTreeMap::new();
        for (name, value) in form {
            let is_honoured = |field: &FieldSpec| field.name == name && field.treatment == FieldTreatment::Honoured;
            let is_known = Self::FIELDS.iter().copied().flatten().any(is_honoured);
            if is_known && fields.contains_key(&name) {
                let message = format!("The form has the field `{name}` twice. Send it once.");
                return Err(Error::invalid(name, message));
            }
            fields.insert(name, value);
        }
        Ok(fields)
    }

    /// Its JSON Schema.
    fn schema() -> Value {
        let fields = Self::FIELDS.iter().copied().flatten();
        let property = |field: &FieldSpec| {
            (field.name.to_owned(), field.property(Self::IS_FORM || Self::REQUIRED.contains(&field.name)))
        };
        let properties: Map<String, Value> = fields.map(property).collect();
        let mut schema = json!({"type": "object", "required": Self::REQUIRED, "properties": properties});
        let rules: Vec<Value> = Self::RULES.iter().map(|rule| parse(rule)).collect();
        if !rules.is_empty() {
            schema["allOf"] = Value::Array(rules);
        }
        if Self::IS_FORM {
            schema["propertyNames"] = json!({"pattern": FORM_FIELD_NAME});
        }
        schema
    }
}

/// A query with parameters, described like fields.
pub trait RequestQuery {
    const PARAMETERS: &'static [FieldSpec];
}

/// The fields of a form without its file, in the order in which they were sent.
pub type FormFields = Vec<(String, String)>;

/// A schema that others reference: its name in the OpenAPI document, and the JSON text.
pub type Component = (&'static str, &'static str);

/// How a field is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldTreatment {
    /// Read by the reader of its body.
    Honoured,
    /// Accepted, changes nothing.
    Ignored,
    /// A 400, except for these JSON values, which request the default behaviour.
    Refused { harmless: &'static [&'static str] },
}

/// One field of a body, or one parameter of a query.
#[derive(Clone, Copy, Debug)]
pub struct FieldSpec {
    pub name: &'static str,
    pub treatment: FieldTreatment,
    /// JSON Schema of an accepted value, as text; `null` is accepted too.
    pub schema: &'static str,
    /// Honoured: what it does. Otherwise: why it has no effect, or what to use instead.
    pub note: &'static str,
}

impl FieldSpec {
    /// The field as a query parameter, which has no null.
    pub fn parameter(&self) -> Value {
        let schema = parse(self.schema);
        json!({"name": self.name, "in": "query", "description": self.note, "schema": schema})
    }

    /// Its JSON Schema, with its description.
    fn property(&self, is_never_null: bool) -> Value {
        let (schema, description) = match self.treatment {
            FieldTreatment::Honoured => (parse(self.schema), self.note.to_owned()),
            FieldTreatment::Ignored => (json!({}), format!("Changes nothing. {}", self.note)),
            FieldTreatment::Refused { harmless } => {
                let values: Vec<Value> = harmless.iter().map(|text| parse(text)).collect();
                let schema = if values.is_empty() { json!({"type": "null"}) } else { json!({"enum": values}) };
                (schema, format!("Any other value is refused. {}", self.note))
            }
        };
        let stays = is_never_null || schema.as_object().is_none_or(Map::is_empty) || schema == json!({"type": "null"});
        let mut property = if stays { schema } else { json!({"anyOf": [schema, {"type": "null"}]}) };
        property["description"] = Value::String(description);
        property
    }
}

/// Pattern of a form field's name, for JSON Schema.
pub const FORM_FIELD_NAME: &str = r"^[A-Za-z0-9_.\[\]-]{1,64}$";

/// The schemas are constants; a test compiles each.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

pub const fn honoured(name: &'static str, schema: &'static str, note: &'static str) -> FieldSpec {
    FieldSpec { name, treatment: FieldTreatment::Honoured, schema, note }
}

pub const fn ignored(name: &'static str, note: &'static str) -> FieldSpec {
    FieldSpec { name, treatment: FieldTreatment::Ignored, schema: "{}", note }
}

pub const fn refused(name: &'static str, harmless: &'static [&'static str], note: &'static str) -> FieldSpec {
    FieldSpec { name, treatment: FieldTreatment::Refused { harmless }, schema: "{}", note }
}

pub const BOOLEAN: &str = r#"{"type":"boolean"}"#;
pub const COUNT: &str = r#"{"type":"integer","minimum":0,"maximum":2147483647}"#;
pub const FRACTION: &str = r#"{"type":"number","minimum":0,"maximum":1}"#;
pub const STRING: &str = r#"{"type":"string"}"#;
/// Seconds.
pub const TIMEOUT: FieldSpec =
    honoured("timeout", r#"{"type":"number","minimum":0.000001}"#, "Seconds after which the server ends the request.");

/// Applies the tables to the fields that no reader took; returns the names that have no effect.
fn apply(rest: Map<String, Value>, tables: &[&[FieldSpec]], strict: bool) -> Result<Vec<String>> {
    let mut without_effect = Vec::new();
    for (name, value) in rest {
        let known = tables.iter().copied().flatten().find(|field| field.name == name);
        match known.map(|field| (field.treatment, field.note)) {
            Some((FieldTreatment::Refused { harmless }, note)) => {
                let is_harmless = harmless
                    .iter()
                    .any(|text| serde_json::from_str::<Value>(text).is_ok_and(|harmless| harmless == value));
                if !is_harmless {
                    return Err(unsupported(&name, &format!("`{name}` is not supported by this server. {note}")));
                }
            }
            Some(_) if strict => {
                return Err(unsupported(
                    &name,
                    &format!("`{name}` has no effect on this server, which is in strict mode."),
                ));
            }
            None if strict => {
                return Err(unsupported(
                    &name,
                    &format!("`{name}` is unknown to this server, which is in strict mode."),
                ));
            }
            Some(_) | None => without_effect.push(name),
        }
    }
    Ok(without_effect)
}

/// The error for a field that would change the answer and cannot be honoured.
pub fn unsupported(param: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).with_param(param).with_code("unsupported_parameter")
}
