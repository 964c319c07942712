//! Assembles an upstream's tool call pieces in the order and shape that a local model gives them.
//!
//! A call opens once, with its id and name. Upstreams repeat ids, leave out indexes, or send the name after the first
//! arguments; a piece that cannot be reported yet is held until the name arrives.

use std::collections::VecDeque;

use super::chunk::CallDelta;
use hearth_domain::GenerateEvent;

/// The calls of one choice.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<Call>,
}

/// More calls than this in one answer are an error.
const CALLS_MAX: usize = 1024;

#[derive(Debug, Default)]
struct Call {
    id: Option<String>,
    is_open: bool,
    /// Arguments that arrived before the name.
    held: String,
}

impl ToolCalls {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether every call has its name.
    pub(super) fn are_whole(&self) -> bool {
        self.calls.iter().all(|call| call.is_open)
    }

    /// # Errors
    /// If the piece belongs to no call.
    pub(super) fn push(
        &mut self,
        choice: usize,
        delta: CallDelta,
        events: &mut VecDeque<GenerateEvent>,
    ) -> Result<(), String> {
        let CallDelta { index, id, function } = delta;
        let id = id.filter(|id| !id.is_empty());
        let function = function.unwrap_or_default();
        let name = function.name.filter(|name| !name.is_empty());
        let arguments = function.arguments.unwrap_or_default();
        let index = match index {
            Some(index) => index,
            // A new id opens a new call; without an id the last call continues.
            None => match &id {
                Some(id) => {
                    let known = self.calls.iter().position(|call| call.id.as_ref() == Some(id));
                    known.unwrap_or(self.calls.len())
                }
                None if name.is_some() => self.calls.len(),
                None => self.calls.len().checked_sub(1).ok_or("arguments of no call")?,
            },
        };
        if index > self.calls.len() || index >= CALLS_MAX {
            return Err(format!("call {index} after {} calls", self.calls.len()));
        }
        if index == self.calls.len() {
            self.calls.push(Call::default());
        }
        let call = &mut self.calls[index];
        if call.is_open {
            if !arguments.is_empty() {
                events.push_back(GenerateEvent::ToolCall { choice, call: index, id: None, name: None, arguments });
            }
            return Ok(());
        }
        call.id = call.id.take().or(id);
        call.held.push_str(&arguments);
        if name.is_some() {
            call.is_open = true;
            let id = call.id.get_or_insert_with(|| format!("call_{}", uuid::Uuid::new_v4().simple())).clone();
            let arguments = std::mem::take(&mut call.held);
            events.push_back(GenerateEvent::ToolCall { choice, call: index, id: Some(id), name, arguments });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Call, id, name and arguments.
    type Piece = (usize, Option<String>, Option<String>, String);

    fn read(deltas: Vec<Value>) -> Result<Vec<Piece>, String> {
        let mut calls = ToolCalls::default();
        let mut events = VecDeque::new();
        for delta in deltas {
            calls.push(0, serde_json::from_value(delta).unwrap(), &mut events)?;
        }
        let event = |event| match event {
            GenerateEvent::ToolCall { call, id, name, arguments, .. } => (call, id, name, arguments),
            other => panic!("{other:?}"),
        };
        Ok(events.into_iter().map(event).collect())
    }

    #[test]
    fn pieces_of_two_calls_open_each_once() {
        let read = read(vec![
            json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            json!({"index": 0, "id": "a", "function": {"name": null, "arguments": "{\"x\""}}),
            json!({"index": 0, "id": "", "function": {"arguments": ":1}"}}),
            json!({"index": 1, "id": "b", "function": {"arguments": "{"}}),
            json!({"index": 1, "function": {"name": "g", "arguments": "}"}}),
        ])
        .unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            read,
            [
                (0, text("a"), text("f"), String::new()),
                (0, None, None, "{\"x\"".to_owned()),
                (0, None, None, ":1}".to_owned()),
                (1, text("b"), text("g"), "{}".to_owned()),
            ]
        );
    }

    #[test]
    fn calls_without_an_index_are_told_apart_by_their_ids() {
        let read = read(vec![
            json!({"id": "a", "function": {"name": "f", "arguments": "1"}}),
            json!({"id": "b", "function": {"name": "f", "arguments": "2"}}),
            json!({"function": {"arguments": "3"}}),
            json!({"id": "a", "function": {"arguments": "4"}}),
        ])
        .unwrap();
        let read: Vec<_> = read.into_iter().map(|(call, .., arguments)| (call, arguments)).collect();
        assert_eq!(read, [(0, "1".to_owned()), (1, "2".to_owned()), (1, "3".to_owned()), (0, "4".to_owned())]);
    }

    #[test]
    fn a_piece_of_no_call_is_an_error() {
        assert!(read(vec![json!({"function": {"arguments": "1"}})]).is_err());
        assert!(read(vec![json!({"index": 7, "function": {"name": "f"}})]).is_err());
    }
}
