//! The engine through its handle, on a model that detects misplaced tokens.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use hearth_domain::{
    FinishReason, SamplingParams,
    error::{ErrorKind, Result},
};

use super::{
    Engine, EngineConfig, SequenceRequest, SubmitError, TokenEvent, TokenStream,
    mock_model::{MockControl, MockModel, VOCAB, greedy, logits_after},
};

mod endings;
mod engine_proptest;

fn config() -> EngineConfig {
    EngineConfig {
        num_blocks: 64,
        block_tokens: 4,
        max_running_sequences: 4,
        max_waiting: 200,
        max_batch_tokens: 32,
        context_length: 128,
        ..EngineConfig::default()
    }
}

fn start(config: EngineConfig) -> (Engine, Arc<MockControl>) {
    let control = Arc::new(MockControl::default());
    let model = MockModel::new(config.num_blocks, config.block_tokens, control.clone());
    (Engine::start(Box::new(model), config).expect("a valid configuration"), control)
}

fn greedy_request(prompt: Vec<u32>, max_new_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_new_tokens: Some(max_new_tokens),
        ..SequenceRequest::new(prompt)
    }
}

/// All events of a stream.
fn collect(mut stream: TokenStream) -> Vec<Result<TokenEvent>> {
    std::iter::from_fn(|| stream.blocking_next()).collect()
}

/// The tokens of a choice, after a check that the stream ended properly.
fn tokens_of(events: &[Result<TokenEvent>], wanted: usize) -> Vec<u32> {
    assert!(matches!(events.last(), Some(Ok(TokenEvent::Done { .. }))), "{:?}", events.last());
    let finished =
        events.iter().filter(|event| matches!(event, Ok(TokenEvent::Finished { choice, .. }) if *choice == wanted));
    assert_eq!(finished.count(), 1);
    events
        .iter()
        .filter_map(|event| match event {
            Ok(TokenEvent::Token { choice, id, .. }) if *choice == wanted => Some(*id),
            _ => None,
        })
        .collect()
}

fn error_kind(events: &[Result<TokenEvent>]) -> Option<ErrorKind> {
    events.last().and_then(|event| event.as_ref().err()).map(hearth_domain::error::Error::kind)
}

/// Waits until the loop has published what `condition` asks for.
fn wait_for(engine: &Engine, condition: impl Fn(&super::EngineStats) -> bool) {
    let begun = Instant::now();
    while !condition(&engine.stats()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", engine.stats());
        std::thread::yield_now();
    }
}

fn wait_until_idle(engine: &Engine) {
    wait_for(engine, |stats| stats.open_requests == 0 && stats.running_sequences == 0 && stats.blocks_used == 0);
}

#[test]
fn a_batched_stream_says_what_the_model_alone_would() {
    let (engine, _) = start(config());
    let prompts: Vec<Vec<u32>> = (0..20).map(|i| (0..=i * 3).map(|j| (i * 7 + j) % VOCAB as u32).collect()).collect();
    let streams: Vec<TokenStream> = prompts
        .iter()
        .map(|prompt| engine.submit(greedy_request(prompt.clone(), 20)).expect("there is room"))
        .collect();
    for (prompt, stream) in prompts.iter().zip(streams) {
        assert_eq!(tokens_of(&collect(stream), 0), greedy(prompt, 20));
    }
    wait_until_idle(&engine);
}

#[test]
fn a_repeated_prompt_comes_from_the_prefix_cache() {
    let (engine, control) = start(config());
    let prompt: Vec<u32> = (0..21).collect();
    let first = collect(engine.submit(greedy_request(prompt.clone(), 2)).expect("there is room"));
    let computed = control.tokens_computed.load(Ordering::SeqCst);
    let second = collect(engine.submit(greedy_request(prompt, 2)).expect("there is room"));
    assert_eq!(tokens_of(&first, 0), tokens_of(&second, 0));
    assert!(matches!(first[0], Ok(TokenEvent::Prefilled { cached_tokens: 0, .. })));
    assert!(matches!(second[0], Ok(TokenEvent::Prefilled { cached_tokens: 20, .. })));
    assert_eq!(control.tokens_computed.load(Ordering::SeqCst) - computed, 2);
}

