//! Filters and tests whose jinja2 behaviour differs from minijinja's: lazy results that are not lists, `none` that is
//! not iterable, the exact output of `indent` and `trim`.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs},
};

use super::{
    python_json::JsonStyle,
    python_methods::{is_python_space, split_lines},
};

/// The filter that `source` wraps around what a loop iterates over.
pub(super) const LOOP_FILTER: &str = "__iter__";

/// Registers all of them in `environment`.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
    environment.add_filter("trim", trim);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("map", map);
    environment.add_filter("select", select);
    environment.add_filter("reject", reject);
    environment.add_filter("selectattr", select_attribute);
    environment.add_filter("rejectattr", reject_attribute);
    environment.add_filter(LOOP_FILTER, iterate);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("number", is_number);
}

fn to_json(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    JsonStyle::from_arguments(&positional, &kwargs)?.dumps(value).map(Value::from)
}

/// jinja2's `indent(width=4, first=False, blank=False)`: a trailing line feed starts another, empty line.
fn indent(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| positional.get(place).cloned()))
    };
    let width = argument(0, "width")?;
    let indentation = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(width.as_i64().unwrap_or(4).clamp(0, 256) as usize),
        },
    };
    let first = argument(1, "first")?.is_some_and(|flag| flag.is_true());
    let blank = argument(2, "blank")?.is_some_and(|flag| flag.is_true());
    kwargs.assert_all_used()?;

    let text = value.to_string() + "\n";
    let mut out = String::with_capacity(text.len());
    for (number, line) in split_lines(&text, false).into_iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        if if number == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = value.to_string();
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => text.trim_matches(is_python_space).to_owned(),
    }
}

/// An undefined value has length zero; a lazy value has none.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    filters::length(value)
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(lazy(Vec::new()));
    }
    filters::items(value)
}

fn map(state: &mut State, value: Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    filters::map(state, or_nothing(value), arguments).map(lazy)
}

fn select(state: &mut State, value: Value, test: Option<&str>, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    filters::select(state, or_nothing(value), test.map(Into::into), arguments).map(lazy)
}

fn reject(state: &mut State, value: Value, test: Option<&str>, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    filters::reject(state, or_nothing(value), test.map(Into::into), arguments).map(lazy)
}

fn select_attribute(
    state: &mut State,
    value: Value,
    attribute: &str,
    test: Option<&str>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    filters::selectattr(state, or_nothing(value), attribute.into(), test.map(Into::into), arguments).map(lazy)
}

fn reject_attribute(
    state: &mut State,
    value: Value,
    attribute: &str,
    test: Option<&str>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    filters::rejectattr(state, or_nothing(value), attribute.into(), test.map(Into::into), arguments).map(lazy)
}

/// A sequence that is not a list, like jinja2's generators: it has no length and no JSON, and is always true.
fn lazy(values: Vec<Value>) -> Value {
    // A filtering iterator does not announce a length, and without one the value has none.
    Value::make_iterable(move || values.clone().into_iter().filter(|_| true))
}

/// jinja2's mapping and selecting filters treat any false value as an empty list.
fn or_nothing(value: Value) -> Value {
    if value.is_true() { value } else { Value::from(()) }
}

/// What may be looped over: everything that minijinja allows, except `none`.
fn iterate(value: Value) -> Result<Value, Error> {
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "none is not iterable"));
    }
    Ok(value)
}

/// Python calls anything with a length and an index a sequence.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Python's `bool` is a number.
fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}
