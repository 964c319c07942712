//! Text to token ids: one [`Tokenizer`] for both GGUF metadata and `tokenizer.json`.
//!
//! The reference is the output of other programs: the test vectors that llama.cpp ships with its vocabularies, and the
//! `tokenizers` crate's own output. Incremental decoding is left to [`super::detokenizer`].

mod added_tokens;
mod bpe;
mod byte_alphabet;
mod character_map;
mod error;
mod gguf_metadata;
mod hub_file;
mod parts;
mod pre_tokenizer;
mod pre_tokenizer_families;
mod sentence_piece;
mod special_ids;
mod unigram;
mod vocabulary;
mod word_piece;

use std::{borrow::Cow, path::Path, sync::Arc};

use self::{
    added_tokens::{AddedTokens, Fragment},
    bpe::BytePairEncoder,
    hub_file::{HubEncoder, HubFile},
    parts::Cuts,
    sentence_piece::SentencePieceEncoder,
    special_ids::SpecialIds,
    unigram::UnigramEncoder,
    vocabulary::Vocabulary,
    word_piece::WordPieceEncoder,
};
pub use self::{error::TokenizerError, parts::FirstTokens, vocabulary::TokenKind};
use super::detokenizer::Detokenizer;

/// A vocabulary and the method that converts text to its ids. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vocabulary: Vocabulary,
    encoder: Encoder,
    /// `None` if the encoder finds them itself.
    added_tokens: Option<AddedTokens>,
    /// Tokens added before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    special: SpecialIds,
    end_of_generation: Vec<u32>,
    /// Whether encoding puts a space in front of text that decoding removes again.
    space_prefix: bool,
    cuts: Cuts,
}

#[derive(Debug)]
enum Encoder {
    BytePair(BytePairEncoder),
    SentencePiece(SentencePieceEncoder),
    WordPiece(WordPieceEncoder),
    Unigram(UnigramEncoder),
    Hub(Box<HubEncoder>),
}

impl Tokenizer {
    /// Loads a `tokenizer.json`. Its truncation and padding are disabled.
    pub fn from_file(tokenizer_json: &Path) -> Result<Self, TokenizerError> {
        let HubFile { encoder, mut vocabulary, mut special, space_prefix } = HubFile::open(tokenizer_json)?;
        // Token kinds stay the file's own here, since the file says which tokens are special.
        let kinds: Vec<TokenKind> = vocabulary.iter().map(|(_, _, kind)| kind).collect();
        let end_of_generation = special_ids::settle(&mut vocabulary, &mut special);
        for (id, kind) in (0..).zip(kinds) {
            vocabulary.set_kind(id, kind);
        }
        let around = encoder.encode("", true, true)?;
        let begins_with_bos = special.bos.is_some() && around.first().copied() == special.bos;
        let strip = encoder.strip_rule();
        let encoder = Encoder::Hub(Box::new(encoder));
        Ok(Self(Arc::new(Inner {
            cuts: Cuts::of(&vocabulary, &encoder, strip),
            vocabulary,
            encoder,
            added_tokens: None,
            prefix: special.bos.filter(|_| begins_with_bos).into_iter().collect(),
            suffix: Vec::new(),
            special,
            end_of_generation,
            space_prefix,
        })))
    }

    /// Token ids of a text. `add_special` adds BOS, EOS, CLS or SEP around it, as the model requires. Control tokens in
    /// the text are recognized only with `parse_special`; without it they are ordinary text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let inner = &*self.0;
        if let Encoder::Hub(encoder) = &inner.encoder {
            return encoder.encode(text, add_special, parse_special);
        }
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if add_special {
            ids.extend_from_slice(&inner.prefix);
        }
        self.encode_content(text, parse_special, None, &mut true, &mut ids)?;
        if add_special {
            ids.extend_from_slice(&inner.suffix);
        }
        Ok(ids)
    }

    /// Whether a control token is spelled in this text.
    pub fn has_control_text(&self, text: &str) -> bool {
        self.0.added_tokens.as_ref().is_some_and(|added| added.has_control_text(text))
    }

    /// The text with `mark` inserted into each control token spelled in it, for [`Tokenizer::encode_first_marked`].
    pub fn mark_control_texts(&self, text: &str, mark: char) -> String {
        self.0.added_tokens.as_ref().map_or_else(|| text.to_owned(), |added| added.mark_control_texts(text, mark))
    }

    /// Appends the tokens of a text or of a part of one; `starts_afresh` says whether it starts a text rather than
    /// continuing one. A spelling that contains `mark` is not a control token, and the mark itself is dropped.
    fn encode_content(
        &self,
        text: &str,
        parse_special: bool,
        mark: Option<char>,
        starts_afresh: &mut bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let inner = &*self.0;
        let fragments = match &inner.added_tokens {
            Some(added_tokens) => added_tokens.split(text, parse_special),
            None => vec![Fragment::Text(text)],
        };
        for fragment in fragments {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    *starts_afresh = true;
                }
                Fragment::Text(text) => {
                    let unmarked = mark.filter(|mark| text.contains(*mark)).map(|mark| text.replace(mark, ""));
                    let text = unmarked.as_deref().unwrap_or(text);
                    let vocabulary = &inner.vocabulary;
                    match &inner.encoder {
                        Encoder::BytePair(encoder) => encoder.encode(vocabulary, text, ids),
                        Encoder::SentencePiece(encoder) => {
                            encoder.encode(vocabulary, text, inner.space_prefix && *starts_afresh, ids);
                        }
                        Encoder::WordPiece(encoder) => encoder.encode(text, ids)?,
                        Encoder::Unigram(encoder) => encoder.encode(text, ids)?,
                        Encoder::Hub(encoder) => ids.extend(encoder.encode(text, false, parse_special)?),
                    }
                    *starts_afresh = false;
                }
            }
        }
        Ok(())
    }

    /// The text of some tokens. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self.clone(), !skip_special);
        let mut text = String::with_capacity(ids.len() * 4);
        for id in ids {
            text.push_str(&detokenizer.push(*id));
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// The exact bytes that a token adds to the text, including a leading space.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.0.vocabulary.bytes(id)
    }

    /// The vocabulary's spelling of a token.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.0.vocabulary.text(id)
    }

    /// The token with this spelling.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.0.vocabulary.id(text)
    }

    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.0.vocabulary.kind(id)
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.0.vocabulary.len()
    }

    /// Whether a token steers the model rather than being text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.token_kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    pub fn bos(&self) -> Option<u32> {
        self.0.special.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.0.special.eos
    }

    /// Every token that ends an answer, in order of id.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.0.end_of_generation
    }

    /// Whether [`Tokenizer::encode`] with `add_special` begins with BOS.
    pub fn adds_bos(&self) -> bool {
        self.0.special.bos.is_some() && self.0.prefix.first().copied() == self.0.special.bos
    }

    /// Whether text that starts afresh gets a space in front that decoding removes again.
    pub(super) fn has_space_prefix(&self) -> bool {
        self.0.space_prefix
    }

    /// Whether text after this token starts afresh, like the start of a text.
    pub(super) fn starts_afresh_after(&self, id: u32) -> bool {
        self.token_kind(id).is_some_and(sentence_piece::starts_afresh_after)
    }
}
