//! Building: merges equal vectors, grows the graph with `hnsw_rs`, copies its links out and verifies them.
//!
//! `hnsw_rs` inserts on several threads and selects links as HNSW does; all it stores of a vector is a node number, and
//! the distance function reads our matrix. Its graph is discarded after the copy: it cannot delete, and each of its
//! links is an allocation. Its requirements (see its issues) are met here: no NaN, the first point inserted alone, an
//! insertion order without clusters, no negative distance, and a search for every node afterwards.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;
use hnsw_rs::prelude::{Distance, Hnsw};
use rand::{SeedableRng, seq::SliceRandom};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};

use super::{
    IndexError,
    frozen::{Frozen, LINKS, NONE, Parts, Shape, UPPER_LINKS},
    search::{Searcher, finds_itself},
};
use crate::{
    distance::{dot_listed, encode, padded_bytes, padded_floats},
    pool,
};

/// How the graph is grown.
#[derive(Clone, Copy, Debug)]
pub struct GraphParameters {
    /// Candidates kept while a node's links are selected: more candidates give a better graph and a slower build.
    pub build_candidates: usize,
    /// Below this number of distinct vectors no graph is built and no snapshot written: every vector is compared.
    pub graph_min: usize,
}

/// An exact scan of fewer vectors takes less than a millisecond, while building a graph takes seconds.
pub const GRAPH_MIN: usize = 20_000;

impl Default for GraphParameters {
    fn default() -> Self {
        Self { build_candidates: 200, graph_min: GRAPH_MIN }
    }
}

/// A node that a search with this many candidates cannot find by its own vector is marked for exact search.
const PROBE_CANDIDATES: usize = 64;
/// Seeds the insertion order, so that a build can be repeated.
const SEED: u64 = 0x4845_4152_5448;
/// The maximum of `hnsw_rs`.
const LEVELS_MAX: usize = 16;

/// Freezes unit vectors, `[keys, padded]`.
pub(super) fn freeze(
    dim: usize,
    keys: &[u64],
    vectors: &[f32],
    parameters: GraphParameters,
) -> Result<Frozen, IndexError> {
    let (mut shape, mut parts) = gather(dim, keys, vectors);
    if shape.nodes < parameters.graph_min.max(2) {
        return Ok(Frozen::new(shape, &parts));
    }
    // Half of the cores: no caller waits for a build.
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(pool::threads().div_ceil(2))
        .thread_name(|index| format!("hearth-index-{index}"))
        .build()
        .map_err(|error| IndexError::Build(error.to_string()))?;
    threads.install(|| {
        grow(&mut shape, &mut parts, parameters)?;
        let frozen = Frozen::new(shape, &parts);
        let searcher = Searcher::default();
        let candidates = PROBE_CANDIDATES;
        let unreached: Vec<u32> = (0..shape.nodes as u32)
            .into_par_iter()
            .filter(|&node| !finds_itself(&frozen, &searcher, node, candidates))
            .collect();
        if unreached.is_empty() {
            return Ok(frozen);
        }
        drop(frozen);
        shape.unreached = unreached.len();
        parts.unreached = unreached;
        Ok(Frozen::new(shape, &parts))
    })
}

/// Merges equal vectors into one node and encodes the nodes.
fn gather(dim: usize, keys: &[u64], vectors: &[f32]) -> (Shape, Parts) {
    let padded = padded_floats(dim);
    let stride = padded_bytes(padded);
    let mut nodes: Vec<(&[f32], Vec<u64>)> = Vec::new();
    let mut known: HashMap<&[u8], usize, RandomState> = HashMap::default();
    for (&key, vector) in keys.iter().zip(vectors.chunks_exact(padded.max(1))) {
        let node = *known.entry(bytemuck::cast_slice(vector)).or_insert_with(|| {
            nodes.push((vector, Vec::new()));
            nodes.len() - 1
        });
        nodes[node].1.push(key);
    }
    let shape = Shape { dim, nodes: nodes.len(), members: keys.len(), ..Shape::default() };
    let mut parts = Parts { codes: vec![0; nodes.len() * stride], member_first: vec![0], ..Parts::default() };
    for ((vector, members), code) in nodes.iter().zip(parts.codes.chunks_exact_mut(stride.max(1))) {
        parts.vectors.extend_from_slice(vector);
        parts.scales.push(encode(vector, code));
        parts.keys.extend_from_slice(members);
        parts.member_first.push(parts.keys.len() as u32);
    }
    (shape, parts)
}

/// The distance of two nodes, for `hnsw_rs`, which sees only their numbers.
struct NodeDistance {
    vectors: Arc<Vec<f32>>,
    padded: usize,
}

impl Distance<u32> for NodeDistance {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        let query = &self.vectors[a[0] as usize * self.padded..][..self.padded];
        let mut similarity = [0.0];
        dot_listed(query, &self.vectors, &b[..1], &mut similarity);
        (1.0 - similarity[0]).max(0.0)
    }
}

/// Grows the graph and copies its links into `parts`.
fn grow(shape: &mut Shape, parts: &mut Parts, parameters: GraphParameters) -> Result<(), IndexError> {
    let vectors = Arc::new(std::mem::take(&mut parts.vectors));
    let distance = NodeDistance { vectors: vectors.clone(), padded: padded_floats(shape.dim) };
    let graph: Hnsw<'_, u32, NodeDistance> =
        Hnsw::new(UPPER_LINKS, shape.nodes, LEVELS_MAX, parameters.build_candidates, distance);
    let mut order: Vec<u32> = (0..shape.nodes as u32).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(SEED));
    let points: Vec<(&[u32], usize)> = order.iter().map(|node| (std::slice::from_ref(node), *node as usize)).collect();
    let (first, rest) = points.split_first().expect("there are at least two nodes");
    graph.insert_slice(*first);
    graph.parallel_insert_slice(&rest.to_vec());

    parts.links = vec![NONE; shape.nodes * LINKS];
    parts.upper_first = vec![0; shape.nodes];
    let (mut num_seen, mut highest) = (0, (0, 0));
    for point in graph.get_point_indexation() {
        let node = point.get_origin_id();
        let level = usize::from(point.get_point_id().0);
        let mut levels = point.get_neighborhood_id().into_iter().take(level + 1);
        fill(&mut parts.links[node * LINKS..][..LINKS], &levels.next().unwrap_or_default(), node);
        parts.upper_first[node] = shape.upper_rows as u32;
        for _ in 0..level {
            let start = parts.upper_links.len();
            parts.upper_links.resize(start + UPPER_LINKS, NONE);
            fill(&mut parts.upper_links[start..], &levels.next().unwrap_or_default(), node);
            shape.upper_rows += 1;
        }
        highest = highest.max((level, node));
        num_seen += 1;
    }
    drop(graph);
    parts.vectors = Arc::into_inner(vectors).expect("the graph was the other holder");
    if num_seen != shape.nodes {
        return Err(IndexError::Build(format!("{num_seen} of {} nodes were inserted", shape.nodes)));
    }
    shape.levels = highest.0 + 1;
    shape.entry = highest.1 as u32;
    Ok(())
}

/// Writes the nearest neighbours into a row; the remaining slots stay [`NONE`].
fn fill(row: &mut [u32], neighbours: &[hnsw_rs::prelude::Neighbour], node: usize) {
    let mut nearest: Vec<_> = neighbours.iter().filter(|neighbour| neighbour.d_id != node).collect();
    nearest.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    nearest.dedup_by_key(|neighbour| neighbour.d_id);
    for (link, neighbour) in row.iter_mut().zip(nearest) {
        *link = neighbour.d_id as u32;
    }
}
