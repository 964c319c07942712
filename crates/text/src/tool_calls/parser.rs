//! Splits a model's answer into text, thinking and tool calls as it streams.
//!
//! Every character goes through the same small state machine, so the result does not depend on how the text was cut
//! into pieces. Only text that could still turn out to be a marker is held back. Text that opens like a call but is not
//! one is emitted as text.

use super::{
    call_object::{CallObject, JsonExtent, Step},
    format::{ARGUMENTS_MARK, Layout, THINK_CLOSE, THINK_OPEN, Thinking, ToolFormat},
};

/// More of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedPiece {
    Text(String),
    Reasoning(String),
    /// A call begins; `index` counts from 0.
    CallStart {
        index: usize,
        name: String,
    },
    /// More of the JSON text of a call's arguments.
    CallArguments {
        index: usize,
        delta: String,
    },
}

/// See the module's documentation. Each choice has one.
#[derive(Debug)]
pub struct OutputParser {
    format: Option<ToolFormat>,
    /// Names of the available tools, which decide whether bare JSON is a call.
    tool_names: Vec<String>,
    thinking: Thinking,
    state: State,
    /// Characters that may become a marker.
    held: String,
    /// White space that is emitted only if text follows.
    spaces: String,
    /// The text since a marker, to be emitted if it does not open a call.
    raw: String,
    calls: usize,
    said_text: bool,
    /// White space that comes next is layout, not text.
    skip_spaces: bool,
    out: Vec<ParsedPiece>,
}

#[derive(Debug)]
enum State {
    Text,
    Reasoning,
    /// After an array's marker, before its opening bracket.
    ArrayStart,
    Object {
        object: Box<CallObject>,
        started: bool,
    },
    /// After a complete object: what may follow depends on the layout.
    AfterObject,
    /// The name of a call in [`Layout::Named`].
    Name,
    Arguments(JsonExtent),
    /// After an array's closing bracket: an end marker may follow.
    AfterArray,
}

impl OutputParser {
    /// `format`: the format in which to look for calls; `None` if the request has no tools.
    pub fn new(format: Option<ToolFormat>, tool_names: Vec<String>, thinking: Thinking) -> Self {
        Self {
            format,
            tool_names,
            thinking,
            state: if thinking == Thinking::Open { State::Reasoning } else { State::Text },
            held: String::new(),
            spaces: String::new(),
            raw: String::new(),
            calls: 0,
            said_text: false,
            skip_spaces: thinking == Thinking::Open,
            out: Vec::new(),
        }
    }

    /// Whether the next text is thinking, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Accepts more of the answer, and returns what it reveals.
    pub fn push(&mut self, text: &str) -> Vec<ParsedPiece> {
        for character in text.chars() {
            self.character(character);
        }
        std::mem::take(&mut self.out)
    }

    /// Ends an answer that was cut off: the held-back beginning of a call is not emitted as text.
    pub fn cut_off(&mut self, is_call: bool) -> Vec<ParsedPiece> {
        let begins_call = match &self.state {
            State::ArrayStart | State::Name | State::Object { started: false, .. } => true,
            // The beginning of a marker may be text, except after a call or where only a call is possible.
            State::Text => (is_call || self.calls > 0) && !self.held.is_empty(),
            _ => false,
        };
        if begins_call {
            self.raw.clear();
            self.held.clear();
            self.spaces.clear();
            self.state = State::Text;
        }
        self.finish()
    }

    /// Ends the answer: emits what was held back.
    pub fn finish(&mut self) -> Vec<ParsedPiece> {
        match &self.state {
            State::Object { started: true, .. } | State::Arguments(_) => {}
            State::Text | State::Reasoning => {
                let held = std::mem::take(&mut self.spaces) + &std::mem::take(&mut self.held);
                self.emit(&held);
            }
            State::AfterObject | State::AfterArray => {
                // White space, or the beginning of an end marker.
                self.spaces.clear();
                self.held.clear();
            }
            State::ArrayStart | State::Name | State::Object { .. } => self.give_back(),
        }
        std::mem::take(&mut self.out)
    }

