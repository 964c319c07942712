//! A model whose next token is a function of everything before it, read back through the block tables.
//!
//! It keeps each token in the block that the batch names for it, as a real model keeps keys and values; so a wrong
//! block table, a stale cached block, a block written by two sequences or a lost token changes the output, and reading
//! a slot that was never written fails the step.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{StepError, StepModel};
use hearth_models::batch::{Batch, LogitsWanted};

/// Length of the mock's vocabulary.
pub(super) const VOCAB: usize = 32;

/// How tests control and observe the model while the engine owns it.
#[derive(Default)]
pub(super) struct MockControl {
    /// Tokens of the largest batch.
    pub(super) max_tokens_seen: AtomicUsize,
    pub(super) tokens_computed: AtomicUsize,
    pub(super) steps: AtomicUsize,
    pub(super) panic_next: AtomicBool,
    pub(super) out_of_memory_next: AtomicBool,
    pub(super) nan_for_token: AtomicUsize,
}

pub(super) struct MockModel {
    block_tokens: usize,
    blocks: Vec<Option<u32>>,
    control: Arc<MockControl>,
    /// One permit for each step, when a test sets the pace.
    pace: Option<std::sync::mpsc::Receiver<()>>,
}

impl MockModel {
    pub(super) fn new(num_blocks: usize, block_tokens: usize, control: Arc<MockControl>) -> Self {
        Self { block_tokens, blocks: vec![None; num_blocks * block_tokens], control, pace: None }
    }

    pub(super) fn paced(mut self, pace: std::sync::mpsc::Receiver<()>) -> Self {
        self.pace = Some(pace);
        self
    }

    fn place(&self, block_table: &[u32], position: usize) -> usize {
        block_table[position / self.block_tokens] as usize * self.block_tokens + position % self.block_tokens
    }
}

/// The logits after `history`: nearly all on one token, the rest a function of the history too.
pub(super) fn logits_after(history: &[u32]) -> Vec<f32> {
    let hash = history.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, token| {
        (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
    });
    (0..VOCAB as u64)
        .map(|token| {
            let mixed = (hash ^ token.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            (mixed >> 40) as f32 / (1 << 22) as f32
        })
        .collect()
}

/// What greedy decoding without a batch gives.
pub(super) fn greedy(prompt: &[u32], num_tokens: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..num_tokens {
        let logits = logits_after(&history);
        let best = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).expect("not empty");
        history.push(best as u32);
    }
    history.split_off(prompt.len())
}

impl StepModel for MockModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, StepError> {
        if let Some(pace) = &self.pace {
            // A closed channel lets the model run freely.
            let _free = pace.recv();
        }
        self.control.steps.fetch_add(1, Ordering::SeqCst);
        self.control.max_tokens_seen.fetch_max(batch.tokens.len(), Ordering::SeqCst);
        self.control.tokens_computed.fetch_add(batch.tokens.len(), Ordering::SeqCst);
        let mut tokens = batch.tokens.iter();
        let mut written = std::collections::HashSet::new();
        for sequence in &batch.sequences {
            for position in sequence.start..sequence.start + sequence.num_tokens {
                let place = self.place(&sequence.block_table, position);
                assert!(written.insert(place), "two tokens in one place");
                self.blocks[place] = tokens.next().copied();
            }
        }
        assert!(tokens.next().is_none(), "tokens without a sequence");
        // After the writes, like a step that fails half way.
        assert!(!self.control.panic_next.swap(false, Ordering::SeqCst), "asked to panic");
        if self.control.out_of_memory_next.swap(false, Ordering::SeqCst) {
            return Err(StepError::OutOfMemory("asked to fail".to_owned()));
        }
        let poison = self.control.nan_for_token.load(Ordering::SeqCst);
        let mut logits = Vec::with_capacity(batch.num_logits() * VOCAB);
        for sequence in &batch.sequences {
            let end = sequence.start + sequence.num_tokens;
            let history: Option<Vec<u32>> =
                (0..end).map(|position| self.blocks[self.place(&sequence.block_table, position)]).collect();
            let history = history.ok_or_else(|| StepError::Failed("a token was never written".to_owned()))?;
            let first = match sequence.logits {
                LogitsWanted::None => end,
                LogitsWanted::Last => end - 1,
                LogitsWanted::All => sequence.start,
            };
            for position in first..end {
                let row = logits_after(&history[..=position]);
                let poisoned = poison > 0 && history[0] as usize == poison;
                logits.extend(row.into_iter().map(|logit| if poisoned { f32::NAN } else { logit }));
            }
        }
        Ok(logits)
    }
}
