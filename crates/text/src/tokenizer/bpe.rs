//! Byte-pair encoding: repeatedly merges the neighbouring pair with the lowest rank until no pair can be merged.
//!
//! This is our own code because a vocabulary from a GGUF file may lack the result of a merge, which the `tokenizers`
//! crate refuses to load, and because ids are merged here without a string per token. A heap of candidate merges over a
//! linked list of symbols makes it O(n log n) in the length of the word.

use std::{cmp::Reverse, collections::BinaryHeap};

use ahash::AHashMap;
use hearth_models::gguf::Strings;

use super::{
    TokenizerError,
    byte_alphabet::{self, utf8_bytes},
    parts::reaches_across,
    pre_tokenizer::PreTokenizer,
    pre_tokenizer_families::Family,
    vocabulary::{META_SPACE, Vocabulary},
};

/// A symbol that occurs in no merge and is not in the vocabulary.
const NO_SYMBOL: u32 = u32::MAX;
/// The end of the linked list of symbols.
const NONE: u32 = u32::MAX;

/// The merges, with their pre-tokenizer.
#[derive(Debug)]
pub(super) struct BytePairEncoder {
    pre_tokenizer: PreTokenizer,
    /// Rank and result for each pair of symbols. Symbols below the vocabulary size are token ids; higher ones are merge
    /// results that the vocabulary lacks.
    merges: AHashMap<(u32, u32), Merge>,
    /// Symbols that are not in the vocabulary.
    extra_symbols: AHashMap<Box<str>, u32>,
    vocabulary_size: u32,
    /// The symbol of each single byte, for byte-level vocabularies.
    byte_symbols: Box<[u32; 256]>,
    ignore_merges: bool,
    /// Whether a merge crosses the space between two words.
    joins_words: bool,
    /// Words are UTF-8 with U+2581 for a space, and text not in the vocabulary falls back to bytes.
    meta_space: bool,
    unknown: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    result: u32,
}

/// Part of a word, in a linked list that merges shorten.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    id: u32,
    start: usize,
    end: usize,
    previous: u32,
    next: u32,
}

/// A possible merge, ordered by rank and then by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    left_id: u32,
    right_id: u32,
    result: u32,
}

/// Buffers reused across words.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
    spelling: String,
}

