//! Searches over a real store and index, with an embedder whose vectors are equal for equal texts and nothing else.

use std::{collections::BTreeMap, sync::Arc};

use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest, LOCAL,
    documents::{AttributeFilter, Collection, NewChunk, SearchMode},
};
use hearth_kernels::index::GraphParameters;
use tempfile::TempDir;

use super::{
    indexes::Indexes,
    search::{Lookup, Retriever, SearchRequest},
};
use crate::{
    providers::{Embedder, scripted::ScriptedEmbedder},
    store::{Replaced, Store},
};

struct House {
    store: Arc<Store>,
    indexes: Arc<Indexes>,
    embedder: Arc<dyn Embedder>,
}

impl House {
    fn open(directory: &TempDir, model: &str) -> Self {
        let store = Store::open(directory.path()).unwrap();
        let indexes = Arc::new(Indexes::new(store.clone(), GraphParameters::default()));
        Self { store, indexes, embedder: Arc::new(ScriptedEmbedder::new(model)) }
    }

    async fn vector(&self, text: &str) -> Vec<f32> {
        let request = EmbedRequest {
            account: Account::unrecorded(),
            inputs: vec![EmbedInput::Text(text.to_owned())],
            input_type: EmbedInputType::Passage,
            dimensions: None,
            truncate: false,
            deadline: None,
        };
        self.embedder.embed(request).await.unwrap().embeddings.remove(0)
    }

    /// Stores a document of non-adjacent chunks, so that each is a passage.
    async fn ingest(&self, collection: &Collection, name: &str, texts: &[&str]) -> (String, Replaced) {
        let mut incoming = self.store.receive_file(0).unwrap();
        incoming.write(texts.concat().as_bytes()).unwrap();
        let file = self.store.of(LOCAL).keep_file(incoming, name, "assistants").unwrap();
        self.store.of(LOCAL).add_document(&collection.id, &file.id, BTreeMap::new(), None).unwrap();
        let mut chunks = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let (text, heading) = ((*text).to_owned(), format!("Part {number}"));
            chunks.push(NewChunk { vector: self.vector(&text).await, text, heading, place: None, tokens: 3 });
        }
        let embedding = self.embedder.identity();
        let replaced = self.store.of(LOCAL).replace_chunks(&collection.id, &file.id, &embedding, chunks, &[]).unwrap();
        self.indexes.apply(&collection.id, &embedding, &replaced).unwrap();
        (file.id, replaced)
    }

    async fn search(
        &self,
        collections: &[&str],
        query: &str,
        mode: SearchMode,
    ) -> hearth_domain::error::Result<Vec<String>> {
        self.search_filtered(collections, query, mode, None).await
    }

    async fn search_filtered(
        &self,
        collections: &[&str],
        query: &str,
        mode: SearchMode,
        filter: Option<AttributeFilter>,
    ) -> hearth_domain::error::Result<Vec<String>> {
        let retriever = Retriever::new(self.store.clone(), self.indexes.clone(), self.embedder.clone());
        let request = SearchRequest {
            query: query.to_owned(),
            lookup: Arc::new(Lookup {
                account: Account::unrecorded(),
                collections: collections.iter().map(|name| self.store.of(LOCAL).collection(name).unwrap()).collect(),
                filter,
                top_k: 3,
                min_similarity: 0.0,
                mode,
                rerank: false,
            }),
        };
        Ok(retriever.search(request).await?.into_iter().map(|passage| passage.text).collect())
    }
}

#[tokio::test]
async fn passages_are_found_by_meaning_by_words_and_by_both() {
    let directory = TempDir::new().unwrap();
    let house = House::open(&directory, "model");
    let docs = house.store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap();
    let more = house.store.of(LOCAL).create_collection("more", BTreeMap::new()).unwrap();
    let empty = house.store.of(LOCAL).create_collection("empty", BTreeMap::new()).unwrap();
    let texts = ["install it with cargo", "start the server", "a signal stops the server"];
    let (file, _) = house.ingest(&docs, "a.md", &texts).await;
    house.ingest(&more, "b.md", &["the weather is fine"]).await;

    let found = house.search(&["docs"], "start the server", SearchMode::Dense).await.unwrap();
    assert_eq!(found[0], "start the server");
    let found = house.search(&["docs"], "servers stopping", SearchMode::Lexical).await.unwrap();
    assert_eq!(found, ["a signal stops the server", "start the server"]);
    let found = house.search(&["docs", "more", "empty"], "the weather is fine", SearchMode::Fused).await.unwrap();
    assert_eq!((found.len(), &found[0][..]), (3, "the weather is fine"));
    assert!(house.search(&["empty"], "anything", SearchMode::Fused).await.unwrap().is_empty());
    assert_eq!(empty.embedding, None);

    let none = AttributeFilter::Files(vec!["file-other".into()]);
    let this = AttributeFilter::Files(vec![file]);
    let search = |filter| house.search_filtered(&["docs"], "start the server", SearchMode::Fused, Some(filter));
    assert!(search(none).await.unwrap().is_empty());
    assert_eq!(search(this).await.unwrap().len(), 3);
}

#[tokio::test]
async fn the_index_follows_the_store_through_restarts_and_crashes() {
    let directory = TempDir::new().unwrap();
    let house = House::open(&directory, "model");
    let docs = house.store.of(LOCAL).create_collection("docs", BTreeMap::new()).unwrap();
    let (file, _) = house.ingest(&docs, "a.md", &["alpha one", "beta two"]).await;
    let (_, kept) = house.ingest(&docs, "b.md", &["gamma three"]).await;
    // The store has deleted it; the process dies before the index is updated.
    house.store.of(LOCAL).delete_document(&docs.id, &file).unwrap();
    assert_eq!(house.search(&["docs"], "alpha one", SearchMode::Dense).await.unwrap(), ["gamma three"]);
    drop(house);

    let house = House::open(&directory, "model");
    assert_eq!(house.search(&["docs"], "alpha one", SearchMode::Fused).await.unwrap(), ["gamma three"]);
    house.store.of(LOCAL).delete_file("none").unwrap();
    house.indexes.remove(&docs.id, &kept.added);
    assert!(house.search(&["docs"], "gamma three", SearchMode::Dense).await.unwrap().is_empty());
    house.indexes.forget(&docs.id);
    drop(house);

    let house = House::open(&directory, "another");
    let refused = house.search(&["docs"], "gamma", SearchMode::Lexical).await.unwrap_err().to_string();
    assert!(refused.contains("model") && refused.contains("another"), "{refused}");
}
