//! The alphabet in which byte-level BPE vocabularies are written: one printable character per byte.
//!
//! GPT-2 keeps the printable Latin-1 bytes as they are and moves the rest to U+0100 and up, in order of the byte
//! (`bytes_to_unicode` in its `encoder.py`). Every byte-level vocabulary since uses the same table.

use std::sync::LazyLock;

/// The first character that stands for a byte that is not itself printable.
const FIRST_MOVED: u32 = 0x100;
/// There are 68 bytes that are not printable in Latin-1.
const MOVED: usize = 68;

struct Tables {
    char_of_byte: [char; 256],
    /// Indexed by the distance from [`FIRST_MOVED`].
    byte_of_moved: [u8; MOVED],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut char_of_byte = ['\0'; 256];
    let mut byte_of_moved = [0; MOVED];
    let mut moved = 0;
    for byte in 0..=u8::MAX {
        char_of_byte[usize::from(byte)] = if stands_for_itself(byte) {
            char::from(byte)
        } else {
            byte_of_moved[moved] = byte;
            moved += 1;
            char::from_u32(FIRST_MOVED + moved as u32 - 1).expect("U+0100 to U+0143 are all characters")
        };
    }
    Tables { char_of_byte, byte_of_moved }
});

fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The bytes that can occur in UTF-8 text.
pub(super) fn utf8_bytes() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|byte| !matches!(byte, 0xC0 | 0xC1 | 0xF5..))
}

/// The character that stands for a byte.
pub(super) fn char_of_byte(byte: u8) -> char {
    TABLES.char_of_byte[usize::from(byte)]
}

/// The byte that a character stands for, if the character belongs to the alphabet.
pub(super) fn byte_of_char(character: char) -> Option<u8> {
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return stands_for_itself(byte).then_some(byte);
    }
    TABLES.byte_of_moved.get(code.checked_sub(FIRST_MOVED)? as usize).copied()
}

/// The bytes that a vocabulary entry stands for. A character outside the alphabet, as in some manually added entries,
/// stands for its own UTF-8 bytes.
pub(super) fn decode(entry: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entry.len());
    for character in entry.chars() {
        match byte_of_char(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Appends the vocabulary's spelling of some bytes.
pub(super) fn encode_into(bytes: &[u8], spelling: &mut String) {
    spelling.extend(bytes.iter().map(|byte| char_of_byte(*byte)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
    }

    #[test]
    fn the_table_is_gpt2s() {
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(char_of_byte(0xAD), 'Ń');
        assert_eq!(decode("Ġhello"), b" hello");
        assert_eq!(decode("｜"), "｜".as_bytes());
    }
}
