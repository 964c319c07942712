//! A reader over one JSON object that takes fields by name and says precisely what is wrong with them.
//!
//! `null` and absence are the same. A reader takes every field it knows; [`Fields::rest`] is the remainder, which
//! [`super::body`] decides about.

use serde_json::{Map, Value};

use hearth_domain::error::{Error, Result};

/// The fields of one JSON object that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    /// Empty for the body itself, else the path of this object, such as `messages[2]`.
    path: String,
    map: Map<String, Value>,
}

/// The JSON type of a value, as a person would name it.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The error for a value whose JSON type is not the contract's at `path`.
pub fn wrong_type(path: &str, expected: &str, found: &Value) -> Error {
    let place = if path.is_empty() { "The request body".to_owned() } else { format!("`{path}`") };
    let error = Error::new(
        hearth_domain::error::ErrorKind::InvalidRequest,
        format!("{place} must be {expected}, but is {}.", type_name(found)),
    )
    .with_code("invalid_type");
    if path.is_empty() { error } else { error.with_param(path) }
}

/// The error for a value of the right type that the contract does not allow.
pub fn bad_value(path: impl Into<String>, message: impl Into<String>) -> Error {
    Error::invalid(path, message).with_code("invalid_value")
}

/// An integer, also when written as `5.0`, as some serializers do.
pub fn as_integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // 2^53: beyond it a double no longer tells neighbouring integers apart.
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        (!value.is_u64() && number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    })
}

impl Fields {
    /// The body itself.
    pub fn body(value: Value) -> Result<Self> {
        Self::object(value, "")
    }

    pub fn object(value: Value, path: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path: path.to_owned(), map }),
            other => Err(wrong_type(path, "a JSON object", &other)),
        }
    }

    /// The full path of a field of this object.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        // Shifting keeps the order of the rest, in which ignored fields are named.
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Returns a field without taking it.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub fn required(&mut self, name: &str) -> Result<Value> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    /// The error for a missing required field.
    pub fn missing(&self, name: &str) -> Error {
        let path = self.path(name);
        Error::invalid(path.clone(), format!("`{path}` is required.")).with_code("missing_required_parameter")
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    pub fn required_string(&mut self, name: &str) -> Result<String> {
        self.string(name)?.ok_or_else(|| self.missing(name))
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(&self.path(name), "a boolean", &other)),
        }
    }

    /// A number within `minimum..=maximum`.
    pub fn number(&mut self, name: &str, minimum: f64, maximum: f64) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path(name);
        let number = value.as_f64().ok_or_else(|| wrong_type(&path, "a number", &value))?;
        if (minimum..=maximum).contains(&number) {
            Ok(Some(number))
        } else {
            Err(bad_value(path.clone(), format!("`{path}` must be between {minimum} and {maximum}, but is {value}.")))
        }
    }

    /// [`Self::number`] in the precision that sampling uses.
    pub fn float(&mut self, name: &str, minimum: f64, maximum: f64) -> Result<Option<f32>> {
        #[expect(clippy::cast_possible_truncation, reason = "precision only: the range was checked")]
        Ok(self.number(name, minimum, maximum)?.map(|number| number as f32))
    }

    /// An integer within `minimum..=maximum`.
    pub fn integer(&mut self, name: &str, minimum: i64, maximum: i64) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path(name);
        if !value.is_number() {
            return Err(wrong_type(&path, "an integer", &value));
        }
        match as_integer(&value) {
            Some(integer) if (minimum..=maximum).contains(&integer) => Ok(Some(integer)),
            _ => Err(bad_value(
                path.clone(),
                format!("`{path}` must be an integer between {minimum} and {maximum}, but is {value}."),
            )),
        }
    }

    /// [`Self::integer`] for counts: from `minimum`, with no upper bound in the contract.
    pub fn count(&mut self, name: &str, minimum: usize) -> Result<Option<usize>> {
        // A count that no memory could hold is refused here, before a caller multiplies with it.
        const COUNT_MAX: i64 = i32::MAX as i64;
        let minimum = i64::try_from(minimum).unwrap_or(COUNT_MAX);
        Ok(self.integer(name, minimum, COUNT_MAX)?.and_then(|count| usize::try_from(count).ok()))
    }

    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    pub fn map(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(&self.path(name), "an object", &other)),
        }
    }

    /// A nested object, with its own reader.
    pub fn nested(&mut self, name: &str) -> Result<Option<Self>> {
        let path = self.path(name);
        self.take(name).map(|value| Self::object(value, &path)).transpose()
    }

    /// An array of token ids.
    pub fn token_ids(&mut self, name: &str) -> Result<Option<Vec<u32>>> {
        let path = self.path(name);
        self.array(name)?.map(|items| token_ids(items, &path)).transpose()
    }

    /// The fields that were not read, in their original order, without nulls.
    pub fn rest(self) -> Map<String, Value> {
        let mut map = self.map;
        map.retain(|_, value| !value.is_null());
        map
    }
}

/// Token ids from a JSON array found at `path`.
pub fn token_ids(items: Vec<Value>, path: &str) -> Result<Vec<u32>> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            as_integer(&item).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let place = format!("{path}[{index}]");
                bad_value(place.clone(), format!("`{place}` must be a token id, but is {}.", shortened(&item)))
            })
        })
        .collect()
}

/// A value from the request, short enough for an error message.
pub fn shortened(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        text
    } else {
        format!("{}...", text.chars().take(LONGEST).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_absent_and_errors_name_their_place() {
        let mut fields = Fields::object(json!({"a": null, "b": "x", "c": 3.0, "d": 1e300}), "outer").unwrap();
        assert_eq!(fields.string("a").unwrap(), None);
        let error = fields.boolean("b").unwrap_err();
        assert_eq!(error.param(), Some("outer.b"));
        assert_eq!(error.message(), "`outer.b` must be a boolean, but is a string.");
        assert_eq!(fields.integer("c", 0, 5).unwrap(), Some(3));
        assert!(fields.integer("d", 0, i64::MAX).is_err());
        assert!(fields.rest().is_empty());
    }

    #[test]
    fn the_outermost_integers_survive() {
        let mut fields = Fields::body(json!({"low": i64::MIN, "high": i64::MAX, "over": u64::MAX})).unwrap();
        assert_eq!(fields.integer("low", i64::MIN, i64::MAX).unwrap(), Some(i64::MIN));
        assert_eq!(fields.integer("high", i64::MIN, i64::MAX).unwrap(), Some(i64::MAX));
        assert!(fields.integer("over", i64::MIN, i64::MAX).is_err());
    }
}
