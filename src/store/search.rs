//! Lexical search: chunks by the words that they share with a query, by BM25, and the chunks that pass a filter.
//!
//! A word's weight depends only on the searched collection. By the frequencies of all owners' chunks, the order of a caller's own
//! documents would reveal how many chunks of other callers contain a word.

use super::Result;
use hearth_domain::documents::AttributeFilter;

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
