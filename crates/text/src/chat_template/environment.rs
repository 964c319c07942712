//! minijinja configured as `transformers` configures jinja2: its whitespace rules, its loop controls, its filters and
//! globals (`tojson`, `raise_exception`, `strftime_now`), and Python's semantics where the two languages differ.

use std::fmt;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, syntax::SyntaxConfig,
    value::ValueKind,
};

use super::{
    MAX_RENDER_DEPTH, MAX_RENDER_STEPS, TEMPLATE_NAME, TemplateError, python_filters, python_json::number_text,
    python_methods, source,
};

/// The message of a template's `raise_exception`; the source of the error that carries it.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// An environment that holds `source`, compiled under the name [`TEMPLATE_NAME`].
pub(super) fn environment(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MAX_RENDER_STEPS));
    environment.set_recursion_limit(MAX_RENDER_DEPTH);
    environment.set_formatter(write_value);
    environment.set_unknown_method_callback(python_methods::call);
    python_filters::register(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned(TEMPLATE_NAME, source::for_minijinja(source))?;
    Ok(environment)
}

fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number {
        return out.write_str(&number_text(value)).map_err(Error::from);
    }
    minijinja::escape_formatter(out, state, value)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
        .with_source(Refusal(message.to_string())))
}

/// The local time, formatted with a `strftime` pattern.
fn strftime_now(pattern: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(pattern, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({pattern:?}): {error}")))
}