impl BytePairEncoder {
    /// `merges` are in order of rank; each is two spellings separated by a space.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        merges: &Strings,
        family: &Family,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let vocabulary_size = vocabulary.len() as u32;
        let mut encoder = Self {
            pre_tokenizer: PreTokenizer::new(family.passes)?,
            merges: AHashMap::with_capacity(merges.len()),
            extra_symbols: AHashMap::new(),
            vocabulary_size,
            byte_symbols: Box::new([NO_SYMBOL; 256]),
            ignore_merges: family.ignore_merges,
            joins_words: false,
            meta_space: family.meta_space,
            unknown,
        };
        let mut result = String::new();
        for (merge, rank) in merges.iter().zip(0..) {
            let Some((left, right)) = split_merge(merge) else { continue };
            result.clear();
            result.push_str(left);
            result.push_str(right);
            encoder.joins_words |= family.meta_space && reaches_across(&result, META_SPACE);
            let pair = (encoder.intern(vocabulary, left), encoder.intern(vocabulary, right));
            let result = encoder.intern(vocabulary, &result);
            encoder.merges.entry(pair).or_insert(Merge { rank, result });
        }
        for byte in 0..=u8::MAX {
            let mut buffer = [0; 4];
            let spelling = byte_alphabet::char_of_byte(byte).encode_utf8(&mut buffer);
            encoder.byte_symbols[usize::from(byte)] = encoder.symbol(vocabulary, spelling);
        }
        Ok(encoder)
    }

    /// The number of bytes for which the vocabulary has no token.
    pub(super) fn missing_bytes(&self, vocabulary: &Vocabulary) -> usize {
        match self.meta_space {
            true => (0..=u8::MAX).filter(|byte| vocabulary.byte_token(*byte).is_none()).count(),
            false => self.byte_symbols.iter().filter(|symbol| **symbol >= self.vocabulary_size).count(),
        }
    }

    /// Whether no merge crosses a space between two ASCII letters.
    pub(super) fn keeps_words_apart(&self) -> bool {
        if self.meta_space { !self.joins_words } else { self.pre_tokenizer.split("ab cd") == [0..2, 2..5] }
    }

    /// Whether every byte of a text gets a token, if only the unknown token.
    pub(super) fn keeps_every_byte(&self, vocabulary: &Vocabulary) -> bool {
        let has_token = |byte: u8| match self.meta_space {
            true => vocabulary.byte_token(byte).is_some(),
            false => self.byte_symbols[usize::from(byte)] < self.vocabulary_size,
        };
        self.unknown.is_some() || utf8_bytes().all(has_token)
    }

    /// The maximum number of bytes that one token stands for.
    pub(super) fn longest_token(&self, vocabulary: &Vocabulary) -> usize {
        let bytes = |id: u32, text: &str| match self.meta_space {
            // The text itself may contain a space or U+2581.
            true => text.len(),
            false => vocabulary.bytes(id).map_or(0, |bytes| bytes.len()),
        };
        vocabulary.iter().map(|(id, text, _)| bytes(id, text)).max().unwrap_or(0)
    }

    fn symbol(&self, vocabulary: &Vocabulary, spelling: &str) -> u32 {
        vocabulary.id(spelling).or_else(|| self.extra_symbols.get(spelling).copied()).unwrap_or(NO_SYMBOL)
    }

    fn intern(&mut self, vocabulary: &Vocabulary, spelling: &str) -> u32 {
        if let Some(id) = vocabulary.id(spelling) {
            return id;
        }
        let next = self.vocabulary_size + self.extra_symbols.len() as u32;
        *self.extra_symbols.entry(spelling.into()).or_insert(next)
    }

    /// Appends the tokens of a text without added tokens.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) {
        let escaped;
        let text = if self.meta_space {
            escaped = text.replace(' ', META_SPACE.encode_utf8(&mut [0; 4]));
            escaped.as_str()
        } else {
            text
        };
        let mut scratch = Scratch::default();
        for piece in self.pre_tokenizer.split(text) {
            self.encode_word(vocabulary, &text[piece], &mut scratch, ids);
        }
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let Some(id) = self.whole_word(vocabulary, word, scratch) {
            ids.push(id);
            return;
        }
        self.fill_symbols(vocabulary, word, &mut scratch.symbols);
        self.merge(scratch);
        let mut index = 0;
        while let Some(symbol) = scratch.symbols.get(index as usize) {
            if symbol.id < self.vocabulary_size {
                ids.push(symbol.id);
            } else {
                self.push_bytes(vocabulary, &word.as_bytes()[symbol.start..symbol.end], ids);
            }
            index = symbol.next;
        }
    }

    /// The token for a whole word, found without merges.
    fn whole_word(&self, vocabulary: &Vocabulary, word: &str, scratch: &mut Scratch) -> Option<u32> {
        if self.meta_space {
            // Runs of line feeds are tokens that no merge produces.
            return word.bytes().all(|byte| byte == b'\n').then(|| vocabulary.id(word)).flatten();
        }
        if !self.ignore_merges {
            return None;
        }
        scratch.spelling.clear();
        byte_alphabet::encode_into(word.as_bytes(), &mut scratch.spelling);
        vocabulary.id(&scratch.spelling)
    }

    fn fill_symbols(&self, vocabulary: &Vocabulary, word: &str, symbols: &mut Vec<Symbol>) {
        symbols.clear();
        let mut push = |id: u32, start: usize, end: usize| {
            let index = symbols.len() as u32;
            symbols.push(Symbol { id, start, end, previous: index.wrapping_sub(1), next: index + 1 });
        };
        if self.meta_space {
            for (start, character) in word.char_indices() {
                let end = start + character.len_utf8();
                push(self.symbol(vocabulary, &word[start..end]), start, end);
            }
        } else {
            for (index, byte) in word.bytes().enumerate() {
                push(self.byte_symbols[usize::from(byte)], index, index + 1);
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
    }

    fn merge(&self, Scratch { symbols, candidates, .. }: &mut Scratch) {
        candidates.clear();
        for right in 1..symbols.len() as u32 {
            self.consider(symbols, right - 1, right, candidates);
        }
        while let Some(Reverse(candidate)) = candidates.pop() {
            let left = symbols[candidate.left as usize];
            let right = symbols[candidate.right as usize];
            // Either side may have been merged since: a symbol that was absorbed has no id, and one that grew has a
            // different id.
            if left.id != candidate.left_id || right.id != candidate.right_id || left.next != candidate.right {
                continue;
            }
            symbols[candidate.right as usize].id = NO_SYMBOL;
            let merged = &mut symbols[candidate.left as usize];
            merged.id = candidate.result;
            merged.end = right.end;
            merged.next = right.next;
            if right.next != NONE {
                symbols[right.next as usize].previous = candidate.left;
                self.consider(symbols, candidate.left, right.next, candidates);
            }
            if left.previous != NONE {
                self.consider(symbols, left.previous, candidate.left, candidates);
            }
        }
    }

    fn consider(&self, symbols: &[Symbol], left: u32, right: u32, candidates: &mut BinaryHeap<Reverse<Candidate>>) {
        let pair = (symbols[left as usize].id, symbols[right as usize].id);
        if let Some(merge) = self.merges.get(&pair) {
            candidates.push(Reverse(Candidate {
                rank: merge.rank,
                left,
                right,
                left_id: pair.0,
                right_id: pair.1,
                result: merge.result,
            }));
        }
    }

    /// A symbol without a token: emits its bytes, or the unknown token if the vocabulary lacks those too.
    fn push_bytes(&self, vocabulary: &Vocabulary, bytes: &[u8], ids: &mut Vec<u32>) {
        for byte in bytes {
            let id = if self.meta_space {
                vocabulary.byte_token(*byte)
            } else {
                Some(self.byte_symbols[usize::from(*byte)]).filter(|id| *id < self.vocabulary_size)
            };
            ids.extend(id.or(self.unknown));
        }
    }
}

/// The two sides of a merge. A side may itself start with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{TokenKind, pre_tokenizer_families, vocabulary::Spelling},
        *,
    };

    fn vocabulary(tokens: &[&str]) -> Vocabulary {
        Vocabulary::new(tokens.iter().map(|text| (text, TokenKind::Normal)), Spelling::ByteLevel)
    }

    fn encode(tokens: &[&str], merges: &[&str], text: &str) -> Vec<u32> {
        let vocabulary = vocabulary(tokens);
        let merges: Strings = merges.iter().collect();
        let family = pre_tokenizer_families::family("gpt-2").unwrap();
        let encoder = BytePairEncoder::new(&vocabulary, &merges, &family, None).unwrap();
        let mut ids = Vec::new();
        encoder.encode(&vocabulary, text, &mut ids);
        ids
    }

    #[test]
    fn lower_ranks_merge_first() {
        assert_eq!(encode(&["a", "b", "c", "bc", "ab"], &["b c", "a b"], "abc"), [0, 3]);
        assert_eq!(encode(&["a", "b", "c", "bc", "ab"], &["a b", "b c"], "abc"), [4, 2]);
    }

    #[test]
    fn equal_ranks_merge_from_the_left() {
        assert_eq!(encode(&["a", "aa"], &["a a"], "aaaaa"), [1, 1, 0]);
    }

    #[test]
    fn merges_may_pass_through_a_symbol_that_the_vocabulary_lacks() {
        assert_eq!(encode(&["a", "b", "c", "abc"], &["a b", "ab c"], "abc"), [3]);
        assert_eq!(encode(&["a", "b", "c", "abc"], &["a b", "ab c"], "abb"), [0, 1, 1]);
    }

    #[test]
    fn a_merge_splits_at_the_first_space_that_is_not_its_start() {
        assert_eq!(split_merge("  a"), Some((" ", "a")));
        assert_eq!(split_merge("Ġ a"), Some(("Ġ", "a")));
        assert_eq!(split_merge("Ġa"), None);
        assert_eq!(split_merge(""), None);
    }
}
