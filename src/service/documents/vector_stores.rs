//! Collections as OpenAI's clients see them: vector stores, each known by its id, of files that are known by theirs.

use std::sync::Arc;

use super::{Attributes, Documents};
use crate::{
    domain::documents::{Chunk, Collection, Document, StoredFile},
    error::Result,
    retrieval::{passages::Passage, search::SearchRequest},
    service::jobs::blocking,
    store::{Batch, Member, StoreError},
};

impl Documents {
    /// A new vector store with these files in it. Names need not be unique.
    ///
    /// # Errors
    /// 404 for a file; then nothing is made.
    pub async fn create_vector_store(
        self: &Arc<Self>,
        name: String,
        metadata: Attributes,
        files: Vec<String>,
    ) -> Result<Collection> {
        let this = self.clone();
        let created = blocking(move || this.store.create_vector_store(name, metadata, files)).await?;
        self.jobs.look();
        Ok(created)
    }

    /// By its id only: nothing is made that is not there, and a shared name means nobody.
    ///
    /// # Errors
    /// 404
    pub async fn vector_store(self: &Arc<Self>, id: &str) -> Result<Collection> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || match this.store.collection(&id) {
            Ok(found) if found.id == id => Ok(found),
            Ok(_) | Err(StoreError::NotFound { .. }) => Err(StoreError::NotFound { what: "vector store", id }),
            Err(error) => Err(error),
        })
        .await
    }

    /// # Errors
    /// 404
    pub async fn update_vector_store(
        self: &Arc<Self>,
        id: &str,
        name: Option<String>,
        metadata: Option<Attributes>,
    ) -> Result<Collection> {
        let id = self.vector_store(id).await?.id;
        let this = self.clone();
        blocking(move || this.store.update_vector_store(&id, name, metadata)).await
    }

    /// Makes a file a document of its own; a job will read it. One that is there gets the attributes.
    ///
    /// # Errors
    /// 404 for the vector store or the file.
    pub async fn attach(self: &Arc<Self>, collection_id: &str, member: Member) -> Result<Document> {
        let (this, collection_id) = (self.clone(), collection_id.to_owned());
        let document = blocking(move || this.store.attach_document(&collection_id, member)).await?;
        self.jobs.look();
        Ok(document)
    }

    /// [`Self::attach`] for many files in one step.
    ///
    /// # Errors
    /// 404 for the vector store or a file; then none is added.
    pub async fn attach_batch(self: &Arc<Self>, collection_id: &str, members: Vec<Member>) -> Result<Batch> {
        let (this, collection_id) = (self.clone(), collection_id.to_owned());
        let batch = blocking(move || this.store.create_batch(&collection_id, members)).await?;
        self.jobs.look();
        Ok(batch)
    }

    /// # Errors
    /// 404
    pub async fn batch(self: &Arc<Self>, collection_id: &str, id: &str) -> Result<Batch> {
        let (this, collection_id, id) = (self.clone(), collection_id.to_owned(), id.to_owned());
        blocking(move || this.store.batch(&collection_id, &id)).await
    }

    /// Cancels what of a batch has not been read yet.
    ///
    /// # Errors
    /// 404
    pub async fn cancel_batch(self: &Arc<Self>, collection_id: &str, id: &str) -> Result<Batch> {
        let (this, collection_id, id) = (self.clone(), collection_id.to_owned(), id.to_owned());
        let batch = blocking(move || this.store.cancel_batch(&collection_id, &id)).await?;
        self.jobs.look();
        Ok(batch)
    }

    /// What was read of a document, in its order.
    ///
    /// # Errors
    /// 404
    pub async fn content(self: &Arc<Self>, collection_id: &str, file_id: &str) -> Result<(Document, Vec<Chunk>)> {
        let (this, collection_id, file_id) = (self.clone(), collection_id.to_owned(), file_id.to_owned());
        blocking(move || {
            let document = this.store.document(&collection_id, &file_id)?;
            let chunks = this.store.chunks_between(&collection_id, &file_id, 0, document.num_chunks)?;
            Ok((document, chunks))
        })
        .await
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// 404
    pub async fn open_file(self: &Arc<Self>, id: &str) -> Result<(StoredFile, std::fs::File)> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let file = this.store.file(&id)?;
            let path = this.store.file_path(&file.id);
            let opened = std::fs::File::open(&path).map_err(|source| match source.kind() {
                // It was deleted meanwhile.
                std::io::ErrorKind::NotFound => StoreError::NotFound { what: "file", id },
                _ => StoreError::Io { path, source },
            })?;
            Ok((file, opened))
        })
        .await
    }

    /// The passages that are nearest to any of the queries, which ask the same in several words; the nearest first.
    /// `request` says all but the query.
    ///
    /// # Errors
    /// As [`crate::retrieval::search::Retriever::search`].
    pub async fn search_for_any(&self, queries: Vec<String>, request: SearchRequest) -> Result<Vec<Passage>> {
        let retriever = self.retriever()?;
        let top_k = request.top_k;
        let searches = queries.into_iter().map(|query| retriever.search(SearchRequest { query, ..request.clone() }));
        let mut found: Vec<Passage> = Vec::new();
        for passage in futures_util::future::try_join_all(searches).await?.into_iter().flatten() {
            let same = found.iter_mut().find(|other| other.file_id == passage.file_id && other.text == passage.text);
            match same {
                Some(same) => same.similarity = same.similarity.max(passage.similarity),
                None => found.push(passage),
            }
        }
        // What is found is chosen by meaning and words; its order is the one that the scores show.
        found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
        found.truncate(top_k);
        Ok(found)
    }
}