#[test]
fn refusals_come_before_any_work() {
    let (engine, control) = start(config());
    assert_eq!(
        engine.submit(greedy_request(vec![1; 128], 1)).expect_err("it does not fit"),
        SubmitError::ContextLengthExceeded { prompt: 128, n_ctx: 128 }
    );
    assert!(matches!(engine.submit(greedy_request(vec![], 1)), Err(SubmitError::Invalid(_))));
    assert!(matches!(engine.submit(greedy_request(vec![VOCAB as u32], 1)), Err(SubmitError::Invalid(_))));
    assert_eq!(control.steps.load(Ordering::SeqCst), 0);
    let (small, _) = start(EngineConfig { num_blocks: 2, ..config() });
    assert_eq!(
        small.submit(greedy_request(vec![1; 9], 1)).expect_err("it does not fit"),
        SubmitError::CacheTooSmall { prompt: 9, cache_tokens: 8 }
    );
}

#[test]
fn a_failed_step_fails_its_requests_and_the_engine_goes_on() {
    let (engine, control) = start(config());
    control.panic_next.store(true, Ordering::SeqCst);
    let events = collect(engine.submit(greedy_request(vec![1, 2, 3, 4, 5], 4)).expect("there is room"));
    assert_eq!(error_kind(&events), Some(ErrorKind::Internal));
    control.out_of_memory_next.store(true, Ordering::SeqCst);
    let events = collect(engine.submit(greedy_request(vec![1, 2, 3, 4, 5], 4)).expect("there is room"));
    assert_eq!(error_kind(&events), Some(ErrorKind::OutOfMemory));
    let events = collect(engine.submit(greedy_request(vec![1, 2, 3, 4, 5], 4)).expect("there is room"));
    assert_eq!(tokens_of(&events, 0), greedy(&[1, 2, 3, 4, 5], 4));
    wait_until_idle(&engine);
    assert_eq!(engine.stats().failed_steps, 2);
    assert_eq!(engine.heartbeat().consecutive_failures, 0);
}

#[test]
fn undefined_logits_fail_one_sequence_only() {
    let (engine, control) = start(config());
    control.nan_for_token.store(9, Ordering::SeqCst);
    let good = engine.submit(greedy_request(vec![1, 2, 3], 30)).expect("there is room");
    let bad = engine.submit(greedy_request(vec![9, 2, 3], 30)).expect("there is room");
    assert_eq!(error_kind(&collect(bad)), Some(ErrorKind::Internal));
    assert_eq!(tokens_of(&collect(good), 0), greedy(&[1, 2, 3], 30));
}

#[test]
fn a_sequence_that_outgrows_the_cache_ends_with_length() {
    let (engine, _) = start(EngineConfig { num_blocks: 3, ..config() });
    let events = collect(engine.submit(greedy_request(vec![1, 2, 3, 4, 5], 50)).expect("there is room"));
    // Twelve tokens fit, and the one after the last of them needs no room.
    assert_eq!(tokens_of(&events, 0), greedy(&[1, 2, 3, 4, 5], 8));
    assert!(matches!(events[events.len() - 2], Ok(TokenEvent::Finished { reason: FinishReason::Length, .. })));
}

#[test]
fn the_context_ends_a_sequence_with_length() {
    let (engine, _) = start(config());
    let request = SequenceRequest { max_new_tokens: None, ..greedy_request(vec![3; 100], 0) };
    let events = collect(engine.submit(request).expect("there is room"));
    assert_eq!(tokens_of(&events, 0), greedy(&[3; 100], 28));
}

#[test]
fn choices_share_one_prompt_and_wait_for_places() {
    let (engine, control) = start(config());
    let prompt: Vec<u32> = (0..30).collect();
    let request = SequenceRequest { n: 9, ..greedy_request(prompt.clone(), 5) };
    let events = collect(engine.submit(request).expect("there is room"));
    for choice in 0..9 {
        assert_eq!(tokens_of(&events, choice), greedy(&prompt, 5), "choice {choice}");
    }
    // The prompt once; for each further choice its last, partly filled block; four decode steps each.
    assert_eq!(control.tokens_computed.load(Ordering::SeqCst), 30 + 8 * 2 + 9 * 4);
    wait_until_idle(&engine);
}

