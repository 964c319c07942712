//! One choice's pipeline from tokens to events: characters, then stop strings, then tool calls and reasoning.
//!
//! Each stage may hold back what it cannot decide yet. A token's log-probability is reported once the token's text has
//! left the stages that can still remove text, so that tokens behind a stop string are not reported.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use hearth_domain::{FinishReason, GenerateEvent, TokenLogprob, TopLogprob, usage::SchemaViolation};
use hearth_text::{
    detokenizer::Detokenizer,
    grammar::{ArgumentsCheck, Violation},
    stop::StopMatcher,
    tokenizer::Tokenizer,
    tool_calls::{OutputParser, ParsedPiece},
};

/// What a request asks of each of its choices.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChoiceOptions {
    pub(super) logprobs: bool,
    pub(super) token_ids: bool,
    /// Stop strings are ignored in this many first tokens.
    pub(super) min_tokens: usize,
    /// The answer can contain nothing but calls.
    pub(super) only_calls: bool,
}

/// A token whose text has not been reported yet.
struct PendingToken {
    id: u32,
    logprob: Option<TokenLogprob>,
    /// Bytes of the choice's text before this token's own.
    starts_at: usize,
    /// And including it.
    ends_at: usize,
}

pub(super) struct ChoiceDecoder {
    index: usize,
    wanted: ChoiceOptions,
    tokenizer: Tokenizer,
    /// `None` after the end.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    /// `None` where the text is passed on unparsed.
    parser: Option<OutputParser>,
    pending: VecDeque<PendingToken>,
    /// Bytes of text that have come out of the detokenizer.
    decoded: usize,
    /// Bytes of text that have come out of the stop matcher.
    released: usize,
    /// Tokens generated, up to a stop string.
    pub(super) completion_tokens: usize,
    /// Those generated while the model was reasoning.
    pub(super) reasoning_tokens: usize,
    thinking: bool,
    called: bool,
    finished: bool,
    /// Of the tools whose schemas are not enforced entirely.
    checks: Arc<HashMap<String, ArgumentsCheck>>,
    /// The calls to those tools, by their index, with the tool's name and the arguments so far.
    checked_calls: HashMap<usize, (String, String)>,
}

impl ChoiceDecoder {
    pub(super) fn new(
        index: usize,
        tokenizer: Tokenizer,
        detokenizer: Detokenizer,
        stops: Arc<[String]>,
        parser: Option<OutputParser>,
        wanted: ChoiceOptions,
    ) -> Self {
        let thinking = parser.as_ref().is_some_and(OutputParser::is_reasoning);
        Self {
            index,
            wanted,
            tokenizer,
            detokenizer: Some(detokenizer),
            stops: StopMatcher::new(stops),
            parser,
            pending: VecDeque::new(),
            decoded: 0,
            released: 0,
            completion_tokens: 0,
            reasoning_tokens: 0,
            thinking,
            called: false,
            finished: false,
            checks: Arc::default(),
            checked_calls: HashMap::new(),
        }
    }

    /// Calls to the tools with these names are checked when the choice has ended.
    pub(super) fn with_checks(self, checks: Arc<HashMap<String, ArgumentsCheck>>) -> Self {
        Self { checks, ..self }
    }

    /// What the choice's calls violate of their tools' schemas.
    pub(super) fn violations(&self) -> Vec<SchemaViolation> {
        let mut calls: Vec<_> = self.checked_calls.iter().collect();
        calls.sort_unstable_by_key(|(call, _)| **call);
        let of_call = |(call, (tool, arguments)): (&usize, &(String, String))| {
            let place = format!("choices.{}.message.tool_calls.{call}.function.arguments", self.index);
            let found = self.checks.get(tool).map(|check| check.violations(arguments)).unwrap_or_default();
            found.into_iter().map(move |Violation { argument, rule }| SchemaViolation {
                argument: if argument.is_empty() { place.clone() } else { format!("{place}.{argument}") },
                rule,
            })
        };
        calls.into_iter().flat_map(of_call).collect()
    }

