//! The whole engine except its thread, under random requests, readers, endings and faults.
//!
//! The test drives the loop itself and has its own clock, so that a failing case always fails.

use std::sync::mpsc;

use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::{
    super::{
        StepError, StepModel,
        core::{Core, Turn},
    },
    *,
};
use hearth_domain::TokenConstraint;
use hearth_models::batch::Batch;

/// More turns than any case needs; a case that needs more is stuck.
const MAX_TURNS: usize = 5000;

/// What is wrong with a step.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Panics,
    OutOfMemory,
    Fails,
    TooFewLogits,
    Undefined,
}

/// What a constraint does at one of its tokens; before that it allows every token.
#[derive(Clone, Copy, Debug)]
enum ConstraintEnd {
    Completes,
    Fails,
    Panics,
}

#[derive(Clone, Debug)]
struct Asked {
    caller: u8,
    prompt: Vec<u32>,
    max_new_tokens: Option<usize>,
    min_new_tokens: usize,
    n: usize,
    greedy: bool,
    stop_tokens: Vec<u32>,
    scored: bool,
    /// In turns from now.
    deadline: Option<u64>,
    constraint: Option<(usize, ConstraintEnd)>,
}

#[derive(Clone, Debug)]
enum Happening {
    Submit(Asked),
    Vanish {
        which: usize,
    },
    FinishChoice {
        which: usize,
        choice: usize,
    },
    Read {
        which: usize,
        events: usize,
    },
    Turns {
        count: usize,
    },
    /// At the next step.
    Fault(Fault),
    /// The loop has panicked.
    BeginAgain,
}

fn prompts() -> impl Strategy<Value = Vec<u32>> {
    // Few prefixes, so that many prompts share one.
    (0_u32..3, 0_usize..20, proptest::collection::vec(0..VOCAB as u32, 1..20)).prop_map(|(kind, shared, own)| {
        (0..shared as u32).map(|position| (kind * 11 + position) % VOCAB as u32).chain(own).collect()
    })
}

fn requests() -> impl Strategy<Value = Asked> {
    let ends = prop_oneof![
        4 => Just(ConstraintEnd::Completes),
        1 => Just(ConstraintEnd::Fails),
        1 => Just(ConstraintEnd::Panics),
    ];
    let text = (prompts(), proptest::option::weighted(0.9, 0_usize..20), 0_usize..4, 1_usize..4);
    let choosing = (
        proptest::bool::weighted(0.7),
        proptest::collection::vec(0..VOCAB as u32, 0..3),
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.2, (0_usize..6, ends)),
    );
    (0_u8..3, text, choosing, proptest::option::weighted(0.2, 0_u64..30)).prop_map(
        |(caller, (prompt, max_new_tokens, min_new_tokens, n), (greedy, stop_tokens, scored, constraint), deadline)| {
            Asked {
                caller,
                prompt,
                max_new_tokens,
                min_new_tokens,
                n,
                greedy,
                stop_tokens,
                scored,
                deadline,
                constraint,
            }
        },
    )
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let faults = prop_oneof![
        Just(Fault::Panics),
        Just(Fault::OutOfMemory),
        Just(Fault::Fails),
        Just(Fault::TooFewLogits),
        Just(Fault::Undefined),
    ];
    let happening = prop_oneof![
        8 => requests().prop_map(Happening::Submit),
        2 => (0_usize..12).prop_map(|which| Happening::Vanish { which }),
        2 => (0_usize..12, 0_usize..4).prop_map(|(which, choice)| Happening::FinishChoice { which, choice }),
        6 => (0_usize..12, 1_usize..12).prop_map(|(which, events)| Happening::Read { which, events }),
        8 => (1_usize..8).prop_map(|count| Happening::Turns { count }),
        1 => faults.prop_map(Happening::Fault),
        1 => Just(Happening::BeginAgain),
    ];
    proptest::collection::vec(happening, 1..60)
}

