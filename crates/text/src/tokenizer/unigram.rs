//! Unigram vocabularies from GGUF files (T5 and the XLM-R embedding models), using the `tokenizers` crate's own model.
//!
//! White space is handled as in SentencePiece: runs become one space, and a space goes in front. The normalization
//! table is applied by `character_map.rs`, which checks every offset.

use tokenizers::{Model as _, models::unigram::Unigram};

use super::{TokenizerError, character_map::CharacterMap, vocabulary::META_SPACE};

#[derive(Debug)]
pub(super) struct UnigramEncoder {
    model: Unigram,
    character_map: Option<CharacterMap>,
    space_prefix: bool,
    merge_spaces: bool,
}

impl UnigramEncoder {
    /// `tokens` and their scores are in order of id.
    pub(super) fn new(
        tokens: Vec<(String, f64)>,
        unknown: u32,
        character_map: Option<CharacterMap>,
        space_prefix: bool,
        merge_spaces: bool,
    ) -> Result<Self, TokenizerError> {
        let model = Unigram::from(tokens, Some(unknown as usize), false).map_err(encode_error)?;
        Ok(Self { model, character_map, space_prefix, merge_spaces })
    }

    /// Appends the tokens of a text without added tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mapped = self.character_map.as_ref().map(|map| map.apply(text));
        let escaped = self.escape(mapped.as_deref().unwrap_or(text));
        ids.extend(self.model.tokenize(&escaped).map_err(encode_error)?.into_iter().map(|token| token.id));
        Ok(())
    }

    fn escape(&self, text: &str) -> String {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4);
        let mut in_word = false;
        for character in text.chars() {
            if character == ' ' {
                in_word = false;
                if !self.merge_spaces {
                    escaped.push(META_SPACE);
                }
                continue;
            }
            if !in_word && (self.merge_spaces || (self.space_prefix && escaped.is_empty())) {
                escaped.push(META_SPACE);
            }
            in_word = true;
            escaped.push(character);
        }
        escaped
    }
}

fn encode_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode { problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(space_prefix: bool, merge_spaces: bool) -> UnigramEncoder {
        let tokens = [("<unk>", 0.0), ("▁", -3.0), ("▁a", -1.0), ("a", -2.0), ("b", -2.0), ("ab", -2.5)];
        let tokens = tokens.map(|(text, score)| (text.to_owned(), score)).to_vec();
        UnigramEncoder::new(tokens, 0, None, space_prefix, merge_spaces).unwrap()
    }

    #[test]
    fn the_likeliest_tokens_win() {
        let mut ids = Vec::new();
        encoder(true, true).encode("ab  a?", &mut ids).unwrap();
        assert_eq!(ids, [2, 4, 2, 0]);
    }

    #[test]
    fn white_space_is_merged_only_on_request() {
        assert_eq!(encoder(true, true).escape("  a  b "), "▁a▁b");
        assert_eq!(encoder(true, false).escape("a  b "), "▁a▁▁b▁");
        assert_eq!(encoder(false, false).escape("a b"), "a▁b");
    }
}
