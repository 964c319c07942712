//! Against a committed record of the results of `transformers`, and against plain reference code.

use proptest::prelude::*;
use serde_json::Value;

use super::{super::logits_processors::TokenCounts, *};

const CASES: &str = include_str!("../../../tests/fixtures/logits_warpers.json");

fn number(case: &Value, key: &str, default: f64) -> f32 {
    case[key].as_f64().unwrap_or(default) as f32
}

fn whole(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap_or(0) as usize
}

/// The formula that the fixture's script states.
fn logits_of(case: &Value) -> Vec<f32> {
    let (step, scale, offset) = (whole(case, "step"), number(case, "scale", 1.0), number(case, "offset", 0.0));
    (0..whole(case, "vocab")).map(|token| (token * step % 10007) as f32 / scale - offset).collect()
}

fn params_of(case: &Value) -> SamplingParams {
    SamplingParams {
        temperature: number(case, "temperature", 1.0),
        top_k: whole(case, "top_k"),
        top_p: number(case, "top_p", 1.0),
        min_p: number(case, "min_p", 0.0),
        typical_p: number(case, "typical_p", 1.0),
        repetition_penalty: number(case, "repetition_penalty", 1.0),
        ..SamplingParams::default()
    }
}

/// What may be drawn, with the logits after temperature.
fn kept(logits: &[f32], params: &SamplingParams) -> Vec<Candidate> {
    let mut buffers = Buffers::default();
    let shifted = |token: u32| {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Candidate { token, logit: (logits[token as usize] - highest) / params.temperature }
    };
    match narrow(logits, params, &mut buffers).expect("finite") {
        None => Vec::new(),
        Some(Kept::Likeliest(token)) => vec![shifted(token)],
        Some(Kept::All) => {
            let possible = (0..logits.len() as u32).filter(|token| logits[*token as usize] > f32::NEG_INFINITY);
            possible.map(shifted).collect()
        }
        Some(Kept::Candidates) => buffers.candidates,
    }
}

#[test]
fn every_setting_leaves_what_transformers_leaves() {
    let record: Value = serde_json::from_str(CASES).expect("the fixture is JSON");
    let cases = record["cases"].as_array().expect("a list of cases");
    assert!(cases.len() > 50);
    for case in cases {
        let mut logits = logits_of(case);
        let params = params_of(case);
        let seen: Vec<u32> =
            case["seen"].as_array().into_iter().flatten().map(|id| id.as_u64().expect("an id") as u32).collect();
        TokenCounts::new(&params, &seen).apply(&params, &mut logits);
        let mut candidates = kept(&logits, &params);
        assert_eq!(candidates.len(), whole(case, "num_kept"), "{case}");
        let sum: u64 = candidates.iter().map(|candidate| u64::from(candidate.token)).sum();
        assert_eq!(sum, case["sum_of_kept_ids"].as_u64().expect("a sum"), "{case}");
        let total = total_weight(&candidates);
        candidates.sort_unstable_by(Candidate::best_first);
        for (candidate, expected) in candidates.iter().zip(case["likeliest"].as_array().expect("a list")) {
            assert_eq!(Some(u64::from(candidate.token)), expected[0].as_u64(), "{case}");
            let expected = expected[1].as_f64().expect("a probability");
            assert!((weight(candidate) / total - expected).abs() < 1e-5, "{case}");
        }
    }
}

#[test]
fn ties_at_the_kth_place_stay_and_greedy_takes_the_first_of_equals() {
    let logits = [1.0, 3.0, 2.0, 3.0, 2.0, 0.0];
    let mut candidates = Vec::new();
    top_k(&logits, 3, &mut candidates);
    assert_eq!(candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let choose = |logits: &[f32]| choose(logits, &greedy, 0.5, &mut Buffers::default());
    assert_eq!(choose(&logits), Ok(Some(1)));
    assert_eq!(choose(&[f32::NEG_INFINITY; 3]), Ok(None));
    assert_eq!(choose(&[0.0, f32::NAN]), Err(NotFinite));
}

#[test]
fn impossible_tokens_are_never_candidates_and_extremes_leave_one() {
    let mut logits = vec![f32::NEG_INFINITY; 10];
    logits[4] = -3.0;
    logits[6] = -2.0;
    let mut buffers = Buffers::default();
    for params in [
        SamplingParams { top_p: 0.0, ..SamplingParams::default() },
        SamplingParams { min_p: 1.0, ..SamplingParams::default() },
        SamplingParams { temperature: 1e-30, ..SamplingParams::default() },
    ] {
        for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(choose(&logits, &params, uniform, &mut buffers), Ok(Some(6)), "{params:?}");
        }
    }
    let everything = SamplingParams::default();
    assert_eq!(choose(&logits, &everything, 0.0, &mut buffers), Ok(Some(4)));
    assert_eq!(choose(&[f32::NEG_INFINITY; 4], &everything, 0.5, &mut buffers), Ok(None));
}

