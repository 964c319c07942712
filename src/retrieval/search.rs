//! One search by the question's vector and by its words, in several collections at once.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use futures_util::future::try_join_all;
use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest, RerankRequest,
    documents::{AttributeFilter, Chunk, Collection, SearchMode},
    error::{Error, Result},
};
use tokio::sync::OnceCell;

use super::{
    fusion::fuse,
    indexes::{Indexes, SearchError},
    passages::{Passage, merge},
    scale::Scale,
};
use crate::{
    providers::{Embedder, Reranker},
    store::{Scope, Store, StoreError},
};

/// Candidates of each kind per requested result: neighbours are merged, and two rankings are fused. With 20 in all
/// MRR@10 was lower by a hundredth (`scripts/bench_retrieval.py`, half `tune`, all-MiniLM-L6-v2) than with 40; 100
/// gained half of that again.
const CANDIDATES_PER_RESULT: usize = 4;
const CANDIDATES_MIN: usize = 40;

/// Where and how to search for passages.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The request's account from here on, which stays on this machine if one of the collections must.
    pub account: Arc<Account>,
    pub collections: Vec<Collection>,
    pub filter: Option<AttributeFilter>,
    /// Passages at most.
    pub top_k: usize,
    /// Passages below this cosine with the query are not answers to it.
    pub min_similarity: f32,
    pub mode: SearchMode,
    /// Reorder passages with the rerank model.
    pub rerank: bool,
}

impl Lookup {
    /// The request's account once these collections are searched.
    pub fn account_for(account: &Arc<Account>, collections: &[Collection]) -> Arc<Account> {
        if collections.iter().any(Collection::is_local_only) { account.kept_local() } else { account.clone() }
    }
}

/// What to search for, and where.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    pub query: String,
    pub lookup: Arc<Lookup>,
}

/// A chunk that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub chunk: Chunk,
    /// Cosine of its vector and the query's, 0 to 1.
    pub similarity: f32,
    /// Its share of the best possible score, 0 to 1; the shares of several searches add up.
    pub score: f64,
}

/// The passages of several searches, best first: those that rank high in several of them come first.
fn passages(searches: Vec<Vec<Found>>, top_k: usize) -> Vec<Passage> {
    let mut by_chunk: HashMap<u64, Found> = HashMap::new();
    for found in searches.into_iter().flatten() {
        match by_chunk.entry(found.chunk.id) {
            Entry::Vacant(place) => {
                place.insert(found);
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.score += found.score;
                known.similarity = known.similarity.max(found.similarity);
            }
        }
    }
    let mut found: Vec<Found> = by_chunk.into_values().collect();
    let rank = |a: &Found, b: &Found| b.score.total_cmp(&a.score).then(b.similarity.total_cmp(&a.similarity));
    found.sort_by(|a, b| rank(a, b).then(a.chunk.id.cmp(&b.chunk.id)));
    let mut passages = merge(found.into_iter().map(|found| (found.chunk, found.similarity)).collect());
    passages.truncate(top_k);
    passages
}

/// Passages that the rerank model reads per requested passage.
const RERANKED_PER_RESULT: usize = 4;

/// Looks for passages.
#[derive(Clone)]
pub struct Retriever {
    store: Arc<Store>,
    indexes: Arc<Indexes>,
    pub(super) embedder: Arc<dyn Embedder>,
    /// Measured on first use.
    pub(super) scale: Arc<OnceCell<Scale>>,
    reranker: Option<Arc<dyn Reranker>>,
}

