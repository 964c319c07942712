//! The best few of many results.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::Hit;

/// A similarity as an integer that sorts the same way, so that pairs compare in one instruction.
pub(super) fn ordered(similarity: f32) -> u32 {
    let bits = similarity.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The inverse of [`ordered`].
pub(super) fn similarity_of(ordered: u32) -> f32 {
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// Keeps the `limit` most similar; ties keep the lower key, so that results do not depend on insertion order.
#[derive(Debug)]
pub(super) struct Top {
    limit: usize,
    heap: BinaryHeap<Reverse<(u32, Reverse<u64>)>>,
}

impl Top {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, heap: BinaryHeap::new() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a vector of this similarity could still be among the best.
    pub(super) fn takes(&self, similarity: f32) -> bool {
        self.heap.len() < self.limit || self.heap.peek().is_none_or(|Reverse((worst, _))| ordered(similarity) >= *worst)
    }

    pub(super) fn offer(&mut self, key: u64, similarity: f32) {
        if !self.takes(similarity) {
            return;
        }
        self.heap.push(Reverse((ordered(similarity), Reverse(key))));
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for Reverse((similarity, Reverse(key))) in other.heap {
            self.offer(key, similarity_of(similarity));
        }
    }

    /// Best first.
    pub(super) fn into_hits(self) -> Vec<Hit> {
        // Rounding may push a cosine past one.
        let hit =
            |Reverse((similarity, Reverse(key)))| Hit { key, similarity: similarity_of(similarity).clamp(-1.0, 1.0) };
        self.heap.into_sorted_vec().into_iter().map(hit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_the_order_of_floats() {
        let sorted = [-1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.25, 1.0];
        assert!(sorted.is_sorted_by_key(|&x| ordered(x)));
        assert!(sorted.iter().all(|&x| similarity_of(ordered(x)).to_bits() == x.to_bits()));
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let mut top = Top::new(3);
        for (key, similarity) in [(1, 0.1), (2, 0.9), (9, 0.5), (4, 0.5), (5, -1.0)] {
            top.offer(key, similarity);
        }
        let keys: Vec<_> = top.into_hits().iter().map(|hit| hit.key).collect();
        assert_eq!(keys, [2, 4, 9]);
    }
}
