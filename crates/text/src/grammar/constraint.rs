//! Adapts llguidance's matcher to the engine's [`TokenConstraint`], from the first token on or from a marker in the
//! text.

use hearth_domain::TokenConstraint;
use llguidance::Matcher;
use toktrie::{SimpleVob, TokEnv, TokTrie, TokenId};

use super::reason;
use crate::tool_calls::{THINK_CLOSE, THINK_OPEN, Thinking};

/// The grammar governs the whole answer.
pub(super) struct GrammarConstraint {
    environment: TokEnv,
    matcher: Matcher,
}

impl GrammarConstraint {
    pub(super) fn new(environment: TokEnv, matcher: Matcher) -> Self {
        Self { environment, matcher }
    }

    pub(super) fn copied(&self) -> Self {
        Self { environment: self.environment.clone(), matcher: self.matcher.deep_clone() }
    }
}

impl TokenConstraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String> {
        grammar_mask(&mut self.matcher, &self.environment, mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        advance(&mut self.matcher, token)
    }

    fn is_finished(&mut self) -> bool {
        self.matcher.is_stopped()
    }
}

fn grammar_mask(matcher: &mut Matcher, environment: &TokEnv, mask: &mut [u32]) -> Result<(), String> {
    let allowed = if matcher.is_stopped() && !matcher.is_error() {
        environment.tok_trie().eos_token_set()
    } else {
        matcher.compute_mask_or_eos().map_err(|error| reason(&error.to_string()))?
    };
    write_mask(&allowed, environment.tok_trie().vocab_size(), mask);
    Ok(())
}

/// `allowed` may have bits beyond the vocabulary; the mask gets none.
fn write_mask(allowed: &SimpleVob, vocab_size: usize, mask: &mut [u32]) {
    for (word, bits) in mask.iter_mut().zip(allowed.as_slice()) {
        *word |= bits;
    }
    clear_past(vocab_size, mask);
}

fn clear_past(vocab_size: usize, mask: &mut [u32]) {
    if let Some(last) = mask.get_mut(vocab_size / 32) {
        *last &= (1u32 << (vocab_size % 32)) - 1;
    }
    for word in mask.iter_mut().skip(vocab_size / 32 + 1) {
        *word = 0;
    }
}

fn advance(matcher: &mut Matcher, token: TokenId) -> Result<(), String> {
    if matcher.is_stopped() && !matcher.is_error() {
        return Ok(());
    }
    matcher.consume_token(token).map_err(|error| reason(&error.to_string()))
}

/// A grammar that takes effect once `text` has been generated.
pub(super) struct TriggeredGrammar {
    pub(super) text: Vec<u8>,
    /// Only if nothing but white space precedes `text`.
    pub(super) at_start: bool,
    pub(super) matcher: Matcher,
}

/// What may follow a complete call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterCall {
    FreeText,
    End,
}

/// Free text up to a marker, then text that follows a grammar.
pub(super) struct PhasedConstraint {
    environment: TokEnv,
    /// Ids below this are tokens; the logits extend beyond.
    num_tokens: usize,
    phase: Phase,
    triggers: Vec<TriggeredGrammar>,
    after: AfterCall,
    /// Triggers within a thought are ignored.
    thought: Thought,
    /// Whether an end-of-text token may come while the text is free.
    may_end: bool,
    /// Remaining tokens of free text, and the grammar that follows once they are used up.
    closing: Option<Closing>,
    /// The last bytes of the free text, and its total length.
    tail: Vec<u8>,
    num_bytes: usize,
}

/// Whether the free text is in a thought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thought {
    No,
    MayOpen,
    Open,
}

struct Closing {
    tokens_left: usize,
    matcher: Matcher,
}

enum Phase {
    Free,
    Grammar(Box<Matcher>),
    /// Closing the thought: this many bytes of `FORCED_CLOSE` have been generated.
    Closing(usize),
    Ended,
}

/// How much of the free text is kept to search for markers; no marker is longer.
const TAIL_BYTES: usize = 512;

/// The text that is forced when the model's thinking budget is used up.
const FORCED_CLOSE: &[u8] = b"\n</think>\n\n";

