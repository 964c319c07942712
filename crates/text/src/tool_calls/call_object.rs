//! Parses one call's JSON object character by character: the name is reported as soon as it is complete, the arguments
//! as they arrive.

/// Reads `{"name": .., "arguments": {..}}` with its keys in any order.
#[derive(Debug, Default)]
pub(super) struct CallObject {
    state: State,
    /// The key or string being read, as JSON text without quotes.
    text: String,
    key: String,
    name: Option<String>,
    /// Arguments that arrived before the name.
    early_arguments: String,
    /// Nesting depth inside a value, whether inside a string, and whether after an escape.
    depth: usize,
    in_string: bool,
    escaped: bool,
    value_started: bool,
    has_arguments: bool,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Start,
    KeyOrEnd,
    Key,
    Colon,
    Value,
    CommaOrEnd,
    Done,
}

/// The result of one character.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// The name, with the arguments that preceded it.
    Name(String, String),
    /// More of the arguments' JSON text.
    Arguments(String),
    /// The object is complete.
    Done,
    /// This is not a call's object.
    Malformed,
}

/// Keys that a call's object may have; any other key means that it is some other JSON.
const NAME_KEY: &str = "name";
const ARGUMENTS_KEYS: [&str; 2] = ["arguments", "parameters"];
const OTHER_KEYS: [&str; 2] = ["id", "type"];

impl CallObject {
    /// Accepts the next character. Nothing may follow [`Step::Done`] or [`Step::Malformed`].
    pub(super) fn push(&mut self, character: char) -> Step {
        let space = character.is_ascii_whitespace();
        match self.state {
            State::Start => match character {
                '{' => self.go(State::KeyOrEnd),
                _ if space => Step::More,
                _ => Step::Malformed,
            },
            State::KeyOrEnd => match character {
                '"' => {
                    self.text.clear();
                    self.go(State::Key)
                }
                _ if space => Step::More,
                _ => Step::Malformed,
            },
            State::Key => self.key_character(character),
            State::Colon => match character {
                ':' => {
                    (self.depth, self.in_string, self.escaped, self.value_started) = (0, false, false, false);
                    self.text.clear();
                    self.go(State::Value)
                }
                _ if space => Step::More,
                _ => Step::Malformed,
            },
            State::Value => self.value_character(character),
            State::CommaOrEnd => match character {
                ',' => self.go(State::KeyOrEnd),
                '}' => self.finish(),
                _ if space => Step::More,
                _ => Step::Malformed,
            },
            State::Done => Step::Malformed,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    fn finish(&mut self) -> Step {
        self.state = State::Done;
        if self.name.is_some() { Step::Done } else { Step::Malformed }
    }

    fn key_character(&mut self, character: char) -> Step {
        match character {
            '"' => {
                let key = std::mem::take(&mut self.text);
                let is_arguments = ARGUMENTS_KEYS.contains(&key.as_str());
                let repeated = (key == NAME_KEY && self.name.is_some()) || (is_arguments && self.has_arguments);
                if repeated || !(key == NAME_KEY || is_arguments || OTHER_KEYS.contains(&key.as_str())) {
                    return Step::Malformed;
                }
                self.key = key;
                self.go(State::Colon)
            }
            '\\' => Step::Malformed,
            _ => {
                self.text.push(character);
                Step::More
            }
        }
    }

    fn value_character(&mut self, character: char) -> Step {
        if !self.value_started {
            if character.is_ascii_whitespace() {
                return Step::More;
            }
            self.value_started = true;
            let fits = if self.key == NAME_KEY {
                character == '"'
            } else if self.is_arguments() {
                self.has_arguments = true;
                character == '{'
            } else {
                !matches!(character, '}' | ']' | ',' | ':')
            };
            if !fits {
                return Step::Malformed;
            }
        }
        // A number or a literal ends where the next token begins.
        if self.depth == 0 && !self.in_string && matches!(character, ',' | '}') {
            self.state = State::CommaOrEnd;
            return self.push(character);
        }
        self.text.push(character);
        if self.in_string {
            let closes = character == '"' && !self.escaped;
            self.escaped = character == '\\' && !self.escaped;
            self.in_string = !closes;
            return if closes && self.depth == 0 { self.end_value() } else { self.value_piece() };
        }
        match character {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return self.end_value();
                }
            }
            _ => {}
        }
        self.value_piece()
    }

    fn is_arguments(&self) -> bool {
        ARGUMENTS_KEYS.contains(&self.key.as_str())
    }

    /// Arguments stream once the name is known.
    fn value_piece(&mut self) -> Step {
        if self.is_arguments() && self.name.is_some() {
            return Step::Arguments(std::mem::take(&mut self.text));
        }
        Step::More
    }

    fn end_value(&mut self) -> Step {
        self.state = State::CommaOrEnd;
        if self.key == NAME_KEY {
            return match serde_json::from_str::<String>(&self.text) {
                Ok(name) if !name.is_empty() => {
                    self.name = Some(name.clone());
                    Step::Name(name, std::mem::take(&mut self.early_arguments))
                }
                _ => Step::Malformed,
            };
        }
        if self.is_arguments() && self.name.is_none() {
            self.early_arguments = std::mem::take(&mut self.text);
            return Step::More;
        }
        self.value_piece()
    }
}

/// Finds the end of one JSON object, for the formats in which the arguments stand alone.
#[derive(Debug, Default)]
pub(super) struct JsonExtent {
    begun: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonExtent {
    pub(super) fn is_empty(&self) -> bool {
        !self.begun
    }

    /// Accepts the next character, the first of which is a brace; returns true when it completes the object.
    pub(super) fn push(&mut self, character: char) -> bool {
        self.begun = true;
        if self.in_string {
            self.in_string = character != '"' || self.escaped;
            self.escaped = character == '\\' && !self.escaped;
            return false;
        }
        match character {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0
    }
}