/// Pearson's statistic of 20,000 draws with a fixed seed, against four standard deviations of it.
#[test]
fn draws_follow_the_distribution() {
    use rand::{Rng, SeedableRng};
    let logits: Vec<f32> = (0..24).map(|token| (token * 7 % 24) as f32 / 6.0).collect();
    for (seed, params) in [
        (1, SamplingParams::default()),
        (2, SamplingParams { temperature: 0.7, top_k: 12, ..SamplingParams::default() }),
        (3, SamplingParams { temperature: 1.5, top_p: 0.9, ..SamplingParams::default() }),
        (4, SamplingParams { typical_p: 0.8, min_p: 0.05, ..SamplingParams::default() }),
    ] {
        let candidates = kept(&logits, &params);
        let expected: Vec<(u32, f64)> = {
            let total = total_weight(&candidates);
            candidates.iter().map(|candidate| (candidate.token, weight(candidate) / total)).collect()
        };
        let mut buffers = Buffers::default();
        let mut generator = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut counts = [0_u32; 24];
        for _ in 0..20_000 {
            let token =
                choose(&logits, &params, generator.random(), &mut buffers).expect("finite").expect("some token");
            counts[token as usize] += 1;
        }
        let statistic: f64 = expected
            .iter()
            .map(|(token, probability)| {
                let expected = probability * 20_000.0;
                (f64::from(counts[*token as usize]) - expected).powi(2) / expected
            })
            .sum();
        let freedom = (expected.len() - 1) as f64;
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt(), "{params:?}: {statistic} of {freedom}");
        let drawn: u32 = expected.iter().map(|(token, _)| counts[*token as usize]).sum();
        assert_eq!(drawn, 20_000, "a token outside the candidates was drawn");
    }
}

proptest! {
    #[test]
    fn partial_selection_equals_a_full_sort(
        logits in proptest::collection::vec(-8.0_f32..8.0, 1..2000),
        k in 1_usize..50,
        p in 0.01_f32..1.0,
    ) {
        let mut sorted: Vec<Candidate> = (0..).zip(&logits).map(|(token, &logit)| Candidate { token, logit }).collect();
        sorted.sort_by(Candidate::best_first);
        if k <= logits.len() {
            prop_assert_eq!(kth_highest(&logits, k), sorted[k - 1].logit);
        }
        let mut partly: Vec<Candidate> = (0..).zip(&logits).map(|(token, &logit)| Candidate { token, logit }).collect();
        let mass = f64::from(p) * total_weight(&partly);
        top_p(&mut partly, mass);
        // The best tokens, as few as reach the requested mass.
        prop_assert_eq!(&partly[..], &sorted[..partly.len()]);
        let total = total_weight(&sorted);
        prop_assert!(total_weight(&partly) / total >= f64::from(p) - 1e-6);
        prop_assert!(partly.len() == 1 || total_weight(&partly[..partly.len() - 1]) / total < f64::from(p) + 1e-6);
        // Of a whole vocabulary, only the tokens that could be kept are looked at.
        let of_all = kept(&logits, &SamplingParams { top_p: p, ..SamplingParams::default() });
        let tokens = |candidates: &[Candidate]| candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>();
        prop_assert_eq!(tokens(&of_all), tokens(&sorted[..of_all.len()]));
        prop_assert!(of_all.len().abs_diff(partly.len()) <= 1, "{} for {}", of_all.len(), partly.len());
    }

    #[test]
    fn log_probabilities_sum_to_one(logits in proptest::collection::vec(-50.0_f32..50.0, 2..200)) {
        let scored = |token, num_top| log_softmax_of(&logits, token, num_top, &mut Weights::default());
        let sum: f64 = (0..logits.len() as u32).map(|token| f64::from(scored(token, 0).0).exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-4);
        let (first, top) = scored(0, logits.len());
        prop_assert_eq!(top.len(), logits.len());
        prop_assert!(top.is_sorted_by(|a, b| a.1 >= b.1));
        prop_assert!(top.contains(&(0, first)));
    }
}