fn configs() -> impl Strategy<Value = EngineConfig> {
    let sizes = (2_usize..24, 1_usize..5, 0_usize..6, 4_usize..32);
    (sizes, 1_usize..8, any::<bool>(), 0_usize..8).prop_map(
        |(
            (num_blocks, max_running_sequences, max_waiting, max_batch_tokens),
            max_logits_rows,
            prefix_cache,
            buffer,
        )| {
            EngineConfig {
                num_blocks,
                block_tokens: 4,
                max_running_sequences,
                max_waiting,
                // Below the smallest chunk, so that measured times decide nothing.
                max_batch_tokens,
                max_logits_rows,
                context_length: 64,
                prefix_cache,
                event_buffer: buffer,
                ..EngineConfig::default()
            }
        },
    )
}

/// The mock model with the faults that the test sends it.
struct FaultyModel {
    model: MockModel,
    faults: mpsc::Receiver<Fault>,
}

impl StepModel for FaultyModel {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn forward(&mut self, batch: &Batch) -> std::result::Result<Vec<f32>, StepError> {
        // The step has written its keys and values before it fails.
        let mut logits = self.model.forward(batch)?;
        match self.faults.try_recv() {
            Err(_) => {}
            Ok(Fault::Panics) => panic!("asked to panic"),
            Ok(Fault::OutOfMemory) => return Err(StepError::OutOfMemory("asked to fail".to_owned())),
            Ok(Fault::Fails) => return Err(StepError::Failed("asked to fail".to_owned())),
            Ok(Fault::TooFewLogits) => logits.truncate(logits.len().saturating_sub(1)),
            Ok(Fault::Undefined) => logits.fill(f32::NAN),
        }
        Ok(logits)
    }
}

/// Allows every token, up to its end.
struct Scripted {
    left: usize,
    end: ConstraintEnd,
}

impl TokenConstraint for Scripted {
    fn allowed(&mut self, mask: &mut [u32]) -> std::result::Result<(), String> {
        match (self.left, self.end) {
            (0, ConstraintEnd::Fails) => return Err("asked to fail".to_owned()),
            (0, ConstraintEnd::Panics) => panic!("asked to panic"),
            _ => mask.fill(u32::MAX),
        }
        Ok(())
    }

    fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
        self.left = self.left.saturating_sub(1);
        Ok(())
    }

    fn is_finished(&mut self) -> bool {
        self.left == 0 && matches!(self.end, ConstraintEnd::Completes)
    }
}

/// A stream and what it has said.
struct Reader {
    asked: Asked,
    stream: Option<TokenStream>,
    events: Vec<Result<TokenEvent>>,
    /// Choices that the reader has called finished.
    unwanted: Vec<usize>,
    has_ended: bool,
}

impl Reader {
    fn read(&mut self, mut events: usize) {
        let Some(stream) = &mut self.stream else { return };
        while events > 0 {
            match stream.next().now_or_never() {
                None => return,
                Some(None) => {
                    assert!(self.has_ended, "a stream ends with an event that says so: {:?}", self.events);
                    return;
                }
                Some(Some(event)) => {
                    assert!(!self.has_ended, "{event:?} after the end of {:?}", self.events);
                    self.has_ended = matches!(event, Err(_) | Ok(TokenEvent::Done { .. }));
                    self.events.push(event);
                }
            }
            events -= 1;
        }
    }

    fn tokens(&self, wanted: usize) -> Vec<u32> {
        let token = |event: &TokenEvent| match event {
            TokenEvent::Token { choice, id, .. } if *choice == wanted => Some(*id),
            _ => None,
        };
        self.events.iter().flatten().filter_map(token).collect()
    }

