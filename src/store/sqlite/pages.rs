//! Pages of lists, cut by the database: it reads only the rows that are shown, plus one to know whether there are more.
//!
//! A list is ordered by its rows' times, and by their ids where those are equal. A cursor is the id of a row. If that
//! row no longer exists, as when each entry is deleted once it has been seen, the cursor stands where its id would: ids
//! sort by time.

use hearth_domain::documents::{Page, PageRequest};
use rusqlite::{Connection, Row, params_from_iter, types::Value as Sql};

use crate::store::Result;

/// A list: the selection with its condition, and the columns that it is ordered by.
pub(super) struct Listing<'l> {
    /// `SELECT ... FROM ... WHERE ...`
    pub(super) sql: String,
    pub(super) parameters: Vec<Sql>,
    pub(super) created: &'l str,
    pub(super) id: &'l str,
}

/// The requested page of a list. `created_of` finds the time of the row with an id.
pub(super) fn page<T>(
    connection: &Connection,
    listing: Listing<'_>,
    request: &PageRequest,
    created_of: impl Fn(&str) -> Result<Option<i64>>,
    read_row: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Page<T>> {
    let Listing { mut sql, mut parameters, created, id } = listing;
    let (further, nearer) = if request.ascending { (">", "<") } else { ("<", ">") };
    for (cursor, comparison) in [(&request.after, further), (&request.before, nearer)] {
        let Some(cursor) = cursor else { continue };
        match created_of(cursor)? {
            Some(time) => {
                sql.push_str(&format!(" AND ({created}, {id}) {comparison} (?, ?)"));
                parameters.extend([Sql::Integer(time), Sql::Text(cursor.clone())]);
            }
            None => {
                sql.push_str(&format!(" AND {id} {comparison} ?"));
                parameters.push(Sql::Text(cursor.clone()));
            }
        }
    }
    // Backwards, the page is the one that ends at the cursor.
    let backwards = request.before.is_some() && request.after.is_none();
    let direction = if request.ascending == backwards { "DESC" } else { "ASC" };
    sql.push_str(&format!(" ORDER BY {created} {direction}, {id} {direction} LIMIT ?"));
    parameters.push(Sql::Integer(i64::try_from(request.limit).unwrap_or(i64::MAX).saturating_add(1)));
    let mut query = connection.prepare(&sql)?;
    let rows = query.query_map(params_from_iter(parameters), read_row)?;
    let mut entries: Vec<T> = rows.collect::<rusqlite::Result<_>>()?;
    let has_more = entries.len() > request.limit;
    entries.truncate(request.limit);
    if backwards {
        entries.reverse();
    }
    Ok(Page { entries, has_more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    /// Rows 1, 3, 5, 7, 9 at those times, except that 7 has the time of 5.
    fn listed(after: Option<&str>, before: Option<&str>, limit: usize, ascending: bool) -> (Vec<String>, bool) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (id TEXT, created INTEGER)").unwrap();
        for (id, created) in [("x1", 1), ("x3", 3), ("x5", 5), ("x7", 5), ("x9", 9)] {
            connection.execute("INSERT INTO t VALUES (?, ?)", rusqlite::params![id, created]).unwrap();
        }
        let text = |text: Option<&str>| text.map(str::to_owned);
        let request = PageRequest { limit, ascending, after: text(after), before: text(before) };
        let sql = "SELECT id FROM t WHERE true".to_owned();
        let listing = Listing { sql, parameters: Vec::new(), created: "created", id: "id" };
        let created_of = |id: &str| {
            let created = connection.query_row("SELECT created FROM t WHERE id = ?", [id], |row| row.get(0));
            rusqlite::OptionalExtension::optional(created).map_err(StoreError::from)
        };
        let page = page(&connection, listing, &request, created_of, |row| row.get(0)).unwrap();
        (page.entries, page.has_more)
    }

    #[test]
    fn pages_go_both_ways_from_a_cursor() {
        for (after, before, limit, ascending, expected, has_more) in [
            (None, None, 9, false, &["x9", "x7", "x5", "x3", "x1"][..], false),
            (None, None, 2, false, &["x9", "x7"], true),
            (Some("x7"), None, 2, false, &["x5", "x3"], true),
            (Some("x3"), None, 2, false, &["x1"], false),
            (None, Some("x3"), 2, false, &["x7", "x5"], true),
            (None, Some("x7"), 2, false, &["x9"], false),
            (None, None, 2, true, &["x1", "x3"], true),
            (Some("x3"), None, 9, true, &["x5", "x7", "x9"], false),
            (None, Some("x7"), 2, true, &["x3", "x5"], true),
            (Some("x9"), Some("x3"), 9, false, &["x7", "x5"], false),
            (Some("x1"), None, 9, false, &[], false),
            // Deleted meanwhile.
            (Some("x6"), None, 1, false, &["x5"], true),
            (Some("x6"), None, 9, true, &["x7", "x9"], false),
        ] {
            let found = listed(after, before, limit, ascending);
            assert_eq!(
                (found.0, found.1),
                (expected.iter().map(|&id| id.to_owned()).collect(), has_more),
                "{after:?} {before:?}"
            );
        }
    }
}
