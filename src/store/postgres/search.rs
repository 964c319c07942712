//! BM25 over postings, in SQL. A word's weight depends only on the searched collection, as in the other store.
//!
//! Words are made here, as that store's index makes them: what is between characters that are neither letters nor digits, in lower case,
//! without diacritics, stemmed as English. PostgreSQL's own text search drops the words that it takes for unimportant, and orders by
//! measures that rank worse than BM25.

use std::collections::BTreeMap;

use rust_stemmers::{Algorithm, Stemmer};
use tokio_postgres::Transaction;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

use super::{
    PostgresStore,
    attributes::{Parameters, condition},
    values,
};
use crate::store::{
    LexicalHit, LexicalSearch, Result, Scope,
    search::{HEADING_WEIGHT, LENGTH_SHARE, SATURATION, subject},
};
use hearth_domain::documents::{AttributeFilter, NewChunk};

/// Characters of a word that tell it from others: a row of an index has no room for very long ones, which no one searches for.
const WORD_CHARS_MAX: usize = 128;

/// In a collection of up to this many chunks, all words of a query are searched for.
const ALL_WORDS_MAX: i64 = 10_000;

/// Makes words of text.
struct Words(Stemmer);

impl Words {
    fn new() -> Self {
        Self(Stemmer::create(Algorithm::English))
    }

    fn of<'t>(&'t self, text: &'t str) -> impl Iterator<Item = String> + 't {
        let words = text.split(|c: char| !c.is_alphanumeric() && !is_combining_mark(c)).filter(|word| !word.is_empty());
        words.map(|word| {
            let folded: String = word.nfkd().filter(|&c| !is_combining_mark(c)).flat_map(char::to_lowercase).collect();
            self.0.stem(&folded).chars().take(WORD_CHARS_MAX).collect()
        })
    }
}

/// Keeps the words of new chunks.
pub(super) async fn insert_words(
    transaction: &Transaction<'_>,
    collection_id: &str,
    ids: &[i64],
    chunks: &[NewChunk],
) -> Result<()> {
    let words = Words::new();
    let (mut terms, mut of, mut frequencies, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&id, chunk) in ids.iter().zip(chunks) {
        let mut found: BTreeMap<String, f64> = BTreeMap::new();
        words.of(&chunk.heading).for_each(|word| *found.entry(word).or_default() += HEADING_WEIGHT);
        words.of(&chunk.text).for_each(|word| *found.entry(word).or_default() += 1.0);
        for (term, frequency) in found {
            terms.push(term);
            of.push(id);
            frequencies.push(frequency as f32);
            tokens.push(chunk.tokens as i32);
        }
    }
    let insert = "INSERT INTO postings (collection_id, term, chunk_id, frequency, tokens)
         SELECT $1, new.* FROM unnest($2::text[], $3::bigint[], $4::real[], $5::int[]) AS new";
    let parameters =
        values![TEXT collection_id, TEXT_ARRAY terms, INT8_ARRAY of, FLOAT4_ARRAY frequencies, INT4_ARRAY tokens];
    transaction.execute_typed(insert, parameters).await?;
    Ok(())
}

/// `WHERE` or `AND`, and that a chunk's document passes a filter; nothing without one.
pub(super) fn passing(
    begin: &str,
    chunk_id: &str,
    filter: Option<&AttributeFilter>,
    parameters: &mut Parameters,
) -> String {
    let Some(filter) = filter else { return String::new() };
    let condition = condition(filter, parameters);
    format!(
        "{begin} EXISTS (SELECT 1 FROM chunks JOIN documents USING (collection_id, file_id) WHERE chunks.id = {chunk_id} AND {condition})"
    )
}

/// Which words are searched for, and their weights. `counted` has the number of chunks with each word, `size` the number of all chunks.
///
/// In a large collection these are the rarest ones, as long as their chunks together are no more than half of all: the others weigh
/// little, and reading their postings takes most of a search's time. The weight has Lucene's form, which is never negative.
fn weighed(mut counted: Vec<(&str, i64)>, size: i64) -> Vec<(&str, f64)> {
    counted.sort_unstable_by(|a, b| a.1.cmp(&b.1).then(a.0.cmp(b.0)));
    let (mut read, size_as_float) = (0, size as f64);
    let within = |(number, (_, chunks)): &(usize, (&str, i64))| {
        read += chunks;
        *number == 0 || size <= ALL_WORDS_MAX || read <= size / 2
    };
    let weight = |chunks: i64| (1.0 + (size_as_float - chunks as f64 + 0.5) / (chunks as f64 + 0.5)).ln();
    counted.into_iter().enumerate().take_while(within).map(|(_, (term, chunks))| (term, weight(chunks))).collect()
}

