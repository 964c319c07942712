//! Lists as OpenAI pages them: `limit`, `order`, `after` and `before` in the query, `has_more` and the ends' ids in the
//! answer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    body::{FieldSpec, honoured},
    fields::{bad_value, shortened},
};
use hearth_domain::error::Result;

/// How many entries a page has: what is asked for at most, and what unasked.
#[derive(Clone, Copy, Debug)]
pub struct PageSizes {
    pub largest: usize,
    pub default: usize,
}

pub const PAGE: PageSizes = PageSizes { largest: 100, default: 20 };
/// OpenAI's list of files differs.
pub const FILES_PAGE: PageSizes = PageSizes { largest: 10_000, default: 10_000 };

/// Which page of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    limit: usize,
    ascending: bool,
    after: Option<String>,
    before: Option<String>,
}

/// The parameters of a list whose pages have the sizes of [`PAGE`].
pub const LIMIT: FieldSpec =
    honoured("limit", r#"{"type":"integer","minimum":1,"maximum":100}"#, "Entries of a page at most. Default 20.");
pub const ORDER: FieldSpec =
    honoured("order", r#"{"enum":["asc","desc"]}"#, "By age; `desc`, the newest first, is the default.");

/// The cursors of a list, whose ids match a pattern as JSON Schema has it.
pub const fn after(id: &'static str) -> FieldSpec {
    honoured("after", id, "The page that begins behind this id.")
}

pub const fn before(id: &'static str) -> FieldSpec {
    honoured("before", id, "The page that ends before this id.")
}

impl ListQuery {
    /// Takes what it knows out of the query's parameters.
    pub fn take(parameters: &mut BTreeMap<String, String>, sizes: PageSizes) -> Result<Self> {
        let limit = take_limit(parameters, sizes)?;
        let ascending = take_one_of(parameters, "order", &["asc", "desc"])?.as_deref() == Some("asc");
        Ok(Self { limit, ascending, after: take(parameters, "after"), before: take(parameters, "before") })
    }

    /// The page of `entries`, which come the newest first; `id` is that of an entry.
    ///
    /// A cursor that is not in the list any more, as when each entry is deleted once it has been seen, stands where its
    /// id would: ids sort by their time.
    ///
    /// # Errors
    /// 400 for a cursor that never was an id of such a list.
    pub fn page<T>(&self, mut entries: Vec<T>, prefix: &str, id: impl Fn(&T) -> &str) -> Result<(Vec<T>, bool)> {
        if self.ascending {
            entries.reverse();
        }
        // The entries that go before the cursor, and with it those up to it.
        let place = |name: &str, cursor: &str| -> Result<(usize, usize)> {
            if !cursor.starts_with(prefix) {
                let found = shortened(&Value::String(cursor.to_owned()));
                return Err(bad_value(name, format!("`{name}` must be an id of this list, but is {found}.")));
            }
            if let Some(index) = entries.iter().position(|entry| id(entry) == cursor) {
                return Ok((index, index + 1));
            }
            let goes_before = |entry: &&T| if self.ascending { id(entry) < cursor } else { id(entry) > cursor };
            let index = entries.iter().take_while(goes_before).count();
            Ok((index, index))
        };
        let first = self.after.as_deref().map(|after| place("after", after)).transpose()?.map_or(0, |(_, next)| next);
        let end = self.before.as_deref().map(|before| place("before", before)).transpose()?;
        let end = end.map_or(entries.len(), |(index, _)| index).max(first);
        // Backwards, the page is the one that ends at the cursor.
        let (from, to) = if self.before.is_some() && self.after.is_none() {
            (end.saturating_sub(self.limit).max(first), end)
        } else {
            (first, end.min(first + self.limit))
        };
        let has_more = to - from < end - first;
        entries.truncate(to);
        entries.drain(..from);
        Ok((entries, has_more))
    }
}

/// The entries of a page.
pub(super) fn take_limit(parameters: &mut BTreeMap<String, String>, sizes: PageSizes) -> Result<usize> {
    let Some(text) = parameters.remove("limit") else { return Ok(sizes.default) };
    text.parse().ok().filter(|limit| (1..=sizes.largest).contains(limit)).ok_or_else(|| {
        let found = shortened(&Value::String(text));
        bad_value("limit", format!("`limit` must be an integer between 1 and {}, but is {found}.", sizes.largest))
    })
}

/// A parameter of a query; an empty one is absent.
pub fn take(parameters: &mut BTreeMap<String, String>, name: &str) -> Option<String> {
    parameters.remove(name).filter(|value| !value.is_empty())
}

/// A parameter that has one of these values.
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

    fn page(query: &[(&str, &str)]) -> Result<(Vec<&'static str>, bool)> {
        let mut parameters = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ListQuery::take(&mut parameters, PAGE)?.page(vec!["x9", "x7", "x5", "x3", "x1"], "x", |entry| entry)
    }

    #[test]
    fn pages_go_both_ways_from_a_cursor() {
        for (query, expected, has_more) in [
            (&[][..], &["x9", "x7", "x5", "x3", "x1"][..], false),
            (&[("limit", "2")], &["x9", "x7"], true),
            (&[("limit", "2"), ("after", "x7")], &["x5", "x3"], true),
            (&[("limit", "2"), ("after", "x3")], &["x1"], false),
            (&[("limit", "2"), ("before", "x3")], &["x7", "x5"], true),
            (&[("limit", "2"), ("before", "x7")], &["x9"], false),
            (&[("limit", "2"), ("order", "asc")], &["x1", "x3"], true),
            (&[("order", "asc"), ("after", "x3")], &["x5", "x7", "x9"], false),
            (&[("after", "x9"), ("before", "x3")], &["x7", "x5"], false),
            (&[("after", "x1")], &[], false),
            // Deleted meanwhile.
            (&[("limit", "1"), ("after", "x6")], &["x5"], true),
            (&[("order", "asc"), ("after", "x6")], &["x7", "x9"], false),
        ] {
            let (found, more) = page(query).unwrap();
            assert_eq!((&found[..], more), (expected, has_more), "{query:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("after", "y1")] {
            assert_eq!(page(&[(name, value)]).unwrap_err().param(), Some(name));
        }
    }
}