#[test]
fn a_seed_gives_the_same_text_in_any_company_and_choices_differ() {
    let (engine, _) = start(config());
    let request = |n| SequenceRequest {
        sampling: SamplingParams { temperature: 1.5, seed: Some(42), ..SamplingParams::default() },
        max_new_tokens: Some(20),
        n,
        ..SequenceRequest::new(vec![5, 6, 7])
    };
    let alone = collect(engine.submit(request(2)).expect("there is room"));
    assert_ne!(tokens_of(&alone, 0), tokens_of(&alone, 1));
    let company: Vec<TokenStream> =
        (0..6).map(|i| engine.submit(greedy_request(vec![i, 2], 30)).expect("there is room")).collect();
    let crowded = collect(engine.submit(request(2)).expect("there is room"));
    assert_eq!(tokens_of(&alone, 0), tokens_of(&crowded, 0));
    assert_eq!(tokens_of(&alone, 1), tokens_of(&crowded, 1));
    company.into_iter().map(collect).for_each(drop);
}

#[test]
fn a_scored_prompt_is_computed_in_bounded_chunks_and_matches_the_model() {
    let (engine, _) = start(EngineConfig { max_logits_rows: 3, ..config() });
    let prompt: Vec<u32> = (0..17).map(|i| i * 5 % 32).collect();
    let request = || SequenceRequest { prompt_logprobs: true, logprobs: Some(2), ..greedy_request(prompt.clone(), 0) };
    for _ in 0..2 {
        let events = collect(engine.submit(request()).expect("there is room"));
        assert!(tokens_of(&events, 0).is_empty());
        let Ok(TokenEvent::Prefilled { cached_tokens: 0, prompt_logprobs: Some(scores) }) = &events[0] else {
            panic!("{:?}", events[0])
        };
        assert_eq!(scores.iter().map(|score| score.id).collect::<Vec<_>>(), prompt);
        assert_eq!(scores[0].logprob, None);
        for (position, score) in scores.iter().enumerate().skip(1) {
            let logits = logits_after(&prompt[..position]);
            let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
            let expected = logits[prompt[position] as usize] - total.ln();
            assert!((score.logprob.expect("scored") - expected).abs() < 1e-4);
            assert_eq!(score.top.len(), 2);
        }
    }
}

#[test]
fn a_stop_token_ends_the_text_and_min_new_tokens_delays_it() {
    let (engine, _) = start(config());
    let prompt = vec![1, 2, 3];
    let answer = greedy(&prompt, 30);
    let end = answer[4];
    let first = answer.iter().position(|token| *token == end).expect("it is there");
    let stopping = |min_new_tokens, ignore_eos| SequenceRequest {
        end_tokens: Arc::from([end]),
        min_new_tokens,
        ignore_eos,
        ..greedy_request(prompt.clone(), 30)
    };
    let events = collect(engine.submit(stopping(0, false)).expect("there is room"));
    assert_eq!(tokens_of(&events, 0), answer[..first]);
    let stopped = TokenEvent::Finished { choice: 0, reason: FinishReason::Stop, stop_token: Some(end) };
    assert!(events.iter().flatten().any(|event| *event == stopped));
    let events = collect(engine.submit(stopping(10, false)).expect("there is room"));
    let tokens = tokens_of(&events, 0);
    assert!(tokens.len() >= 10 && !tokens.contains(&end));
    assert_eq!(tokens_of(&collect(engine.submit(stopping(0, true)).expect("there is room")), 0), answer);
}

#[test]
fn a_choice_that_has_said_enough_ends_and_the_others_go_on() {
    let (engine, _) = start(config());
    let request = SequenceRequest { n: 2, ..greedy_request(vec![1, 2, 3], 30) };
    let mut stream = engine.submit(request).expect("there is room");
    let first = loop {
        match stream.blocking_next().expect("the stream goes on").expect("the mock does not fail") {
            TokenEvent::Token { choice, .. } => break choice,
            _ => continue,
        }
    };
    stream.finish_choice(first);
    stream.finish_choice(first);
    let events = collect(stream);
    let reasons: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Ok(TokenEvent::Finished { choice, reason, .. }) => Some((*choice == first, *reason)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.len(), 2, "each choice ends once: {events:?}");
    assert!(reasons.contains(&(false, FinishReason::Length)), "the other one goes on: {events:?}");
    assert!(matches!(events.last(), Some(Ok(TokenEvent::Done { .. }))));
    wait_until_idle(&engine);
}

