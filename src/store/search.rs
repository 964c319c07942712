//! Lexical search (BM25 over SQLite's FTS5), and the ids that a filter lets through.

use rusqlite::{params_from_iter, types::Value as Sql};

use super::{Result, Store, attributes::condition};
use hearth_domain::documents::AttributeFilter;

/// A word in a heading says more than one in the text.
const HEADING_WEIGHT: f64 = 2.0;
/// Words of a query that are looked up; a long text has its subject among the first ones.
const WORDS_MAX: usize = 64;

/// Words of English questions that say nothing of their subject. BM25 gives a word little weight where most chunks have
/// it, but manuals seldom say "how do I": without these words MRR@10 of lexical search went from 0.534 to 0.585
/// (`scripts/bench_retrieval.py`, half `tune`).
#[rustfmt::skip]
const STOP_WORDS: [&str; 39] = [
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "how", "i", "if", "in", "is",
    "it", "its", "my", "of", "on", "or", "that", "the", "this", "to", "was", "what", "when", "where", "which", "who",
    "why", "will", "with", "you", "your",
];

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

/// Any of the query's words, each quoted, so that nothing in it is an operator, without stop words if others remain.
/// `None` if it has no word.
fn match_expression(query: &str) -> Option<String> {
    let all = query.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let is_stop_word = |word: &str| STOP_WORDS.contains(&word.to_lowercase().as_str());
    let subject: Vec<_> = all.clone().filter(|word| !is_stop_word(word)).take(WORDS_MAX).collect();
    let words = if subject.is_empty() { all.take(WORDS_MAX).collect() } else { subject };
    let quoted: Vec<_> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    (!quoted.is_empty()).then(|| quoted.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_words_and_no_operators() {
        assert_eq!(match_expression("How to AND \"x\" NEAR(y)*?").as_deref(), Some("\"x\" OR \"NEAR\" OR \"y\""));
        assert_eq!(match_expression("To be or, who?").as_deref(), Some("\"To\" OR \"be\" OR \"or\" OR \"who\""));
        assert_eq!(match_expression(" -- '\" "), None);
    }
}
