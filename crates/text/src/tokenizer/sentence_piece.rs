//! SentencePiece's BPE: joins the neighbours that form the token with the best score until no two form a token.
//!
//! This is our own code because the `tokenizers` crate needs merges, whereas a GGUF file has only scores for these
//! vocabularies. Among equal scores the leftmost pair goes first, as in SentencePiece and llama.cpp. A heap over a
//! linked list, and no look-up of a text longer than the longest token, make it O(n log n).

use std::{cmp::Ordering, collections::BinaryHeap};

use super::{
    byte_alphabet::utf8_bytes,
    vocabulary::{META_SPACE, TokenKind, Vocabulary},
};

/// The end of the linked list of symbols.
const NONE: u32 = u32::MAX;

/// The scores of a vocabulary, and how to encode text without a token.
#[derive(Debug)]
pub(super) struct SentencePieceEncoder {
    scores: Vec<f32>,
    longest_token: usize,
    byte_tokens: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

/// Part of the text, in a linked list that merges shorten. An empty symbol has been absorbed.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    end: usize,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    /// Total bytes of both sides, which shows whether either has changed since.
    length: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl SentencePieceEncoder {
    /// `scores` are in order of token id; tokens beyond its end have none and score 0.
    pub(super) fn new(vocabulary: &Vocabulary, scores: Vec<f32>, unknown: Option<u32>) -> Self {
        let mut byte_tokens = Box::new([None; 256]);
        for byte in 0..=u8::MAX {
            let single = [byte];
            let as_text = || std::str::from_utf8(&single).ok().and_then(|text| vocabulary.id(text));
            byte_tokens[usize::from(byte)] = vocabulary.byte_token(byte).or_else(as_text);
        }
        Self {
            scores,
            longest_token: vocabulary.iter().map(|(_, text, _)| text.len()).max().unwrap_or(0),
            byte_tokens,
            unknown,
        }
    }

    /// The number of bytes for which the vocabulary has no token.
    pub(super) fn missing_bytes(&self) -> usize {
        self.byte_tokens.iter().filter(|token| token.is_none()).count()
    }

    /// Whether every byte of a text gets a token, if only the unknown token.
    pub(super) fn keeps_every_byte(&self) -> bool {
        self.unknown.is_some() || utf8_bytes().all(|byte| self.byte_tokens[usize::from(byte)].is_some())
    }

    /// The maximum number of bytes of text that one token stands for.
    pub(super) fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// Appends the tokens of a text without added tokens. `space_prefix` puts a space in front of it.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, space_prefix: bool, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + META_SPACE.len_utf8());
        if space_prefix {
            escaped.push(META_SPACE);
        }
        escaped.extend(text.chars().map(|character| if character == ' ' { META_SPACE } else { character }));
        let symbols = self.merge(vocabulary, &escaped);
        let mut index = 0;
        while let Some(symbol) = symbols.get(index as usize) {
            let piece = &escaped[symbol.start..symbol.end];
            match vocabulary.id(piece) {
                Some(id) => ids.push(id),
                None => {
                    let bytes = piece.bytes().map(|byte| self.byte_tokens[usize::from(byte)]);
                    if bytes.clone().all(|token| token.is_some()) {
                        ids.extend(bytes.flatten());
                    } else {
                        ids.extend(self.unknown);
                    }
                }
            }
            index = symbol.next;
        }
    }

    fn merge(&self, vocabulary: &Vocabulary, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .zip(0_u32..)
            .map(|((start, character), index)| Symbol {
                start,
                end: start + character.len_utf8(),
                previous: index.wrapping_sub(1),
                next: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut candidates = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            self.consider(vocabulary, text, &symbols, right - 1, right, &mut candidates);
        }
        while let Some(candidate) = candidates.pop() {
            let left = symbols[candidate.left as usize];
            let right = symbols[candidate.right as usize];
            let is_stale = left.end == left.start || right.end == right.start || left.next != candidate.right;
            if is_stale || right.end - left.start != candidate.length {
                continue;
            }
            symbols[candidate.right as usize].end = right.start;
            let merged = &mut symbols[candidate.left as usize];
            merged.end = right.end;
            merged.next = right.next;
            if right.next != NONE {
                symbols[right.next as usize].previous = candidate.left;
                self.consider(vocabulary, text, &symbols, candidate.left, right.next, &mut candidates);
            }
            if left.previous != NONE {
                self.consider(vocabulary, text, &symbols, left.previous, candidate.left, &mut candidates);
            }
        }
        symbols
    }

    fn consider(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
        candidates: &mut BinaryHeap<Candidate>,
    ) {
        let start = symbols[left as usize].start;
        let end = symbols[right as usize].end;
        if end - start > self.longest_token {
            return;
        }
        if let Some(id) = vocabulary.id(&text[start..end]) {
            let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
            candidates.push(Candidate { score, left, right, length: end - start });
        }
    }
}

/// Whether text after this token starts afresh, like the start of a text: it gets the prefix space.
pub(super) fn starts_afresh_after(kind: TokenKind) -> bool {
    kind.is_added()
}

#[cfg(test)]
mod tests {
    use super::{super::vocabulary::Spelling, *};

    fn encode(tokens: &[(&str, f32)], text: &str) -> Vec<u32> {
        let vocabulary = Vocabulary::new(tokens.iter().map(|(text, _)| (text, TokenKind::Normal)), Spelling::MetaSpace);
        let scores = tokens.iter().map(|(_, score)| *score).collect();
        let mut ids = Vec::new();
        SentencePieceEncoder::new(&vocabulary, scores, Some(0)).encode(&vocabulary, text, false, &mut ids);
        ids
    }

    #[test]
    fn the_best_score_joins_first_and_then_the_leftmost() {
        let tokens = [("<unk>", 0.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("aa", -3.0)];
        assert_eq!(encode(&tokens, "abc"), [1, 5]);
        assert_eq!(encode(&tokens, "aaa"), [6, 1]);
    }

    #[test]
    fn text_without_a_token_falls_back_to_bytes_or_to_unknown() {
        assert_eq!(encode(&[("<unk>", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0)], "é"), [1, 2]);
        assert_eq!(encode(&[("<unk>", 0.0), ("<0xC3>", 0.0)], "éx"), [0, 0]);
    }
}
