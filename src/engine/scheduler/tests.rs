//! The scheduler against a model that detects misplaced tokens, under random arrivals, cancellations, slow
//! readers and caches that are far too small.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::{
    super::{
        StepModel,
        mock_model::{MockControl, MockModel, VOCAB, greedy},
    },
    *,
};

/// What happens between two steps.
#[derive(Clone, Debug)]
enum Happening {
    Arrival { caller: u8, prompt: Vec<u32>, answer: usize, choices: usize, scored: bool },
    Cancellation { which: usize },
    Pause { which: usize, paused: bool },
    Steps { count: usize, prefill_tokens: usize },
}

fn prompts() -> impl Strategy<Value = Vec<u32>> {
    // Few prefixes, so that many prompts share one.
    (0_u32..3, 0_usize..20, proptest::collection::vec(0..VOCAB as u32, 1..20)).prop_map(|(kind, shared, own)| {
        (0..shared as u32).map(|position| (kind * 11 + position) % VOCAB as u32).chain(own).collect()
    })
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        4 => (0_u8..3, prompts(), 0_usize..14, 1_usize..4, proptest::bool::weighted(0.2)).prop_map(
            |(caller, prompt, answer, choices, scored)| Happening::Arrival { caller, prompt, answer, choices, scored }
        ),
        1 => (0_usize..8).prop_map(|which| Happening::Cancellation { which }),
        2 => (0_usize..8, any::<bool>()).prop_map(|(which, paused)| Happening::Pause { which, paused }),
        4 => (1_usize..6, 1_usize..24).prop_map(|(count, prefill_tokens)| Happening::Steps { count, prefill_tokens }),
    ];
    proptest::collection::vec(happening, 1..40)
}

struct OpenChoice {
    prompt: Vec<u32>,
    answer: usize,
    /// The first choice of the request.
    first: SequenceId,
    num_choices: usize,
    paused: bool,
}

/// Stands in for the engine's core, without its thread.
struct Driver {
    scheduler: Scheduler,
    model: MockModel,
    open: BTreeMap<SequenceId, OpenChoice>,
    next_id: u64,
}

impl Driver {
    fn new(config: SchedulerConfig) -> Self {
        let model = MockModel::new(config.num_blocks, config.block_tokens, Arc::new(MockControl::default()));
        Self { scheduler: Scheduler::new(config), model, open: BTreeMap::new(), next_id: 0 }
    }

    fn arrive(&mut self, caller: u8, prompt: &[u32], answer: usize, choices: usize, scored: bool) -> SequenceId {
        let caller = self.scheduler.enter_caller(&caller.to_string(), choices);
        let root = self.scheduler.root(&"".into());
        let first = SequenceId(self.next_id);
        for choice in 0..choices {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            self.scheduler.add(NewSequence {
                id,
                caller,
                prompt: prompt.into(),
                root: root.clone(),
                waits_for_prompt: choice > 0,
                scores_prompt: scored && choice == 0,
                generates: answer > 0,
            });
            let open = OpenChoice { prompt: prompt.to_vec(), answer, first, num_choices: choices, paused: false };
            self.open.insert(id, open);
        }
        first
    }

    fn cancel(&mut self, first: SequenceId) {
        let Some(choice) = self.open.get(&first) else { return };
        let (first, count) = (choice.first, choice.num_choices as u64);
        for id in (first.0..first.0 + count).map(SequenceId) {
            self.scheduler.remove(id);
            self.open.remove(&id);
        }
    }

    fn pause(&mut self, id: SequenceId, paused: bool) {
        if let Some(choice) = self.open.get_mut(&id) {
            choice.paused = paused;
            self.scheduler.set_paused(id, paused);
        }
    }

