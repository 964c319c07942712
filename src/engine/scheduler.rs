//! Decides what each step computes. Pure bookkeeping: no tensors, no clock, no channels.
//!
//! A step has a token budget. Decoding sequences come first, one token each, so running streams advance at every step;
//! the rest is shared between prompts in small quanta, each to the caller that has been served least, so that a long
//! prompt or a caller with many requests delays the others by at most a chunk. A waiting sequence is admitted when its
//! turn comes and blocks for all its tokens are free; while the sequence whose turn it is does not fit, none overtakes
//! it, so that every sequence is admitted eventually.
//!
//! When a sequence needs a block and none is free, one is preempted: it releases its blocks, keeps its tokens and waits
//! to be recomputed, mostly from the prefix cache. Paused sequences are preempted first, then the youngest, so that the
//! oldest always makes progress and the engine never stalls.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    blocks::{BlockPool, ContentId},
    fairness::{CallerId, Callers},
    sequence::{NewSequence, Sequence, SequenceId, SequenceStatus},
};
use hearth_models::batch::{Batch, BatchSequence, LogitsWanted};

/// Prompt tokens that a caller gets before it is another caller's turn.
const QUANTUM_TOKENS: usize = 64;

/// Prompt tokens of one sequence before it is the turn of the caller's next one: prompts up to this length are computed
/// in order of arrival, longer ones let others pass.
const TURN_TOKENS: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct SchedulerConfig {
    pub(super) num_blocks: usize,
    pub(super) block_tokens: usize,
    pub(super) max_running_sequences: usize,
    pub(super) max_batch_tokens: usize,
    pub(super) max_logits_rows: usize,
    pub(super) prefix_cache: bool,
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScheduledSequence {
    pub(super) id: SequenceId,
    /// Tokens already computed.
    pub(super) start: usize,
    pub(super) num_tokens: usize,
    pub(super) logits: LogitsWanted,
}

/// One step, and what happened to other sequences while it was planned.
#[derive(Clone, Debug, Default)]
pub(super) struct ScheduledStep {
    pub(super) sequences: Vec<ScheduledSequence>,
    /// Newly admitted sequences, with the tokens they found in the prefix cache.
    pub(super) admitted: Vec<(SequenceId, usize)>,
    pub(super) num_preempted: usize,
    /// Sequences that have outgrown the whole cache and must be finished.
    pub(super) outgrown: Vec<SequenceId>,
}

impl ScheduledStep {
    pub(super) fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|scheduled| scheduled.num_tokens).sum()
    }
}

#[derive(Debug)]
pub(super) struct Scheduler {
    config: SchedulerConfig,
    blocks: BlockPool,
    callers: Callers,
    sequences: BTreeMap<SequenceId, Sequence>,
    num_running: usize,
    /// Orders the sequences of a caller.
    turns: u64,
}

impl Scheduler {
    pub(super) fn new(config: SchedulerConfig) -> Self {
        let blocks = BlockPool::new(config.num_blocks, config.block_tokens);
        Self { config, blocks, callers: Callers::default(), sequences: BTreeMap::new(), num_running: 0, turns: 0 }
    }

    pub(super) fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    pub(super) fn num_running(&self) -> usize {
        self.num_running
    }

    pub(super) fn num_waiting(&self) -> usize {
        self.sequences.len() - self.num_running
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Opens a caller's account for `num_sequences` sequences, each of which must be [added](Self::add).
    pub(super) fn enter_caller(&mut self, name: &str, num_sequences: usize) -> CallerId {
        self.callers.enter(name, num_sequences)
    }

    /// The root under which a request's blocks are shared: with those of its scope or, without the prefix cache,
    /// between its own choices only.
    pub(super) fn root(&mut self, scope: &Arc<str>) -> ContentId {
        if self.config.prefix_cache { ContentId::Empty(scope.clone()) } else { self.blocks.private_root() }
    }

    pub(super) fn add(&mut self, new: NewSequence) {
        self.turns += 1;
        self.sequences.insert(new.id, Sequence::new(new, self.turns));
    }

    /// The sequence has ended, for whatever reason; its blocks and its place are free at once.
    pub(super) fn remove(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.num_running -= usize::from(sequence.is_running());
            self.blocks.release(&sequence.block_table);
            self.callers.leave(sequence.caller);
        }
    }

