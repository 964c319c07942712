//! Fuses two rankings of the same chunks into one.

use std::collections::HashMap;

/// The cosine's weight; the words get the rest. Chosen on the half `tune` of `scripts/bench_retrieval.py`, by MRR@10
/// with all-MiniLM-L6-v2 and with hearth-embed: 0.4 gave 0.683 and 0.624, 0.5 0.692 and 0.627, 0.6 0.711 and 0.623.
/// More would trust a weak model's cosines further than a weak model deserves.
const MEANING_WEIGHT: f64 = 0.6;

/// Sums the vector and the word scores, each scaled to what this search found: the lowest cosine is 0 and the highest
/// 1, the best BM25 is 1 and a chunk without any of the words 0. Either list may be empty, if it was not searched.
///
/// Not reciprocal ranks (Cormack, Clarke and Büttcher, SIGIR 2009), which forget by how much the first is ahead of the
/// second: with them a good embedding model did better alone. On the half `tune`, hearth-embed's MRR@10 was 0.594 by
/// ranks and is 0.623, all-MiniLM-L6-v2's was 0.692, where its cosines alone had 0.689, and is 0.711. Bruch, Gai and
/// Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (TOIS 2023), found the same elsewhere.
pub(super) fn fuse(cosines: &[(u64, f32)], words: &[(u64, f64)]) -> HashMap<u64, f64> {
    let mut scores: HashMap<u64, f64> = HashMap::new();
    let lowest = cosines.iter().map(|(_, cosine)| f64::from(*cosine)).fold(f64::INFINITY, f64::min);
    let highest = cosines.iter().map(|(_, cosine)| f64::from(*cosine)).fold(0.0, f64::max);
    for &(id, cosine) in cosines {
        // Where all are equal, each gets the full score.
        let relative = if highest > lowest { (f64::from(cosine) - lowest) / (highest - lowest) } else { 1.0 };
        *scores.entry(id).or_default() += MEANING_WEIGHT * relative;
    }
    let best = words.iter().map(|(_, score)| *score).fold(f64::MIN_POSITIVE, f64::max);
    for &(id, score) in words {
        *scores.entry(id).or_default() += (1.0 - MEANING_WEIGHT) * (score / best).max(0.0);
    }
    scores
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(cosines: &[(u64, f32)], words: &[(u64, f64)]) -> Vec<u64> {
        let mut scores: Vec<_> = fuse(cosines, words).into_iter().collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scores.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn what_is_good_in_both_comes_first() {
        assert_eq!(order(&[(1, 0.8), (2, 0.7), (3, 0.2)], &[(4, 3.0), (2, 2.9)]), [2, 1, 4, 3]);
        assert!(fuse(&[], &[]).is_empty());
    }

    #[test]
    fn a_clear_lead_is_not_outvoted() {
        // By ranks the second would come first: it is second by meaning and first by words, whose scores are almost
        // equal.
        assert_eq!(order(&[(1, 0.9), (2, 0.3), (3, 0.2)], &[(2, 2.0), (3, 1.9), (1, 1.8)]), [1, 2, 3]);
    }

    #[test]
    fn one_way_alone_keeps_its_order() {
        assert_eq!(order(&[(5, 0.1), (6, 0.4)], &[]), [6, 5]);
        assert_eq!(order(&[], &[(5, 0.1), (6, 0.4)]), [6, 5]);
        assert_eq!(fuse(&[(7, 0.0)], &[(7, 0.0)]), HashMap::from([(7, MEANING_WEIGHT)]));
    }

    proptest! {
        #[test]
        fn scores_are_shares(
            cosines in prop::collection::vec(0.0f32..=1.0, 0..20),
            words in prop::collection::vec(0.0f64..50.0, 0..20),
        ) {
            let cosines: Vec<_> = (0u64..).zip(cosines).collect();
            let words: Vec<_> = (10u64..).zip(words).collect();
            for (id, score) in fuse(&cosines, &words) {
                prop_assert!((0.0..=1.0 + 1e-9).contains(&score), "{id}: {score}");
            }
        }
    }
}
