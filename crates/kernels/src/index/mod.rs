//! The vector index: which stored vectors are most similar to a query.
//!
//! A frozen part (`frozen.rs`), searched through its graph or exactly, plus the changes since it was built: added
//! vectors, which are few and searched exactly, and marks on removed ones. [`VectorIndex::rebuild`] freezes everything
//! again while searches continue, then swaps. The index is derived from the store, which is the source of truth: a
//! snapshot (`snapshot.rs`) only saves building it, and is checked before it is used.
//!
//! A key names one vector forever; what belongs to a key, and which keys a caller may see, is left to the store.

mod build;
mod exact;
mod frozen;
mod search;
mod snapshot;
mod top;

use std::{collections::HashSet, path::Path, sync::Arc};

use ahash::RandomState;
use parking_lot::{Mutex, RwLock};

pub use self::{
    build::{GRAPH_MIN, GraphParameters},
    snapshot::SnapshotError,
};
use self::{
    exact::{Delta, scan_listed},
    frozen::Frozen,
    search::Searcher,
    top::Top,
};
use crate::distance::padded_floats;

/// The share of changes since the last build from which a rebuild is worth its time.
const REBUILD_SHARE: f64 = 0.2;
/// Fewer vectors than this are never worth a build: scanning them exactly takes no time.
const REBUILD_MIN: usize = 4096;

/// The keys that a filter admits.
pub type Keys = HashSet<u64, RandomState>;

/// A stored vector near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    pub key: u64,
    /// The cosine, -1 to 1.
    pub similarity: f32,
}

/// How to search; the default is right for most uses.
#[derive(Clone, Copy, Debug)]
pub struct SearchParameters {
    /// Candidates the graph search keeps; more candidates find more and take longer. At least the number of results
    /// requested.
    pub candidates: usize,
    /// Compare every vector, at any cost.
    pub exact: bool,
}

impl Default for SearchParameters {
    fn default() -> Self {
        Self { candidates: 128, exact: false }
    }
}

/// A vector that cannot be indexed, or a query that cannot be searched for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    #[error("a vector of {found} dimensions does not belong into an index of {expected}")]
    Dimensions { expected: usize, found: usize },
    #[error("a vector has a component that is not a finite number")]
    NotFinite,
    #[error("a vector of length zero has no direction")]
    ZeroLength,
    #[error("key {0} is in the index already; a key names one vector for ever")]
    Taken(u64),
    #[error("the graph could not be built: {0}")]
    Build(String),
}

/// See the module.
#[derive(Debug)]
pub struct VectorIndex {
    dim: usize,
    parameters: GraphParameters,
    state: RwLock<State>,
    searcher: Searcher,
    /// One build at a time.
    building: Mutex<()>,
}

#[derive(Debug)]
struct State {
    frozen: Arc<Frozen>,
    /// One bit per member of the frozen part.
    removed: Vec<u64>,
    num_removed: usize,
    delta: Delta,
}

/// What an index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexStats {
    pub vectors: usize,
    /// Of those, how many the graph searches.
    pub in_graph: usize,
    /// Added since the last build.
    pub added: usize,
    /// Removed since the last build.
    pub removed: usize,
    pub memory_bytes: usize,
}

impl VectorIndex {
    /// An empty index of vectors of `dim` components.
    pub fn new(dim: usize, parameters: GraphParameters) -> Self {
        Self::of(Frozen::empty(dim), parameters)
    }

    fn of(frozen: Frozen, parameters: GraphParameters) -> Self {
        let dim = frozen.dim();
        let removed = vec![0; frozen.num_members().div_ceil(64)];
        let state = State { frozen: Arc::new(frozen), removed, num_removed: 0, delta: Delta::new(padded_floats(dim)) };
        Self { dim, parameters, state: RwLock::new(state), searcher: Searcher::default(), building: Mutex::new(()) }
    }

