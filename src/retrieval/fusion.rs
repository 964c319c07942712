//! Two orders of the same chunks made one.

use std::collections::HashMap;

/// How much less a place further down counts; 60 as in Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR
/// 2009).
const RANK_CONSTANT: f64 = 60.0;

/// Reciprocal rank fusion: each list gives `1 / (60 + rank)`, and what is high in several comes first. Only the order
/// within a list counts, so that cosines and BM25 need no common scale. Best first; equals by id.
pub(super) fn fuse(lists: &[Vec<u64>]) -> Vec<(u64, f64)> {
    let mut scores: HashMap<u64, f64> = HashMap::new();
    for list in lists {
        for (rank, &id) in list.iter().enumerate() {
            *scores.entry(id).or_default() += 1.0 / (RANK_CONSTANT + rank as f64 + 1.0);
        }
    }
    let mut fused: Vec<_> = scores.into_iter().collect();
    fused.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_high_in_both_comes_first() {
        let fused: Vec<u64> = fuse(&[vec![1, 2, 3], vec![4, 2]]).into_iter().map(|(id, _)| id).collect();
        assert_eq!(fused, [2, 1, 4, 3]);
        assert!(fuse(&[vec![], vec![]]).is_empty());
        let one = fuse(&[vec![7, 8]]);
        assert_eq!(one[0], (7, 1.0 / 61.0));
    }
}
