//! Each collection's vector index, in step with the store. A store that searches vectors itself has its own, and is asked instead.
//!
//! An index is opened when it is first needed: its snapshot is read, and what the store has gained or lost since is
//! added or removed, by chunk ids, which are never reused. Without a snapshot, or with one that is damaged or of
//! another embedding model, every vector is added, and search is exact until the graph is built in the background. A
//! change is applied here after the store has committed it; if the process crashes in between, the next opening repairs
//! the index.

use std::{collections::HashMap, path::PathBuf, sync::Arc, thread::JoinHandle};

use hearth_domain::documents::EmbeddingIdentity;
use hearth_kernels::index::{GraphParameters, IndexError, Keys, SearchParameters, VectorIndex};
use parking_lot::Mutex;

use crate::store::{Replaced, Scope, Store, StoreError};

const FOLDER: &str = "index";
/// Vectors read from the store at a time.
const VECTORS_AT_A_TIME: usize = 4096;

/// The indexes of all collections; see the module.
#[derive(Debug)]
pub struct Indexes {
    store: Arc<Store>,
    folder: PathBuf,
    parameters: GraphParameters,
    open: Mutex<HashMap<String, Arc<Entry>>>,
    /// Held by the thread that opens a collection.
    opening: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// How often each collection's content has changed since the process started.
    changes: Mutex<HashMap<String, u64>>,
}

/// Why an index could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
}

#[derive(Debug)]
struct Entry {
    collection_id: String,
    identity: String,
    snapshot: PathBuf,
    index: VectorIndex,
    /// Held while the index is changed, so that opening and changing do not both add the same chunk.
    changing: Mutex<()>,
    build: Mutex<Option<JoinHandle<()>>>,
}

impl Indexes {
    /// Graphs are built with these parameters.
    pub fn new(store: Arc<Store>, parameters: GraphParameters) -> Self {
        let folder = store.directory().join(FOLDER);
        Self { store, folder, parameters, open: Mutex::default(), opening: Mutex::default(), changes: Mutex::default() }
    }

    /// Ids of the chunks whose vectors are nearest to this one. It blocks.
    ///
    /// # Errors
    /// If the store cannot be read, or the vector is not one.
    pub fn search(
        &self,
        scope: Scope<'_>,
        embedding: &EmbeddingIdentity,
        vector: &[f32],
        limit: usize,
    ) -> Result<Vec<u64>, SearchError> {
        if let Some(search) = self.store.vector_search() {
            return Ok(search.nearest(scope, embedding, vector, limit)?);
        }
        let passing: Option<Keys> = match scope.filter {
            Some(filter) => Some(self.store.filtered_chunk_ids(scope.collection_id, filter)?.into_iter().collect()),
            None => None,
        };
        let entry = self.entry(scope.collection_id, embedding)?;
        let hits = entry.index.search(vector, limit, passing.as_ref(), SearchParameters::default())?;
        Ok(hits.iter().map(|hit| hit.key).collect())
    }