    /// Reads a snapshot that [`Self::save`] wrote for the same `identity` and dimension. The caller adds and removes
    /// what was stored or deleted since; see [`Self::keys`].
    ///
    /// # Errors
    /// If the file is missing, incomplete, or belongs to something else; the index must then be rebuilt from the store.
    pub fn load(path: &Path, identity: &str, dim: usize, parameters: GraphParameters) -> Result<Self, SnapshotError> {
        let frozen = snapshot::read(path, identity)?;
        if frozen.dim() != dim {
            return Err(SnapshotError::Dimensions { found: frozen.dim(), expected: dim });
        }
        Ok(Self::of(frozen, parameters))
    }

    /// Writes the frozen part to a file, completely or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path, identity: &str) -> Result<(), SnapshotError> {
        let frozen = self.state.read().frozen.clone();
        snapshot::write(&frozen, path, identity)
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn stats(&self) -> IndexStats {
        let state = self.state.read();
        let frozen = &state.frozen;
        IndexStats {
            vectors: frozen.num_members() - state.num_removed + state.delta.len(),
            in_graph: if frozen.has_graph() { frozen.num_members() - state.num_removed } else { 0 },
            added: state.delta.len(),
            removed: state.num_removed,
            memory_bytes: frozen.size_bytes() + state.delta.size_bytes(),
        }
    }

    /// All keys in the index, in no particular order.
    pub fn keys(&self) -> Vec<u64> {
        let state = self.state.read();
        let frozen = (0..state.frozen.num_members()).filter(|&member| !state.is_removed(member));
        let frozen = frozen.map(|member| state.frozen.keys()[member]);
        frozen.chain(state.delta.keys().iter().copied()).collect()
    }

    pub fn contains(&self, key: u64) -> bool {
        self.state.read().contains(key)
    }

    /// Adds all the vectors or none; searches find them immediately. They need not have unit length.
    ///
    /// # Errors
    /// If one has the wrong number of components, is not finite, is zero, or its key is taken.
    pub fn insert(&self, entries: &[(u64, &[f32])]) -> Result<(), IndexError> {
        let units: Vec<Vec<f32>> =
            entries.iter().map(|(_, vector)| unit(vector, self.dim)).collect::<Result<_, _>>()?;
        let mut state = self.state.write();
        let mut seen = Keys::default();
        for (key, _) in entries {
            if !seen.insert(*key) || state.contains(*key) {
                return Err(IndexError::Taken(*key));
            }
        }
        for ((key, _), unit) in entries.iter().zip(&units) {
            state.delta.push(*key, unit);
        }
        Ok(())
    }

    /// Removes vectors; searches no longer find them. Unknown keys are skipped. Returns the number removed.
    pub fn remove(&self, keys: &[u64]) -> usize {
        let mut state = self.state.write();
        keys.iter().filter(|&&key| state.remove(key)).count()
    }

    /// The `limit` vectors nearest to the query, nearest first; fewer if there are fewer. With a filter, only vectors
    /// whose keys it contains.
    ///
    /// # Errors
    /// If the query is not a valid vector for this index.
    pub fn search(
        &self,
        query: &[f32],
        limit: usize,
        filter: Option<&Keys>,
        parameters: SearchParameters,
    ) -> Result<Vec<Hit>, IndexError> {
        let query = unit(query, self.dim)?;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let mut top = Top::new(limit);
        state.delta.scan(&query, filter, &mut top);
        let frozen = &state.frozen;
        let is_live =
            |member: usize, key: u64| !state.is_removed(member) && filter.is_none_or(|filter| filter.contains(&key));
        let wanted = filter.map_or(frozen.num_members(), HashSet::len);
        let candidates = parameters.candidates.max(limit);
        if parameters.exact || !frozen.has_graph() || !search::graph_wins(frozen.num_nodes(), wanted, candidates) {
            match filter {
                Some(filter) if filter.len() < frozen.num_members() / 2 => {
                    let listed = filter.iter().filter_map(|&key| frozen.member_of(key));
                    let mut members: Vec<u32> = listed.filter(|&member| !state.is_removed(member as usize)).collect();
                    // In memory order.
                    members.sort_unstable();
                    scan_listed(frozen, &query, &members, &mut top);
                }
                _ => exact::scan(frozen, &query, is_live, &mut top),
            }
        } else {
            self.searcher.search(frozen, &query, candidates, is_live, &mut top);
        }
        Ok(top.into_hits())
    }