impl PhasedConstraint {
    /// Free text, and the grammar of the first trigger that appears.
    pub(super) fn on_triggers(
        (environment, num_tokens): (TokEnv, usize),
        triggers: Vec<TriggeredGrammar>,
        after: AfterCall,
        thinking: Thinking,
    ) -> Self {
        let thought = match thinking {
            Thinking::Never => Thought::No,
            Thinking::MayOpen => Thought::MayOpen,
            Thinking::Open => Thought::Open,
        };
        Self {
            environment,
            num_tokens,
            phase: Phase::Free,
            triggers,
            after,
            thought,
            may_end: true,
            closing: None,
            tail: Vec::new(),
            num_bytes: 0,
        }
    }

    /// A thought of at most `tokens` tokens, then the grammar to the end.
    pub(super) fn after_thinking(vocabulary: (TokEnv, usize), matcher: Matcher, tokens: usize) -> Self {
        let trigger =
            TriggeredGrammar { text: THINK_CLOSE.as_bytes().to_vec(), at_start: false, matcher: matcher.deep_clone() };
        let closing = Closing { tokens_left: tokens, matcher };
        Self {
            may_end: false,
            closing: Some(closing),
            ..Self::on_triggers(vocabulary, vec![trigger], AfterCall::End, Thinking::Never)
        }
    }

    pub(super) fn copied(&self) -> Self {
        let trigger = |trigger: &TriggeredGrammar| TriggeredGrammar {
            text: trigger.text.clone(),
            at_start: trigger.at_start,
            matcher: trigger.matcher.deep_clone(),
        };
        let closing =
            |closing: &Closing| Closing { tokens_left: closing.tokens_left, matcher: closing.matcher.deep_clone() };
        Self {
            environment: self.environment.clone(),
            num_tokens: self.num_tokens,
            phase: match &self.phase {
                Phase::Free => Phase::Free,
                Phase::Grammar(matcher) => Phase::Grammar(Box::new(matcher.deep_clone())),
                Phase::Closing(said) => Phase::Closing(*said),
                Phase::Ended => Phase::Ended,
            },
            triggers: self.triggers.iter().map(trigger).collect(),
            after: self.after,
            thought: self.thought,
            may_end: self.may_end,
            closing: self.closing.as_ref().map(closing),
            tail: self.tail.clone(),
            num_bytes: self.num_bytes,
        }
    }

    fn trie(&self) -> &TokTrie {
        self.environment.tok_trie()
    }

