//! WordPiece for vocabularies from GGUF files, using the `tokenizers` crate's own normalizer, splitter and model.
//!
//! The converter stores `play` as `▁play` and `##ing` as `ing`; the original spelling is restored here.

use std::borrow::Cow;

use ahash::AHashMap;
use tokenizers::{
    Model as _, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, models::wordpiece::WordPiece, normalizers::bert::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
};

use super::{
    TokenizerError,
    vocabulary::{META_SPACE, TokenKind},
};

/// A word of more characters is unknown, in BERT's own code and in every tokenizer.json derived from it.
const LONGEST_WORD: usize = 100;

#[derive(Debug)]
pub(super) struct WordPieceEncoder {
    normalizer: BertNormalizer,
    model: WordPiece,
}

/// A token's spelling in WordPiece's own notation.
pub(super) fn spelling(converted: &str, kind: TokenKind) -> Cow<'_, str> {
    match converted.strip_prefix(META_SPACE) {
        Some(word) => Cow::Borrowed(word),
        None if kind == TokenKind::Normal => Cow::Owned(format!("##{converted}")),
        None => Cow::Borrowed(converted),
    }
}

impl WordPieceEncoder {
    /// `tokens` are in WordPiece's own spelling.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = (u32, &'a str)>,
        unknown: &str,
        lowercase: bool,
        strip_accents: bool,
    ) -> Result<Self, TokenizerError> {
        let vocabulary: AHashMap<String, u32> = tokens.map(|(id, text)| (text.to_owned(), id)).collect();
        let model = WordPiece::builder()
            .vocab(vocabulary)
            .unk_token(unknown.to_owned())
            .max_input_chars_per_word(LONGEST_WORD)
            .build()
            .map_err(encode_error)?;
        Ok(Self { normalizer: BertNormalizer::new(true, true, Some(strip_accents), lowercase), model })
    }

    /// Appends the tokens of a text without added tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut normalized = NormalizedString::from(text);
        self.normalizer.normalize(&mut normalized).map_err(encode_error)?;
        let mut words = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut words).map_err(encode_error)?;
        for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            ids.extend(self.model.tokenize(word).map_err(encode_error)?.into_iter().map(|token| token.id));
        }
        Ok(())
    }
}

fn encode_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode { problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&str; 7] = ["[UNK]", "play", "##ing", "!", "e", "中", "x"];

    fn encode(text: &str) -> Vec<u32> {
        let encoder = WordPieceEncoder::new((0..).zip(TOKENS), "[UNK]", true, true).unwrap();
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids).unwrap();
        ids
    }

    #[test]
    fn words_are_normalized_and_split() {
        assert_eq!(encode("Playing!"), [1, 2, 3]);
        assert_eq!(encode("É 中中"), [4, 5, 5]);
        assert_eq!(encode("play playx"), [1, 0]);
        assert_eq!(encode(" \u{0} "), [0_u32; 0]);
    }

    #[test]
    fn a_word_over_the_limit_is_unknown() {
        assert_eq!(encode(&format!("{} x", "x".repeat(101))), [0, 6]);
    }

    #[test]
    fn converted_spellings_are_undone() {
        assert_eq!(&*spelling("▁play", TokenKind::Normal), "play");
        assert_eq!(&*spelling("ing", TokenKind::Normal), "##ing");
        assert_eq!(&*spelling("[CLS]", TokenKind::Control), "[CLS]");
    }
}
