//! The key-value section of a GGUF file, with the file's own types, read with the widenings that readers rely on.
//!
//! Writers disagree on integer widths (a head count may be `u32` or `u64`, a per-layer list `i32` or `u32`), so the
//! accessors accept any width that holds the value exactly. Strings are UTF-8 in practice; one that is not is kept as
//! bytes rather than altered, and the text accessors do not find it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::{GgufError, Strings};

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    /// A string that is not UTF-8.
    Bytes(Vec<u8>),
    Array(Array),
}

/// A list of values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Strings),
    /// Strings, at least one of which is not UTF-8.
    Bytes(Vec<Vec<u8>>),
    Array(Vec<Array>),
}

impl Value {
    /// The value as an integer, if it is one.
    fn integer(&self) -> Option<i128> {
        Some(match self {
            Self::U8(value) => i128::from(*value),
            Self::I8(value) => i128::from(*value),
            Self::U16(value) => i128::from(*value),
            Self::I16(value) => i128::from(*value),
            Self::U32(value) => i128::from(*value),
            Self::I32(value) => i128::from(*value),
            Self::U64(value) => i128::from(*value),
            Self::I64(value) => i128::from(*value),
            _ => return None,
        })
    }

    /// The kind of the value, for error messages.
    fn kind(&self) -> String {
        match self {
            Self::Array(array) => format!("a list of {} {}", array.len(), array.element_kind()),
            Self::Bytes(_) => "a string that is not UTF-8".to_owned(),
            Self::String(text) if text.chars().count() > 40 => "a long string".to_owned(),
            other => other.to_string(),
        }
    }
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Self::U8(items) => items.len(),
            Self::I8(items) => items.len(),
            Self::U16(items) => items.len(),
            Self::I16(items) => items.len(),
            Self::U32(items) => items.len(),
            Self::I32(items) => items.len(),
            Self::U64(items) => items.len(),
            Self::I64(items) => items.len(),
            Self::F32(items) => items.len(),
            Self::F64(items) => items.len(),
            Self::Bool(items) => items.len(),
            Self::String(items) => items.len(),
            Self::Bytes(items) => items.len(),
            Self::Array(items) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_kind(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "strings",
            Self::Bytes(_) => "strings that are not all UTF-8",
            Self::Array(_) => "lists",
        }
    }
}

/// Scalars in full, lists by length, as `hearth models show` prints them.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(value) => value.fmt(f),
            Self::I8(value) => value.fmt(f),
            Self::U16(value) => value.fmt(f),
            Self::I16(value) => value.fmt(f),
            Self::U32(value) => value.fmt(f),
            Self::I32(value) => value.fmt(f),
            Self::U64(value) => value.fmt(f),
            Self::I64(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::String(value) => write!(f, "{value:?}"),
            Self::Bytes(value) => write!(f, "{:?}", String::from_utf8_lossy(value)),
            Self::Array(array) => write!(f, "[{} {}]", array.len(), array.element_kind()),
        }
    }
}

