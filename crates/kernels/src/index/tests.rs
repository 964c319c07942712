//! The index against a plain reference that compares every vector in double precision.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::*;

const GRAPH: GraphParameters = GraphParameters { build_candidates: 100, graph_min: 2 };
const GRAPH_SEARCH: SearchParameters = SearchParameters { candidates: 100, exact: false };
const EXACT: SearchParameters = SearchParameters { candidates: 100, exact: true };

/// Vectors around a few centres, like texts on a few subjects, and some near duplicates.
fn clustered(count: usize, dim: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut point = |spread: f32, around: &[f32]| -> Vec<f32> {
        around
            .iter()
            .map(|x| x + spread * (random.random_range(-1.0..1.0_f32) + random.random_range(-1.0..1.0)))
            .collect()
    };
    let zero = vec![0.0; dim];
    let centres: Vec<_> = (0..count.div_ceil(100)).map(|_| point(1.0, &zero)).collect();
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    for index in 0..count {
        let near_duplicate = index % 10 == 9;
        let vector =
            if near_duplicate { point(1e-3, &vectors[index - 1]) } else { point(0.5, &centres[index % centres.len()]) };
        vectors.push(vector);
    }
    vectors
}

fn entries(vectors: &[Vec<f32>]) -> Vec<(u64, &[f32])> {
    vectors.iter().enumerate().map(|(key, vector)| (key as u64, &vector[..])).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The keys nearest to the query.
fn reference<'a>(stored: impl Iterator<Item = (u64, &'a Vec<f32>)>, query: &[f32], limit: usize) -> Vec<(u64, f64)> {
    let mut all: Vec<_> = stored.map(|(key, vector)| (key, cosine(vector, query))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(limit);
    all
}

/// The share of the correct results that were found.
fn recall(found: &[Hit], right: &[(u64, f64)]) -> f64 {
    let found: Keys = found.iter().map(|hit| hit.key).collect();
    right.iter().filter(|(key, _)| found.contains(key)).count() as f64 / right.len().max(1) as f64
}

fn assert_exact(found: &[Hit], right: &[(u64, f64)]) {
    assert_eq!(found.len(), right.len());
    for (hit, (_, similarity)) in found.iter().zip(right) {
        assert!((f64::from(hit.similarity) - similarity).abs() < 1e-5, "{hit:?} {similarity}");
    }
}

#[test]
fn the_graph_finds_what_the_scan_finds() {
    let vectors = clustered(4000, 48, 1);
    let index = VectorIndex::new(48, GRAPH);
    index.insert(&entries(&vectors)).unwrap();
    index.rebuild().unwrap();
    assert_eq!(index.stats().in_graph, 4000);
    let (mut total, mut queries) = (0.0, 0);
    for query in clustered(100, 48, 2).iter().chain(vectors.iter().step_by(40)) {
        let right = reference((0..).zip(&vectors), query, 10);
        assert_exact(&index.search(query, 10, None, EXACT).unwrap(), &right);
        let state = index.state.read();
        let mut top = Top::new(10);
        index.searcher.search(&state.frozen, &unit(query, 48).unwrap(), 100, |_, _| true, &mut top);
        total += recall(&top.into_hits(), &right);
        queries += 1;
    }
    assert!(total / f64::from(queries) > 0.98, "recall {}", total / f64::from(queries));
}

#[test]
fn every_vector_is_found_by_itself_even_behind_near_duplicates() {
    let mut vectors = vec![vec![1.0_f32; 16]; 1];
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..1500 {
        vectors.push(vectors[0].iter().map(|x| x + random.random_range(-1e-4..1e-4)).collect());
    }
    vectors.extend(clustered(1500, 16, 4));
    let index = VectorIndex::new(16, GRAPH);
    index.insert(&entries(&vectors)).unwrap();
    index.rebuild().unwrap();
    let state = index.state.read();
    for vector in &vectors {
        let mut top = Top::new(1);
        index.searcher.search(&state.frozen, &unit(vector, 16).unwrap(), 64, |_, _| true, &mut top);
        assert!(top.into_hits()[0].similarity > 1.0 - 1e-6);
    }
}

#[test]
fn equal_vectors_keep_their_own_keys() {
    let index = VectorIndex::new(4, GRAPH);
    let (a, b) = ([1.0, 2.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]);
    index.insert(&[(1, &a), (2, &b), (3, &a), (4, &[2.0, 4.0, 0.0, 0.0]), (5, &b)]).unwrap();
    index.rebuild().unwrap();
    let keys = |limit| index.search(&a, limit, None, EXACT).unwrap().iter().map(|hit| hit.key).collect::<Vec<_>>();
    assert_eq!(keys(2), [1, 3]);
    assert_eq!(keys(9), [1, 3, 4, 2, 5]);
    assert_eq!(index.remove(&[1, 77]), 1);
    assert_eq!(keys(2), [3, 4]);
    let only: Keys = [5].into_iter().collect();
    assert_eq!(index.search(&a, 3, Some(&only), GRAPH_SEARCH).unwrap()[0].key, 5);
}

#[test]
fn what_is_no_vector_is_refused_and_nothing_is_added() {
    let index = VectorIndex::new(2, GraphParameters::default());
    index.insert(&[(1, &[1.0, 0.0])]).unwrap();
    let good: &[f32] = &[0.0, 1.0];
    for (key, bad, error) in [
        (3, &[1.0][..], IndexError::Dimensions { expected: 2, found: 1 }),
        (3, &[f32::NAN, 0.0], IndexError::NotFinite),
        (3, &[f32::INFINITY, 0.0], IndexError::NotFinite),
        (3, &[0.0, 0.0], IndexError::ZeroLength),
        (1, good, IndexError::Taken(1)),
        (2, good, IndexError::Taken(2)),
    ] {
        assert_eq!(index.insert(&[(2, good), (key, bad)]), Err(error));
        assert_eq!(index.stats().vectors, 1);
    }
    assert_eq!(index.search(&[f32::NAN, 1.0], 1, None, EXACT), Err(IndexError::NotFinite));
    assert_eq!(index.search(&[1e38, 1e38], 1, None, EXACT).unwrap().len(), 1, "a large vector is a vector");
    assert!(index.search(&[1.0, 0.0], 0, None, EXACT).unwrap().is_empty());
}

#[test]
fn changes_during_a_build_are_kept() {
    let vectors = clustered(3000, 24, 5);
    let all = entries(&vectors);
    let index = VectorIndex::new(24, GRAPH);
    index.insert(&all[..2000]).unwrap();
    std::thread::scope(|scope| {
        let builder = scope.spawn(|| index.rebuild());
        for (key, vector) in &all[2000..] {
            index.insert(&[(*key, vector)]).unwrap();
            index.remove(&[key - 2000]);
        }
        builder.join().unwrap().unwrap();
    });
    let mut keys = index.keys();
    keys.sort_unstable();
    assert_eq!(keys, (1000..3000).collect::<Vec<_>>());
    for (_, vector) in &all[1000..] {
        let found = index.search(vector, 1, None, GRAPH_SEARCH).unwrap()[0];
        assert!(found.similarity > 0.99999 && index.contains(found.key), "{found:?}");
    }
    for (key, vector) in &all[..1000] {
        assert!(index.search(vector, 10, None, GRAPH_SEARCH).unwrap().iter().all(|hit| hit.key != *key));
    }
}

#[test]
fn a_snapshot_is_what_was_saved_or_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("index/vectors.hearth");
    let vectors = clustered(1200, 20, 6);
    let index = VectorIndex::new(20, GRAPH);
    index.insert(&entries(&vectors)).unwrap();
    index.rebuild().unwrap();
    index.save(&path, "minilm").unwrap();
    index.save(&path, "minilm").unwrap();

    let load = |identity, dim| VectorIndex::load(&path, identity, dim, GRAPH);
    let loaded = load("minilm", 20).unwrap();
    assert_eq!(loaded.stats(), index.stats());
    for query in vectors.iter().step_by(50) {
        assert_eq!(
            loaded.search(query, 10, None, GRAPH_SEARCH).unwrap(),
            index.search(query, 10, None, GRAPH_SEARCH).unwrap()
        );
    }
    assert!(matches!(load("bge", 20), Err(SnapshotError::Identity)));
    assert!(matches!(load("minilm", 21), Err(SnapshotError::Dimensions { found: 20, expected: 21 })));

    let whole = std::fs::read(&path).unwrap();
    drop(loaded);
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..200 {
        let mut bytes = whole.clone();
        if random.random_bool(0.5) {
            bytes.truncate(random.random_range(0..whole.len()));
        } else {
            bytes[random.random_range(0..whole.len())] ^= 1 << random.random_range(0..8);
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(load("minilm", 20), Err(SnapshotError::Damaged { .. })));
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(load("minilm", 20), Err(SnapshotError::Io { .. })));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8),
    Remove(u8),
    Rebuild,
    Search(u8, u8),
    Filtered(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u8>().prop_map(Step::Insert),
        2 => any::<u8>().prop_map(Step::Remove),
        1 => Just(Step::Rebuild),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(query, limit)| Step::Search(query, limit)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(query, below)| Step::Filtered(query, below)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// With at least as many candidates as vectors the graph is exact, after any sequence of changes.
    #[test]
    fn any_order_of_changes_gives_what_the_reference_gives(steps in prop::collection::vec(step(), 1..60)) {
        let vectors = clustered(256, 10, 8);
        let index = VectorIndex::new(10, GRAPH);
        let mut stored: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
        let all = SearchParameters { candidates: 300, exact: false };
        for step in steps {
            match step {
                Step::Insert(key) => {
                    let vector = &vectors[usize::from(key)];
                    let taken = stored.insert(u64::from(key), vector.clone()).is_some();
                    prop_assert_eq!(index.insert(&[(u64::from(key), vector)]).is_err(), taken);
                }
                Step::Remove(key) => {
                    let was_there = stored.remove(&u64::from(key)).is_some();
                    prop_assert_eq!(index.remove(&[u64::from(key)]) == 1, was_there);
                }
                Step::Rebuild => index.rebuild().unwrap(),
                Step::Search(query, limit) => {
                    let (query, limit) = (&vectors[usize::from(query)], usize::from(limit % 20) + 1);
                    let right = reference(stored.iter().map(|(key, vector)| (*key, vector)), query, limit);
                    assert_exact(&index.search(query, limit, None, all).unwrap(), &right);
                }
                Step::Filtered(query, below) => {
                    let query = &vectors[usize::from(query)];
                    let filter: Keys = (0..u64::from(below)).collect();
                    let allowed = stored.iter().filter(|(key, _)| filter.contains(key));
                    let right = reference(allowed.map(|(key, vector)| (*key, vector)), query, 5);
                    assert_exact(&index.search(query, 5, Some(&filter), all).unwrap(), &right);
                }
            }
            prop_assert_eq!(index.stats().vectors, stored.len());
        }
    }
}
