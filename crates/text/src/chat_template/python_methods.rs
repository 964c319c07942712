//! Methods of Python's strings, lists and dictionaries that minijinja's own Python shims lack or get wrong.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{ValueKind, from_args},
};

/// The method that slices are rewritten to; see `source`.
pub(super) const SLICE_METHOD: &str = "__slice__";

/// minijinja calls this for every method that a value does not have itself.
pub(super) fn call(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if method == SLICE_METHOD {
        return slice(value, arguments);
    }
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str())
        && let Some(result) = string_method(text, method, arguments)?
    {
        return Ok(result);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

/// `None` for a method that is not replaced here.
fn string_method(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            let strips = |c: char| characters.map_or_else(|| is_python_space(c), |set| set.contains(c));
            Value::from(match method {
                "lstrip" => text.trim_start_matches(strips),
                "rstrip" => text.trim_end_matches(strips),
                _ => text.trim_matches(strips),
            })
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(arguments)?;
            strings(split_lines(text, keep_ends.unwrap_or(false)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "rsplit" => rsplit(text, arguments)?,
        "partition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let (before, found, after) = match text.split_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => (text, "", ""),
            };
            strings([before, found, after])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let (before, found, after) = match text.rsplit_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => ("", "", text),
            };
            strings([before, found, after])
        }
        _ => return Ok(None),
    }))
}

fn rsplit(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
    let pieces = usize::try_from(limit.unwrap_or(-1)).map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: empty separator")),
        Some(separator) => text.rsplitn(pieces, separator).collect(),
        None if pieces == usize::MAX => text.split_whitespace().rev().collect(),
        None => {
            let mut rest = text.trim();
            let mut parts = Vec::new();
            while parts.len() + 1 < pieces
                && let Some((before, after)) = rest.rsplit_once(char::is_whitespace)
            {
                parts.push(after);
                rest = before.trim_end();
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    parts.reverse();
    Ok(strings(parts))
}

/// `value[start:stop:step]` of a list or a string; each bound is an integer or none.
fn slice(value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(arguments)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero"));
    }
    match value.kind() {
        ValueKind::String => {
            let characters: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            let indices = slice_indices(characters.len(), start, stop, step);
            Ok(Value::from(indices.map(|index| characters[index]).collect::<String>()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
            Ok(slice_indices(items.len(), start, stop, step).map(|index| items[index].clone()).collect())
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a value of kind {kind} cannot be sliced"))),
    }
}

/// The indices of Python's `slice(start, stop, step).indices(length)`; each is below `length`.
fn slice_indices(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let length = length as i64;
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: Option<i64>, absent: i64| match bound {
        None => absent,
        Some(bound) if bound < 0 => bound.saturating_add(length).max(lowest),
        Some(bound) => bound.min(highest),
    };
    let start = bound(start, if step > 0 { lowest } else { highest });
    let stop = bound(stop, if step > 0 { highest } else { lowest });
    let mut next = start;
    std::iter::from_fn(move || {
        let index = next;
        if if step > 0 { index >= stop } else { index <= stop } {
            return None;
        }
        next = next.saturating_add(step);
        usize::try_from(index).ok()
    })
}

/// The characters that `str.isspace` accepts.
pub(super) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `str.splitlines`: the lines, with or without their line endings.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends_line = |c: char| {
        matches!(c, '\n' | '\r' | '\u{0b}' | '\u{0c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((start, end)) = rest.char_indices().find(|&(_, c)| ends_line(c)) else {
            lines.push(rest);
            break;
        };
        let next = if rest[start..].starts_with("\r\n") { start + 2 } else { start + end.len_utf8() };
        lines.push(&rest[..if keep_ends { next } else { start }]);
        rest = &rest[next..];
    }
    lines
}

fn strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}
