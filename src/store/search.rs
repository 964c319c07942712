//! Lexical search: chunks by the words that they share with a query, by BM25, and the chunks that pass a filter.
//!
//! A word's weight depends only on the searched collection. By the frequencies of all owners' chunks, the order of a caller's own
//! documents would reveal how many chunks of other callers contain a word.

use super::Result;
use hearth_domain::documents::AttributeFilter;

/// How fast repetitions of a word saturate, and how much a chunk's length counts: the values of FTS5, Lucene and others
/// (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, section 3.4).
pub(super) const SATURATION: f64 = 1.2;

pub(super) const LENGTH_SHARE: f64 = 0.75;

/// A word in a heading counts for more than one in the text.
pub(super) const HEADING_WEIGHT: f64 = 2.0;

/// Words of a query that are looked up; a long text names its subject among the first ones.
const WORDS_MAX: usize = 64;

/// Words of English questions that say nothing about their subject. BM25 gives a word little weight where most chunks
/// have it, but manuals seldom say "how do I": without these words MRR@10 of lexical search went from 0.534 to 0.585
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

/// Lexical search in collections of all owners.
pub trait LexicalSearch {
    /// The best chunks for the words of a query, best first.
    fn lexical_search(&self, scope: Scope<'_>, query: &str, limit: usize) -> Result<Vec<LexicalHit>>;

    /// Ids of the chunks whose documents pass a filter.
    fn filtered_chunk_ids(&self, collection_id: &str, filter: &AttributeFilter) -> Result<Vec<u64>>;
}

/// The query's words, without stop words if others remain.
pub(super) fn subject(query: &str) -> Vec<&str> {
    let all = query.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let is_stop_word = |word: &str| STOP_WORDS.contains(&word.to_lowercase().as_str());
    let subject: Vec<_> = all.clone().filter(|word| !is_stop_word(word)).take(WORDS_MAX).collect();
    if subject.is_empty() { all.take(WORDS_MAX).collect() } else { subject }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_its_words_without_those_that_say_nothing() {
        assert_eq!(subject("How to AND \"x\" NEAR(y)*?"), ["x", "NEAR", "y"]);
        assert_eq!(subject("To be or, who?"), ["To", "be", "or", "who"]);
        assert!(subject(" -- '\" ").is_empty());
    }
}
