//! What one step computes: the tokens of all its sequences, packed without padding.
//!
//! A sequence brings one token when it decodes and a chunk of its prompt when it prefills; the decoder does
//! not care which. The block table says where in the KV cache the sequence's earlier tokens are and where
//! these go.

/// One forward pass.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids of all sequences, one sequence after another.
    pub tokens: Vec<u32>,
    /// In the order of `tokens`.
    pub sequences: Vec<BatchSequence>,
}

#[derive(Clone, Debug)]
pub struct BatchSequence {
    /// How many of the batch's tokens are this sequence's.
    pub num_tokens: usize,
    /// Position of the first of them, which is the number of tokens already in the cache.
    pub start: usize,
    /// KV blocks of the sequence in order of position, covering `start + num_tokens`.
    pub block_table: Vec<u32>,
    /// For which of its tokens logits are wanted.
    pub logits: LogitsWanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// More of the prompt is to come.
    None,
    /// The token after the last one will be sampled.
    Last,
    /// The prompt itself is scored.
    All,
}

impl Batch {
    /// Rows of logits that the step yields, in the order of the tokens they belong to.
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