    fn character(&mut self, character: char) {
        match &mut self.state {
            State::Text | State::Reasoning => self.prose(character),
            State::ArrayStart => {
                self.raw.push(character);
                match character {
                    '[' => self.state = object(),
                    '{' => self.object_character_first(character),
                    _ if character.is_whitespace() => {}
                    _ => self.give_back(),
                }
            }
            State::Object { .. } => {
                self.raw.push(character);
                self.object_character(character);
            }
            State::AfterObject => self.after_object(character),
            State::AfterArray => self.after_array(character),
            State::Name => self.name_character(character),
            State::Arguments(extent) => {
                if extent.is_empty() && character.is_whitespace() {
                    return;
                }
                if extent.is_empty() && character != '{' {
                    return self.leave(character);
                }
                let done = extent.push(character);
                self.arguments(character.to_string());
                if done {
                    self.end_calls();
                }
            }
        }
    }

    /// Text or thinking, in which markers may open or close something.
    fn prose(&mut self, character: char) {
        if self.held.is_empty() && self.bare_object_begins(character) {
            self.raw = std::mem::take(&mut self.spaces);
            self.raw.push(character);
            return self.object_character_first(character);
        }
        self.held.push(character);
        while !self.held.is_empty() {
            let marks = self.marks();
            if let Some(mark) = marks.iter().flatten().find(|mark| self.held == **mark) {
                self.held.clear();
                return self.mark(mark);
            }
            if marks.iter().flatten().any(|mark| mark.starts_with(self.held.as_str())) {
                return;
            }
            let first = self.held.remove(0);
            if first.is_whitespace() {
                if !self.skip_spaces {
                    self.spaces.push(first);
                }
            } else {
                let text = std::mem::take(&mut self.spaces) + first.encode_utf8(&mut [0; 4]);
                self.emit(&text);
            }
        }
    }

    /// The markers that are meaningful in the current state.
    fn marks(&self) -> [Option<&'static str>; 2] {
        match self.state {
            State::Reasoning => [Some(THINK_CLOSE), None],
            _ => {
                let may_think = self.thinking == Thinking::MayOpen && !self.said_text && self.calls == 0;
                [self.format.map(ToolFormat::marker), may_think.then_some(THINK_OPEN)]
            }
        }
    }

    fn mark(&mut self, mark: &str) {
        if mark == THINK_CLOSE {
            self.spaces.clear();
            self.state = State::Text;
            self.thinking = Thinking::Never;
            self.skip_spaces = true;
            return;
        }
        if mark == THINK_OPEN {
            self.spaces.clear();
            self.state = State::Reasoning;
            self.skip_spaces = true;
            return;
        }
        self.raw = std::mem::take(&mut self.spaces) + mark;
        self.state = match self.layout() {
            Layout::Tagged { .. } | Layout::Bare => object(),
            Layout::Array { .. } => State::ArrayStart,
            Layout::Named => State::Name,
        };
    }

    fn layout(&self) -> Layout {
        self.format.map_or(Layout::Bare, ToolFormat::layout)
    }

    /// In the bare layout, an answer that begins with a brace may be a call.
    fn bare_object_begins(&self, character: char) -> bool {
        character == '{'
            && matches!(self.state, State::Text)
            && !self.said_text
            && self.format.is_some_and(|format| format.layout() == Layout::Bare)
    }

    fn object_character_first(&mut self, character: char) {
        self.state = object();
        self.object_character(character);
    }

    fn object_character(&mut self, character: char) {
        let State::Object { object, started } = &mut self.state else { return };
        match object.push(character) {
            Step::More => {}
            Step::Name(name, early) => {
                if self.layout() == Layout::Bare && !self.tool_names.contains(&name) {
                    return self.give_back();
                }
                if let State::Object { started, .. } = &mut self.state {
                    *started = true;
                }
                self.start_call(name);
                if !early.is_empty() {
                    self.arguments(early);
                }
            }
            Step::Arguments(delta) => self.arguments(delta),
            Step::Done => {
                self.raw.clear();
                self.state = State::AfterObject;
            }
            Step::Malformed if *started => {
                // The call has already been emitted: anything outside its object is text.
                self.raw.clear();
                self.end_calls();
                self.prose(character);
            }
            Step::Malformed => self.give_back(),
        }
    }