    fn free_text(&mut self, token: TokenId) {
        if self.trie().eos_tokens().contains(&token) {
            self.phase = Phase::Ended;
            return;
        }
        let bytes = self.trie().token(token);
        let bytes = bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes).to_vec();
        self.tail.extend_from_slice(&bytes);
        self.num_bytes += bytes.len();
        if self.in_thought() {
            // Within a thought, only its end matters.
        } else if let Some((matcher, rest)) = self.triggered(bytes.len()) {
            self.begin(matcher, &rest);
        } else if let Some(closing) = &mut self.closing {
            closing.tokens_left = closing.tokens_left.saturating_sub(1);
            // Never in the middle of a character.
            if closing.tokens_left == 0 && bytes.last().is_some_and(u8::is_ascii) {
                self.phase = Phase::Closing(0);
            }
        }
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }

    /// Tracks the markers of a thought.
    fn in_thought(&mut self) -> bool {
        if self.thought == Thought::MayOpen {
            let text = self.tail.trim_ascii_start();
            if text.starts_with(THINK_OPEN.as_bytes()) {
                self.thought = Thought::Open;
            } else if !THINK_OPEN.as_bytes().starts_with(text) {
                self.thought = Thought::No;
            }
        }
        if self.thought == Thought::Open
            && self.tail.windows(THINK_CLOSE.len()).any(|window| window == THINK_CLOSE.as_bytes())
        {
            self.thought = Thought::No;
            self.tail.clear();
            self.num_bytes = 0;
            return true;
        }
        self.thought == Thought::Open
    }

    /// The grammar whose trigger was completed within the last `new` bytes, and the bytes after it.
    fn triggered(&self, new: usize) -> Option<(Matcher, Vec<u8>)> {
        self.triggers.iter().find_map(|trigger| {
            let length = trigger.text.len();
            let first = self.tail.len().saturating_sub(new + length - 1);
            let place = (first..=self.tail.len().checked_sub(length)?)
                .find(|&place| self.tail[place..].starts_with(&trigger.text))?;
            let precedes_all = self.num_bytes == self.tail.len() && self.tail[..place].trim_ascii().is_empty();
            if trigger.at_start && !precedes_all {
                return None;
            }
            Some((trigger.matcher.deep_clone(), self.tail[place + length..].to_vec()))
        })
    }

    /// Switches to the grammar; its first bytes came with the trigger's token. If they do not fit, the text stays free:
    /// it did not open a call.
    fn begin(&mut self, mut matcher: Matcher, rest: &[u8]) {
        let is_thought = self.closing.is_some();
        // The white space that ends a thought belongs to no grammar.
        let rest = if is_thought { rest.trim_ascii_start() } else { rest };
        let tokens = self.environment.tokenize_bytes(rest);
        if matcher.try_consume_tokens(&tokens).is_ok_and(|consumed| consumed == tokens.len()) {
            self.phase = Phase::Grammar(Box::new(matcher));
            self.leave_complete();
        } else if is_thought && let Some(closing) = self.closing.take() {
            self.phase = Phase::Grammar(Box::new(closing.matcher));
        }
    }

    fn leave_complete(&mut self) {
        if let Phase::Grammar(matcher) = &self.phase
            && matcher.is_stopped()
            && !matcher.is_error()
        {
            self.phase = match self.after {
                AfterCall::End => Phase::Ended,
                AfterCall::FreeText => Phase::Free,
            };
            self.tail.clear();
        }
    }

    /// Allows tokens that are a prefix of the rest of the forced close.
    fn closing_mask(&self, said: usize, mask: &mut [u32]) {
        let left = &FORCED_CLOSE[said..];
        for length in 1..=left.len() {
            if let Some(id) = self.trie().token_id(&left[..length]) {
                set_bit(mask, id);
            }
        }
        // The marker may be a single special token.
        let mut special = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        special.extend_from_slice(THINK_CLOSE.as_bytes());
        if left.starts_with(THINK_CLOSE.as_bytes())
            && let Some(id) = self.trie().token_id_at_bytes(&special)
        {
            set_bit(mask, id);
        }
    }
}

fn set_bit(mask: &mut [u32], id: TokenId) {
    if let Some(word) = mask.get_mut(id as usize / 32) {
        *word |= 1 << (id % 32);
    }
}

impl TokenConstraint for PhasedConstraint {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String> {
        match &mut self.phase {
            Phase::Free => {
                mask.fill(u32::MAX);
                if !self.may_end {
                    for &end in self.environment.tok_trie().eos_tokens() {
                        if let Some(word) = mask.get_mut(end as usize / 32) {
                            *word &= !(1 << (end % 32));
                        }
                    }
                }
                clear_past(self.num_tokens, mask);
            }
            Phase::Grammar(matcher) => return grammar_mask(matcher, &self.environment, mask),
            Phase::Closing(said) => {
                let said = *said;
                self.closing_mask(said, mask);
            }
            Phase::Ended => write_mask(&self.trie().eos_token_set(), self.num_tokens, mask),
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        match &mut self.phase {
            Phase::Free => self.free_text(token),
            Phase::Grammar(matcher) => {
                advance(matcher, token)?;
                self.leave_complete();
            }
            Phase::Closing(said) => {
                let bytes = self.environment.tok_trie().token(token);
                *said += bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes).len();
                if *said >= FORCED_CLOSE.len()
                    && let Some(closing) = self.closing.take()
                {
                    self.phase = Phase::Grammar(Box::new(closing.matcher));
                }
            }
            Phase::Ended => {}
        }
        Ok(())
    }

    fn is_finished(&mut self) -> bool {
        match &mut self.phase {
            Phase::Ended => true,
            Phase::Grammar(matcher) => self.after == AfterCall::End && matcher.is_stopped(),
            Phase::Free | Phase::Closing(_) => false,
        }
    }
}
