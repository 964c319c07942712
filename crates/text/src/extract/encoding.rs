//! Decodes bytes to characters. In order: a byte order mark, the encoding that the document declares, UTF-8 if the
//! bytes are valid, UTF-16 without a mark, and otherwise the encoding that the bytes most resemble.

use std::borrow::Cow;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// The text; bytes that are invalid in the encoding become U+FFFD.
pub(super) fn decode<'b>(bytes: &'b [u8], declared: Option<&'static Encoding>) -> Cow<'b, str> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[mark..]).0;
    }
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let encoding = utf_16_without_mark(bytes).or(declared).unwrap_or_else(|| guess(bytes));
    encoding.decode_without_bom_handling(bytes).0
}

fn guess(bytes: &[u8]) -> &'static Encoding {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    let encoding = detector.guess(None, Utf8Detection::Deny);
    // A single broken byte in a UTF-8 text must not turn all its letters into those of another alphabet.
    if mostly_utf_8(bytes) { UTF_8 } else { encoding }
}

/// Whether multi-byte characters outnumber the invalid bytes ten to one.
fn mostly_utf_8(bytes: &[u8]) -> bool {
    let (mut good, mut bad) = (0_usize, 0_usize);
    for chunk in bytes.utf8_chunks() {
        good += chunk.valid().chars().filter(|character| !character.is_ascii()).count();
        bad += chunk.invalid().len();
    }
    good >= 10 * bad
}

/// Latin letters in UTF-16 have a zero in every other byte; no other text contains zeros.
pub(super) fn utf_16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = &bytes[..bytes.len().min(4096) & !1];
    if head.len() < 4 {
        return None;
    }
    let pairs = head.len() / 2;
    let zeros = |offset: usize| head.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    if odd * 2 > pairs && even * 20 < pairs {
        Some(UTF_16LE)
    } else if even * 2 > pairs && odd * 20 < pairs {
        Some(UTF_16BE)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_decides() {
        assert_eq!(decode(b"\xEF\xBB\xBFhi", None), "hi");
        assert_eq!(decode(b"\xFF\xFEh\0\xE9\0", None), "h\u{E9}");
        assert_eq!(decode(b"\xFE\xFF\0h\0\xE9", None), "h\u{E9}");
    }

    #[test]
    fn utf_16_needs_no_mark() {
        let text = "Grüße aus dem Archiv";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!((decode(&little, None), decode(&big, None)), (text.into(), text.into()));
    }

    #[test]
    fn latin_letters_of_one_byte_are_found() {
        let bytes = b"Le caf\xE9 \xE0 c\xF4t\xE9 de la for\xEAt est ferm\xE9 jusqu'\xE0 l'\xE9t\xE9.";
        assert_eq!(decode(bytes, None), "Le café à côté de la forêt est fermé jusqu'à l'été.");
    }

    #[test]
    fn what_the_document_declares_is_taken_unless_it_is_utf_8() {
        let bytes = b"\xCF\xF0\xE8\xE2\xE5\xF2";
        assert_eq!(decode(bytes, Encoding::for_label(b"windows-1251")), "Привет");
        assert_eq!(decode("é".as_bytes(), Encoding::for_label(b"windows-1251")), "é");
    }

    #[test]
    fn one_broken_byte_leaves_the_rest_as_it_is() {
        let mut bytes = "Здравствуйте, это обычный текст".as_bytes().to_vec();
        bytes.push(0xFF);
        assert!(decode(&bytes, None).starts_with("Здравствуйте"));
    }
}
