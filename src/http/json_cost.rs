//! What a JSON text costs in memory once parsed, estimated from its bytes.
//!
//! The seven bytes `{"":0},` become an object of five hundred: a 32 MiB body would take two gigabytes. So the cost is
//! known before anything is parsed, counts against the room for bodies, and has a limit of its own.

/// A parsed body counts as its cost divided by this, if that is more than its bytes.
pub(super) const MULTIPLE: usize = 8;

/// Bytes of memory that a parsed body may take, given the limit on a body's own bytes.
pub(super) fn most(body_limit_bytes: usize) -> usize {
    /// With a small body limit, an ordinary body of many values is still accepted.
    const AT_LEAST: usize = 16 << 20;
    body_limit_bytes.saturating_mul(MULTIPLE).max(AT_LEAST)
}

/// Measured on `serde_json`'s values with insertion order: an object with one member, each further member, and each
/// element.
const OBJECT_BYTES: usize = 360;
const ARRAY_BYTES: usize = 160;
const VALUE_BYTES: usize = 100;

/// Approximate bytes that the values of this text will take; any number for a text that is not JSON.
pub(super) fn parsed_bytes(text: &[u8]) -> usize {
    let (mut cost, mut in_string, mut escaped) = (text.len(), false, false);
    for &byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        cost += match byte {
            b'"' => {
                in_string = true;
                0
            }
            b'{' => OBJECT_BYTES,
            b'[' => ARRAY_BYTES,
            b',' => VALUE_BYTES,
            _ => 0,
        };
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_cost_their_bytes_and_values_more() {
        let text = format!("\"{}\"", "{[,\\\"".repeat(100));
        assert_eq!(parsed_bytes(text.as_bytes()), text.len());
        assert_eq!(parsed_bytes(b"[1,2,3]"), 7 + ARRAY_BYTES + 2 * VALUE_BYTES);
        assert_eq!(parsed_bytes(br#"{"a":{}}"#), 8 + 2 * OBJECT_BYTES);
    }
}