/// All metadata of a model, sorted by key.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// The path that errors name.
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// `path` is the file named in errors.
    pub fn new(path: impl Into<PathBuf>, values: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { path: path.into(), values: values.into_iter().collect() }
    }

    /// The file these values come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Any non-negative integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Any integer that fits a `u32`, such as a token id or a count.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Any integer.
    pub fn i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.integer()?.try_into().ok()
    }

    /// Any number.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match self.get(key)? {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            other => other.integer().map(|value| value as f32),
        }
    }

    /// A flag; some writers store it as 0 or 1.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            other => match other.integer()? {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
        }
    }

    pub fn array(&self, key: &str) -> Option<&Array> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    pub fn strings(&self, key: &str) -> Option<&Strings> {
        match self.array(key)? {
            Array::String(items) => Some(items),
            _ => None,
        }
    }

    pub fn f32s(&self, key: &str) -> Option<&[f32]> {
        match self.array(key)? {
            Array::F32(items) => Some(items),
            _ => None,
        }
    }

    /// A list of integers of any width that fits, such as one head count per layer.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        match self.array(key)? {
            Array::U8(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::I8(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::U16(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::I16(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::U32(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::I32(items) => Some(items.iter().map(|item| i64::from(*item)).collect()),
            Array::U64(items) => items.iter().map(|item| i64::try_from(*item).ok()).collect(),
            Array::I64(items) => Some(items.clone()),
            _ => None,
        }
    }

    /// A list of flags; some writers store them as 0 and 1.
    pub fn bools(&self, key: &str) -> Option<Vec<bool>> {
        match self.array(key)? {
            Array::Bool(items) => Some(items.clone()),
            _ => self
                .integers(key)?
                .into_iter()
                .map(|item| match item {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                })
                .collect(),
        }
    }

    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.str(key).ok_or_else(|| self.refusal(key, "a string"))
    }

    pub fn require_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.u64(key).ok_or_else(|| self.refusal(key, "a whole number that is not negative"))
    }

    pub fn require_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.f32(key).ok_or_else(|| self.refusal(key, "a number"))
    }

    /// Why an accessor found nothing: the key is missing, or its value has another type.
    pub fn refusal(&self, key: &str, expected: &'static str) -> GgufError {
        let (path, key) = (self.path.clone(), key.to_owned());
        match self.get(&key) {
            None => GgufError::MissingKey { path, key },
            Some(value) => GgufError::WrongValue { path, key, expected, found: value.kind() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let values = [
            ("byte", Value::U8(7)),
            ("negative", Value::I32(-1)),
            ("large", Value::U64(u64::MAX)),
            ("half", Value::F64(0.5)),
            ("flag", Value::Bool(true)),
            ("old flag", Value::U8(1)),
            ("name", Value::String("hearth".into())),
            ("garbled", Value::Bytes(vec![0xFF])),
            ("heads", Value::Array(Array::U32(vec![8, 4]))),
            ("sliding", Value::Array(Array::I32(vec![0, 1]))),
            ("huge", Value::Array(Array::U64(vec![u64::MAX]))),
        ];
        Metadata::new("model.gguf", values.map(|(key, value)| (key.to_owned(), value)))
    }

    #[test]
    fn integers_widen_when_the_value_fits() {
        let metadata = metadata();
        assert_eq!(metadata.u64("byte"), Some(7));
        assert_eq!(metadata.i64("byte"), Some(7));
        assert_eq!(metadata.f32("byte"), Some(7.0));
        assert_eq!(metadata.u64("negative"), None);
        assert_eq!(metadata.i64("negative"), Some(-1));
        assert_eq!(metadata.i64("large"), None);
        assert_eq!(metadata.u32("large"), None);
        assert_eq!(metadata.f32("half"), Some(0.5));
        assert_eq!(metadata.u64("half"), None);
        assert_eq!(metadata.integers("heads"), Some(vec![8, 4]));
        assert_eq!(metadata.integers("huge"), None);
    }

    #[test]
    fn flags_may_be_numbers() {
        let metadata = metadata();
        assert_eq!(metadata.bool("flag"), Some(true));
        assert_eq!(metadata.bool("old flag"), Some(true));
        assert_eq!(metadata.bool("byte"), None);
        assert_eq!(metadata.bools("sliding"), Some(vec![false, true]));
        assert_eq!(metadata.bools("heads"), None);
    }

    #[test]
    fn refusals_name_file_key_and_kind() {
        let metadata = metadata();
        assert_eq!(
            metadata.require_u64("nothing").unwrap_err().to_string(),
            "model.gguf has no metadata key nothing: the file is incomplete, convert it again"
        );
        assert_eq!(
            metadata.require_u64("heads").unwrap_err().to_string(),
            "metadata key heads of model.gguf is a list of 2 u32 where a whole number that is not negative is needed"
        );
        assert_eq!(
            metadata.require_str("garbled").unwrap_err().to_string(),
            "metadata key garbled of model.gguf is a string that is not UTF-8 where a string is needed"
        );
    }
}
