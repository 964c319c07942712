//! Constrained output: computes the tokens that keep an answer within a language.
//!
//! llguidance does the parsing. This module gives it the model's vocabulary, checks schemas so that an error names its
//! location, writes the grammars of tool calls, and adapts the result to the engine's
//! [`hearth_domain::TokenConstraint`]. Build one [`GrammarCompiler`] per model. Compiling takes milliseconds, and
//! longer for large schemas: call it off the async threads.

mod arguments_check;
mod call_grammar;
mod compiled;
mod constraint;
mod json_schema;
mod relaxed;
mod vocabulary;

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hearth_domain::{
    Constraint, ToolChoice,
    error::{self, ErrorKind},
};
use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
};
use serde_json::{Value, json};
use toktrie::TokEnv;

pub use self::{
    arguments_check::{ArgumentsCheck, Violation},
    call_grammar::ToolCallRules,
    compiled::CompiledConstraint,
    vocabulary::GrammarVocabulary,
};
use self::{
    call_grammar::{CallGrammars, Trigger},
    compiled::State,
    constraint::{AfterCall, GrammarConstraint, PhasedConstraint, TriggeredGrammar},
};
use crate::tool_calls::Thinking;

/// Work that llguidance's lexer and parser may do for one mask. These are its defaults, named here because they bound a
/// step: about 15 ms at worst.
const STEP_LEXER_FUEL: u64 = 200_000;
const STEP_MAX_ITEMS: usize = 50_000;
/// Work that one compilation may do: about 20 ms.
const COMPILE_FUEL: u64 = 1_000_000;
const MAX_LEXER_STATES: usize = 100_000;
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;
/// Address space for the compiler's recursion; only the touched part becomes resident.
const COMPILE_STACK_BYTES: usize = 256 << 20;
/// Maximum length and nesting of a regular expression or a Lark grammar.
const MAX_SOURCE_BYTES: usize = 128 << 10;
const MAX_SOURCE_NESTING: usize = 100;

/// How often a part is removed from the schemas of a request's tools that do not compile, before such a schema is
/// reduced to requiring an object. Each removal costs as much as a refusal, which searches for the location.
const MAX_WEAKENED: usize = 16;

/// Why a constraint cannot be compiled. The caller wrote it, and is told the location.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrammarError {
    #[error("the schema cannot be enforced: at {}: {message}", JsonPointer(pointer))]
    Schema { pointer: String, message: String },
    #[error("the parameters of tool {tool:?} cannot be enforced: at {}: {message}", JsonPointer(pointer))]
    Tool { index: usize, tool: String, pointer: String, message: String },
    #[error("tool_choice names {0:?}, which is not among the tools")]
    UnknownTool(String),
    #[error("tools[{0}] has no function name")]
    NamelessTool(usize),
    #[error("the regular expression cannot be enforced: {0}")]
    Regex(String),
    #[error("the Lark grammar cannot be enforced: {0}")]
    Lark(String),
    #[error("the answers of this model cannot be constrained: {0}")]
    Vocabulary(String),
}

/// Displays a JSON pointer for people: the root has no other name.
struct JsonPointer<'a>(&'a str);

impl fmt::Display for JsonPointer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("its root") } else { f.write_str(self.0) }
    }
}

impl From<GrammarError> for error::Error {
    fn from(error: GrammarError) -> Self {
        let param = match &error {
            GrammarError::Schema { .. } => "response_format.json_schema.schema".to_owned(),
            GrammarError::Tool { index, .. } => format!("tools[{index}].function.parameters"),
            GrammarError::NamelessTool(index) => format!("tools[{index}].function.name"),
            GrammarError::UnknownTool(_) => "tool_choice".to_owned(),
            GrammarError::Regex(_) | GrammarError::Lark(_) => "response_format".to_owned(),
            GrammarError::Vocabulary(_) => return Self::new(ErrorKind::InvalidRequest, error.to_string()),
        };
        Self::invalid(param, error.to_string())
    }
}

/// The path in the request of a part of a tool's schema.
fn place_of(tool: usize, pointer: &str) -> String {
    format!("tools.{tool}.function.parameters{}", pointer.replace('/', "."))
}

/// Compiles constraints for one model's vocabulary. Cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    vocabulary: Arc<vocabulary::SpecialTokens>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab_size", &self.factory.tok_env().tok_trie().vocab_size()).finish()
    }
}