    /// Checks that whatever the stream has said so far is in order and is what the model alone would say.
    fn check(&self, config: &EngineConfig) {
        let is_prefilled = |event: &TokenEvent| matches!(event, TokenEvent::Prefilled { .. });
        assert!(self.events.iter().flatten().skip(1).all(|event| !is_prefilled(event)), "{:?}", self.events);
        if let Some(Ok(first)) = self.events.first() {
            assert!(is_prefilled(first), "{:?}", self.events);
        }
        for choice in 0..self.asked.n {
            let tokens = self.tokens(choice);
            if self.asked.greedy && self.asked.min_new_tokens == 0 {
                assert_eq!(tokens, greedy(&self.asked.prompt, tokens.len()));
            }
            let speaks = |event: &&TokenEvent| match event {
                TokenEvent::Token { choice: of, .. } | TokenEvent::Finished { choice: of, .. } => *of == choice,
                TokenEvent::Prefilled { .. } | TokenEvent::Done { .. } => false,
            };
            let mut said = self.events.iter().flatten().filter(speaks);
            let finished = said.find_map(|event| match event {
                TokenEvent::Finished { reason, stop_token, .. } => Some((*reason, *stop_token)),
                _ => None,
            });
            assert!(said.next().is_none(), "choice {choice} goes on after its end: {:?}", self.events);
            if let Some((reason, stop_token)) = finished {
                self.check_reason(choice, tokens.len(), reason, stop_token, config);
            } else {
                assert!(!matches!(self.events.last(), Some(Ok(TokenEvent::Done { .. }))), "choice {choice} has no end");
            }
        }
    }

