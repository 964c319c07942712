//! `json.dumps` as Python prints it: separators `", "` and `": "`, non-ASCII escaped only on request, and HTML never.
//! The template filter `tojson` of `transformers` is this function.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// Deeper nesting is refused; Python stops near 1000.
const MAX_DEPTH: usize = 200;

/// The options of `json.dumps` that templates may give.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// The indentation of one level; `None` puts everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

impl JsonStyle {
    /// From the arguments of `tojson(ensure_ascii, indent, separators, sort_keys)`, positional or by name.
    pub(super) fn from_arguments(positional: &[Value], kwargs: &Kwargs) -> Result<Self, Error> {
        let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
            let named: Option<Value> = kwargs.get(name)?;
            Ok(named.or_else(|| positional.get(place).cloned()))
        };
        let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
        let indent = match argument(1, "indent")? {
            None => None,
            Some(value) if value.is_none() || value.is_undefined() => None,
            Some(value) => Some(match value.as_str() {
                Some(text) => text.to_owned(),
                // Python treats a negative number as zero.
                None => " ".repeat(value.as_i64().unwrap_or(0).clamp(0, 64) as usize),
            }),
        };
        let mut style = Self {
            ensure_ascii,
            item_separator: if indent.is_some() { ",".to_owned() } else { ", ".to_owned() },
            key_separator: ": ".to_owned(),
            indent,
            sort_keys: argument(3, "sort_keys")?.is_some_and(|value| value.is_true()),
        };
        if let Some(separators) = argument(2, "separators")?
            && !separators.is_none()
        {
            style.item_separator = separators.get_item_by_index(0)?.to_string();
            style.key_separator = separators.get_item_by_index(1)?.to_string();
        }
        kwargs.assert_all_used()?;
        Ok(style)
    }

    /// The JSON text of `value`.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write_value(&mut out, value, 0)?;
        Ok(out)
    }

    fn write_value(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply for tojson"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number_text(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.write_map(out, value, depth)?,
            // The sum of two lists is also of this kind; a value without a length is a generator, which Python refuses.
            ValueKind::Iterable if value.len().is_some() => self.write_items(out, value, depth)?,
            ValueKind::Seq => self.write_items(out, value, depth)?,
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: an object of kind {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn write_items(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        out.push('[');
        let mut first = true;
        for item in value.try_iter()?.checked() {
            if !first {
                out.push_str(&self.item_separator);
            }
            first = false;
            self.write_line_break(out, depth + 1);
            self.write_value(out, &item?, depth + 1)?;
        }
        if !first {
            self.write_line_break(out, depth);
        }
        out.push(']');
        Ok(())
    }

    fn write_map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
        if self.sort_keys {
            keys.sort();
        }
        out.push('{');
        let mut first = true;
        for key in keys {
            if !first {
                out.push_str(&self.item_separator);
            }
            first = false;
            self.write_line_break(out, depth + 1);
            match key.kind() {
                ValueKind::String => self.write_string(out, key.as_str().unwrap_or_default()),
                ValueKind::None => out.push_str("\"null\""),
                ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
                _ => self.write_string(out, &number_text(&key)),
            }
            out.push_str(&self.key_separator);
            self.write_value(out, &value.get_item(&key)?, depth + 1)?;
        }
        if !first {
            self.write_line_break(out, depth);
        }
        out.push('}');
        Ok(())
    }

    fn write_line_break(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{08}' => out.push_str("\\b"),
                '\u{0c}' => out.push_str("\\f"),
                control if (control as u32) < 0x20 => write_escape(out, control as u16),
                wide if self.ensure_ascii && !wide.is_ascii() => {
                    let mut units = [0; 2];
                    for unit in wide.encode_utf16(&mut units) {
                        write_escape(out, *unit);
                    }
                }
                plain => out.push(plain),
            }
        }
        out.push('"');
    }
}

fn write_escape(out: &mut String, unit: u16) {
    write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
}

/// A number as Python's `repr` and `json.dumps` write it.
pub(super) fn number_text(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) => float_repr(number),
        Err(_) => value.to_string(),
    }
}

/// `repr(float)`: the shortest digits that read back to the same value, with an exponent from 1e16 up and below 1e-4.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (0.1, "0.1"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (123456.789, "123456.789"),
        ] {
            assert_eq!(float_repr(number), text);
        }
    }
}
