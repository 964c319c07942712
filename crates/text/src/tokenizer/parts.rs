//! A text's first tokens without the work of the rest, and how few tokens a text can have without any.
//!
//! A text of megabytes that is to be cut or refused after some hundred tokens is encoded in parts, until there are
//! enough. The parts' tokens must be the whole text's, so a text is cut only between an ASCII letter and a space with
//! another ASCII letter behind it ("of| the"), and only where the vocabulary has nothing that reaches across such a
//! place: no added token, no merge, no piece of the pre-tokenizer. Unigram vocabularies are never cut, for they weigh a
//! text as a whole; neither is a `tokenizer.json`, unless it is BERT's. What cannot be cut is one part.

use super::{
    Encoder, Tokenizer, TokenizerError,
    added_tokens::Strip,
    vocabulary::{META_SPACE, Vocabulary},
};

/// The fewest bytes of a part, but for the last.
const PART_BYTES: usize = 16 * 1024;

/// Tokens of a text, or of its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstTokens {
    /// Complete with the model's own special tokens, where they were asked for.
    pub ids: Vec<u32>,
    /// `false` if the text goes on behind these tokens.
    pub is_whole: bool,
}

/// What a vocabulary says of cutting, found out once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    /// Whether parts have the tokens of the whole.
    can_cut: bool,
    /// Bytes of text that one token stands for at most; 0 where there is no such bound.
    longest_token: usize,
    /// Added tokens take white space with them that is no token then.
    drops_white_space: bool,
}

impl Cuts {
    /// `strip` says what each added token takes with it out of the text around it.
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
        // A character without a token is one unknown token, of four bytes at most.
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

/// Whether a token's spelling holds an ASCII letter with a space right behind it.
pub(super) fn reaches_across(text: &str, space: char) -> bool {
    text.match_indices(space).any(|(at, _)| text[..at].ends_with(|before: char| before.is_ascii_alphabetic()))
}

/// Where a text's first part ends: at a place to cut, or at its end.
fn end_of_part(text: &str) -> usize {
    let bytes = text.as_bytes();
    (PART_BYTES..bytes.len().saturating_sub(1))
        .find(|&at| bytes[at] == b' ' && bytes[at - 1].is_ascii_alphabetic() && bytes[at + 1].is_ascii_alphabetic())
        .unwrap_or(bytes.len())
}

/// A text's parts one after the other, each with whether it is the last.
fn parts<'t>(mut rest: &'t str) -> impl FnMut() -> (&'t str, bool) {
    move || {
        let (part, behind) = rest.split_at(end_of_part(rest));
        rest = behind;
        (part, behind.is_empty())
    }
}

impl Tokenizer {
    /// Token ids of a text as [`Tokenizer::encode`] gives them, as far as there are `enough`: of a text with more, they
    /// may be those of its beginning only, with the special tokens around it all the same. There are then more than
    /// `enough` without those, and the first of them are the whole text's own.
    ///
    /// `go_on` is asked between two parts; if it says no, there may be fewer.
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

    /// The same for a rendered prompt: control tokens are themselves, but for those with `mark` within, which are text without
    /// the mark (see [`guard`](crate::chat_template::guard)).
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

    /// A number of tokens that the text does not fall short of, from its bytes alone; 0 where the vocabulary has tokens
    /// that stand for any number of bytes, such as the unknown token of WordPiece, or none for some bytes.
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
