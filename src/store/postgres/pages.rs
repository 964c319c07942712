//! Pages of lists, cut by the database; see the other store's.

use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};

use super::storable;
use crate::store::Result;
use hearth_domain::documents::{Page, PageRequest};

/// A list: the selection with its condition, and the columns that it is ordered by.
pub(super) struct Listing<'l> {
    /// `SELECT ... FROM ... WHERE ...`
    pub(super) sql: String,
    pub(super) values: Vec<String>,
    pub(super) created: &'l str,
    pub(super) id: &'l str,
    /// Selects the time of a row by the values `of` and its id.
    pub(super) created_of: &'l str,
    pub(super) of: Vec<String>,
}

enum Value {
    Text(String),
    Number(i64),
}

impl Value {
    fn with_type(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Text(text) => (text, Type::TEXT),
            Self::Number(number) => (number, Type::INT8),
        }
    }
}

/// The requested page of a list.
pub(super) async fn page<T>(
    client: &Client,
    listing: Listing<'_>,
    request: &PageRequest,
    read_row: fn(&Row) -> T,
) -> Result<Page<T>> {
    let Listing { mut sql, values, created, id, created_of, of } = listing;
    let mut values: Vec<Value> = values.into_iter().map(Value::Text).collect();
    let (further, nearer) = if request.ascending { (">", "<") } else { ("<", ">") };
    for (cursor, comparison) in [(&request.after, further), (&request.before, nearer)] {
        let Some(cursor) = cursor.as_deref().map(storable) else { continue };
        let asked: Vec<Value> =
            of.iter().map(String::as_str).chain([&*cursor]).map(|text| Value::Text(text.to_owned())).collect();
        let asked: Vec<_> = asked.iter().map(Value::with_type).collect();
        let time = client.query_typed(created_of, &asked).await?.first().map(|row| row.get::<_, i64>(0));
        let next = values.len() + 1;
        match time {
            Some(time) => {
                sql.push_str(&format!(" AND ({created}, {id}) {comparison} (${next}, ${})", next + 1));
                values.extend([Value::Number(time), Value::Text(cursor.into_owned())]);
            }
            None => {
                sql.push_str(&format!(" AND {id} {comparison} ${next}"));
                values.push(Value::Text(cursor.into_owned()));
            }
        }
    }
    // Backwards, the page is the one that ends at the cursor.
    let backwards = request.before.is_some() && request.after.is_none();
    let direction = if request.ascending == backwards { "DESC" } else { "ASC" };
    sql.push_str(&format!(" ORDER BY {created} {direction}, {id} {direction} LIMIT ${}", values.len() + 1));
    values.push(Value::Number(i64::try_from(request.limit).unwrap_or(i64::MAX).saturating_add(1)));
    let values: Vec<_> = values.iter().map(Value::with_type).collect();
    let rows = client.query_typed(&sql, &values).await?;
    let mut entries: Vec<T> = rows.iter().map(read_row).collect();
    let has_more = entries.len() > request.limit;
    entries.truncate(request.limit);
    if backwards {
        entries.reverse();
    }
    Ok(Page { entries, has_more })
}
