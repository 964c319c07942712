//! The tokens themselves: their spelling in the vocabulary, their kind, and the bytes they stand for.

use std::borrow::Cow;

use ahash::RandomState;
use hashbrown::HashTable;
use hearth_models::gguf::Strings;

use super::byte_alphabet;

/// The character that SentencePiece vocabularies use for a space.
pub(super) const META_SPACE: char = '\u{2581}';

/// How a token takes part in encoding and decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    Normal,
    /// What the model sees in place of text without a token.
    Unknown,
    /// Steers the model, such as the end of a turn. Text becomes one only if special tokens are requested.
    Control,
    /// Added manually, and found in any text before the rest is split.
    UserDefined,
    /// Occupies an id, but no text becomes it.
    Unused,
    /// One byte, written `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// Whether tokens of this kind are found in a text before the rest is split.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Control | Self::UserDefined | Self::Unknown)
    }

    /// The GGUF numbering, `tokenizer.ggml.token_type`.
    pub(super) fn from_gguf(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// How normal tokens are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One character of the GPT-2 alphabet for each byte.
    ByteLevel,
    /// Text with U+2581 for a space.
    MetaSpace,
    /// Text; a token that continues a word starts with `##`, others start a word.
    WordPiece,
    /// Text as it is.
    Plain,
}

/// Token ids, spellings and kinds.
#[derive(Debug)]
pub(super) struct Vocabulary {
    texts: Strings,
    kinds: Vec<TokenKind>,
    /// The ids by the hashes of their texts, which stay in `texts` alone.
    ids: HashTable<u32>,
    hasher: RandomState,
    spelling: Spelling,
}

impl Vocabulary {
    /// `tokens` are in order of id. If two have the same spelling, text becomes the later one.
    pub(super) fn new<S: AsRef<str>>(tokens: impl IntoIterator<Item = (S, TokenKind)>, spelling: Spelling) -> Self {
        let mut kinds = Vec::new();
        let kept = |(text, kind)| {
            kinds.push(kind);
            text
        };
        let texts: Strings = tokens.into_iter().map(kept).collect();
        let hasher = RandomState::new();
        let mut ids = HashTable::with_capacity(texts.len());
        for (text, id) in texts.iter().zip(0..) {
            let (is_same, hash) =
                (|other: &u32| texts[*other as usize] == *text, |id: &u32| hasher.hash_one(&texts[*id as usize]));
            ids.entry(hasher.hash_one(text), is_same, hash).and_modify(|earlier| *earlier = id).or_insert(id);
        }
        Self { texts, kinds, ids, hasher, spelling }
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.find(self.hasher.hash_one(text), |id| self.texts[*id as usize] == *text).copied()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// All tokens in order of id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        self.texts.iter().zip(&self.kinds).zip(0..).map(|((text, kind), id)| (id, text, *kind))
    }

    /// The token that stands for one byte in a vocabulary with byte fallback.
    pub(super) fn byte_token(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }

    /// The bytes that a token adds to the text.
    pub(super) fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let text = self.text(id)?;
        let verbatim = Some(Cow::Borrowed(text.as_bytes()));
        match self.kinds[id as usize] {
            TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => return verbatim,
            TokenKind::Byte => {
                return byte_of_hex_spelling(text).map_or(verbatim, |byte| Some(Cow::Owned(vec![byte])));
            }
            TokenKind::Normal | TokenKind::Unused => {}
        }
        match self.spelling {
            Spelling::ByteLevel => Some(Cow::Owned(byte_alphabet::decode(text))),
            Spelling::MetaSpace if text.contains(META_SPACE) => {
                Some(Cow::Owned(text.replace(META_SPACE, " ").into_bytes()))
            }
            Spelling::WordPiece => Some(match text.strip_prefix("##") {
                Some(rest) => Cow::Borrowed(rest.as_bytes()),
                None => Cow::Owned(format!(" {text}").into_bytes()),
            }),
            Spelling::MetaSpace | Spelling::Plain => verbatim,
        }
    }
}

/// The byte that `<0x0A>` spells.
pub(super) fn byte_of_hex_spelling(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(spelling: Spelling, tokens: &[(&str, TokenKind)]) -> Vocabulary {
        Vocabulary::new(tokens.iter().copied(), spelling)
    }

    #[test]
    fn bytes_follow_the_spelling_and_the_kind() {
        let sentence_piece = vocabulary(
            Spelling::MetaSpace,
            &[("▁a", TokenKind::Normal), ("<0xE2>", TokenKind::Byte), ("▁b", TokenKind::UserDefined)],
        );
        assert_eq!(&*sentence_piece.bytes(0).unwrap(), b" a");
        assert_eq!(&*sentence_piece.bytes(1).unwrap(), b"\xE2");
        assert_eq!(&*sentence_piece.bytes(2).unwrap(), "▁b".as_bytes());
        assert_eq!(sentence_piece.bytes(3), None);

        let byte_level = vocabulary(Spelling::ByteLevel, &[("Ġa", TokenKind::Normal), ("<|Ġ|>", TokenKind::Control)]);
        assert_eq!(&*byte_level.bytes(0).unwrap(), b" a");
        assert_eq!(&*byte_level.bytes(1).unwrap(), "<|Ġ|>".as_bytes());

        let word_piece = vocabulary(Spelling::WordPiece, &[("play", TokenKind::Normal), ("##ing", TokenKind::Normal)]);
        assert_eq!(&*word_piece.bytes(0).unwrap(), b" play");
        assert_eq!(&*word_piece.bytes(1).unwrap(), b"ing");
    }

    #[test]
    fn hex_spellings_are_exactly_two_digits() {
        assert_eq!(byte_of_hex_spelling("<0x0A>"), Some(10));
        assert_eq!(byte_of_hex_spelling("<0x0A"), None);
        assert_eq!(byte_of_hex_spelling("<0x+A>"), None);
        assert_eq!(byte_of_hex_spelling("<0xA>"), None);
    }
}
