//! BM25 over the words that SQLite's FTS5 indexes. FTS5's own `bm25()` weighs a word by all rows of its table, of every owner.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params_from_iter, types::Value as Sql};

use super::{SqliteStore, attributes::condition};
use crate::store::{
    LexicalHit, LexicalSearch, Result, Scope,
    search::{HEADING_WEIGHT, LENGTH_SHARE, SATURATION, subject},
};
use hearth_domain::documents::AttributeFilter;

/// Gives a connection the temporary tables of a lexical search: the positions of the index's words, and an index of the
/// query alone, which normalizes the query's words as the main index does.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA temp_store = memory;
         CREATE VIRTUAL TABLE temp.word_places USING fts5vocab (main, chunk_words, instance);
         CREATE VIRTUAL TABLE temp.query_words USING fts5 (
            text, content = '', tokenize = 'porter unicode61 remove_diacritics 2'
         );
         CREATE VIRTUAL TABLE temp.query_terms USING fts5vocab (temp, query_words, row);",
    )
}

/// A chunk with some of the words.
struct Candidate {
    tokens: f64,
    /// The frequency of each word, by the word's index in the query.
    frequencies: Vec<(usize, f64)>,
}

impl LexicalSearch for SqliteStore {
    fn lexical_search(&self, scope: Scope<'_>, query: &str, limit: usize) -> Result<Vec<LexicalHit>> {
        let words = subject(query);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|connection| {
            let terms = terms(connection, &words)?;
            let passing: Option<HashSet<u64>> = match scope.filter {
                Some(filter) => Some(filtered(connection, scope.collection_id, filter)?.into_iter().collect()),
                None => None,
            };
            let mut candidates: HashMap<u64, Candidate> = HashMap::new();
            let mut with_term = vec![0.0; terms.len()];
            for (place, term) in terms.iter().enumerate() {
                each_occurrence(connection, scope.collection_id, term, |id, frequency, tokens| {
                    let candidate =
                        candidates.entry(id).or_insert_with(|| Candidate { tokens, frequencies: Vec::new() });
                    match candidate.frequencies.last_mut() {
                        Some((last, sum)) if *last == place => *sum += frequency,
                        _ => {
                            candidate.frequencies.push((place, frequency));
                            with_term[place] += 1.0;
                        }
                    }
                })?;
            }
            let of_collection = "SELECT count(*) FROM chunks WHERE collection_id = ?";
            let all: f64 = connection.query_row(of_collection, [scope.collection_id], |row| row.get(0))?;
            // Lucene's form, which is never negative.
            let weights: Vec<f64> =
                with_term.iter().map(|with| (1.0 + (all - with + 0.5) / (with + 0.5)).ln()).collect();
            let mean = candidates.values().map(|chunk| chunk.tokens).sum::<f64>() / candidates.len().max(1) as f64;
            let score = |chunk: &Candidate| {
                let length = 1.0 - LENGTH_SHARE + LENGTH_SHARE * chunk.tokens / mean.max(1.0);
                let of_word = |&(place, frequency): &(usize, f64)| {
                    weights[place] * frequency * (SATURATION + 1.0) / (frequency + SATURATION * length)
                };
                chunk.frequencies.iter().map(of_word).sum()
            };
            // A chunk that does not pass still counts in its words' document frequencies.
            let passes = |id: &u64| passing.as_ref().is_none_or(|passing| passing.contains(id));
            let found = candidates.iter().filter(|(id, _)| passes(id));
            let mut hits: Vec<LexicalHit> =
                found.map(|(&chunk_id, chunk)| LexicalHit { chunk_id, score: score(chunk) }).collect();
            hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk_id.cmp(&b.chunk_id)));
            hits.truncate(limit);
            Ok(hits)
        })
    }

    fn filtered_chunk_ids(&self, collection_id: &str, filter: &AttributeFilter) -> Result<Vec<u64>> {
        self.read(|connection| filtered(connection, collection_id, filter))
    }
}

fn filtered(connection: &Connection, collection_id: &str, filter: &AttributeFilter) -> Result<Vec<u64>> {
    let mut parameters = vec![Sql::Text(collection_id.to_owned())];
    let condition = condition(filter, &mut parameters);
    let sql = format!(
        "SELECT chunks.id FROM documents JOIN chunks ON chunks.collection_id = documents.collection_id AND
            chunks.file_id = documents.file_id
         WHERE documents.collection_id = ? AND {condition}"
    );
    let mut query = connection.prepare(&sql)?;
    Ok(query.query_map(params_from_iter(parameters), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Words as the index has them: folded, stemmed and deduplicated.
fn terms(connection: &Connection, words: &[&str]) -> Result<Vec<String>> {
    // The search's transaction is rolled back, and this row with it.
    connection.execute("INSERT INTO temp.query_words (rowid, text) VALUES (1, ?)", [words.join(" ")])?;
    let mut query = connection.prepare("SELECT term FROM temp.query_terms ORDER BY term")?;
    Ok(query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Calls `visit` for each occurrence of a term in a collection, with the chunk, the occurrence's weight, and the
/// chunk's token count. Occurrences in one chunk are consecutive.
fn each_occurrence(
    connection: &Connection,
    collection_id: &str,
    term: &str,
    mut visit: impl FnMut(u64, f64, f64),
) -> Result<()> {
    // A cross join fixes this order: there are many chunks and few occurrences.
    let mut query = connection.prepare(
        "SELECT chunks.id, word_places.col = 'heading', chunks.tokens
         FROM temp.word_places CROSS JOIN chunks ON chunks.id = word_places.doc
         WHERE word_places.term = ? AND chunks.collection_id = ?",
    )?;
    let mut rows = query.query([term, collection_id])?;
    while let Some(row) = rows.next()? {
        let weight = if row.get(1)? { HEADING_WEIGHT } else { 1.0 };
        visit(row.get(0)?, weight, row.get(2)?);
    }
    Ok(())
}
