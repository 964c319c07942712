//! Lexical search (BM25 over SQLite's FTS5), and the ids that a filter lets through.

use rusqlite::{params_from_iter, types::Value as Sql};

use super::{Result, Store, attributes::condition};
use crate::domain::documents::AttributeFilter;

/// A word in a heading says more than one in the text.
const HEADING_WEIGHT: f64 = 2.0;
/// Words of a query that are looked up; a long text has its subject among the first ones.
const WORDS_MAX: usize = 64;

/// Where a search looks.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub collection_id: &'a str,
    pub filter: Option<&'a AttributeFilter>,
}

/// A chunk that shares words with a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LexicalHit {
    pub chunk_id: u64,
    /// BM25; higher is better. Comparable within one search only.
    pub score: f64,
}

impl Store {
    /// The best chunks for the words of a query, best first.
    pub fn lexical_search(&self, scope: Scope<'_>, query: &str, limit: usize) -> Result<Vec<LexicalHit>> {
        let Some(words) = match_expression(query) else { return Ok(Vec::new()) };
        self.read(|connection| {
            let mut parameters = vec![Sql::Text(words), Sql::Text(scope.collection_id.to_owned())];
            let (join, filter) = match scope.filter {
                Some(filter) => (
                    "JOIN documents ON documents.collection_id = chunks.collection_id AND \
                     documents.file_id = chunks.file_id",
                    format!("AND {}", condition(filter, &mut parameters)),
                ),
                None => ("", String::new()),
            };
            let sql = format!(
                "SELECT chunks.id, -bm25(chunk_words, {HEADING_WEIGHT}, 1.0) AS score
                 FROM chunk_words JOIN chunks ON chunks.id = chunk_words.rowid {join}
                 WHERE chunk_words MATCH ? AND chunks.collection_id = ? {filter}
                 ORDER BY score DESC, chunks.id LIMIT {limit}"
            );
            let mut query = connection.prepare(&sql)?;
            let hits = query.query_map(params_from_iter(parameters), |row| {
                Ok(LexicalHit { chunk_id: row.get(0)?, score: row.get(1)? })
            })?;
            Ok(hits.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Ids of the chunks whose documents a filter lets through.
    pub fn filtered_chunk_ids(&self, collection_id: &str, filter: &AttributeFilter) -> Result<Vec<u64>> {
        self.read(|connection| {
            let mut parameters = vec![Sql::Text(collection_id.to_owned())];
            let condition = condition(filter, &mut parameters);
            let sql = format!(
                "SELECT chunks.id FROM documents JOIN chunks ON chunks.collection_id = documents.collection_id AND
                    chunks.file_id = documents.file_id
                 WHERE documents.collection_id = ? AND {condition}"
            );
            let mut query = connection.prepare(&sql)?;
            Ok(query.query_map(params_from_iter(parameters), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// Any of the query's words, each quoted, so that nothing in it is an operator. `None` if it has no word.
fn match_expression(query: &str) -> Option<String> {
    let words = query.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let quoted: Vec<_> = words.take(WORDS_MAX).map(|word| format!("\"{word}\"")).collect();
    (!quoted.is_empty()).then(|| quoted.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_words_and_no_operators() {
        assert_eq!(
            match_expression("How to AND \"x\" NEAR(y)*?").as_deref(),
            Some("\"How\" OR \"to\" OR \"AND\" OR \"x\" OR \"NEAR\" OR \"y\"")
        );
        assert_eq!(match_expression(" -- '\" "), None);
    }
}
