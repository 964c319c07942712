//! Grammars for tool calls, in the format that the model's template teaches.

use hearth_domain::ToolChoice;
use serde_json::{Value, json};

use super::{
    GrammarError,
    json_schema::{self, Spacing},
    vocabulary::SpecialTokens,
};
use crate::tool_calls::{ARGUMENTS_MARK, Layout, Thinking, ToolFormat};

/// What a request says about its tools.
#[derive(Clone, Copy, Debug)]
pub struct ToolCallRules<'a> {
    /// In the contract's form: `{"type": "function", "function": {"name", "parameters"}}`.
    pub tools: &'a [Value],
    pub choice: &'a ToolChoice,
    /// Whether more than one call may be made.
    pub parallel: bool,
    pub format: ToolFormat,
    /// Where the model thinks; if a call is forced, the calls follow the thought.
    pub thinking: Thinking,
    /// Tokens a thought may have before it is closed for the model, so that a forced call is always made.
    pub thinking_tokens: usize,
}

/// Calls an answer may contain beyond the first.
const MAX_FURTHER_CALLS: usize = 15;

/// One available tool.
pub(super) struct Tool {
    /// Its index in the request.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) parameters: Value,
    /// Whether schema parts that cannot be enforced fail the request instead of being left out.
    pub(super) strict: bool,
}

/// A text that opens a call, and the grammar for what follows it.
pub(super) struct Trigger {
    pub(super) text: String,
    pub(super) at_start: bool,
    pub(super) lark: String,
}

pub(super) struct CallGrammars<'a> {
    tools: Vec<Tool>,
    format: ToolFormat,
    parallel: bool,
    special: &'a SpecialTokens,
}

impl<'a> CallGrammars<'a> {
    pub(super) fn new(rules: &ToolCallRules<'_>, special: &'a SpecialTokens) -> Result<Self, GrammarError> {
        let mut tools = Vec::with_capacity(rules.tools.len());
        for (index, tool) in rules.tools.iter().enumerate() {
            let function = tool.get("function").unwrap_or(tool);
            let Some(name) = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
                return Err(GrammarError::NamelessTool(index));
            };
            if let ToolChoice::Named(chosen) = rules.choice
                && chosen != name
            {
                continue;
            }
            let strict = function.get("strict").and_then(Value::as_bool).unwrap_or(false);
            tools.push(Tool {
                index,
                name: name.to_owned(),
                parameters: parameters(function.get("parameters")),
                strict,
            });
        }
        if let (ToolChoice::Named(chosen), true) = (rules.choice, tools.is_empty()) {
            return Err(GrammarError::UnknownTool(chosen.clone()));
        }
        Ok(Self { tools, format: rules.format, parallel: rules.parallel && rules.format.allows_parallel(), special })
    }

    pub(super) fn tools_mut(&mut self) -> &mut [Tool] {
        &mut self.tools
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.tools.iter().map(|tool| tool.name.as_str()).collect()
    }

    /// The grammar of an answer that consists of calls only.
    pub(super) fn forced(&self) -> String {
        let open = self.mark(self.format.marker());
        let start = match self.format.layout() {
            Layout::Tagged { close } => {
                let close = self.mark(close);
                let one = format!(r#"one: {open} "\n" call "\n" {close}"#);
                format!("start: one{}\n{one}\n", self.further(r#""\n" one"#))
            }
            Layout::Array { close } => {
                let close = if close.is_empty() { String::new() } else { self.mark(close) };
                format!("start: {open} \"[\" call{} \"]\" {close}\n", self.further("\", \" call"))
            }
            Layout::Bare => "start: call\n".to_owned(),
            Layout::Named => format!("start: one{}\none: {open} call\n", self.further("one")),
        };
        start + &self.calls()
    }

    /// The texts that end the free part of an answer.
    pub(super) fn triggers(&self) -> Vec<Trigger> {
        let marker = self.format.marker().to_owned();
        let rest = match self.format.layout() {
            Layout::Tagged { close } => format!("start: /\\n?/ call /\\n?/ {}\n", self.mark(close)),
            Layout::Array { close } => {
                let close = if close.is_empty() { String::new() } else { self.mark(close) };
                format!("start: / ?/ \"[\" call{} \"]\" {close}\n", self.further("\", \" call"))
            }
            Layout::Bare => "start: call\n".to_owned(),
            Layout::Named => "start: call\n".to_owned(),
        };
        let mut triggers = vec![Trigger { text: marker, at_start: false, lark: rest + &self.calls() }];
        if self.format.layout() == Layout::Bare {
            for (number, tool) in self.tools.iter().enumerate() {
                let text = format!("{{\"name\": {}", Value::from(tool.name.as_str()));
                let key = literal(&format!(", \"{}\": ", self.format.arguments_key()));
                let lark = format!("start: {key} arguments_{number} \"}}\"\n{}", self.arguments(number, tool));
                triggers.push(Trigger { text, at_start: true, lark });
            }
        }
        triggers
    }

    /// Repeats `what`, as often as parallel calls are allowed.
    fn further(&self, what: &str) -> String {
        if self.parallel { format!(" ({what}){{0,{MAX_FURTHER_CALLS}}}") } else { String::new() }
    }

    /// The rule `call`, with one alternative per tool, and the rules it uses.
    fn calls(&self) -> String {
        let alternatives: Vec<String> = (0..self.tools.len()).map(|number| format!("call_{number}")).collect();
        let mut rules = format!("call: {}\n", alternatives.join(" | "));
        for (number, tool) in self.tools.iter().enumerate() {
            let call = if self.format.layout() == Layout::Named {
                format!("{} {} arguments_{number}", literal(&tool.name), self.mark(ARGUMENTS_MARK))
            } else {
                let name = Value::from(tool.name.as_str());
                let before = literal(&format!("{{\"name\": {name}, \"{}\": ", self.format.arguments_key()));
                format!("{before} arguments_{number} \"}}\"")
            };
            rules += &format!("call_{number}: {call}\n{}", self.arguments(number, tool));
        }
        rules
    }

    fn arguments(&self, number: usize, tool: &Tool) -> String {
        format!("arguments_{number}: %json {}\n", json_schema::prepared(&tool.parameters, Spacing::Fixed))
    }

    /// A marker as the model writes it: its special token if there is one, otherwise its characters.
    fn mark(&self, text: &str) -> String {
        match self.special.id(text) {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        }
    }
}

/// A Lark string; Lark uses JSON's escapes.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Arguments are always an object, even if the schema says otherwise or nothing; a tool without a schema takes none.
fn parameters(schema: Option<&Value>) -> Value {
    match schema {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) if !schema.contains_key("type") && !schema.contains_key("$ref") => {
            let mut schema = schema.clone();
            schema.insert("type".to_owned(), Value::from("object"));
            Value::Object(schema)
        }
        Some(Value::Bool(true)) => json!({"type": "object"}),
        Some(schema) => schema.clone(),
    }
}