impl std::fmt::Debug for Retriever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retriever").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Retriever {
    pub fn new(store: Arc<Store>, indexes: Arc<Indexes>, embedder: Arc<dyn Embedder>) -> Self {
        Self { store, indexes, embedder, scale: Arc::default(), reranker: None }
    }

    /// Enables reranking with this model.
    #[must_use]
    pub fn with_reranker(self, reranker: Option<Arc<dyn Reranker>>) -> Self {
        Self { reranker, ..self }
    }

    /// The collections' [`Indexes::versions`].
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn versions(&self, collections: &[Collection]) -> Result<Vec<u64>> {
        let indexes = self.indexes.clone();
        let ids: Vec<String> = collections.iter().map(|collection| collection.id.clone()).collect();
        let read = move || indexes.versions(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(read).await.map_err(Error::internal)?.map_err(Error::from)
    }

    /// The passages that may answer the query, best first.
    ///
    /// # Errors
    /// If the query cannot be embedded, a collection's vectors are of another embedding model, there is no model to
    /// rerank with, or the store fails.
    pub async fn search(&self, request: SearchRequest) -> Result<Vec<Passage>> {
        let found = self.find(request.clone()).await?;
        self.best(vec![found], &request).await
    }

    /// The passages that several searches found for what `request` asks, best first.
    ///
    /// # Errors
    /// If there is no model to rerank with, or it fails.
    pub async fn best(&self, searches: Vec<Vec<Found>>, request: &SearchRequest) -> Result<Vec<Passage>> {
        if !request.lookup.rerank {
            return Ok(passages(searches, request.lookup.top_k));
        }
        let reranker = self.reranker.as_ref().ok_or_else(|| {
            let message = "No rerank model is served: start the server with --rerank-model, or leave `rerank` out.";
            Error::invalid("rerank", message).with_code("model_not_found")
        })?;
        let mut passages = passages(searches, request.lookup.top_k * RERANKED_PER_RESULT);
        if passages.is_empty() {
            return Ok(passages);
        }
        let rated = reranker.rerank(RerankRequest {
            query: request.query.clone(),
            documents: passages.iter().map(|passage| passage.text.clone()).collect(),
            account: request.lookup.account.clone(),
            deadline: None,
        });
        for (passage, score) in passages.iter_mut().zip(rated.await?.scores) {
            passage.rerank_score = Some(score);
        }
        passages.sort_by(|a, b| b.rerank_score.unwrap_or_default().total_cmp(&a.rerank_score.unwrap_or_default()));
        passages.truncate(request.lookup.top_k);
        Ok(passages)
    }

    /// The chunks that [`Self::search`] makes passages of, unordered; [`Self::best`] merges those of several searches.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub async fn find(&self, request: SearchRequest) -> Result<Vec<Found>> {
        let embedded = self
            .embedder
            .embed(EmbedRequest {
                account: request.lookup.account.clone(),
                inputs: vec![EmbedInput::Text(request.query.clone())],
                input_type: EmbedInputType::Query,
                dimensions: None,
                truncate: true,
                deadline: None,
            })
            .await?;
        let vector: Arc<[f32]> = embedded.embeddings.into_iter().next().unwrap_or_default().into();
        let request = Arc::new(request);
        let searches = request.lookup.collections.iter().cloned().map(|collection| {
            let (this, request, vector) = (self.clone(), request.clone(), vector.clone());
            let search = move || this.search_collection(&collection, &request, &vector);
            async { tokio::task::spawn_blocking(search).await.map_err(Error::internal)? }
        });
        Ok(try_join_all(searches).await?.into_iter().flatten().collect())
    }

    fn search_collection(
        &self,
        collection: &Collection,
        request: &SearchRequest,
        vector: &[f32],
    ) -> Result<Vec<Found>> {
        // Nothing has been stored in it yet.
        let Some(embedding) = &collection.embedding else { return Ok(Vec::new()) };
        let asked = self.embedder.identity();
        if *embedding != asked {
            let error = StoreError::OtherEmbedding { stored: embedding.name.clone(), asked: asked.name };
            return Err(Error::invalid("collections", error.to_string()));
        }
        let limit = (request.lookup.top_k * CANDIDATES_PER_RESULT).max(CANDIDATES_MIN);
        let scope = Scope { collection_id: &collection.id, filter: request.lookup.filter.as_ref() };
        let mut ids: Vec<u64> = Vec::new();
        if request.lookup.mode != SearchMode::Lexical {
            let nearest = self.indexes.search(scope, embedding, vector, limit).map_err(|error| match error {
                SearchError::Store(error) => Error::from(error),
                error @ SearchError::Index(_) => Error::internal(error),
            });
            ids.extend(nearest?);
        }
        let mut words: Vec<(u64, f64)> = Vec::new();
        if request.lookup.mode != SearchMode::Dense {
            let hits = self.store.lexical_search(scope, &request.query, limit).map_err(Error::from)?;
            words.extend(hits.iter().map(|hit| (hit.chunk_id, hit.score)));
        }
        ids.extend(words.iter().map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        let similarities = self.similarities(&ids, vector)?;
        let cosines: Vec<(u64, f32)> = match request.lookup.mode {
            SearchMode::Lexical => Vec::new(),
            SearchMode::Dense | SearchMode::Fused => similarities.iter().map(|(&id, &cosine)| (id, cosine)).collect(),
        };
        let mut scores = fuse(&cosines, &words);
        let chunks = self.store.chunks(&ids).map_err(Error::from)?;
        Ok(chunks
            .into_iter()
            .filter_map(|chunk| {
                let similarity = *similarities.get(&chunk.id)?;
                let score = scores.remove(&chunk.id)?;
                (similarity >= request.lookup.min_similarity).then_some(Found { chunk, similarity, score })
            })
            .collect())
    }

    /// Cosines of the query and the stored vectors, 0 to 1: an opposite vector is no nearer than an unrelated one.
    fn similarities(&self, ids: &[u64], vector: &[f32]) -> Result<HashMap<u64, f32>> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let length = dot(vector, vector).sqrt();
        let vectors = self.store.vectors(ids).map_err(Error::from)?;
        Ok(vectors.iter().map(|(id, stored)| (*id, (dot(stored, vector) / length).clamp(0.0, 1.0))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_searches_found_comes_first_and_once() {
        let found = |id: u64, similarity: f32, score: f64| Found {
            chunk: Chunk {
                id,
                collection_id: "c".into(),
                file_id: "f".into(),
                filename: "f.md".into(),
                // Far from each other.
                position: id as usize * 10,
                text: format!("text {id}"),
                heading: String::new(),
                place: None,
                tokens: 1,
                attributes: std::collections::BTreeMap::new(),
            },
            similarity,
            score,
        };
        let searches =
            || vec![vec![found(1, 0.9, 0.03), found(2, 0.5, 0.02)], vec![found(3, 0.4, 0.02), found(2, 0.7, 0.02)]];
        let shown = |top_k| -> Vec<(String, f32)> {
            passages(searches(), top_k).into_iter().map(|passage| (passage.text, passage.similarity)).collect()
        };
        assert_eq!(shown(9), [("text 2".to_owned(), 0.7), ("text 1".to_owned(), 0.9), ("text 3".to_owned(), 0.4)]);
        assert_eq!(shown(1).len(), 1);
        assert!(passages(Vec::new(), 5).is_empty());
    }
}