    /// One step, with every invariant checked.
    fn step(&mut self, prefill_tokens: usize) -> ScheduledStep {
        let step = self.scheduler.schedule(prefill_tokens);
        self.scheduler.check();
        assert!(step.num_tokens() <= self.scheduler.config.max_batch_tokens);
        let prefill: usize = step.sequences.iter().map(|s| s.num_tokens).filter(|tokens| *tokens > 1).sum();
        assert!(prefill <= prefill_tokens);
        for scheduled in &step.sequences {
            assert!(!self.open[&scheduled.id].paused, "a paused sequence is left out");
        }
        let mut once: Vec<SequenceId> = step.sequences.iter().map(|scheduled| scheduled.id).collect();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), step.sequences.len());
        for id in &step.outgrown {
            self.end(*id, true);
        }
        let batch = self.scheduler.batch(&step);
        if batch.sequences.is_empty() {
            return step;
        }
        let scored: usize = step.sequences.iter().filter(|s| s.logits == LogitsWanted::All).map(|s| s.num_tokens).sum();
        // A prompt's last token is like a decode step, so each running sequence may add one.
        assert!(scored <= self.scheduler.config.max_logits_rows + self.scheduler.num_running());
        let logits = self.model.forward(&batch).expect("every token that a sequence looks back at was written");
        self.scheduler.computed(&step);
        self.scheduler.check();
        let mut rows = logits.chunks_exact(VOCAB);
        for scheduled in &step.sequences {
            let count = match scheduled.logits {
                LogitsWanted::None => 0,
                LogitsWanted::Last => 1,
                LogitsWanted::All => scheduled.num_tokens,
            };
            let last = (0..count).map(|_| rows.next().expect("a row for each")).last();
            self.after(scheduled, last);
        }
        self.scheduler.check();
        step
    }

    fn after(&mut self, scheduled: &ScheduledSequence, row: Option<&[f32]>) {
        let Some(sequence) = self.scheduler.get(scheduled.id) else { return };
        let choice = &self.open[&scheduled.id];
        let (first, count, answer) = (choice.first, choice.num_choices as u64, choice.answer);
        if sequence.num_remaining() > 0 {
            return;
        }
        for id in (first.0..first.0 + count).map(SequenceId) {
            self.scheduler.prompt_is_computed(id);
        }
        if answer > 0 {
            let row = row.expect("logits at the end of the tokens");
            let token = (0..VOCAB).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).expect("not empty");
            self.scheduler.append(scheduled.id, token as u32);
        }
        if self.scheduler.get(scheduled.id).is_some_and(|sequence| sequence.generated.len() >= answer) {
            self.end(scheduled.id, false);
        }
    }

    fn end(&mut self, id: SequenceId, outgrown: bool) {
        let choice = self.open.remove(&id).expect("a sequence ends once");
        let sequence = self.scheduler.get(id).expect("it is still there");
        let answer = &sequence.generated;
        assert_eq!(*answer, greedy(&choice.prompt, answer.len()), "in any company the text is the same");
        let capacity = self.scheduler.config.num_blocks * self.scheduler.config.block_tokens;
        if outgrown {
            assert!(sequence.num_tokens() > capacity);
        } else {
            assert_eq!(answer.len(), choice.answer);
        }
        self.scheduler.remove(id);
    }

    /// Steps until all have ended; in a bounded number of steps, because the oldest always makes progress.
    fn finish(&mut self) {
        let ids: Vec<SequenceId> = self.open.keys().copied().collect();
        ids.into_iter().for_each(|id| self.pause(id, false));
        let mut steps = 0;
        while !self.open.is_empty() {
            self.step(8);
            steps += 1;
            assert!(steps < 20_000, "{} sequences starve", self.open.len());
        }
        self.scheduler.check();
        assert_eq!((self.scheduler.num_running(), self.scheduler.blocks().num_used()), (0, 0));
    }
}

