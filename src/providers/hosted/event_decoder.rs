//! Decodes server-sent events from a byte stream, however packets split it.
//!
//! The format is the WHATWG's ("Server-sent events", section 9.2.6): lines end with LF, CRLF or CR, a line of `data:`
//! adds to the event, a blank line ends it, a line that begins with a colon is a comment. Event names, ids and retry
//! times mean nothing in this contract and are ignored. Each byte is examined once, and an event has a maximum size: an
//! upstream must not be able to fill the memory.

/// The largest event, in bytes. A chunk with 20 alternatives per token is a few kilobytes.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct EventDecoder {
    /// The unfinished line.
    line: Vec<u8>,
    /// Data of the unfinished event; `None` before its first `data:` line.
    data: Option<Vec<u8>>,
    /// The last byte was a CR, so an LF after it belongs to it.
    after_cr: bool,
    has_begun: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("an event of more than {EVENT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("an event that is not UTF-8")]
    NotText,
}

impl EventDecoder {
    /// Takes the next packet and appends the data of each event that it completes to `events`.
    pub fn push(&mut self, packet: &[u8], events: &mut Vec<String>) -> Result<(), DecodeError> {
        for &byte in packet {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(events)?,
                _ => {
                    self.line.push(byte);
                    if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT_BYTES_MAX {
                        return Err(DecodeError::TooLarge);
                    }
                }
            }
        }
        Ok(())
    }

    /// The stream has ended. Some upstreams omit the last blank line; an unfinished line is discarded, however, because
    /// it may be half an event.
    pub(super) fn finish(&mut self, events: &mut Vec<String>) -> Result<(), DecodeError> {
        if self.line.is_empty() { self.end_event(events) } else { Ok(()) }
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), DecodeError> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.has_begun, true)
            && let Some(rest) = line.strip_prefix(b"\xef\xbb\xbf")
        {
            line = rest.to_vec();
        }
        if line.is_empty() {
            return self.end_event(events);
        }
        let (field, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        if field == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        Ok(())
    }

    fn end_event(&mut self, events: &mut Vec<String>) -> Result<(), DecodeError> {
        if let Some(data) = self.data.take() {
            events.push(String::from_utf8(data).map_err(|_| DecodeError::NotText)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(packets: &[&[u8]]) -> Vec<String> {
        let mut decoder = EventDecoder::default();
        let mut events = Vec::new();
        for packet in packets {
            decoder.push(packet, &mut events).expect("well formed");
        }
        decoder.finish(&mut events).expect("well formed");
        events
    }

    #[test]
    fn lines_end_in_three_ways_and_comments_are_nothing() {
        let text =
            b"\xef\xbb\xbfdata: a\n\n: ping\n\nevent: x\nid: 1\ndata:b\r\ndata: c\r\n\r\nretry: 3\n\ndata\r\rdata: d";
        assert_eq!(decode(&[text]), ["a", "b\nc", ""]);
        assert_eq!(decode(&[b"data: whole\n"]), ["whole"], "the last blank line is missing");
    }

    #[test]
    fn an_event_without_end_is_refused_before_it_fills_the_memory() {
        let mut decoder = EventDecoder::default();
        let mut events = Vec::new();
        let packet = vec![b'x'; 1 << 20];
        let refused = (0..8).map(|_| decoder.push(&packet, &mut events)).find(Result::is_err);
        assert_eq!(refused, Some(Err(DecodeError::TooLarge)));
        let mut decoder = EventDecoder::default();
        let refused =
            (0..5000).map(|_| decoder.push(&[b"data: ".as_slice(), &[b'x'; 1024], b"\n"].concat(), &mut events));
        assert_eq!(refused.into_iter().find(Result::is_err), Some(Err(DecodeError::TooLarge)));
        let mut decoder = EventDecoder::default();
        assert_eq!(decoder.push(b"data: \xff\n\n", &mut events), Err(DecodeError::NotText));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_packets_cut_the_bytes(
            texts in prop::collection::vec("[a-zé\u{1f600} :]{0,12}", 0..6),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(1usize..7, 0..200),
        ) {
            let bytes: Vec<u8> = texts.iter().flat_map(|text| format!("data: {text}{end}: c{end}{end}").into_bytes()).collect();
            let mut packets = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (packet, after) = rest.split_at(cut.min(rest.len()));
                packets.push(packet);
                rest = after;
            }
            packets.push(rest);
            prop_assert_eq!(decode(&packets), texts);
        }
    }
}