impl GrammarCompiler {
    /// `logits_width` is the number of logits the model produces, at least the number of tokens. Ids beyond the
    /// vocabulary are never allowed.
    pub fn from_vocabulary(vocabulary: &GrammarVocabulary, logits_width: usize) -> Result<Self, GrammarError> {
        let environment = vocabulary::token_environment(vocabulary, logits_width)?;
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| GrammarError::Vocabulary(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            step_lexer_fuel: STEP_LEXER_FUEL,
            step_max_items: STEP_MAX_ITEMS,
            initial_lexer_fuel: COMPILE_FUEL,
            max_lexer_states: MAX_LEXER_STATES,
            max_grammar_size: MAX_GRAMMAR_SYMBOLS,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory: Arc::new(factory), vocabulary: Arc::new(vocabulary::SpecialTokens::new(vocabulary)) })
    }

    /// The constraint for an entire answer.
    pub fn compile(&self, constraint: &Constraint) -> Result<CompiledConstraint, GrammarError> {
        self.compile_after_thinking(constraint, Thinking::Never, 0)
    }

    /// The constraint for an answer that may begin inside a thought: with [`Thinking::Open`] everything is allowed
    /// until the thought is closed, which is forced after `thinking_tokens` tokens.
    pub fn compile_after_thinking(
        &self,
        constraint: &Constraint,
        thinking: Thinking,
        thinking_tokens: usize,
    ) -> Result<CompiledConstraint, GrammarError> {
        let matcher = match constraint {
            Constraint::JsonObject => self.schema_matcher(&json!({"type": "object"}))?,
            Constraint::JsonSchema(schema) => self.schema_matcher(schema)?,
            Constraint::Regex(regex) => {
                check_source(regex).map_err(GrammarError::Regex)?;
                self.matcher(TopLevelGrammar::from_regex(regex)).map_err(GrammarError::Regex)?
            }
            Constraint::Lark(lark) => {
                check_source(lark).map_err(GrammarError::Lark)?;
                self.matcher(TopLevelGrammar::from_lark(lark.clone())).map_err(GrammarError::Lark)?
            }
        };
        Ok(CompiledConstraint::new(self.after_thinking(matcher, thinking, thinking_tokens)))
    }

    /// The constraint for an answer that may, or must, call tools; `None` if the answer is unconstrained.
    ///
    /// Under [`ToolChoice::Required`] and [`ToolChoice::Named`] the answer is one or more calls. Under
    /// [`ToolChoice::Auto`] it is free until it opens a call, which must then match one of the tools. Parts of a tool's
    /// schema that cannot be enforced are refused if the tool is `strict`, and otherwise
    /// [named](CompiledConstraint::unenforced) and [checked](CompiledConstraint::checks) once a call is made.
    pub fn compile_tool_calls(&self, rules: &ToolCallRules<'_>) -> Result<Option<CompiledConstraint>, GrammarError> {
        if *rules.choice == ToolChoice::None || rules.tools.is_empty() {
            return Ok(None);
        }
        let mut grammars = CallGrammars::new(rules, &self.vocabulary)?;
        let (mut unenforced, mut checks) = (Vec::new(), HashMap::new());
        let mut tries = MAX_WEAKENED;
        for tool in grammars.tools_mut() {
            if tool.strict {
                self.check_tool(tool)?;
                continue;
            }
            let (parameters, left_out) = self.relaxed(&tool.parameters, &mut tries);
            if !left_out.is_empty()
                && let Some(check) = ArgumentsCheck::of(tool.index, &tool.parameters)
            {
                checks.insert(tool.name.clone(), check);
            }
            tool.parameters = parameters;
            unenforced.extend(left_out.iter().map(|pointer| place_of(tool.index, pointer)));
        }
        let tool_error = |message: String| GrammarError::Tool {
            index: 0,
            tool: grammars.names().join(", "),
            pointer: String::new(),
            message,
        };
        if *rules.choice != ToolChoice::Auto {
            let matcher = self.matcher(TopLevelGrammar::from_lark(grammars.forced())).map_err(tool_error)?;
            let start = self.after_thinking(matcher, rules.thinking, rules.thinking_tokens);
            return Ok(Some(CompiledConstraint::new(start).with_checks(unenforced, checks)));
        }
        let mut triggered = Vec::new();
        for Trigger { text, at_start, lark } in grammars.triggers() {
            let matcher = self.matcher(TopLevelGrammar::from_lark(lark)).map_err(tool_error)?;
            triggered.push(TriggeredGrammar { text: text.into_bytes(), at_start, matcher });
        }
        let after = if rules.parallel { AfterCall::FreeText } else { AfterCall::End };
        let phased = PhasedConstraint::on_triggers(self.environment(), triggered, after, rules.thinking);
        Ok(Some(CompiledConstraint::new(State::Phased(Box::new(phased))).with_checks(unenforced, checks)))
    }

    fn after_thinking(&self, matcher: Matcher, thinking: Thinking, tokens: usize) -> State {
        if thinking == Thinking::Open {
            return State::Phased(Box::new(PhasedConstraint::after_thinking(self.environment(), matcher, tokens)));
        }
        State::Whole(Box::new(GrammarConstraint::new(self.factory.tok_env().clone(), matcher)))
    }

    /// The vocabulary padded to the width of the logits, and the number of ids that are tokens.
    fn environment(&self) -> (TokEnv, usize) {
        (self.factory.tok_env().clone(), self.vocabulary.num_tokens())
    }

    fn schema_matcher(&self, schema: &Value) -> Result<Matcher, GrammarError> {
        json_schema::check(schema).map_err(|(pointer, message)| GrammarError::Schema { pointer, message })?;
        let prepared = json_schema::prepared(schema, json_schema::Spacing::Flexible);
        self.matcher(TopLevelGrammar::from_json_schema(prepared)).map_err(|message| {
            let (pointer, message) = self.locate(schema, message);
            GrammarError::Schema { pointer, message }
        })
    }

    /// The enforceable part of a tool's schema, and JSON pointers to the rest.
    fn relaxed(&self, schema: &Value, tries: &mut usize) -> (Value, Vec<String>) {
        let (mut schema, mut left_out) = relaxed::relaxed(schema);
        loop {
            let prepared = json_schema::prepared(&schema, json_schema::Spacing::Fixed);
            let Err(message) = self.matcher(TopLevelGrammar::from_json_schema(prepared)) else {
                return (schema, left_out);
            };
            if *tries == 0 {
                return (json!({"type": "object"}), vec![String::new()]);
            }
            *tries -= 1;
            let (pointer, _) = self.locate(&schema, message);
            left_out.extend(relaxed::weaken(&mut schema, &pointer));
        }
    }

    fn check_tool(&self, tool: &call_grammar::Tool) -> Result<(), GrammarError> {
        let schema = &tool.parameters;
        let error = |(pointer, message): (String, String)| GrammarError::Tool {
            index: tool.index,
            tool: tool.name.clone(),
            pointer,
            message,
        };
        json_schema::check(schema).map_err(error)?;
        let prepared = json_schema::prepared(schema, json_schema::Spacing::Fixed);
        match self.matcher(TopLevelGrammar::from_json_schema(prepared)) {
            Ok(_) => Ok(()),
            Err(message) => Err(error(self.locate(schema, message))),
        }
    }

    /// Finds the innermost subschema that fails on its own; `message` is the whole schema's error.
    fn locate(&self, schema: &Value, message: String) -> (String, String) {
        for (pointer, part) in json_schema::parts_innermost_first(schema) {
            let alone = TopLevelGrammar::from_json_schema(json_schema::prepared(&part, json_schema::Spacing::Flexible));
            if let Err(message) = self.matcher(alone) {
                return (pointer, message);
            }
        }
        (String::new(), message)
    }

    /// A panic inside the compiler, on a caller's grammar, is treated as one more reason to refuse it.
    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let compile = AssertUnwindSafe(|| {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            // Some grammars that nothing matches, or whose first step is over the limits, fail only at the first mask.
            if !matcher.is_error() && !matcher.is_stopped() {
                // The matcher remembers a failure; it is checked below.
                let _kept = matcher.compute_mask();
            }
            matcher
        });
        // References nest as deep as the caller chained them, which takes more stack than a worker thread has.
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
            let handle = thread.spawn_scoped(scope, || catch_unwind(compile).ok()).ok()?;
            handle.join().ok().flatten()
        });
        let Some(matcher) = compiled else { return Err("the grammar compiler failed on it".to_owned()) };
        match matcher.get_error() {
            None => Ok(matcher),
            Some(message) => Err(reason(&message)),
        }
    }
}

/// The compiler's parser recurses at each bracket, so nesting is bounded before it sees the text.
fn check_source(text: &str) -> Result<(), String> {
    if text.len() > MAX_SOURCE_BYTES {
        return Err(format!("it has {} bytes; the limit is {MAX_SOURCE_BYTES}", text.len()));
    }
    let mut depth = 0usize;
    for character in text.chars() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_SOURCE_NESTING {
            return Err(format!("its brackets are nested more than {MAX_SOURCE_NESTING} deep"));
        }
    }
    Ok(())
}

/// llguidance's messages continue with the grammar and its state, which do not help the caller. One message is
/// llguidance's internal name for a point after which nothing can follow.
fn reason(message: &str) -> String {
    match message.lines().map(str::trim).find(|line| !line.is_empty()) {
        None => "it is not valid".to_owned(),
        Some("NoExtensionBias") => "nothing fits it".to_owned(),
        Some(line) => line.to_owned(),
    }
}

#[cfg(test)]
mod tests;
