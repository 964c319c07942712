//! The documents of one caller: files, the collections that they are members of, and which of them can be searched.
//!
//! Each handle belongs to one request's account, and sees only its caller's data. Other callers' data does not exist
//! here: the answer is the same as for an unknown id.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_domain::{
    Account, RoutingPolicy,
    documents::{Collection, Document, DocumentStatus, Page, PageRequest, StoredFile},
    error::{Error, ErrorKind, Result},
};

use super::{Attributes, DEFAULT_COLLECTION, Documents, RETRY_INDEXING, reindex};
use crate::{
    retrieval::indexes::Indexes,
    service::jobs::blocking,
    store::{Access, Incoming, Job, Owned, StoreError, Upload},
};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct OwnedDocuments {
    pub(super) documents: Arc<Documents>,
    pub(super) account: Arc<Account>,
}

impl OwnedDocuments {
    fn owner(&self) -> &str {
        &self.account.caller().id
    }

    /// Runs blocking work on the owner's view of the store, and on the indexes that follow it.
    pub(super) async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Owned, &Indexes) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        let quota = self.account.caller().limits.storage.or(self.documents.quota);
        let is_local_only = self.account.policy() == Some(RoutingPolicy::LocalOnly);
        blocking(move || {
            let own = this.documents.store.view(Access { owner: this.owner(), quota, is_local_only });
            work(&*own, &this.documents.indexes)
        })
        .await
    }

    // --- collections ---

    /// # Errors
    /// 400 if the name is taken.
    pub async fn create_collection(&self, name: &str, metadata: Attributes) -> Result<Collection> {
        let name = name.to_owned();
        self.stored(move |store, _| store.create_collection(&name, metadata)).await
    }

    /// All collections, the oldest first.
    pub async fn collections(&self) -> Result<Vec<Collection>> {
        self.stored(move |store, _| store.collections()).await
    }

    /// By id or name. The default collection is created on first use.
    ///
    /// # Errors
    /// 404
    pub async fn collection(&self, id_or_name: &str) -> Result<Collection> {
        if id_or_name == DEFAULT_COLLECTION {
            return self.collection_or_new(id_or_name).await;
        }
        let id_or_name = id_or_name.to_owned();
        self.stored(move |store, _| store.collection(&id_or_name)).await
    }

    /// By id or name; created if missing, by the first of several concurrent requests.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn collection_or_new(&self, id_or_name: &str) -> Result<Collection> {
        let id_or_name = id_or_name.to_owned();
        self.stored(move |store, _| match store.collection(&id_or_name) {
            Err(StoreError::NotFound { .. }) => match store.create_collection(&id_or_name, Attributes::new()) {
                Err(StoreError::NameTaken(name)) => store.collection(&name),
                made => made,
            },
            found => found,
        })
        .await
    }

    /// These collections, or the default one if none is named.
    ///
    /// # Errors
    /// 404 for the first unknown one.
    pub async fn collections_named(&self, names: &[String]) -> Result<Vec<Collection>> {
        if names.is_empty() {
            return Ok(vec![self.collection(DEFAULT_COLLECTION).await?]);
        }
        let mut found: Vec<Collection> = Vec::with_capacity(names.len());
        for name in names {
            let collection = self.collection(name).await?;
            if found.iter().all(|other| other.id != collection.id) {
                found.push(collection);
            }
        }
        Ok(found)
    }

    /// The collections that a question is about, once they can be searched: the named ones, else those of the named
    /// documents, else the default one.
    ///
    /// # Errors
    /// 404 for anything unknown, and 409 `indexing` as [`Self::settled`].
    pub async fn scope(
        &self,
        collections: &[String],
        document_ids: &[String],
        patience: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Collection>> {
        let mut names = collections.to_vec();
        for id in document_ids {
            let found = self.documents_of_file(id).await?;
            if collections.is_empty() {
                names.extend(found.into_iter().map(|document| document.collection_id));
            }
        }
        let found = self.collections_named(&names).await?;
        if let Some(patience) = patience {
            self.settled(&found, patience, deadline).await?;
        }
        // Read again, because the first vectors bind a collection and documents were read while this waited.
        self.collections_named(&found.into_iter().map(|collection| collection.id).collect::<Vec<_>>()).await
    }

    /// # Errors
    /// 404, and 400 if the name is taken.
    pub async fn update_collection(
        &self,
        id: &str,
        name: Option<String>,
        metadata: Option<Attributes>,
    ) -> Result<Collection> {
        let id = id.to_owned();
        self.stored(move |store, _| store.update_collection(&id, name, metadata)).await
    }

    /// Deletes a collection with its documents; their files stay.
    ///
    /// # Errors
    /// 404
    pub async fn delete_collection(&self, id_or_name: &str) -> Result<Collection> {
        let id_or_name = id_or_name.to_owned();
        let deleted = self
            .stored(move |store, indexes| {
                let collection = store.collection(&id_or_name)?;
                store.delete_collection(&collection.id)?;
                indexes.forget(&collection.id);
                Ok(collection)
            })
            .await?;
        self.documents.jobs.wake_workers();
        Ok(deleted)
    }

    /// Starts to re-embed a collection with the embedding model that is served now.
    ///
    /// # Errors
    /// 404, and 503 without an embedding model.
    pub async fn reindex(&self, id_or_name: &str) -> Result<Job> {
        self.documents.retriever()?;
        let collection = self.collection(id_or_name).await?;
        let payload = serde_json::json!({"collection_id": collection.id});
        self.documents.jobs.of(self.owner()).enqueue(reindex::REINDEX, payload).await
    }

    /// A collection's reindexing job, and its last progress event.
    ///
    /// # Errors
    /// 404 if this collection has no such job.
    pub async fn reindexing(&self, id_or_name: &str, job_id: &str) -> Result<(Job, Option<serde_json::Value>)> {
        let collection = self.collection(id_or_name).await?;
        let jobs = self.documents.jobs.of(self.owner());
        let job = jobs.find(reindex::REINDEX, job_id).await?;
        if job.payload["collection_id"] != collection.id.as_str() {
            let message = format!("The collection {} has no job {job_id}.", collection.name);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let last = jobs.events(job_id, 0).await?.pop().map(|(_, event)| event);
        Ok((job, last))
    }

    // --- files ---

    /// Keeps a completely received file.
    ///
    /// # Errors
    /// If the disk rejects it.
    pub async fn keep(&self, incoming: Incoming, filename: &str, purpose: &str) -> Result<StoredFile> {
        let (filename, purpose) = (filename.to_owned(), purpose.to_owned());
        self.stored(move |store, _| store.keep_file(incoming, &filename, &purpose)).await
    }

    /// A page of the files, either of one purpose or all.
    pub async fn files(&self, purpose: Option<String>, page: PageRequest) -> Result<Page<StoredFile>> {
        self.stored(move |store, _| store.files_page(purpose.as_deref(), &page)).await
    }

    /// # Errors
    /// 404
    pub async fn file(&self, id: &str) -> Result<StoredFile> {
        let id = id.to_owned();
        self.stored(move |store, _| store.file(&id)).await
    }

    /// Deletes a file and the documents made from it.
    ///
    /// # Errors
    /// 404
    pub async fn delete_file(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.stored(move |store, indexes| {
            let Some(chunks) = store.delete_file(&id)? else {
                return Err(StoreError::NotFound { what: "file", id });
            };
            let mut by_collection: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (collection_id, chunk) in chunks {
                by_collection.entry(collection_id).or_default().push(chunk);
            }
            for (collection_id, chunks) in by_collection {
                indexes.remove(&collection_id, &chunks);
            }
            Ok(())
        })
        .await?;
        self.documents.jobs.wake_workers();
        Ok(())
    }

    // --- documents ---

    /// Makes a file a member of a collection; a job will read it. Once read, it replaces the document `supersedes`.
    ///
    /// # Errors
    /// 404 for the collection or the file.
    pub async fn add(
        &self,
        collection_id: &str,
        file_id: &str,
        attributes: Attributes,
        supersedes: Option<String>,
    ) -> Result<Upload> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        let added = self
            .stored(move |store, _| {
                if let Some(old) = &supersedes {
                    store.document(&collection_id, old)?;
                }
                store.add_document(&collection_id, &file_id, attributes, supersedes.as_deref())
            })
            .await?;
        self.documents.jobs.wake_workers();
        Ok(added)
    }

    /// [`Self::add`] for a file that was uploaded only for this document: if its bytes are in the collection already,
    /// the file is dropped and the existing document is returned.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub async fn add_uploaded(
        &self,
        collection: &Collection,
        file: &StoredFile,
        attributes: Attributes,
        supersedes: Option<String>,
    ) -> Result<Document> {
        match self.add(&collection.id, &file.id, attributes, supersedes).await {
            Ok(Upload::New(document)) => Ok(document),
            Ok(Upload::Known(document)) => {
                if document.file_id != file.id {
                    self.delete_file(&file.id).await?;
                }
                Ok(document)
            }
            Err(error) => {
                self.delete_file(&file.id).await?;
                Err(error)
            }
        }
    }

    /// # Errors
    /// 404
    pub async fn document(&self, collection_id: &str, file_id: &str) -> Result<Document> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        self.stored(move |store, _| store.document(&collection_id, &file_id)).await
    }

    /// The progress of a document that is being read.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn progress(&self, document: &Document) -> Result<Option<serde_json::Value>> {
        if document.status != DocumentStatus::Processing {
            return Ok(None);
        }
        let (collection_id, file_id) = (document.collection_id.clone(), document.file_id.clone());
        self.stored(move |store, _| store.ingest_progress(&collection_id, &file_id)).await
    }

    /// The documents made from a file, in any collection.
    ///
    /// # Errors
    /// 404 if there is none.
    pub async fn documents_of_file(&self, file_id: &str) -> Result<Vec<Document>> {
        let file_id = file_id.to_owned();
        self.stored(move |store, _| {
            let found = store.documents_of_file(&file_id)?;
            if found.is_empty() { Err(StoreError::NotFound { what: "document", id: file_id }) } else { Ok(found) }
        })
        .await
    }

    /// A page of a collection's documents: all, or those of a batch or with a status.
    pub async fn documents(
        &self,
        collection_id: &str,
        batch_id: Option<String>,
        status: Option<&'static str>,
        page: PageRequest,
    ) -> Result<Page<Document>> {
        let collection_id = collection_id.to_owned();
        self.stored(move |store, _| store.documents_page(&collection_id, batch_id.as_deref(), status, &page)).await
    }

    /// The documents of up to `limit` files after a file, the newest first, in one collection or in all; and the total
    /// number of documents.
    pub async fn documents_of_files(
        &self,
        collection_id: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Page<Document>, usize)> {
        self.stored(move |store, _| {
            let total = store.num_documents(collection_id.as_deref())?;
            Ok((store.documents_of_files(collection_id.as_deref(), after.as_deref(), limit)?, total))
        })
        .await
    }

    /// # Errors
    /// 404
    pub async fn set_attributes(&self, collection_id: &str, file_id: &str, attributes: Attributes) -> Result<Document> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        self.stored(move |store, indexes| {
            let document = store.set_document_attributes(&collection_id, &file_id, attributes)?;
            indexes.changed(&collection_id);
            Ok(document)
        })
        .await
    }

    /// Stops the reading of a document that is not searchable yet; it stays, as cancelled.
    ///
    /// # Errors
    /// 404
    pub async fn cancel(&self, collection_id: &str, file_id: &str) -> Result<Document> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        let document = self
            .stored(move |store, _| {
                let found = store.document(&collection_id, &file_id)?;
                if found.status != DocumentStatus::Processing {
                    return Ok(found);
                }
                store.set_document_status(&collection_id, &file_id, DocumentStatus::Cancelled)
            })
            .await?;
        self.documents.jobs.wake_workers();
        Ok(document)
    }

    /// Removes a document from a collection; its file stays.
    ///
    /// # Errors
    /// 404
    pub async fn remove(&self, collection_id: &str, file_id: &str) -> Result<()> {
        let (collection_id, file_id) = (collection_id.to_owned(), file_id.to_owned());
        self.stored(move |store, indexes| {
            let chunks = store.delete_document(&collection_id, &file_id)?;
            indexes.remove(&collection_id, &chunks);
            Ok(())
        })
        .await?;
        self.documents.jobs.wake_workers();
        Ok(())
    }

    /// Resolves when every document of these collections can be searched or has failed. With `patience` of zero it does
    /// not wait.
    ///
    /// # Errors
    /// 409 `indexing` if that takes longer than `patience`, or would pass the deadline.
    pub async fn settled(
        &self,
        collections: &[Collection],
        patience: Duration,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        let mut changes = self.documents.jobs.changes();
        loop {
            changes.mark_unchanged();
            let ids = collections.iter().map(|found| found.id.clone()).collect::<Vec<_>>();
            let left =
                self.stored(move |store, _| ids.iter().map(|id| store.num_unsearchable(id)).sum::<Result<usize, _>>());
            let left = left.await?;
            if left == 0 {
                return Ok(());
            }
            if tokio::time::timeout_at(until.into(), changes.changed()).await.is_err() {
                let message = format!(
                    "{left} of the documents are still being read. Ask again, send `wait` with the seconds to wait for \
                     them, or `\"wait\": false` to ask what can be searched now."
                );
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_code("indexing")
                    .with_retry_after(RETRY_INDEXING));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::retrieval::search::Lookup;
    use crate::{service::callers::Callers, store::Store};
    use hearth_domain::{
        Caller, RequestContext, RoutingPolicy, StorageQuota,
        documents::{AttributeValue, LOCAL_ONLY},
        usage::NoSink,
    };
    use hearth_kernels::index::GraphParameters;

    fn documents(directory: &TempDir) -> Arc<Documents> {
        let store = Store::open(directory.path()).unwrap();
        Documents::new(
            store.clone(),
            GraphParameters::default(),
            Callers::new(store),
            Arc::new(NoSink),
            StorageQuota::default(),
        )
    }

    /// The account of a caller who asks for an upstream.
    fn account(id: &str) -> Arc<Account> {
        let opening = RequestContext {
            request_id: String::new(),
            route: String::new(),
            caller: Arc::new(Caller { id: id.to_owned(), ..Caller::local() }),
            fairness_key: String::new(),
            policy: Some(RoutingPolicy::HostedFirst),
            is_recorded: false,
            cache_use: hearth_domain::CacheUse::default(),
            is_local_only: false,
            session: None,
        };
        Account::open(Arc::new(NoSink), opening)
    }

    fn metadata(local_only: AttributeValue) -> Attributes {
        Attributes::from([(LOCAL_ONLY.to_owned(), local_only)])
    }

    #[tokio::test]
    async fn a_request_that_touches_a_local_only_collection_stays_on_this_machine() {
        let directory = TempDir::new().unwrap();
        let documents = documents(&directory);
        let text = |text: &str| metadata(AttributeValue::Text(text.to_owned()));
        let own = documents.of(&account("a"));
        for (name, metadata) in [
            ("secret", text("true")),
            ("also", metadata(AttributeValue::Bool(true))),
            ("misspelt", text("ture")),
            ("open", text("false")),
            ("plain", Attributes::new()),
        ] {
            own.create_collection(name, metadata).await.unwrap();
        }
        let policy_of = async |names: &[&str]| {
            let account = account("a");
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = documents.of(&account).scope(&names, &[], None, None).await.unwrap();
            Lookup::account_for(&account, &found).policy().unwrap()
        };
        for names in [&["secret"][..], &["also"], &["misspelt"], &["open", "secret"]] {
            assert_eq!(policy_of(names).await, RoutingPolicy::LocalOnly, "{names:?}");
        }
        for names in [&["open"][..], &["plain", "open"], &[]] {
            assert_eq!(policy_of(names).await, RoutingPolicy::HostedFirst, "{names:?}");
        }
        // As a vector store, and by a document of it.
        let secret = own.collection("secret").await.unwrap();
        let store = account("a");
        let found = documents.of(&store).vector_store(&secret.id).await.unwrap();
        assert_eq!(Lookup::account_for(&store, &[found]).policy(), Some(RoutingPolicy::LocalOnly));
        let mut incoming = documents.receive(0).await.unwrap();
        incoming.write(b"mine").unwrap();
        let file = own.keep(incoming, "a.md", "assistants").await.unwrap();
        own.add(&secret.id, &file.id, Attributes::new(), None).await.unwrap();
        let document = account("a");
        let found = documents.of(&document).scope(&[], &[file.id], None, None).await.unwrap();
        assert_eq!(Lookup::account_for(&document, &found).policy(), Some(RoutingPolicy::LocalOnly));
    }

    #[tokio::test]
    async fn the_default_collection_is_each_callers_own() {
        let directory = TempDir::new().unwrap();
        let documents = documents(&directory);
        let (a, b) = (documents.of(&account("a")), documents.of(&account("b")));
        let default = a.collection(DEFAULT_COLLECTION).await.unwrap();
        assert_ne!(b.collection(DEFAULT_COLLECTION).await.unwrap().id, default.id);
        assert_eq!(a.collections().await.unwrap(), [default]);
    }
}