    /// Takes a generated token. `true` means that a stop string ended the choice.
    pub(super) fn push(
        &mut self,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        events: &mut VecDeque<GenerateEvent>,
    ) -> bool {
        if self.finished {
            return false;
        }
        self.completion_tokens += 1;
        self.reasoning_tokens += usize::from(self.thinking);
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id)).unwrap_or_default();
        let logprob = self.wanted.logprobs.then(|| scored(&self.tokenizer, id, logprob, top));
        let starts_at = self.decoded;
        self.decoded += text.len();
        self.pending.push_back(PendingToken { id, logprob, starts_at, ends_at: self.decoded });
        let (text, stopped) = if self.completion_tokens <= self.wanted.min_tokens {
            (self.stops.push_unmatched(&text), false)
        } else {
            let outcome = self.stops.push(&text);
            (outcome.text, outcome.stopped)
        };
        self.released += text.len();
        if stopped {
            // A token that begins in the stop string, or behind it, is not part of the answer.
            let end = self.released;
            self.pending.retain(|token| token.starts_at < end || token.ends_at <= end);
            self.released = usize::MAX;
            self.emit(text, events);
            self.end(FinishReason::Stop, events);
        } else {
            self.emit(text, events);
        }
        stopped
    }

    /// The engine has ended the choice: held-back text is released.
    pub(super) fn finish(&mut self, reason: FinishReason, events: &mut VecDeque<GenerateEvent>) {
        if self.finished {
            return;
        }
        let rest = self.detokenizer.take().map(Detokenizer::finish).unwrap_or_default();
        let outcome = self.stops.push(&rest);
        let mut text = outcome.text;
        if !outcome.stopped {
            text.push_str(&self.stops.finish());
        }
        self.released = usize::MAX;
        self.emit(text, events);
        self.end(reason, events);
    }

    fn end(&mut self, reason: FinishReason, events: &mut VecDeque<GenerateEvent>) {
        if let Some(parser) = &mut self.parser {
            let pieces = match reason {
                FinishReason::Length => parser.cut_off(self.wanted.only_calls),
                _ => parser.finish(),
            };
            self.emit_pieces(pieces, events);
        }
        self.finished = true;
        // A call that the length limit cut short keeps that reason.
        let reason = if self.called && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason };
        events.push_back(GenerateEvent::Finished { choice: self.index, reason });
    }

    /// Reports text that is certainly part of the answer, with the tokens whose text is complete.
    fn emit(&mut self, text: String, events: &mut VecDeque<GenerateEvent>) {
        let mut logprobs = Vec::new();
        let mut token_ids = Vec::new();
        while self.pending.front().is_some_and(|token| token.ends_at <= self.released) {
            let Some(token) = self.pending.pop_front() else { break };
            logprobs.extend(token.logprob);
            if self.wanted.token_ids {
                token_ids.push(token.id);
            }
        }
        let pieces = match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![ParsedPiece::Text(text)],
        };
        // Scores travel with the first piece of text, or alone.
        let mut pieces = pieces.into_iter().peekable();
        let text = match pieces.next_if(|piece| matches!(piece, ParsedPiece::Text(_))) {
            Some(ParsedPiece::Text(text)) => text,
            _ => String::new(),
        };
        if !(text.is_empty() && logprobs.is_empty() && token_ids.is_empty()) {
            events.push_back(GenerateEvent::Delta { choice: self.index, text, logprobs, token_ids });
        }
        self.emit_pieces(pieces.collect(), events);
        self.thinking = self.parser.as_ref().is_some_and(OutputParser::is_reasoning);
    }

    fn emit_pieces(&mut self, pieces: Vec<ParsedPiece>, events: &mut VecDeque<GenerateEvent>) {
        let choice = self.index;
        for piece in pieces {
            events.push_back(match piece {
                ParsedPiece::Text(text) => {
                    GenerateEvent::Delta { choice, text, logprobs: Vec::new(), token_ids: Vec::new() }
                }
                ParsedPiece::Reasoning(text) => GenerateEvent::Reasoning { choice, text },
                ParsedPiece::CallStart { index, name } => {
                    self.called = true;
                    if self.checks.contains_key(&name) {
                        self.checked_calls.insert(index, (name.clone(), String::new()));
                    }
                    let id = Some(format!("call_{}", uuid::Uuid::new_v4().simple()));
                    GenerateEvent::ToolCall { choice, call: index, id, name: Some(name), arguments: String::new() }
                }
                ParsedPiece::CallArguments { index, delta } => {
                    if let Some((_, arguments)) = self.checked_calls.get_mut(&index) {
                        arguments.push_str(&delta);
                    }
                    GenerateEvent::ToolCall { choice, call: index, id: None, name: None, arguments: delta }
                }
            });
        }
    }
}

/// A token's score in the domain's type.
pub(super) fn scored(tokenizer: &Tokenizer, id: u32, logprob: Option<f32>, top: &[(u32, f32)]) -> TokenLogprob {
    let (text, bytes) = spelled(tokenizer, id);
    let top = top
        .iter()
        .map(|&(token_id, logprob)| {
            let (text, bytes) = spelled(tokenizer, token_id);
            TopLogprob { token_id, text, bytes, logprob }
        })
        .collect();
    TokenLogprob { token_id: id, text, bytes, logprob, top }
}

/// A token's text, lossy where it is part of a character, and its exact bytes.
fn spelled(tokenizer: &Tokenizer, id: u32) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().into_owned();
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}
