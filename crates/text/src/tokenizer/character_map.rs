//! SentencePiece's normalization table, `precompiled_charsmap`: a double-array trie over prefixes of the text, and the
//! texts that replace them.
//!
//! The layout is Darts-clone's (units of 32 bits, see `darts.h` in SentencePiece): a length in bytes, the trie, then
//! the replacements, each terminated by a zero byte. The crates that read it index without checks; this reader is for
//! files of unknown origin, so every offset is checked.

use unicode_segmentation::UnicodeSegmentation;

#[derive(Debug)]
pub(super) struct CharacterMap {
    trie: Vec<u32>,
    replacements: Vec<u8>,
}

impl CharacterMap {
    /// `None` if the table is damaged.
    pub(super) fn new(table: &[u8]) -> Option<Self> {
        let (length, rest) = table.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        if !length.is_multiple_of(4) || length > rest.len() {
            return None;
        }
        let (trie, replacements) = rest.split_at(length);
        let trie = trie.chunks_exact(4).map(|unit| u32::from_le_bytes(unit.try_into().expect("four bytes"))).collect();
        Some(Self { trie, replacements: replacements.to_vec() })
    }

    /// The text with every prefix in the table replaced. A grapheme of a few bytes is first looked up whole, then
    /// character by character, as in the `tokenizers` crate.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut normalized = String::with_capacity(text.len());
        for grapheme in text.graphemes(true) {
            if grapheme.len() < 6
                && let Some(replacement) = self.replacement(grapheme)
            {
                normalized.push_str(replacement);
                continue;
            }
            for (start, character) in grapheme.char_indices() {
                let part = &grapheme[start..start + character.len_utf8()];
                normalized.push_str(self.replacement(part).unwrap_or(part));
            }
        }
        normalized
    }

    /// The replacement for the shortest known prefix of `text`.
    fn replacement(&self, text: &str) -> Option<&str> {
        let mut node = 0_u32;
        let mut unit = *self.trie.first()?;
        node ^= offset(unit);
        for byte in text.bytes().take_while(|byte| *byte != 0) {
            node ^= u32::from(byte);
            unit = *self.trie.get(node as usize)?;
            if label(unit) != u32::from(byte) {
                return None;
            }
            node ^= offset(unit);
            if has_leaf(unit) {
                let start = value(*self.trie.get(node as usize)?) as usize;
                let rest = self.replacements.get(start..)?;
                let end = rest.iter().position(|byte| *byte == 0)?;
                return std::str::from_utf8(&rest[..end]).ok();
            }
        }
        None
    }
}

fn has_leaf(unit: u32) -> bool {
    (unit >> 8) & 1 == 1
}

fn value(unit: u32) -> u32 {
    unit & 0x7FFF_FFFF
}

fn label(unit: u32) -> u32 {
    unit & 0x8000_00FF
}

fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_damaged_table_is_refused() {
        assert!(CharacterMap::new(&[1, 2]).is_none());
        assert!(CharacterMap::new(&[8, 0, 0, 0, 1, 2, 3, 4]).is_none());
        assert!(CharacterMap::new(&[3, 0, 0, 0, 1, 2, 3, 4]).is_none());
    }

    proptest! {
        #[test]
        fn any_table_can_be_applied(table in prop::collection::vec(any::<u8>(), 4..200), text in ".*") {
            let mut table = table;
            let length = ((table.len() - 4) / 4 * 4) as u32;
            table[..4].copy_from_slice(&length.to_le_bytes());
            if let Some(map) = CharacterMap::new(&table) {
                map.apply(&text);
            }
        }
    }
}
