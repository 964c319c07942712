//! How requests end before their text does, in every state that they can be in.

use std::sync::mpsc::Sender;

use super::*;
use hearth_domain::{TokenConstraint, part::RESTARTS_MAX};

/// An engine whose steps wait for permits; without the sender they run freely.
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

/// Allows everything; its drop panics in the engine's loop.
struct FatalConstraint;

impl TokenConstraint for FatalConstraint {
    fn allowed(&mut self, mask: &mut [u32]) -> std::result::Result<(), String> {
        mask.fill(u32::MAX);
        Ok(())
    }

    fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
        Ok(())
    }

    fn is_finished(&mut self) -> bool {
        false
    }
}

impl Drop for FatalConstraint {
    fn drop(&mut self) {
        panic!("asked to panic");
    }
}

/// A request whose end panics where the loop does not expect it. That is in its second step, before which the loop has
/// received whatever was sent before its first one ended.
fn fatal() -> SequenceRequest {
    SequenceRequest { constraints: vec![Box::new(FatalConstraint)], ..greedy_request(vec![1], 2) }
}

#[test]
fn a_loop_that_panics_ends_every_request_and_begins_again() {
    let (engine, _, pace) = start_paced(config());
    let streams: Vec<TokenStream> = std::iter::once(fatal())
        .chain((0..9).map(|_| greedy_request(vec![2; 9], 9)))
        .map(|request| engine.submit(request).expect("there is room"))
        .collect();
    drop(pace);
    for events in streams.into_iter().map(collect) {
        assert_eq!(error_kind(&events), Some(ErrorKind::Internal), "{events:?}");
    }
    for _ in 0..2 {
        let events = collect(engine.submit(greedy_request(vec![2; 9], 9)).expect("there is room"));
        assert_eq!(tokens_of(&events, 0), greedy(&[2; 9], 9));
    }
    wait_until_idle(&engine);
    let report = engine.part().report();
    assert_eq!((report.panics, report.failure), (1, None));
    assert!(engine.heartbeat().alive && engine.heartbeat().in_step.is_none());
    assert_eq!(engine.stats().waiting_sequences, 0);
}

#[tokio::test]
async fn a_loop_that_panics_again_and_again_leaves_no_reader_no_caller_and_no_shutdown_waiting() {
    let (engine, _) = start(config());
    for time in 0..=RESTARTS_MAX {
        assert!(engine.part().report().failure.is_none(), "it goes on after {time}");
        let stream = engine.submit(fatal()).expect("there is room");
        let events = tokio::task::spawn_blocking(|| collect(stream)).await.expect("no panic");
        assert_eq!(error_kind(&events), Some(ErrorKind::Internal), "{events:?}");
    }
    let wait = engine.clone();
    tokio::task::spawn_blocking(move || wait_for(&wait, |_| !wait.heartbeat().alive)).await.expect("no panic");
    assert_eq!(engine.submit(greedy_request(vec![1], 1)).expect_err("nobody is there"), SubmitError::Stopped);
    assert!(engine.part().report().failure.is_some_and(|reason| reason.contains("chat engine")));
    let stats = engine.stats();
    assert_eq!(
        (stats.open_requests, stats.running_sequences, stats.waiting_sequences, stats.blocks_used),
        (0, 0, 0, 0)
    );
    assert_eq!(engine.heartbeat().in_step, None);
    engine.drain(Duration::from_secs(60)).await;
}

#[test]
fn a_request_counts_as_waiting_from_its_acceptance_on() {
    let (engine, _, pace) = start_paced(config());
    let streams: Vec<TokenStream> =
        (0..3).map(|_| engine.submit(greedy_request(vec![1], 1)).expect("there is room")).collect();
    // No step has ended yet, so nothing has been published of them.
    let stats = engine.stats();
    assert_eq!((stats.open_requests, stats.waiting_requests, stats.waiting_sequences), (3, 3, 3));
    drop(pace);
    streams.into_iter().map(collect).for_each(drop);
    wait_until_idle(&engine);
}
