//! Encodes the first tokens of a text without processing the rest, and bounds a text's token count from below without
//! encoding it.
//!
//! A text of megabytes that will be cut or refused after a few hundred tokens is encoded in parts, until there are
//! enough tokens. The parts' tokens must equal those of the whole text, so a text is split only between an ASCII letter
//! and a space that is followed by another ASCII letter ("of| the"), and only if nothing in the vocabulary crosses such
//! a place: no added token, no merge, no piece of the pre-tokenizer. Unigram vocabularies are never split, because they
//! score a text as a whole; neither is a `tokenizer.json`, unless it is BERT's. A text that cannot be split is one
//! part.

use super::{
    Encoder, Tokenizer, TokenizerError,
    added_tokens::Strip,
    vocabulary::{META_SPACE, Vocabulary},
};

/// Minimum bytes of a part, except the last.
const PART_BYTES: usize = 16 * 1024;

/// The tokens of a text, or of its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstTokens {
    /// Including the model's own special tokens, if requested.
    pub ids: Vec<u32>,
    /// `false` if the text continues after these tokens.
    pub is_whole: bool,
}

/// What a vocabulary allows for splitting, determined once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    /// Whether the parts have the same tokens as the whole text.
    can_cut: bool,
    /// Maximum bytes of text per token; 0 if there is no such bound.
    longest_token: usize,
    /// Whether added tokens remove white space, which then has no token.
    drops_white_space: bool,
}

impl Cuts {
    /// `strip` says what white space each added token removes from the text around it.
    pub(super) fn of(vocabulary: &Vocabulary, encoder: &Encoder, strip: impl Fn(u32) -> Strip) -> Self {
        let is_plain = |text: &str, id: u32| {
            let takes_more = strip(id).right && text.ends_with(|last: char| last.is_ascii_alphabetic());
            !takes_more && !reaches_across(text, ' ')
        };
        let added = || vocabulary.iter().filter(|(_, _, kind)| kind.is_added());
        let can_cut = added().all(|(id, text, _)| is_plain(text, id))
            && match encoder {
                Encoder::BytePair(encoder) => encoder.keeps_words_apart(),
                Encoder::SentencePiece(_) => vocabulary.iter().all(|(_, text, _)| !reaches_across(text, META_SPACE)),
                Encoder::WordPiece(_) => true,
                Encoder::Unigram(_) => false,
                Encoder::Hub(encoder) => encoder.keeps_words_apart(),
            };
        // A character without a token becomes one unknown token, for at most four bytes.
        let longest_token = match encoder {
            Encoder::BytePair(encoder) if encoder.keeps_every_byte(vocabulary) => {
                encoder.longest_token(vocabulary).max(4)
            }
            Encoder::SentencePiece(encoder) if encoder.keeps_every_byte() => encoder.longest_token().max(4),
            _ => 0,
        };
        Self { can_cut, longest_token, drops_white_space: added().any(|(id, _, _)| strip(id) != Strip::default()) }
    }
}

/// Whether a token's spelling contains an ASCII letter directly followed by a space.
pub(super) fn reaches_across(text: &str, space: char) -> bool {
    text.match_indices(space).any(|(at, _)| text[..at].ends_with(|before: char| before.is_ascii_alphabetic()))
}

/// The end of a text's first part: a place where it may be split, or its end.
fn end_of_part(text: &str) -> usize {
    let bytes = text.as_bytes();
    (PART_BYTES..bytes.len().saturating_sub(1))
        .find(|&at| bytes[at] == b' ' && bytes[at - 1].is_ascii_alphabetic() && bytes[at + 1].is_ascii_alphabetic())
        .unwrap_or(bytes.len())
}

/// A text's parts in order, each with whether it is the last.
fn parts<'t>(mut rest: &'t str) -> impl FnMut() -> (&'t str, bool) {
    move || {
        let (part, behind) = rest.split_at(end_of_part(rest));
        rest = behind;
        (part, behind.is_empty())
    }
}