    /// Opens a collection's index, so that the next search need not. It blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<(), StoreError> {
        if self.store.vector_search().is_none() {
            self.entry(collection_id, embedding)?;
        }
        Ok(())
    }

    /// Applies a committed change of a document, and starts to rebuild the graph if that pays. It blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn apply(
        &self,
        collection_id: &str,
        embedding: &EmbeddingIdentity,
        change: &Replaced,
    ) -> Result<(), StoreError> {
        if self.store.vector_search().is_some() {
            return Ok(());
        }
        let entry = self.entry(collection_id, embedding)?;
        entry.add(&*self.store, &change.added)?;
        entry.index.remove(&change.removed);
        self.changed(collection_id);
        if entry.index.wants_rebuild() {
            entry.build_in_background();
        }
        Ok(())
    }

    /// Records that what can be found in a collection, or its filters' results, has changed. Call it when searches see
    /// the change.
    pub fn changed(&self, collection_id: &str) {
        *self.changes.lock().entry(collection_id.to_owned()).or_default() += 1;
    }

    /// A number for each collection that differs after every change of what is found in it, within this process. Results found after
    /// reading it are at least as new. It may block.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn versions(&self, collection_ids: &[&str]) -> Result<Vec<u64>, StoreError> {
        if let Some(search) = self.store.vector_search() {
            return search.versions(collection_ids);
        }
        let changes = self.changes.lock();
        Ok(collection_ids.iter().map(|id| changes.get(*id).copied().unwrap_or_default()).collect())
    }

    /// Removes deleted chunks from a collection's index. An index that is not open needs no removal: opening it finds
    /// them gone from the store.
    pub fn remove(&self, collection_id: &str, chunk_ids: &[u64]) {
        let entry = self.open.lock().get(collection_id).cloned();
        if let Some(entry) = entry {
            let _changing = entry.changing.lock();
            entry.index.remove(chunk_ids);
        }
        self.changed(collection_id);
    }

    /// Forgets a deleted collection.
    pub fn forget(&self, collection_id: &str) {
        // A collection that is being opened is forgotten once it is open.
        let opening = self.opening.lock().get(collection_id).cloned();
        let _opening = opening.as_ref().map(|opening| opening.lock());
        let entry = self.open.lock().remove(collection_id);
        drop(entry);
        self.changed(collection_id);
        let path = self.snapshot_path(collection_id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "the index of a deleted collection is still there");
            }
            _ => {}
        }
    }

    /// Waits for the running builds.
    pub fn close(&self) {
        let entries: Vec<_> = self.open.lock().drain().map(|(_, entry)| entry).collect();
        for entry in entries {
            entry.wait_for_build();
        }
    }

    fn snapshot_path(&self, collection_id: &str) -> PathBuf {
        self.folder.join(collection_id).with_extension("vectors")
    }

    fn entry(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<Arc<Entry>, StoreError> {
        let open_already = |open: &HashMap<String, Arc<Entry>>| {
            open.get(collection_id).filter(|entry| entry.identity == embedding.name).cloned()
        };
        if let Some(entry) = open_already(&self.open.lock()) {
            return Ok(entry);
        }
        // One opening of a collection at a time: it takes as long as reading a file, and other collections go on
        // meanwhile.
        let opening = self.opening.lock().entry(collection_id.to_owned()).or_default().clone();
        let _opening = opening.lock();
        if let Some(entry) = open_already(&self.open.lock()) {
            return Ok(entry);
        }
        let opened = self.open_from_store(collection_id, embedding);
        if opened.is_err() {
            // The next user opens it again.
            self.open.lock().remove(collection_id);
        }
        self.opening.lock().remove(collection_id);
        opened
    }

    fn open_from_store(&self, collection_id: &str, embedding: &EmbeddingIdentity) -> Result<Arc<Entry>, StoreError> {
        let snapshot = self.snapshot_path(collection_id);
        let parameters = self.parameters;
        let loaded = VectorIndex::load(&snapshot, &embedding.name, embedding.dimensions, parameters);
        let index = loaded.unwrap_or_else(|error| {
            if snapshot.exists() {
                tracing::warn!(%error, collection = collection_id, "the index is built anew from the store");
            }
            VectorIndex::new(embedding.dimensions, parameters)
        });
        let entry = Arc::new(Entry {
            collection_id: collection_id.to_owned(),
            identity: embedding.name.clone(),
            snapshot,
            index,
            changing: Mutex::new(()),
            build: Mutex::new(None),
        });
        self.remove_gone(&entry)?;
        let stored: Keys = self.store.chunk_ids(collection_id)?.into_iter().collect();
        let missing: Vec<u64> = stored.into_iter().filter(|&key| !entry.index.contains(key)).collect();
        entry.add(&*self.store, &missing)?;
        if entry.index.wants_rebuild() {
            entry.build_in_background();
        }
        self.open.lock().insert(collection_id.to_owned(), entry.clone());
        // Chunks deleted during the opening found no index to be removed from.
        self.remove_gone(&entry)?;
        Ok(entry)
    }

    /// Removes chunks that the store does not have. A chunk is in the store before it is in the index, so the index is read first.
    fn remove_gone(&self, entry: &Entry) -> Result<(), StoreError> {
        let keys = entry.index.keys();
        let stored: Keys = self.store.chunk_ids(&entry.collection_id)?.into_iter().collect();
        let gone: Vec<u64> = keys.into_iter().filter(|key| !stored.contains(key)).collect();
        entry.index.remove(&gone);
        Ok(())
    }
}

impl Drop for Indexes {
    fn drop(&mut self) {
        self.close();
    }
}

impl Entry {
    /// Adds the vectors of those chunks that are not indexed yet and still in the store.
    fn add(&self, store: &Store, ids: &[u64]) -> Result<(), StoreError> {
        for ids in ids.chunks(VECTORS_AT_A_TIME) {
            let vectors = store.vectors(ids)?;
            let _changing = self.changing.lock();
            for (id, vector) in &vectors {
                if self.index.contains(*id) {
                    continue;
                }
                // Invalid vectors are refused before they are stored: this one comes from a damaged row.
                if let Err(error) = self.index.insert(&[(*id, vector)]) {
                    tracing::error!(chunk = id, collection = self.collection_id, %error, "a stored vector is not searched");
                }
            }
        }
        Ok(())
    }

    fn build_in_background(self: &Arc<Self>) {
        let mut build = self.build.lock();
        if build.as_ref().is_some_and(|build| !build.is_finished()) {
            return;
        }
        let entry = self.clone();
        let thread = std::thread::Builder::new().name("hearth-index".to_owned()).spawn(move || entry.build());
        match thread {
            Ok(thread) => *build = Some(thread),
            Err(error) => tracing::error!(%error, "the index is searched exactly: no thread to build its graph"),
        }
    }

    fn build(&self) {
        let built = self.index.rebuild().map_err(anyhow::Error::from);
        let saved = built.and_then(|()| Ok(self.index.save(&self.snapshot, &self.identity)?));
        match saved {
            Ok(()) => tracing::info!(collection = self.collection_id, stats = ?self.index.stats(), "index built"),
            Err(error) => {
                tracing::error!(collection = self.collection_id, error = %hearth_domain::error::sentence(&error), "index not built");
            }
        }
    }

    fn wait_for_build(&self) {
        let build = self.build.lock().take();
        if build.is_some_and(|build| build.join().is_err()) {
            tracing::error!(collection = self.collection_id, "building the index failed");
        }
    }
}
