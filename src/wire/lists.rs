//! Lists paged as OpenAI does: `limit`, `order`, `after` and `before` in the query, `has_more` and the first and last
//! ids in the answer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    body::{FieldSpec, honoured},
    fields::{bad_value, shortened},
};
use hearth_domain::{documents::PageRequest, error::Result};

/// How many entries a page has: at most, and by default.
#[derive(Clone, Copy, Debug)]
pub struct PageSizes {
    pub largest: usize,
    pub default: usize,
}

pub const PAGE: PageSizes = PageSizes { largest: 100, default: 20 };
/// OpenAI's list of files differs.
pub const FILES_PAGE: PageSizes = PageSizes { largest: 10_000, default: 10_000 };

/// The `limit` parameter of a list with the page sizes of [`PAGE`].
pub const LIMIT: FieldSpec =
    honoured("limit", r#"{"type":"integer","minimum":1,"maximum":100}"#, "Entries of a page at most. Default 20.");
pub const ORDER: FieldSpec =
    honoured("order", r#"{"enum":["asc","desc"]}"#, "By age; `desc`, the newest first, is the default.");

/// The cursors of a list whose ids match a JSON Schema pattern.
pub const fn after(id: &'static str) -> FieldSpec {
    honoured("after", id, "The page that begins behind this id.")
}

pub const fn before(id: &'static str) -> FieldSpec {
    honoured("before", id, "The page that ends before this id.")
}

/// Takes the requested page of a list out of a query's parameters; ids of the list begin with `prefix`.
///
/// # Errors
/// 400 for a cursor that was never an id of such a list, and for other invalid values.
pub fn take_page(parameters: &mut BTreeMap<String, String>, sizes: PageSizes, prefix: &str) -> Result<PageRequest> {
    let limit = take_limit(parameters, sizes)?;
    let ascending = take_one_of(parameters, "order", &["asc", "desc"])?.as_deref() == Some("asc");
    let mut cursor = |name: &str| match take(parameters, name) {
        Some(cursor) if !cursor.starts_with(prefix) => {
            let found = shortened(&Value::String(cursor));
            Err(bad_value(name, format!("`{name}` must be an id of this list, but is {found}.")))
        }
        cursor => Ok(cursor),
    };
    Ok(PageRequest { limit, ascending, after: cursor("after")?, before: cursor("before")? })
}

/// The number of entries on a page.
pub(super) fn take_limit(parameters: &mut BTreeMap<String, String>, sizes: PageSizes) -> Result<usize> {
    let Some(text) = parameters.remove("limit") else { return Ok(sizes.default) };
    text.parse().ok().filter(|limit| (1..=sizes.largest).contains(limit)).ok_or_else(|| {
        let found = shortened(&Value::String(text));
        bad_value("limit", format!("`limit` must be an integer between 1 and {}, but is {found}.", sizes.largest))
    })
}

/// A query parameter; an empty one is absent.
pub fn take(parameters: &mut BTreeMap<String, String>, name: &str) -> Option<String> {
    parameters.remove(name).filter(|value| !value.is_empty())
}

/// A parameter limited to these values.
pub fn take_one_of(parameters: &mut BTreeMap<String, String>, name: &str, allowed: &[&str]) -> Result<Option<String>> {
    let Some(value) = parameters.remove(name) else { return Ok(None) };
    if allowed.contains(&&*value) {
        return Ok(Some(value));
    }
    let found = shortened(&Value::String(value));
    Err(bad_value(name, format!("`{name}` must be one of {}, but is {found}.", allowed.join(", "))))
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl<T> List<T> {
    pub fn new(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> &str) -> Self {
        let first_id = data.first().map(|entry| id(entry).to_owned());
        let last_id = data.last().map(|entry| id(entry).to_owned());
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "x"),
            ("limit", ""),
            ("order", "up"),
            ("after", "y1"),
            ("before", "y"),
        ] {
            let mut parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(take_page(&mut parameters, PAGE, "x").unwrap_err().param(), Some(name));
        }
        let mut parameters = BTreeMap::from([("after".to_owned(), String::new())]);
        assert_eq!(take_page(&mut parameters, PAGE, "x").unwrap().after, None);
    }
}