impl Tokenizer {
    /// Token ids of a text as [`Tokenizer::encode`] returns them, but not necessarily more than `enough`: for a longer
    /// text, the result may cover only its beginning, with the special tokens still around it. It then has more than
    /// `enough` ids besides the special tokens, and these are the first ids of the whole text.
    ///
    /// `go_on` is called between parts; if it returns false, there may be fewer.
    pub fn encode_first(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        enough: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<FirstTokens, TokenizerError> {
        let inner = &*self.0;
        if !inner.cuts.can_cut || text.len() <= PART_BYTES {
            return Ok(FirstTokens { ids: self.encode(text, add_special, parse_special)?, is_whole: true });
        }
        if let Encoder::Hub(encoder) = &inner.encoder {
            let mut parts = parts(text);
            let (ids, is_whole) = encoder.encode_parts(add_special, parse_special, |num_tokens| {
                (num_tokens <= enough && go_on()).then(&mut parts)
            })?;
            return Ok(FirstTokens { ids, is_whole });
        }
        self.encode_parts(text, add_special, (parse_special, None), enough, go_on)
    }

    /// The same for a rendered prompt: control tokens are recognized, except those that contain `mark`, which are text
    /// without the mark (see [`guard`](crate::chat_template::guard)).
    pub fn encode_first_marked(
        &self,
        text: &str,
        mark: char,
        enough: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<FirstTokens, TokenizerError> {
        self.encode_parts(text, false, (true, Some(mark)), enough, go_on)
    }

    fn encode_parts(
        &self,
        text: &str,
        add_special: bool,
        (parse_special, mark): (bool, Option<char>),
        enough: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<FirstTokens, TokenizerError> {
        let inner = &*self.0;
        let mut parts = parts(text);
        let mut ids = Vec::new();
        if add_special {
            ids.extend_from_slice(&inner.prefix);
        }
        let num_before = ids.len();
        let mut starts_afresh = true;
        let is_whole = loop {
            let (part, is_last) = if inner.cuts.can_cut { parts() } else { (text, true) };
            self.encode_content(part, parse_special, mark, &mut starts_afresh, &mut ids)?;
            if is_last {
                break true;
            }
            if ids.len() - num_before > enough || !go_on() {
                break false;
            }
        };
        if add_special {
            ids.extend_from_slice(&inner.suffix);
        }
        Ok(FirstTokens { ids, is_whole })
    }

    /// A lower bound on the number of the text's tokens, computed from its bytes alone; 0 if the vocabulary has tokens
    /// that stand for any number of bytes, such as WordPiece's unknown token, or lacks tokens for some bytes.
    pub fn fewest_tokens(&self, text: &str) -> usize {
        let Cuts { longest_token, drops_white_space, .. } = self.0.cuts;
        if longest_token == 0 {
            return 0;
        }
        let bytes = match drops_white_space {
            true => text.chars().filter(|character| !character.is_whitespace()).map(char::len_utf8).sum(),
            false => text.len(),
        };
        bytes.div_ceil(longest_token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_between_two_words() {
        let text = "of the ".repeat(PART_BYTES);
        let end = end_of_part(&text);
        assert!((PART_BYTES..PART_BYTES + 8).contains(&end));
        assert!(text[..end].ends_with("of") || text[..end].ends_with("the"), "{end}");
        for whole in ["a", "a b", &"x".repeat(3 * PART_BYTES), &"1 ".repeat(3 * PART_BYTES), &"字 ".repeat(PART_BYTES)]
        {
            assert_eq!(end_of_part(whole), whole.len());
        }
    }

    #[test]
    fn spellings_that_reach_across_are_found() {
        assert!(reaches_across("in▁the", META_SPACE) && reaches_across("a ", ' ') && reaches_across("  x y", ' '));
        assert!(
            !reaches_across("▁▁the", META_SPACE) && !reaches_across("<| a", ' ') && !reaches_across("▁", META_SPACE)
        );
    }
}
