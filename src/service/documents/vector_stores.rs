//! Collections as OpenAI's clients see them: vector stores, identified by id, of files, also identified by id.

use std::sync::Arc;

use hearth_domain::{
    documents::{Chunk, Collection, Document, DocumentCounts, Page, PageRequest, StoredFile},
    error::Result,
};

use super::{Attributes, OwnedDocuments};
use crate::{
    retrieval::{
        passages::Passage,
        search::{Lookup, SearchRequest},
    },
    store::{Batch, Member, StoreError},
};

impl OwnedDocuments {
    /// A new vector store with these files in it. Names need not be unique.
    ///
    /// # Errors
    /// 404 for a file; then nothing is created.
    pub async fn create_vector_store(
        &self,
        name: String,
        metadata: Attributes,
        files: Vec<String>,
    ) -> Result<Collection> {
        let created = self.stored(move |store, _| store.create_vector_store(name, metadata, files)).await?;
        self.documents.jobs.wake_workers();
        Ok(created)
    }

    /// A page of the vector stores.
    pub async fn vector_stores(&self, page: PageRequest) -> Result<Page<Collection>> {
        self.stored(move |store, _| store.collections_page(&page)).await
    }

    /// The number of documents in each of these, in their order.
    pub async fn document_counts(&self, ids: Vec<String>) -> Result<Vec<DocumentCounts>> {
        self.stored(move |store, _| store.document_counts(&ids)).await
    }

    /// By id only: nothing is created if it is missing, and names are ignored because they may be shared.
    ///
    /// # Errors
    /// 404
    pub async fn vector_store(&self, id: &str) -> Result<Collection> {
        let id = id.to_owned();
        self.stored(move |store, _| match store.collection(&id) {
            Ok(found) if found.id == id => Ok(found),
            Ok(_) | Err(StoreError::NotFound { .. }) => Err(StoreError::NotFound { what: "vector store", id }),
            Err(error) => Err(error),
        })
        .await
    }

    /// # Errors
    /// 404
    pub async fn update_vector_store(
        &self,
        id: &str,
        name: Option<String>,
        metadata: Option<Attributes>,
    ) -> Result<Collection> {
        let id = self.vector_store(id).await?.id;
        self.stored(move |store, _| store.update_vector_store(&id, name, metadata)).await
    }

    /// Makes a file a document of its own; a job will read it. An existing one gets the attributes.
    ///
    /// # Errors
    /// 404 for the vector store or the file.
    pub async fn attach(&self, collection_id: &str, member: Member) -> Result<Document> {
        let collection_id = collection_id.to_owned();
        let document = self.stored(move |store, _| store.attach_document(&collection_id, member)).await?;
        self.documents.jobs.wake_workers();
        Ok(document)
    }

    /// [`Self::attach`] for many files in one step.
    ///
    /// # Errors
    /// 404 for the vector store or a file; then none is added.
    pub async fn attach_batch(&self, collection_id: &str, members: Vec<Member>) -> Result<Batch> {
        let collection_id = collection_id.to_owned();
        let batch = self.stored(move |store, _| store.create_batch(&collection_id, members)).await?;
        self.documents.jobs.wake_workers();
        Ok(batch)
    }

    /// # Errors
    /// 404
    pub async fn batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        let (collection_id, id) = (collection_id.to_owned(), id.to_owned());
        self.stored(move |store, _| store.batch(&collection_id, &id)).await
    }

    /// Cancels the unread documents of a batch.
    ///
    /// # Errors
    /// 404
    pub async fn cancel_batch(&self, collection_id: &str, id: &str) -> Result<Batch> {
        let (collection_id, id) = (collection_id.to_owned(), id.to_owned());
        let batch = self.stored(move |store, _| store.cancel_batch(&collection_id, &id)).await?;
        self.documents.jobs.wake_workers();
        Ok(batch)
    }

    /// The text that was read from a document, in order.
    ///
    /// # Errors
    /// 404
    pub async fn content(&self, collection_id: &str, file_id: &str) -> Result<(Document, Vec<Chunk>)> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        self.stored(move |store, _| {
            let document = store.document(&collection_id, &file_id)?;
            let chunks = store.chunks_between(&collection_id, &file_id, 0, document.num_chunks)?;
            Ok((document, chunks))
        })
        .await
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// 404
    pub async fn open_file(&self, id: &str) -> Result<(StoredFile, std::fs::File)> {
        let id = id.to_owned();
        let documents = self.documents.clone();
        self.stored(move |store, _| {
            let file = store.file(&id)?;
            let local = documents.store.open_file(&file.id)?;
            let opened = std::fs::File::open(local.path()).map_err(|source| match source.kind() {
                // It was deleted meanwhile.
                std::io::ErrorKind::NotFound => StoreError::NotFound { what: "file", id },
                _ => StoreError::Io { path: local.path().to_owned(), source },
            })?;
            Ok((file, opened))
        })
        .await
    }

    /// The passages nearest to any of the queries, which phrase one question in several ways; the nearest first.
    /// `request` has everything except the query.
    ///
    /// # Errors
    /// As [`crate::retrieval::search::Retriever::search`].
    pub async fn search_for_any(&self, queries: Vec<String>, lookup: Lookup) -> Result<Vec<Passage>> {
        let retriever = self.documents.retriever()?;
        let top_k = lookup.top_k;
        let lookup = Arc::new(lookup);
        let search = |query| SearchRequest { query, lookup: lookup.clone() };
        let searches = queries.into_iter().map(|query| retriever.search(search(query)));
        let mut found: Vec<Passage> = Vec::new();
        for passage in futures_util::future::try_join_all(searches).await?.into_iter().flatten() {
            let same = found.iter_mut().find(|other| other.file_id == passage.file_id && other.text == passage.text);
            match same {
                Some(same) => same.similarity = same.similarity.max(passage.similarity),
                None => found.push(passage),
            }
        }
        // Results are selected by meaning and words, but ordered by the score that is shown.
        found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
        found.truncate(top_k);
        Ok(found)
    }
}