impl LexicalSearch for PostgresStore {
    fn lexical_search(&self, scope: Scope<'_>, query: &str, limit: usize) -> Result<Vec<LexicalHit>> {
        let words = Words::new();
        let mut terms: Vec<String> =
            subject(query).into_iter().flat_map(|word| words.of(word).collect::<Vec<_>>()).collect();
        terms.sort_unstable();
        terms.dedup();
        if terms.is_empty() {
            return Ok(Vec::new());
        }
        let limit = limit as i64;
        let mut parameters = Parameters::after(6);
        let passes = passing("WHERE", "found.chunk_id", scope.filter, &mut parameters);
        // A chunk that does not pass still counts in its words' document frequencies.
        let frequencies =
            "SELECT term, count(*) FROM postings WHERE collection_id = $1 AND term = ANY ($2) GROUP BY term";
        let size = "SELECT count(*) FROM chunks WHERE collection_id = $1";
        let search = format!(
            "WITH found AS MATERIALIZED (
                SELECT chunk_id, frequency, tokens, weight
                FROM unnest($2::text[], $3::float8[]) AS words (term, weight) JOIN postings USING (term) WHERE collection_id = $1
             ), mean AS (
                SELECT greatest(avg(tokens), 1.0)::float8 AS tokens FROM (SELECT DISTINCT chunk_id, tokens FROM found) AS candidates
             )
             SELECT found.chunk_id, sum(weight * frequency * ($4 + 1.0) /
                (frequency + $4 * (1.0 - $5 + $5 * found.tokens / mean.tokens)))::float8 AS score
             FROM found, mean {passes}
             GROUP BY found.chunk_id ORDER BY score DESC, found.chunk_id LIMIT $6"
        );
        self.read(async |client| {
            let counted = client.query_typed(frequencies, values![TEXT scope.collection_id, TEXT_ARRAY terms]).await?;
            let size = client.query_typed(size, values![TEXT scope.collection_id]).await?;
            let size = size.first().map_or(0, |row| row.get::<_, i64>(0));
            let counted = counted.iter().map(|row| (row.get(0), row.get(1))).collect();
            let (terms, weights): (Vec<&str>, Vec<f64>) = weighed(counted, size).into_iter().unzip();
            let mut all = values![
                TEXT scope.collection_id, TEXT_ARRAY terms, FLOAT8_ARRAY weights, FLOAT8 SATURATION, FLOAT8 LENGTH_SHARE, INT8 limit
            ]
            .to_vec();
            all.extend(parameters.with_types());
            let rows = client.query_typed(&search, &all).await?;
            Ok(rows.iter().map(|row| LexicalHit { chunk_id: row.get::<_, i64>(0) as u64, score: row.get(1) }).collect())
        })
    }

    fn filtered_chunk_ids(&self, collection_id: &str, filter: &AttributeFilter) -> Result<Vec<u64>> {
        let mut parameters = Parameters::after(1);
        let sql = format!(
            "SELECT chunks.id FROM documents JOIN chunks USING (collection_id, file_id)
             WHERE documents.collection_id = $1 AND {}",
            condition(filter, &mut parameters)
        );
        self.read(async |client| {
            let mut all = values![TEXT collection_id].to_vec();
            all.extend(parameters.with_types());
            let rows = client.query_typed(&sql, &all).await?;
            Ok(rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_large_collection_the_rarest_words_are_searched_for() {
        let counted = vec![("common", 60_000), ("rare", 3), ("often", 30_000), ("seldom", 15_000)];
        let terms = |size| weighed(counted.clone(), size).into_iter().map(|(term, _)| term).collect::<Vec<_>>();
        assert_eq!(terms(100_000), ["rare", "seldom", "often"]);
        assert_eq!(terms(70_000), ["rare", "seldom"]);
        assert_eq!(weighed(vec![("only", 90_000)], 100_000).len(), 1);
        assert_eq!(weighed(vec![("a", 9), ("b", 9)], 10).len(), 2);
        let weights = weighed(counted, 100_000);
        assert!(weights[0].1 > weights[1].1 && weights[2].1 > 0.0, "{weights:?}");
    }

    #[test]
    fn words_are_folded_and_stemmed() {
        let words = |text: &str| Words::new().of(text).collect::<Vec<_>>();
        assert_eq!(
            words("The CAFÉS of Zürich's (2024) cafe\u{301}"),
            ["the", "cafe", "of", "zurich", "s", "2024", "cafe"]
        );
        assert_eq!(words("installing, installs"), ["instal", "instal"]);
        assert_eq!(words(&"x".repeat(4000))[0].len(), WORD_CHARS_MAX);
        assert!(words(" -- ").is_empty());
    }
}