    /// The sequence is about to be removed, and what it wrote is not trusted: the prefix cache does not keep the blocks
    /// that no other sequence holds.
    pub(super) fn discard(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && sequence.is_running()
        {
            let table = sequence.give_blocks_back();
            self.num_running -= 1;
            self.blocks.discard(&table);
        }
    }

    /// A paused sequence is left out of steps and keeps its blocks until another sequence needs them.
    pub(super) fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = paused;
        }
    }

    /// The prompt that this choice shares has been computed.
    pub(super) fn prompt_is_computed(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && sequence.status == SequenceStatus::WaitingForPrompt
        {
            sequence.status = SequenceStatus::Waiting;
        }
    }

    /// Whether any running sequence decodes, so that the step's length is an inter-token latency.
    pub(super) fn is_decoding(&self) -> bool {
        self.sequences
            .values()
            .any(|sequence| sequence.is_running() && !sequence.paused && sequence.num_remaining() == 1)
    }

    /// Plans a step with at most `prefill_tokens` prompt tokens, and `max_batch_tokens` in all.
    pub(super) fn schedule(&mut self, prefill_tokens: usize) -> ScheduledStep {
        let mut step = ScheduledStep::default();
        self.schedule_decodes(&mut step);
        let left = self.config.max_batch_tokens.saturating_sub(step.sequences.len());
        self.schedule_prefills(&mut step, left.min(prefill_tokens.max(1)));
        step
    }

    fn schedule_decodes(&mut self, step: &mut ScheduledStep) {
        let decoding: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.is_running() && !sequence.paused && sequence.num_remaining() == 1)
            .map(|(id, _)| *id)
            .collect();
        for id in decoding {
            // An older one may have preempted it.
            if step.sequences.len() < self.config.max_batch_tokens && self.sequences[&id].is_running() {
                self.schedule_decode(id, step);
            }
        }
    }

    fn schedule_decode(&mut self, id: SequenceId, step: &mut ScheduledStep) {
        loop {
            let sequence = &self.sequences[&id];
            if sequence.num_computed < sequence.block_table.len() * self.config.block_tokens {
                break;
            }
            if let Some(block) = self.blocks.allocate() {
                self.sequence_mut(id).block_table.push(block);
                break;
            }
            let victim = self.preemption_victim().unwrap_or(id);
            if victim == id && self.num_running == 1 {
                step.outgrown.push(id);
                return;
            }
            self.preempt(victim, step);
            if victim == id {
                return;
            }
        }
        let sequence = &self.sequences[&id];
        let logits = if sequence.generates { LogitsWanted::Last } else { LogitsWanted::None };
        let logits = if sequence.is_scoring() { LogitsWanted::All } else { logits };
        let caller = sequence.caller;
        step.sequences.push(ScheduledSequence { id, start: sequence.num_computed, num_tokens: 1, logits });
        self.callers.charge(caller, 1);
    }

    /// The running sequence to preempt: a paused one first, else the youngest.
    fn preemption_victim(&self) -> Option<SequenceId> {
        let running = || self.sequences.iter().filter(|(_, sequence)| sequence.is_running()).rev();
        running().find(|(_, sequence)| sequence.paused).or_else(|| running().next()).map(|(id, _)| *id)
    }

    fn preempt(&mut self, id: SequenceId, step: &mut ScheduledStep) {
        let sequence = self.sequences.get_mut(&id).expect("a victim is a known sequence");
        let table = sequence.give_blocks_back();
        self.num_running -= 1;
        self.blocks.release(&table);
        step.num_preempted += 1;
    }

    fn schedule_prefills(&mut self, step: &mut ScheduledStep, mut budget: usize) {
        let mut logits_rows = self.config.max_logits_rows;
        let mut queues = self.prefill_queues(step);
        while budget > 0 {
            let Some(caller) = queues.keys().copied().min_by_key(|id| (self.callers.served(*id), *id)) else { break };
            let Some(&id) = queues[&caller].last() else {
                queues.remove(&caller);
                continue;
            };
            if !self.sequences[&id].is_running() && !self.admit(id, step) {
                // Its turn has come and it does not fit: only sequences that have their blocks go on.
                let overtaken = !step.outgrown.contains(&id);
                for queue in queues.values_mut() {
                    queue.retain(|other| *other != id && (!overtaken || self.sequences[other].is_running()));
                }
                continue;
            }
            let scoring = self.sequences[&id].is_scoring();
            let scheduled = self.chunk(id, step, budget.min(QUANTUM_TOKENS), logits_rows);
            logits_rows -= if scoring { scheduled } else { 0 };
            let queue = queues.get_mut(&caller).expect("the caller was found in it");
            let in_step = Self::scheduled_tokens(step, id);
            let sequence = self.sequences.get_mut(&id).expect("it is in a queue");
            if scheduled == 0 || sequence.num_remaining() == in_step {
                queue.pop();
            } else if sequence.ends_turn(scheduled, TURN_TOKENS) {
                self.turns += 1;
                sequence.turn = self.turns;
                queue.rotate_right(1);
            }
            budget -= scheduled;
            self.callers.charge(caller, scheduled);
        }
    }

    /// By caller, the sequences with prompt tokens to compute, the next one last.
    fn prefill_queues(&self, step: &ScheduledStep) -> BTreeMap<CallerId, Vec<SequenceId>> {
        let mut queues: BTreeMap<CallerId, Vec<SequenceId>> = BTreeMap::new();
        let scheduled: std::collections::BTreeSet<SequenceId> = step.sequences.iter().map(|part| part.id).collect();
        for (id, sequence) in &self.sequences {
            let eligible = match sequence.status {
                SequenceStatus::Running => sequence.num_remaining() > 1,
                SequenceStatus::Waiting => true,
                SequenceStatus::WaitingForPrompt => false,
            };
            if eligible && !sequence.paused && !scheduled.contains(id) && !step.outgrown.contains(id) {
                queues.entry(sequence.caller).or_default().push(*id);
            }
        }
        for queue in queues.values_mut() {
            queue.sort_by_key(|id| std::cmp::Reverse(self.sequences[id].turn));
        }
        queues
    }

    /// Gives a waiting sequence a place and blocks for all its tokens, or nothing.
    fn admit(&mut self, id: SequenceId, step: &mut ScheduledStep) -> bool {
        let sequence = &self.sequences[&id];
        let num_blocks = self.blocks.blocks_for(sequence.num_tokens());
        if num_blocks > self.blocks.num_blocks() {
            step.outgrown.push(id);
            return false;
        }
        loop {
            if self.num_running < self.config.max_running_sequences && self.take_blocks(id, num_blocks) {
                break;
            }
            // Sequences whose readers have fallen behind do not keep others out.
            let paused = self.sequences.iter().rev().find(|(_, sequence)| sequence.is_running() && sequence.paused);
            let Some(paused) = paused.map(|(id, _)| *id) else { return false };
            self.preempt(paused, step);
        }
        let sequence = self.sequence_mut(id);
        sequence.status = SequenceStatus::Running;
        let num_cached = sequence.num_computed;
        self.num_running += 1;
        step.admitted.push((id, num_cached));
        true
    }

    fn take_blocks(&mut self, id: SequenceId, num_blocks: usize) -> bool {
        let sequence = &self.sequences[&id];
        let (mut table, content) = self.blocks.acquire_prefix(
            sequence.root.clone(),
            |position| sequence.token(position),
            sequence.max_cached(),
        );
        let num_cached = table.len();
        // One block for each running sequence, so that an admission does not cause a preemption right away.
        let missing = num_blocks - num_cached;
        if missing + self.num_running > self.blocks.num_available() {
            self.blocks.release(&table);
            return false;
        }
        table.extend((0..missing).map_while(|_| self.blocks.allocate()));
        let num_computed = num_cached * self.config.block_tokens;
        let sequence = self.sequence_mut(id);
        sequence.block_table = table;
        sequence.num_registered = num_cached;
        sequence.content = content;
        sequence.num_computed = num_computed;
        true
    }

    /// Adds up to `budget` more of the sequence's tokens to the step, and returns how many.
    fn chunk(&self, id: SequenceId, step: &mut ScheduledStep, budget: usize, logits_rows: usize) -> usize {
        let sequence = &self.sequences[&id];
        let already = Self::scheduled_tokens(step, id);
        let mut num_tokens = budget.min(sequence.num_remaining() - already);
        if sequence.is_scoring() {
            num_tokens = num_tokens.min(logits_rows);
        }
        if num_tokens == 0 {
            return 0;
        }
        let ends_prompt = already + num_tokens == sequence.num_remaining();
        let logits = match (sequence.is_scoring(), ends_prompt && sequence.generates) {
            (true, _) => LogitsWanted::All,
            (false, true) => LogitsWanted::Last,
            (false, false) => LogitsWanted::None,
        };
        match step.sequences.iter_mut().rev().find(|scheduled| scheduled.id == id) {
            Some(scheduled) => {
                scheduled.num_tokens += num_tokens;
                scheduled.logits = logits;
            }
            None => {
                step.sequences.push(ScheduledSequence { id, start: sequence.num_computed, num_tokens, logits });
            }
        }
        num_tokens
    }

    fn scheduled_tokens(step: &ScheduledStep, id: SequenceId) -> usize {
        step.sequences.iter().rev().find(|scheduled| scheduled.id == id).map_or(0, |scheduled| scheduled.num_tokens)
    }

    /// The step as the model's batch.
    pub(super) fn batch(&self, step: &ScheduledStep) -> Batch {
        let mut batch = Batch::default();
        for scheduled in &step.sequences {
            let sequence = &self.sequences[&scheduled.id];
            let positions = scheduled.start..scheduled.start + scheduled.num_tokens;
            let num_blocks = self.blocks.blocks_for(positions.end);
            batch.tokens.extend(positions.map(|position| sequence.token(position)));
            batch.sequences.push(BatchSequence {
                num_tokens: scheduled.num_tokens,
                start: scheduled.start,
                block_table: sequence.block_table[..num_blocks].to_vec(),
                logits: scheduled.logits,
            });
        }
        batch
    }

    /// Records a computed step: its tokens count as computed, and the blocks that it filled can be shared.
    pub(super) fn computed(&mut self, step: &ScheduledStep) {
        for scheduled in &step.sequences {
            let Some(sequence) = self.sequences.get_mut(&scheduled.id) else { continue };
            sequence.num_computed = scheduled.start + scheduled.num_tokens;
            if scheduled.logits == LogitsWanted::All {
                sequence.num_scored = sequence.num_scored.max(sequence.num_computed.min(sequence.prompt.len()));
            }
            let block_tokens = self.config.block_tokens;
            while (sequence.num_registered + 1) * block_tokens <= sequence.num_computed {
                let start = sequence.num_registered * block_tokens;
                let tokens = (start..start + block_tokens).map(|position| sequence.token(position)).collect();
                let block = &mut sequence.block_table[sequence.num_registered];
                (*block, sequence.content) = self.blocks.register(*block, sequence.content.clone(), tokens);
                sequence.num_registered += 1;
            }
        }
    }

    /// Appends the sampled token.
    pub(super) fn append(&mut self, id: SequenceId, token: u32) {
        self.sequence_mut(id).generated.push(token);
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        self.sequences.get_mut(&id).expect("the sequence was looked up before")
    }

    /// Panics when a block has leaked or a count is off.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.blocks.check(self.sequences.values().map(|sequence| &sequence.block_table[..]));
        let running = self.sequences.values().filter(|sequence| sequence.is_running()).count();
        assert_eq!(self.num_running, running);
        assert!(running <= self.config.max_running_sequences);
        for sequence in self.sequences.values() {
            assert!(sequence.is_running() || sequence.block_table.is_empty());
            assert!(sequence.num_computed <= sequence.block_table.len() * self.config.block_tokens);
        }
    }
}

#[cfg(test)]
mod tests;
