//! One search: the question's vector among the vectors, its words among the words, in several collections at once.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::{
    fusion::fuse,
    indexes::Indexes,
    passages::{Passage, merge},
};
use crate::{
    domain::{
        EmbedInput, EmbedInputType, EmbedRequest,
        documents::{AttributeFilter, Chunk, Collection, SearchMode},
    },
    error::{Error, Result},
    index::{Keys, SearchParameters},
    providers::Embedder,
    store::{Scope, Store, StoreError},
};

/// Candidates of each kind for every result that is asked for: neighbours are merged, and two orders are fused.
const CANDIDATES_PER_RESULT: usize = 4;
const CANDIDATES_MIN: usize = 20;

/// What to look for, and where.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    pub query: String,
    pub collections: Vec<Collection>,
    pub filter: Option<AttributeFilter>,
    /// Passages at most.
    pub top_k: usize,
    /// Passages less similar to the query than this, by the cosine, are not answers to it.
    pub min_similarity: f32,
    pub mode: SearchMode,
    pub caller: String,
}

/// Looks for passages.
#[derive(Clone)]
pub struct Retriever {
    store: Arc<Store>,
    indexes: Arc<Indexes>,
    embedder: Arc<dyn Embedder>,
}

impl std::fmt::Debug for Retriever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retriever").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Retriever {
    pub fn new(store: Arc<Store>, indexes: Arc<Indexes>, embedder: Arc<dyn Embedder>) -> Self {
        Self { store, indexes, embedder }
    }

    /// The passages that may answer the query, best first.
    ///
    /// # Errors
    /// If the query cannot be embedded, a collection's vectors are of another embedding model, or the store fails.
    pub async fn search(&self, request: SearchRequest) -> Result<Vec<Passage>> {
        let embedded = self
            .embedder
            .embed(EmbedRequest {
                request_id: String::new(),
                model: self.embedder.info().id.clone(),
                inputs: vec![EmbedInput::Text(request.query.clone())],
                input_type: EmbedInputType::Query,
                dimensions: None,
                truncate: true,
                caller: request.caller.clone(),
                deadline: None,
            })
            .await?;
        let vector: Arc<[f32]> = embedded.embeddings.into_iter().next().unwrap_or_default().into();
        let request = Arc::new(request);
        let searches = request.collections.iter().cloned().map(|collection| {
            let (this, request, vector) = (self.clone(), request.clone(), vector.clone());
            let search = move || this.search_collection(&collection, &request, &vector);
            async { tokio::task::spawn_blocking(search).await.map_err(Error::internal)? }
        });
        let mut found: Vec<(Chunk, f32, f64)> = try_join_all(searches).await?.into_iter().flatten().collect();
        found.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.total_cmp(&a.1)));
        let mut passages = merge(found.into_iter().map(|(chunk, similarity, _)| (chunk, similarity)).collect());
        passages.truncate(request.top_k);
        Ok(passages)
    }

    /// Chunks, their similarity to the query, and their score among those of this search.
    fn search_collection(
        &self,
        collection: &Collection,
        request: &SearchRequest,
        vector: &[f32],
    ) -> Result<Vec<(Chunk, f32, f64)>> {
        // Nothing has been stored in it yet.
        let Some(embedding) = &collection.embedding else { return Ok(Vec::new()) };
        let asked = self.embedder.identity();
        if *embedding != asked {
            let error = StoreError::OtherEmbedding { stored: embedding.name.clone(), asked: asked.name };
            return Err(Error::invalid("collections", error.to_string()));
        }
        let limit = (request.top_k * CANDIDATES_PER_RESULT).max(CANDIDATES_MIN);
        let filter: Option<Keys> = match &request.filter {
            Some(filter) => {
                let ids = self.store.filtered_chunk_ids(&collection.id, filter).map_err(Error::internal)?;
                Some(ids.into_iter().collect())
            }
            None => None,
        };
        let mut lists = Vec::new();
        if request.mode != SearchMode::Lexical {
            let search = |index: &crate::index::VectorIndex| {
                index.search(vector, limit, filter.as_ref(), SearchParameters::default())
            };
            let hits = self.indexes.with(&collection.id, embedding, search).map_err(Error::internal)?;
            lists.push(hits.map_err(Error::internal)?.iter().map(|hit| hit.key).collect());
        }
        if request.mode != SearchMode::Dense {
            let scope = Scope { collection_id: &collection.id, filter: request.filter.as_ref() };
            let hits = self.store.lexical_search(scope, &request.query, limit).map_err(Error::internal)?;
            lists.push(hits.iter().map(|hit| hit.chunk_id).collect());
        }
        let fused = fuse(&lists);
        let ids: Vec<u64> = fused.iter().map(|(id, _)| *id).collect();
        let similarities = self.similarities(&ids, vector)?;
        let chunks = self.store.chunks(&ids).map_err(Error::internal)?;
        let mut scores: std::collections::HashMap<u64, f64> = fused.into_iter().collect();
        Ok(chunks
            .into_iter()
            .filter_map(|chunk| {
                let similarity = *similarities.get(&chunk.id)?;
                let score = scores.remove(&chunk.id)?;
                (similarity >= request.min_similarity).then_some((chunk, similarity, score))
            })
            .collect())
    }

    /// Cosines of the query and the stored vectors, 0 to 1: what points away is no nearer than what has nothing to do
    /// with it.
    fn similarities(&self, ids: &[u64], vector: &[f32]) -> Result<std::collections::HashMap<u64, f32>> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let length = dot(vector, vector).sqrt();
        let vectors = self.store.vectors(ids).map_err(Error::internal)?;
        Ok(vectors.iter().map(|(id, stored)| (*id, (dot(stored, vector) / length).clamp(0.0, 1.0))).collect())
    }
}