    fn check_reason(
        &self,
        choice: usize,
        num_tokens: usize,
        reason: FinishReason,
        stop_token: Option<u32>,
        config: &EngineConfig,
    ) {
        let is_completed = self.asked.constraint.is_some_and(|(left, _)| num_tokens >= left);
        match (reason, stop_token) {
            (FinishReason::Stop, Some(token)) => {
                assert!(self.asked.stop_tokens.contains(&token));
                assert!(num_tokens >= self.asked.min_new_tokens);
            }
            (FinishReason::Stop, None) => assert!(is_completed || self.unwanted.contains(&choice)),
            (FinishReason::Length, None) => {
                let room = config.context_length.min(config.cache_tokens() + 1) - self.asked.prompt.len();
                assert_eq!(num_tokens, self.asked.max_new_tokens.unwrap_or(usize::MAX).min(room));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The test's side of the engine.
struct World {
    engine: Engine,
    core: Core,
    faults: mpsc::Sender<Fault>,
    readers: Vec<Reader>,
    begun: Instant,
    turns: u64,
}

impl World {
    fn new(config: EngineConfig) -> Self {
        let (faults, inbox) = mpsc::channel();
        let model = MockModel::new(config.num_blocks, config.block_tokens, Arc::default());
        let (engine, core) = Engine::assemble(Box::new(FaultyModel { model, faults: inbox }), config).expect("valid");
        Self { engine, core, faults, readers: Vec::new(), begun: Instant::now(), turns: 0 }
    }

    /// The test's clock: a turn takes an hour.
    fn time(&self, turns: u64) -> Instant {
        self.begun + Duration::from_secs(3600 * turns)
    }

    fn submit(&mut self, asked: &Asked) -> std::result::Result<(), SubmitError> {
        let temperature = if asked.greedy { 0.0 } else { 1.5 };
        let request = SequenceRequest {
            sampling: SamplingParams { temperature, seed: Some(1), ..SamplingParams::default() },
            max_new_tokens: asked.max_new_tokens,
            min_new_tokens: asked.min_new_tokens,
            stop_tokens: asked.stop_tokens.clone(),
            logprobs: asked.scored.then_some(1),
            prompt_logprobs: asked.scored,
            constraints: asked.constraint.map_or_else(Vec::new, |(left, end)| {
                (0..asked.n).map(|_| Box::new(Scripted { left, end }) as Box<dyn TokenConstraint>).collect()
            }),
            caller: asked.caller.to_string(),
            deadline: asked.deadline.map(|turns| self.time(self.turns + turns)),
            n: asked.n,
            ..SequenceRequest::new(asked.prompt.clone())
        };
        let stream = Some(self.engine.submit(request)?);
        let (events, unwanted) = (Vec::new(), Vec::new());
        self.readers.push(Reader { asked: asked.clone(), stream, events, unwanted, has_ended: false });
        Ok(())
    }

    fn turn(&mut self) {
        assert!(self.core.receive(false), "the engine's handle is there");
        let turn = self.core.turn(self.time(self.turns));
        assert_ne!(turn, Turn::Drained);
        self.core.check();
        self.turns += 1;
    }

    fn reader(&mut self, which: usize) -> Option<&mut Reader> {
        let count = self.readers.len();
        (count > 0).then(|| &mut self.readers[which % count])
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Submit(asked) => match self.submit(&asked) {
                Ok(()) => {}
                Err(SubmitError::QueueFull { .. }) => {
                    let open = self.engine.shared.open_requests.load(Ordering::Acquire);
                    assert_eq!(open, self.engine.config().max_open_requests(), "the queue is full");
                }
                Err(SubmitError::CacheTooSmall { prompt, cache_tokens }) => assert!(prompt > cache_tokens),
                Err(error) => panic!("{error}"),
            },
            Happening::Vanish { which } => {
                if let Some(reader) = self.reader(which) {
                    reader.stream = None;
                }
            }
            Happening::FinishChoice { which, choice } => {
                if let Some(reader) = self.reader(which)
                    && let Some(stream) = &reader.stream
                {
                    stream.finish_choice(choice);
                    reader.unwanted.push(choice);
                }
            }
            Happening::Read { which, events } => {
                if let Some(reader) = self.reader(which) {
                    reader.read(events);
                }
            }
            Happening::Turns { count } => (0..count).for_each(|_| self.turn()),
            Happening::Fault(fault) => self.faults.send(fault).expect("the model is there"),
            Happening::BeginAgain => {
                self.core.begin_again();
                self.core.check();
            }
        }
    }

    /// Reads everything until every stream has ended.
    fn come_to_an_end(&mut self) {
        for _ in 0..MAX_TURNS {
            self.turn();
            self.readers.iter_mut().for_each(|reader| reader.read(usize::MAX));
            if self.readers.iter().all(|reader| reader.stream.is_none() || reader.has_ended) {
                // Those that vanished before this turn are gone with it.
                return;
            }
        }
        panic!("the engine stands still: {:?}", self.engine.stats());
    }

    fn check_nothing_is_left(&self) {
        let stats = self.engine.stats();
        assert_eq!(stats.open_requests, 0);
        assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.waiting_requests), (0, 0, 0));
        assert_eq!(stats.blocks_used, 0);
    }
}

proptest! {
    #[test]
    fn every_stream_ends_once_and_the_engine_serves_the_next(config in configs(), happenings in happenings()) {
        let mut world = World::new(config);
        let is_fault = |happening: &&Happening| matches!(happening, Happening::Fault(_) | Happening::BeginAgain);
        let faults = happenings.iter().filter(is_fault).count();
        for happening in happenings {
            world.happens(happening);
        }
        world.come_to_an_end();
        world.check_nothing_is_left();
        for reader in &world.readers {
            reader.check(world.engine.config());
            if let Some(Err(error)) = reader.events.last() {
                let is_wrong = reader.asked.constraint.is_some_and(|(_, end)| !matches!(end, ConstraintEnd::Completes));
                let is_late = error.kind() == ErrorKind::DeadlineExceeded && reader.asked.deadline.is_some();
                prop_assert!(faults > 0 || is_wrong || is_late, "{error:?}");
            }
        }

        let next = Asked {
            caller: 9, prompt: vec![7, 7, 7, 7, 7], max_new_tokens: Some(3), min_new_tokens: 0, n: 1, greedy: true,
            stop_tokens: Vec::new(), scored: false, deadline: None, constraint: None,
        };
        // Each fault that no step has met yet fails one of these.
        for _ in 0..=faults {
            world.readers.clear();
            world.submit(&next).expect("there is room");
            world.come_to_an_end();
            world.readers[0].check(world.engine.config());
        }
        prop_assert_eq!(world.readers[0].tokens(0), greedy(&next.prompt, 3));
        world.check_nothing_is_left();
    }

    #[test]
    fn a_drain_without_grace_ends_every_stream_with_an_error(config in configs(), happenings in happenings()) {
        let mut world = World::new(config);
        for happening in happenings {
            world.happens(happening);
        }
        let finished = world.engine.shared.drain.request(world.time(world.turns)).expect("it runs");
        world.engine.shared.wake(&world.engine.commands);
        assert!(world.core.receive(false));
        assert_eq!(world.core.turn(world.time(world.turns)), Turn::Drained);
        world.core.stop();
        drop(finished);
        prop_assert_eq!(world.engine.shared.open_requests.load(Ordering::Acquire), 0);
        for mut reader in world.readers {
            reader.read(usize::MAX);
            prop_assert!(reader.stream.is_none() || reader.has_ended, "{:?}", reader.events);
            reader.check(world.engine.config());
        }
    }
}

/// Turns until each reader of `waiting` has a token, by its index in `World::readers`.
fn turns_to_first_tokens(world: &mut World, waiting: &[usize]) -> Vec<u64> {
    let begun = world.turns;
    let mut turns = vec![None; waiting.len()];
    while turns.contains(&None) {
        assert!(world.turns - begun < 1000, "somebody waits for ever: {turns:?}");
        world.turn();
        for (turns, &which) in turns.iter_mut().zip(waiting) {
            let reader = &mut world.readers[which];
            reader.read(usize::MAX);
            if turns.is_none() && !reader.tokens(0).is_empty() {
                *turns = Some(world.turns - begun);
            }
        }
    }
    turns.into_iter().flatten().collect()
}

#[test]
fn a_long_prompt_delays_short_ones_by_a_few_steps_and_is_not_starved_by_them() {
    let config = EngineConfig {
        num_blocks: 2000,
        block_tokens: 4,
        max_running_sequences: 16,
        max_waiting: 64,
        max_batch_tokens: 32,
        context_length: 4096,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let asked = |caller, prompt: Vec<u32>, answer| Asked {
        caller,
        prompt,
        max_new_tokens: Some(answer),
        min_new_tokens: 0,
        n: 1,
        greedy: true,
        stop_tokens: Vec::new(),
        scored: false,
        deadline: None,
        constraint: None,
    };
    let mut world = World::new(config);
    // Alone it takes 100 steps.
    world.submit(&asked(0, vec![1; 3200], 1)).expect("there is room");
    world.turn();
    for caller in 1..=8 {
        world.submit(&asked(caller, vec![u32::from(caller); 12], 20)).expect("there is room");
    }
    // 96 tokens of short prompts beside as many of the long one's caller, 32 a step less one for each that decodes.
    let turns = turns_to_first_tokens(&mut world, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(turns.iter().all(|&turns| turns <= 8), "{turns:?}");
    // From the long one's own caller: the next turn is theirs.
    world.submit(&asked(0, vec![9; 12], 20)).expect("there is room");
    let turns = turns_to_first_tokens(&mut world, &[9]);
    assert!(turns[0] <= 256 / 24 + 2, "{turns:?}");
    // The eight streams took at most a quarter of each step while they ran.
    let turns = turns_to_first_tokens(&mut world, &[0]);
    assert!(world.turns <= 130, "the long prompt took {} turns, the last {turns:?} after the others", world.turns);
    world.come_to_an_end();
    world.check_nothing_is_left();
}