fn small(num_blocks: usize, prefix_cache: bool) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        block_tokens: 4,
        max_running_sequences: 4,
        max_batch_tokens: 16,
        max_logits_rows: 5,
        prefix_cache,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_texts_are_right_and_blocks_come_back(
        happenings in happenings(),
        num_blocks in 10_usize..40,
        prefix_cache: bool,
    ) {
        let mut driver = Driver::new(small(num_blocks, prefix_cache));
        for happening in happenings {
            match happening {
                Happening::Arrival { caller, prompt, answer, choices, scored } => {
                    driver.arrive(caller, &prompt, answer, choices, scored);
                }
                Happening::Cancellation { which } => {
                    if let Some(id) = driver.open.keys().nth(which).copied() {
                        driver.cancel(id);
                    }
                }
                Happening::Pause { which, paused } => {
                    if let Some(id) = driver.open.keys().nth(which).copied() {
                        driver.pause(id, paused);
                    }
                }
                Happening::Steps { count, prefill_tokens } => {
                    for _ in 0..count {
                        driver.step(prefill_tokens);
                    }
                }
            }
        }
        driver.finish();
    }
}

#[test]
fn a_long_prompt_delays_running_streams_by_no_step() {
    let mut driver = Driver::new(small(200, true));
    let stream = driver.arrive(0, &[1, 2, 3], 100, 1, false);
    driver.step(8);
    driver.arrive(1, &[5; 400], 1, 1, false);
    for _ in 0..40 {
        let step = driver.step(8);
        assert!(step.sequences.iter().any(|scheduled| scheduled.id == stream && scheduled.num_tokens == 1));
    }
}

#[test]
fn prompts_of_two_callers_advance_together() {
    let mut driver = Driver::new(SchedulerConfig { max_batch_tokens: 256, ..small(1000, true) });
    let long = driver.arrive(0, &[1; 1500], 1, 1, false);
    driver.step(128);
    let short = driver.arrive(1, &[2; 64], 1, 1, false);
    let step = driver.step(128);
    assert!(!driver.open.contains_key(&short), "the newcomer is served at once");
    assert!(step.sequences.iter().any(|scheduled| scheduled.id == long && scheduled.num_tokens == 64));
}

#[test]
fn a_short_prompt_passes_a_long_one_of_its_own_caller() {
    let mut driver = Driver::new(SchedulerConfig { max_batch_tokens: 256, ..small(1000, true) });
    driver.arrive(0, &[1; 1500], 1, 1, false);
    driver.step(128);
    let short = driver.arrive(0, &[2; 64], 1, 1, false);
    driver.step(128);
    driver.step(128);
    assert!(!driver.open.contains_key(&short));
}

#[test]
fn one_request_of_a_caller_passes_a_hundred_of_another() {
    let mut driver = Driver::new(small(100, true));
    for i in 0..100 {
        driver.arrive(0, &[i % 32, 1, 2, 3, 4, 5], 5, 1, false);
    }
    driver.step(16);
    let other = driver.arrive(1, &[9; 6], 5, 1, false);
    // Those that run finish; the next place goes to the other caller.
    for _ in 0..12 {
        driver.step(16);
    }
    assert!(!driver.open.contains_key(&other));
    assert!(driver.open.len() > 80);
    driver.finish();
}

#[test]
fn a_preempted_sequence_finds_its_tokens_in_the_cache() {
    let mut driver = Driver::new(small(8, true));
    driver.arrive(0, &[1; 10], 12, 1, false);
    driver.arrive(0, &[2; 10], 12, 1, false);
    let mut preempted = 0;
    while !driver.open.is_empty() {
        preempted += driver.step(16).num_preempted;
    }
    assert!(preempted > 0);
}

#[test]
fn readers_that_fall_behind_give_way_and_come_back() {
    let mut driver = Driver::new(small(8, true));
    let slow = driver.arrive(0, &[1; 20], 8, 1, false);
    driver.step(16);
    driver.step(16);
    driver.pause(slow, true);
    let other = driver.arrive(1, &[2; 24], 5, 1, false);
    for _ in 0..8 {
        driver.step(16);
    }
    assert!(!driver.open.contains_key(&other));
    driver.finish();
}
