//! What one step computes: the tokens of all its sequences, packed without padding.
//!
//! A sequence contributes one token when it decodes and a chunk of its prompt when it prefills; the decoder makes no
//! distinction. The block table says which KV blocks hold the sequence's earlier tokens and take the new ones.

/// One forward pass.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids of all sequences, concatenated.
    pub tokens: Vec<u32>,
    /// In the same order as in `tokens`.
    pub sequences: Vec<BatchSequence>,
}

#[derive(Clone, Debug)]
pub struct BatchSequence {
    /// How many of the batch's tokens belong to this sequence.
    pub num_tokens: usize,
    /// Position of the first of them, which is the number of the sequence's tokens already in the cache.
    pub start: usize,
    /// KV blocks of the sequence in order of position, covering `start + num_tokens`.
    pub block_table: Vec<u32>,
    /// Which of its tokens need logits.
    pub logits: LogitsWanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// More of the prompt follows in a later step.
    None,
    /// The token after the last one will be sampled.
    Last,
    /// The prompt's own tokens are scored.
    All,
}

impl Batch {
    /// Rows of logits that the step produces, in the order of their tokens.
    pub fn num_logits(&self) -> usize {
        self.sequences
            .iter()
            .map(|sequence| match sequence.logits {
                LogitsWanted::None => 0,
                LogitsWanted::Last => 1,
                LogitsWanted::All => sequence.num_tokens,
            })
            .sum()
    }
}
