//! One sequence's sampler: the order of its steps, and what it refuses.

use super::*;

fn sampler_of(request: &SequenceRequest, constraint: Option<Box<dyn TokenConstraint>>) -> SequenceSampler {
    SequenceSampler::new(Arc::new(SamplingRules::new(request)), &request.prompt, 0, constraint)
}

fn greedy(request: SequenceRequest) -> SequenceRequest {
    SequenceRequest { sampling: SamplingParams { temperature: 0.0, ..request.sampling }, ..request }
}

/// Allows these tokens at each position, and is complete after the last.
struct Script(Vec<Vec<u32>>);

impl TokenConstraint for Script {
    fn allowed(&mut self, mask: &mut [u32]) -> std::result::Result<(), String> {
        let tokens = self.0.first().ok_or("nothing can follow")?;
        for token in tokens {
            mask[*token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> std::result::Result<(), String> {
        let allowed = self.0.remove(0);
        if allowed.contains(&token) { Ok(()) } else { Err(format!("token {token} was not allowed")) }
    }

    fn is_finished(&mut self) -> bool {
        self.0.is_empty()
    }
}

#[test]
fn undefined_and_infinite_logits_are_errors() {
    for broken in [f32::NAN, f32::INFINITY] {
        let mut sampler = sampler_of(&SequenceRequest::new(vec![0]), None);
        assert!(sampler.sample(&mut [0.0, broken, 1.0]).is_err());
    }
    let mut sampler = sampler_of(&SequenceRequest::new(vec![0]), None);
    assert!(sampler.sample(&mut [f32::NEG_INFINITY; 3]).is_err());
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]).expect("one is left").token, 1);
}

#[test]
fn bias_changes_the_choice_but_not_the_log_probability() {
    let mut request = greedy(SequenceRequest::new(vec![0]));
    request.sampling.logit_bias = [(2, 100.0), (0, -100.0)].into();
    request.logprobs = Some(2);
    let sampled = sampler_of(&request, None).sample(&mut [3.0, 1.0, 0.0]).expect("a token");
    assert_eq!(sampled.token, 2);
    let total = (3.0_f32.exp() + 1.0_f32.exp() + 1.0).ln();
    assert!((sampled.logprob.expect("asked for") + total).abs() < 1e-5);
    assert_eq!(sampled.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
    assert!((sampled.top[0].1 - (3.0 - total)).abs() < 1e-5);
}

#[test]
fn penalties_look_where_they_should() {
    // Repetition counts the prompt: 2/2 < 1.5 and -0.4*2 < -0.5.
    let mut request = greedy(SequenceRequest::new(vec![0]));
    request.sampling.repetition_penalty = 2.0;
    assert_eq!(sampler_of(&request, None).sample(&mut [2.0, 1.5]).expect("a token").token, 1);
    assert_eq!(sampler_of(&request, None).sample(&mut [-0.4, -0.5]).expect("a token").token, 1);
    // Frequency and presence do not, and count the answer's tokens.
    let mut request = greedy(SequenceRequest::new(vec![0, 0, 0]));
    request.sampling.frequency_penalty = 0.5;
    request.sampling.presence_penalty = 0.25;
    let mut sampler = sampler_of(&request, None);
    let tokens: Vec<u32> = (0..6).map(|_| sampler.sample(&mut [2.0, 1.0]).expect("a token").token).collect();
    // Token 0 falls to 1.25, then 0.75, where token 1 at 1.0 wins and falls to 0.25; and so on.
    assert_eq!(tokens, [0, 0, 1, 0, 0, 1]);
}

#[test]
fn a_constraint_holds_and_its_end_completes_the_text() {
    let request = greedy(SequenceRequest::new(vec![0]));
    let mut sampler = sampler_of(&request, Some(Box::new(Script(vec![vec![33, 1], vec![0]]))));
    let mut row: Vec<f32> = (0..40).map(|token| token as f32).collect();
    let first = sampler.sample(&mut row.clone()).expect("a token");
    assert_eq!((first.token, first.completes), (33, false));
    let second = sampler.sample(&mut row).expect("a token");
    assert_eq!((second.token, second.completes), (0, true));
}

#[test]
fn a_constraint_that_only_allows_the_end_overrules_min_new_tokens() {
    let mut request = greedy(SequenceRequest::new(vec![0]));
    request.end_tokens = Arc::from([2]);
    request.min_new_tokens = 5;
    let mut free = sampler_of(&request, None);
    assert_eq!(free.sample(&mut [0.0, 1.0, 9.0]).expect("a token").token, 1);
    let mut bound = sampler_of(&request, Some(Box::new(Script(vec![vec![2]]))));
    let sampled = bound.sample(&mut [0.0, 1.0, 9.0]).expect("a token");
    assert_eq!((sampled.token, sampled.ends), (2, true));
}

#[test]
fn a_constraint_that_fails_fails_the_sequence() {
    let mut sampler = sampler_of(&greedy(SequenceRequest::new(vec![0])), Some(Box::new(Script(vec![]))));
    assert!(sampler.sample(&mut [0.0, 1.0]).is_err());
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_each_choice_its_own() {
    let mut request = SequenceRequest::new(vec![0]);
    request.sampling.seed = Some(-7);
    let row = vec![0.0_f32; 100];
    let draw = |choice| {
        let mut sampler = SequenceSampler::new(Arc::new(SamplingRules::new(&request)), &[0], choice, None);
        (0..20).map(|_| sampler.sample(&mut row.clone()).expect("a token").token).collect::<Vec<_>>()
    };
    assert_eq!(draw(0), draw(0));
    assert_ne!(draw(0), draw(1));
    let unseeded = SequenceRequest::new(vec![0]);
    let random = || {
        let mut sampler = sampler_of(&unseeded, None);
        (0..20).map(|_| sampler.sample(&mut row.clone()).expect("a token").token).collect::<Vec<_>>()
    };
    assert_ne!(random(), random());
}
