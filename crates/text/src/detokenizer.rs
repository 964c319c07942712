//! Converts token ids back to text, one at a time, in whole characters.
//!
//! A token may end in the middle of a character. Its bytes are held back until the character is complete, or until no
//! further byte can complete it, in which case it becomes U+FFFD. The concatenated results of the pushes equal decoding
//! all tokens at once.

use super::tokenizer::Tokenizer;

/// The state between tokens of one text.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    keep_special: bool,
    /// The incomplete start of a character. At most three bytes between calls.
    pending: Vec<u8>,
    /// The next text starts with the space that encoding added, and that space is removed.
    strip_space: bool,
}

impl Detokenizer {
    /// For tokens that form a complete text. With `keep_special`, control tokens appear in the vocabulary's spelling;
    /// without it they are dropped.
    pub fn new(tokenizer: Tokenizer, keep_special: bool) -> Self {
        let strip_space = tokenizer.has_space_prefix();
        Self { tokenizer, keep_special, pending: Vec::new(), strip_space }
    }

    /// For tokens that continue a prompt ending with `last_prompt_token`: a leading space belongs to the text, unless a
    /// special token precedes it.
    pub fn after(tokenizer: Tokenizer, last_prompt_token: Option<u32>, keep_special: bool) -> Self {
        let mut detokenizer = Self::new(tokenizer, keep_special);
        detokenizer.strip_space &= last_prompt_token.is_none_or(|id| detokenizer.tokenizer.starts_afresh_after(id));
        detokenizer
    }

    /// The characters that this token completes. An id outside the vocabulary yields no text.
    pub fn push(&mut self, id: u32) -> String {
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return String::new() };
        if self.tokenizer.starts_afresh_after(id) {
            self.strip_space = self.tokenizer.has_space_prefix();
            if self.tokenizer.is_special(id) && !self.keep_special {
                return String::new();
            }
            self.pending.extend_from_slice(&bytes);
        } else {
            let bytes = match bytes.strip_prefix(b" ") {
                Some(rest) if self.strip_space => rest,
                _ => &*bytes,
            };
            self.strip_space = false;
            self.pending.extend_from_slice(bytes);
        }
        self.take_whole_characters()
    }

    /// The remainder when no more tokens come: U+FFFD for a character that was never completed.
    pub fn finish(mut self) -> String {
        let mut text = self.take_whole_characters();
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }

    fn take_whole_characters(&mut self) -> String {
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            if chunk.invalid().is_empty() {
                continue;
            }
            let is_last = done + chunk.invalid().len() == self.pending.len();
            if is_last && may_be_completed(chunk.invalid()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += chunk.invalid().len();
        }
        self.pending.drain(..done);
        text
    }
}

/// Whether more bytes could complete these bytes, which are not yet a character.
fn may_be_completed(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use hearth_models::gguf::{Array, Metadata, Value};

    /// A SentencePiece vocabulary with byte fallback: `<unk>`, `<s>`, `</s>`, the bytes, and a few pieces.
    fn sentence_piece() -> Tokenizer {
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        let mut types = vec![2, 3, 3];
        tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
        types.extend([6; 256]);
        tokens.extend(["▁", "▁a", "a", "b", "▁▁", "ab"].map(str::to_owned));
        types.extend([1; 6]);
        let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
        Tokenizer::from_gguf(&Metadata::new(
            "test.gguf",
            [
                ("tokenizer.ggml.model".to_owned(), Value::String("llama".to_owned())),
                ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens.iter().collect()))),
                ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(types))),
                ("tokenizer.ggml.scores".to_owned(), Value::Array(Array::F32(scores))),
            ],
        ))
        .unwrap()
    }

    fn byte(byte: u8) -> u32 {
        u32::from(byte) + 3
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detokenizer = Detokenizer::new(sentence_piece(), false);
        let pieces: Vec<String> = "é€😀".bytes().map(|part| detokenizer.push(byte(part))).collect();
        assert_eq!(pieces, ["", "é", "", "", "€", "", "", "", "😀"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn bytes_become_replacements_only_when_nothing_can_complete_them() {
        let mut detokenizer = Detokenizer::new(sentence_piece(), false);
        assert_eq!(detokenizer.push(byte(0xF0)), "");
        assert_eq!(detokenizer.push(byte(0x9F)), "");
        assert_eq!(detokenizer.push(byte(b'x')), "\u{FFFD}x");
        assert_eq!(detokenizer.push(byte(0xFF)), "\u{FFFD}");
        assert_eq!(detokenizer.push(byte(0xE2)), "");
        assert_eq!(detokenizer.finish(), "\u{FFFD}");
    }

    #[test]
    fn special_tokens_show_only_on_request() {
        let tokenizer = sentence_piece();
        let ids = tokenizer.encode("a</s>", true, true).unwrap();
        assert_eq!(ids, [1, 260, 2]);
        assert_eq!(tokenizer.decode(&ids, true), "a");
        assert_eq!(tokenizer.decode(&ids, false), "<s>a</s>");
        assert_eq!(tokenizer.decode(&[260, 9999], false), "a");
    }

    #[test]
    fn a_continuation_keeps_its_leading_space() {
        let tokenizer = sentence_piece();
        let push = |last: Option<u32>| Detokenizer::after(tokenizer.clone(), last, false).push(260);
        assert_eq!(push(None), "a");
        assert_eq!(push(Some(1)), "a");
        assert_eq!(push(Some(261)), " a");
    }

    proptest! {
        #[test]
        fn pushes_joined_are_the_whole(ids in prop::collection::vec(0_u32..270, 0..40), keep_special: bool) {
            let tokenizer = sentence_piece();
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), keep_special);
            let mut bytes = Vec::new();
            let mut joined = String::new();
            let mut strip = true;
            for id in ids {
                joined.push_str(&detokenizer.push(id));
                let special = tokenizer.is_special(id);
                let Some(token) = tokenizer.token_bytes(id) else { continue };
                let token = token.into_owned();
                match special {
                    true if keep_special => bytes.extend(token),
                    true => {}
                    false => bytes.extend(token.strip_prefix(b" ").filter(|_| strip).unwrap_or(&token)),
                }
                strip = special;
            }
            joined.push_str(&detokenizer.finish());
            prop_assert_eq!(joined, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn decoding_undoes_encoding(text in ".*") {
            let tokenizer = sentence_piece();
            for add_special in [false, true] {
                let ids = tokenizer.encode(&text, add_special, false).unwrap();
                prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                prop_assert_eq!(tokenizer.decode(&ids, true), &*text);
            }
        }
    }
}