#[test]
fn a_hundred_vanishing_clients_leave_nothing_behind() {
    let (engine, _) = start(config());
    let streams: Vec<TokenStream> =
        (0..100).map(|i| engine.submit(greedy_request(vec![i % 32; 9], 100)).expect("there is room")).collect();
    wait_for(&engine, |stats| stats.running_sequences > 0);
    drop(streams);
    wait_until_idle(&engine);
    assert_eq!(engine.stats().waiting_sequences, 0);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_wait() {
    let (pace, permits) = std::sync::mpsc::channel();
    let config = EngineConfig { max_running_sequences: 1, max_waiting: 2, ..config() };
    let model = MockModel::new(config.num_blocks, config.block_tokens, Arc::default()).paced(permits);
    let engine = Engine::start(Box::new(model), config).expect("a valid configuration");
    let open: Vec<TokenStream> =
        (0..3).map(|_| engine.submit(greedy_request(vec![1], 3)).expect("there is room")).collect();
    let Err(SubmitError::QueueFull { retry_after, .. }) = engine.submit(greedy_request(vec![1], 3)) else {
        panic!("the queue is full")
    };
    assert!(retry_after >= Duration::from_secs(1));
    drop(pace);
    open.into_iter().map(collect).for_each(drop);
    engine.submit(greedy_request(vec![1], 3)).expect("there is room again");
}

#[test]
fn a_slow_reader_pauses_alone_and_loses_nothing() {
    let (engine, _) = start(EngineConfig { event_buffer: 2, max_running_sequences: 2, ..config() });
    let slow = engine.submit(greedy_request(vec![1, 2, 3], 60)).expect("there is room");
    wait_for(&engine, |stats| stats.generated_tokens >= 2);
    // Four others go through the remaining place, and one of them needs the slow one's blocks.
    let others: Vec<TokenStream> =
        (0..4).map(|i| engine.submit(greedy_request(vec![7, i], 20)).expect("there is room")).collect();
    for (i, other) in (0..).zip(others) {
        assert_eq!(tokens_of(&collect(other), 0), greedy(&[7, i], 20));
    }
    assert_eq!(tokens_of(&collect(slow), 0), greedy(&[1, 2, 3], 60));
}

#[test]
fn a_deadline_ends_a_request_in_the_queue() {
    let (engine, _) = start(config());
    let request = SequenceRequest { deadline: Some(Instant::now()), ..greedy_request(vec![1], 3) };
    let events = collect(engine.submit(request).expect("there is room"));
    assert_eq!(error_kind(&events), Some(ErrorKind::DeadlineExceeded));
}

#[tokio::test]
async fn a_drain_refuses_finishes_and_then_ends_the_rest() {
    let (engine, _) = start(config());
    let quick = engine.submit(greedy_request(vec![1, 2, 3], 10)).expect("there is room");
    engine.drain(Duration::from_secs(20)).await;
    assert_eq!(engine.submit(greedy_request(vec![1], 1)).expect_err("it is draining"), SubmitError::Draining);
    let events = tokio::task::spawn_blocking(|| collect(quick)).await.expect("no panic");
    assert_eq!(tokens_of(&events, 0), greedy(&[1, 2, 3], 10));
    assert!(!engine.heartbeat().alive);

    let (engine, _) = start(EngineConfig { event_buffer: 1, ..config() });
    let stuck = engine.submit(greedy_request(vec![1, 2, 3], 100)).expect("there is room");
    engine.drain(Duration::ZERO).await;
    let events = tokio::task::spawn_blocking(|| collect(stuck)).await.expect("no panic");
    assert_eq!(error_kind(&events), Some(ErrorKind::Draining));
    // A second drain finds nothing to do.
    engine.drain(Duration::ZERO).await;
}
