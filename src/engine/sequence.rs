//! One choice of one request, as the scheduler sees it: tokens, blocks, and how far it has been computed.
//!
//! Plain data with derived properties. How its tokens are chosen and who reads them is left to `open_request`.

use std::sync::Arc;

use super::{blocks::ContentId, fairness::CallerId};

/// In order of arrival; choices of one request are consecutive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SequenceId(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceStatus {
    /// Holds no blocks.
    Waiting,
    /// Another choice of the same request computes the prompt first, so that this one finds it in the cache.
    WaitingForPrompt,
    /// Holds blocks for all its tokens.
    Running,
}

/// What a request asks of the scheduler.
#[derive(Clone, Debug)]
pub(super) struct NewSequence {
    pub(super) id: SequenceId,
    pub(super) caller: CallerId,
    pub(super) prompt: Arc<[u32]>,
    /// The root under which its blocks are shared.
    pub(super) root: ContentId,
    pub(super) waits_for_prompt: bool,
    /// Logits are wanted for every token of the prompt.
    pub(super) scores_prompt: bool,
    /// A token will be sampled after the prompt.
    pub(super) generates: bool,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) status: SequenceStatus,
    pub(super) caller: CallerId,
    pub(super) prompt: Arc<[u32]>,
    pub(super) generated: Vec<u32>,
    /// Tokens whose keys and values are in the blocks.
    pub(super) num_computed: usize,
    pub(super) block_table: Vec<u32>,
    /// How many blocks of the table the prefix cache knows, and the identity of the last of them.
    pub(super) num_registered: usize,
    pub(super) content: ContentId,
    pub(super) root: ContentId,
    /// Its reader has fallen behind, so it is left out of steps.
    pub(super) paused: bool,
    pub(super) scores_prompt: bool,
    /// Prompt tokens whose logits have been returned.
    pub(super) num_scored: usize,
    pub(super) generates: bool,
    /// Position among the caller's sequences, and prompt tokens computed since it was assigned.
    pub(super) turn: u64,
    pub(super) turn_tokens: usize,
}

impl Sequence {
    pub(super) fn new(new: NewSequence, turn: u64) -> Self {
        Self {
            status: if new.waits_for_prompt { SequenceStatus::WaitingForPrompt } else { SequenceStatus::Waiting },
            caller: new.caller,
            prompt: new.prompt,
            generated: Vec::new(),
            num_computed: 0,
            block_table: Vec::new(),
            num_registered: 0,
            content: new.root.clone(),
            root: new.root,
            paused: false,
            scores_prompt: new.scores_prompt,
            num_scored: 0,
            generates: new.generates,
            turn,
            turn_tokens: 0,
        }
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.prompt.len() + self.generated.len()
    }

    pub(super) fn token(&self, position: usize) -> u32 {
        match position.checked_sub(self.prompt.len()) {
            None => self.prompt[position],
            Some(generated) => self.generated[generated],
        }
    }

    /// Tokens still to be computed; 1 for a decoding sequence.
    pub(super) fn num_remaining(&self) -> usize {
        self.num_tokens() - self.num_computed
    }

    /// Counts computed prompt tokens; true when it is the next sequence's turn.
    pub(super) fn ends_turn(&mut self, num_tokens: usize, tokens_per_turn: usize) -> bool {
        self.turn_tokens += num_tokens;
        let ends = self.turn_tokens >= tokens_per_turn;
        if ends {
            self.turn_tokens = 0;
        }
        ends
    }

    /// Returns a running sequence to the queue, to be computed from its first token; yields its former block table.
    pub(super) fn give_blocks_back(&mut self) -> Vec<u32> {
        self.status = SequenceStatus::Waiting;
        self.num_computed = 0;
        self.num_registered = 0;
        self.content = self.root.clone();
        std::mem::take(&mut self.block_table)
    }

    pub(super) fn is_running(&self) -> bool {
        self.status == SequenceStatus::Running
    }

    /// Tokens that may come from the prefix cache: the last one is always computed, because its logits are needed, and
    /// so are those whose scores are requested.
    pub(super) fn max_cached(&self) -> usize {
        let all_but_last = self.num_tokens() - 1;
        if self.scores_prompt { all_but_last.min(self.num_scored) } else { all_but_last }
    }

    /// Whether logits of the next chunk's inner tokens are wanted.
    pub(super) fn is_scoring(&self) -> bool {
        self.scores_prompt && self.num_scored < self.prompt.len()
    }
}