    fn after_object(&mut self, character: char) {
        match self.layout() {
            Layout::Tagged { close } => self.expect(close, character),
            Layout::Array { .. } => match character {
                ',' => {
                    self.raw.push(character);
                    self.state = object();
                }
                ']' => self.state = State::AfterArray,
                _ if character.is_whitespace() => {}
                _ => self.leave(character),
            },
            Layout::Bare | Layout::Named => match character {
                ';' | ',' => {}
                ']' if self.layout() == Layout::Named => self.end_calls(),
                '{' => {
                    self.raw.push(character);
                    self.object_character_first(character);
                }
                _ if character.is_whitespace() => {}
                _ => self.leave(character),
            },
        }
    }

    fn after_array(&mut self, character: char) {
        match self.layout() {
            Layout::Array { close } if !close.is_empty() => self.expect(close, character),
            _ => self.leave(character),
        }
    }

    /// Expects `close` after white space; anything else is text again.
    fn expect(&mut self, close: &'static str, character: char) {
        if self.held.is_empty() && character.is_whitespace() {
            return;
        }
        self.held.push(character);
        if self.held == close {
            self.held.clear();
            self.end_calls();
        } else if !close.starts_with(self.held.as_str()) {
            let held = std::mem::take(&mut self.held);
            self.end_calls();
            for character in held.chars() {
                self.character(character);
            }
        }
    }

    fn leave(&mut self, character: char) {
        self.end_calls();
        self.character(character);
    }

    fn name_character(&mut self, character: char) {
        self.raw.push(character);
        self.held.push(character);
        if let Some(name) = self.held.strip_suffix(ARGUMENTS_MARK) {
            // An id may come in between: `name[CALL_ID]id[ARGS]`.
            let name = name.split("[CALL_ID]").next().unwrap_or_default().trim().to_owned();
            if name.is_empty() {
                return self.give_back();
            }
            self.held.clear();
            self.start_call(name);
            self.state = State::Arguments(JsonExtent::default());
        } else if character == '\n' || self.held.len() > MAX_NAME_BYTES {
            self.give_back();
        } else if character == '[' && self.held.trim() == "[" {
            // The older layout, after the same marker.
            self.held.clear();
            self.state = object();
        }
    }

    fn start_call(&mut self, name: String) {
        self.out.push(ParsedPiece::CallStart { index: self.calls, name });
        self.calls += 1;
    }

    fn arguments(&mut self, text: String) {
        let index = self.calls.saturating_sub(1);
        match self.out.last_mut() {
            Some(ParsedPiece::CallArguments { index: last, delta }) if *last == index => delta.push_str(&text),
            _ => self.out.push(ParsedPiece::CallArguments { index, delta: text }),
        }
    }

    /// Returns to text; white space between calls and after them is layout.
    fn end_calls(&mut self) {
        self.raw.clear();
        self.spaces.clear();
        self.skip_spaces = true;
        self.state = State::Text;
    }

    /// Not a call: everything since the marker is text.
    fn give_back(&mut self) {
        self.held.clear();
        let raw = std::mem::take(&mut self.raw);
        self.state = State::Text;
        self.emit_text(&raw);
    }

    fn emit(&mut self, text: &str) {
        if !matches!(self.state, State::Reasoning) {
            return self.emit_text(text);
        }
        if text.is_empty() {
            return;
        }
        self.skip_spaces = false;
        match self.out.last_mut() {
            Some(ParsedPiece::Reasoning(last)) => last.push_str(text),
            _ => self.out.push(ParsedPiece::Reasoning(text.to_owned())),
        }
    }

    fn emit_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.skip_spaces = false;
        self.said_text |= !text.trim().is_empty();
        match self.out.last_mut() {
            Some(ParsedPiece::Text(last)) => last.push_str(text),
            _ => self.out.push(ParsedPiece::Text(text.to_owned())),
        }
    }
}

/// Longer than any function name with its id.
const MAX_NAME_BYTES: usize = 256;

fn object() -> State {
    State::Object { object: Box::default(), started: false }
}
