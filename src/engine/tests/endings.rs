//! How requests end before their text does, in every state that they can be in.

use std::sync::mpsc::Sender;

use super::*;

/// An engine whose steps wait for permits; without the sender they run free.
fn start_paced(config: EngineConfig) -> (Engine, Arc<MockControl>, Sender<()>) {
    let (pace, permits) = std::sync::mpsc::channel();
    let control = Arc::new(MockControl::default());
    let model = MockModel::new(config.num_blocks, config.block_tokens, control.clone()).paced(permits);
    (Engine::start(Box::new(model), config).expect("a valid configuration"), control, pace)
}

/// The reason with which each choice finished, in the order of the choices.
fn reasons(events: &[Result<TokenEvent>]) -> Vec<FinishReason> {
    let mut reasons: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Ok(TokenEvent::Finished { choice, reason, .. }) => Some((*choice, *reason)),
            _ => None,
        })
        .collect();
    reasons.sort_by_key(|(choice, _)| *choice);
    reasons.into_iter().map(|(_, reason)| reason).collect()
}

#[test]
fn a_first_choice_that_nobody_wants_still_computes_the_prompt_for_the_others() {
    let (engine, _, pace) = start_paced(config());
    let prompt = vec![3; 40];
    let stream = engine.submit(SequenceRequest { n: 3, ..greedy_request(prompt.clone(), 5) }).expect("there is room");
    // The prompt takes two steps, of which none has ended yet.
    stream.finish_choice(0);
    stream.finish_choice(2);
    drop(pace);
    let events = collect(stream);
    assert_eq!(tokens_of(&events, 1), greedy(&prompt, 5));
    assert_eq!(reasons(&events), [FinishReason::Stop, FinishReason::Length, FinishReason::Stop]);
    wait_until_idle(&engine);
}

#[test]
fn undefined_logits_fail_a_scored_prompt() {
    let (engine, control) = start(config());
    control.nan_for_token.store(9, Ordering::SeqCst);
    for max_new_tokens in [0, 4] {
        let mut prompt = vec![5; 50];
        prompt[0] = 9;
        let request =
            SequenceRequest { prompt_logprobs: true, logprobs: Some(1), ..greedy_request(prompt, max_new_tokens) };
        let events = collect(engine.submit(request).expect("there is room"));
        assert_eq!(error_kind(&events), Some(ErrorKind::Internal));
        assert_eq!(events.len(), 1, "nothing was said of a prompt without scores: {events:?}");
    }
    wait_until_idle(&engine);
}

#[test]
fn what_undefined_logits_came_of_is_found_by_no_later_request() {
    let (engine, control) = start(config());
    let prompt = vec![9; 40];
    control.nan_for_token.store(9, Ordering::SeqCst);
    let request = SequenceRequest { n: 2, ..greedy_request(prompt.clone(), 3) };
    let events = collect(engine.submit(request).expect("there is room"));
    assert_eq!(error_kind(&events), Some(ErrorKind::Internal));
    control.nan_for_token.store(0, Ordering::SeqCst);
    let events = collect(engine.submit(greedy_request(prompt.clone(), 3)).expect("there is room"));
    assert!(matches!(events[0], Ok(TokenEvent::Prefilled { cached_tokens: 0, .. })), "{:?}", events[0]);
    assert_eq!(tokens_of(&events, 0), greedy(&prompt, 3));
}
