//! The exact scan: compares every vector that may be a result.
//!
//! Small collections, narrow filters and newly added vectors are searched this way, and the graph is measured against
//! it.

use std::{collections::HashMap, ops::Range};

use ahash::RandomState;
use parking_lot::Mutex;

use super::{Keys, frozen::Frozen, top::Top};
use crate::{
    distance::{dot_listed, dot_range},
    pool,
};

/// Vectors per parallel block: enough to be worth waking a thread, few enough to share the work evenly.
const BLOCK: usize = 1024;

/// Offers the members of the frozen part that satisfy `is_live`.
pub(super) fn scan(frozen: &Frozen, query: &[f32], is_live: impl Fn(usize, u64) -> bool + Sync, top: &mut Top) {
    in_blocks(frozen.num_nodes(), top, |nodes, similarities, top| {
        dot_range(query, frozen.vectors(), nodes.start, similarities);
        for (node, &similarity) in nodes.zip(similarities.iter()) {
            offer_members(frozen, node as u32, similarity, &is_live, top);
        }
    });
}

/// Offers the listed members.
pub(super) fn scan_listed(frozen: &Frozen, query: &[f32], members: &[u32], top: &mut Top) {
    let nodes: Vec<u32> = members.iter().map(|&member| frozen.node_of_members()[member as usize]).collect();
    in_blocks(members.len(), top, |range, similarities, top| {
        dot_listed(query, frozen.vectors(), &nodes[range.clone()], similarities);
        for (&member, &similarity) in members[range].iter().zip(similarities.iter()) {
            top.offer(frozen.keys()[member as usize], similarity);
        }
    });
}

/// Offers those members of a node that satisfy `is_live`.
pub(super) fn offer_members(
    frozen: &Frozen,
    node: u32,
    similarity: f32,
    is_live: &impl Fn(usize, u64) -> bool,
    top: &mut Top,
) {
    if !top.takes(similarity) {
        return;
    }
    for member in frozen.members_of(node) {
        let key = frozen.keys()[member];
        if is_live(member, key) {
            top.offer(key, similarity);
        }
    }
}

/// Runs `scan` on ranges of `0..count`, spread over the compute threads, each with a buffer for its similarities.
fn in_blocks(count: usize, top: &mut Top, scan: impl Fn(Range<usize>, &mut [f32], &mut Top) + Sync) {
    let run = |block: usize, top: &mut Top| {
        let range = block * BLOCK..(block * BLOCK + BLOCK).min(count);
        scan(range.clone(), &mut [0.0; BLOCK][..range.len()], top);
    };
    let blocks = count.div_ceil(BLOCK);
    if blocks <= 2 {
        (0..blocks).for_each(|block| run(block, top));
        return;
    }
    let merged = Mutex::new(Top::new(top.limit()));
    let scanned = pool::run(blocks, |block| {
        let mut found = Top::new(top.limit());
        run(block, &mut found);
        merged.lock().merge(found);
    });
    // A panic in a chunk is a bug and fails the search, as it would on this thread.
    scanned.expect("the scan of a block does not panic");
    top.merge(merged.into_inner());
}

/// Vectors added since the last build.
#[derive(Debug)]
pub(super) struct Delta {
    padded: usize,
    keys: Vec<u64>,
    /// `[n, padded]`
    vectors: Vec<f32>,
    place: HashMap<u64, usize, RandomState>,
}

impl Delta {
    pub(super) fn new(padded: usize) -> Self {
        Self { padded, keys: Vec::new(), vectors: Vec::new(), place: HashMap::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn keys(&self) -> &[u64] {
        &self.keys
    }

    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    pub(super) fn contains(&self, key: u64) -> bool {
        self.place.contains_key(&key)
    }

    pub(super) fn push(&mut self, key: u64, unit: &[f32]) {
        self.place.insert(key, self.keys.len());
        self.keys.push(key);
        self.vectors.extend_from_slice(unit);
    }

    /// The last vector takes the place of the removed one.
    pub(super) fn remove(&mut self, key: u64) -> bool {
        let Some(place) = self.place.remove(&key) else { return false };
        self.keys.swap_remove(place);
        let last = self.keys.len() * self.padded;
        self.vectors.copy_within(last.., place * self.padded);
        self.vectors.truncate(last);
        if let Some(moved) = self.keys.get(place) {
            self.place.insert(*moved, place);
        }
        true
    }

    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.keys.iter().copied().filter(|&key| !keep(key)).collect();
        gone.into_iter().for_each(|key| {
            self.remove(key);
        });
        self.vectors.shrink_to_fit();
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(&self.vectors[..]) + self.keys.len() * (size_of::<u64>() * 3)
    }

    pub(super) fn scan(&self, query: &[f32], filter: Option<&Keys>, top: &mut Top) {
        in_blocks(self.keys.len(), top, |range, similarities, top| {
            dot_range(query, &self.vectors, range.start, similarities);
            for (&key, &similarity) in self.keys[range].iter().zip(similarities.iter()) {
                if top.takes(similarity) && filter.is_none_or(|filter| filter.contains(&key)) {
                    top.offer(key, similarity);
                }
            }
        });
    }
}