    /// Whether enough has changed since the last build for another one to pay off.
    pub fn wants_rebuild(&self) -> bool {
        let state = self.state.read();
        let changed = state.delta.len() + state.num_removed;
        let least = REBUILD_MIN.min(self.parameters.graph_min);
        changed >= least && changed as f64 > REBUILD_SHARE * state.frozen.num_members() as f64
    }

    /// Freezes everything now in the index, on this thread and some of rayon's. Searches and changes continue
    /// meanwhile.
    ///
    /// # Errors
    /// If the graph cannot be built; the index is then unchanged.
    pub fn rebuild(&self) -> Result<(), IndexError> {
        let _one_at_a_time = self.building.lock();
        let (mut keys, mut vectors) = (Vec::new(), Vec::new());
        {
            let state = self.state.read();
            for (member, &key) in state.frozen.keys().iter().enumerate() {
                if !state.is_removed(member) {
                    keys.push(key);
                    vectors.extend_from_slice(state.frozen.vector_of_member(member));
                }
            }
            keys.extend_from_slice(state.delta.keys());
            vectors.extend_from_slice(state.delta.vectors());
        }
        let frozen = build::freeze(self.dim, &keys, &vectors, self.parameters)?;
        drop(vectors);
        let mut state = self.state.write();
        let mut removed = vec![0; frozen.num_members().div_ceil(64)];
        let mut num_removed = 0;
        for (member, &key) in frozen.keys().iter().enumerate() {
            if !state.contains(key) {
                removed[member / 64] |= 1 << (member % 64);
                num_removed += 1;
            }
        }
        state.delta.retain(|key| frozen.member_of(key).is_none());
        *state = State {
            frozen: Arc::new(frozen),
            removed,
            num_removed,
            delta: std::mem::replace(&mut state.delta, Delta::new(0)),
        };
        Ok(())
    }
}

impl State {
    fn is_removed(&self, member: usize) -> bool {
        self.removed[member / 64] >> (member % 64) & 1 == 1
    }

    fn contains(&self, key: u64) -> bool {
        self.delta.contains(key) || self.frozen.member_of(key).is_some_and(|member| !self.is_removed(member as usize))
    }

    fn remove(&mut self, key: u64) -> bool {
        if self.delta.remove(key) {
            return true;
        }
        match self.frozen.member_of(key) {
            Some(member) if !self.is_removed(member as usize) => {
                self.removed[member as usize / 64] |= 1 << (member % 64);
                self.num_removed += 1;
                true
            }
            _ => false,
        }
    }
}

/// The vector scaled to unit length, padded with zeros to whole registers.
fn unit(vector: &[f32], dim: usize) -> Result<Vec<f32>, IndexError> {
    if vector.len() != dim {
        return Err(IndexError::Dimensions { expected: dim, found: vector.len() });
    }
    if !vector.iter().all(|x| x.is_finite()) {
        return Err(IndexError::NotFinite);
    }
    // In double precision, which no finite float overflows.
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length == 0.0 {
        return Err(IndexError::ZeroLength);
    }
    #[expect(clippy::cast_possible_truncation, reason = "components of a unit vector are at most 1")]
    let mut unit: Vec<f32> = vector.iter().map(|&x| (f64::from(x) / length) as f32).collect();
    unit.resize(padded_floats(dim), 0.0);
    Ok(unit)
}

#[cfg(test)]
mod tests;
