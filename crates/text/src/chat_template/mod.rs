//! Chat templates: render a conversation into the prompt format the model was trained on.
//!
//! A model file carries its template as Jinja source. Models are trained on prompts that Python's `transformers`
//! rendered, so the goal of this module is the same output, byte for byte: the same blocks trimmed, the same JSON, the
//! same errors raised. `environment` configures minijinja for that, `python_json` and `python_methods` add what Python
//! has and minijinja lacks, `capabilities` determines by trial renders what a template can show, `messages` fits a
//! conversation to it, `guard` keeps its texts from being taken for the template's markers, and `builtin` holds the
//! templates used when a file has none.
//!
//! Templates come from files of unknown origin. A render has a budget of steps, a limit on nesting and a limit on its
//! output; it reads no files and no environment variables.

mod builtin;
mod capabilities;
mod environment;
pub mod guard;
mod messages;
mod output;
mod python_filters;
mod python_json;
mod python_methods;
mod source;

use hearth_domain::{ChatPrompt, error};
use minijinja::{Environment, ErrorKind, value::Serde};
use serde_json::{Map, Value};

pub use self::{
    builtin::BuiltinTemplate,
    capabilities::{Capabilities, TextArguments},
};

/// Maximum template engine steps per render: far above any conversation that fits a context, and a second or two of
/// work.
const MAX_RENDER_STEPS: u64 = 20_000_000;
/// minijinja's measure of nesting, of which one macro call takes four; fits the stack of a small thread.
const MAX_RENDER_DEPTH: usize = 400;
/// Maximum bytes of one prompt.
const MAX_PROMPT_BYTES: usize = 64 << 20;
/// Maximum bytes of one template; the longest published ones have 20 KB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// The name of the source in minijinja's environment.
const TEMPLATE_NAME: &str = "chat_template";

/// A compiled chat template. Immutable; `render` takes `&self` from any thread.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    capabilities: Capabilities,
}

/// Why a template could not be compiled or a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refuses this conversation, through `raise_exception`.
    #[error("{0}")]
    Refused(String),
    #[error("the chat template has a syntax error in line {line}: {message}")]
    Syntax { line: usize, message: String },
    /// The template met a value it cannot handle: a bug in it, or a conversation its author did not anticipate.
    #[error("the chat template failed in line {line}: {message}")]
    Failed { line: usize, message: String },
    #[error(
        "the chat template took more than {MAX_RENDER_STEPS} steps; it does not end, or the conversation is too long for it"
    )]
    TooManySteps,
    #[error("the rendered prompt is longer than {MAX_PROMPT_BYTES} bytes")]
    PromptTooLong,
    #[error("the chat template has {0} bytes; the limit is {MAX_TEMPLATE_BYTES}")]
    TemplateTooLong(usize),
    #[error("there is no built-in chat template {name:?}; choose one of {known}")]
    UnknownBuiltin { name: String, known: String },
}

impl From<TemplateError> for error::Error {
    /// A template that refuses or fails does so because of its messages, in a model that is already serving: the caller
    /// is told, and can change them.
    fn from(error: TemplateError) -> Self {
        let message = match &error {
            TemplateError::Refused(message) => {
                format!("The model's chat template refuses this conversation: {message}")
            }
            _ => format!(
                "The model cannot be given this conversation: {error}. Check the messages' roles, content and tool \
                 calls, or serve the model with another --chat-template-file."
            ),
        };
        Self::invalid("messages", message).with_source(error)
    }
}

/// The template variable for the reasoning effort.
const EFFORT: &str = "reasoning_effort";

impl ChatTemplate {
    /// Compiles `source`. The text of the model's begin-of-text and end-of-text tokens becomes the template's variables
    /// `bos_token` and `eos_token` (empty if the model has none).
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TemplateTooLong(source.len()));
        }
        let environment = environment::environment(source)?;
        let mut template = Self {
            environment,
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            capabilities: Capabilities::default(),
        };
        template.capabilities = capabilities::detect(&template);
        Ok(template)
    }

    /// A built-in template by the name that llama-server's `--chat-template` gives it.
    pub fn builtin(name: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let Some(builtin) = BuiltinTemplate::by_name(name) else {
            return Err(TemplateError::UnknownBuiltin { name: name.to_owned(), known: BuiltinTemplate::names() });
        };
        Self::new(builtin.source, bos, eos)
    }

    /// The template for a model whose file has none, selected by the turn markers in its vocabulary: `has_token` says
    /// whether a text is one token. The second part of the result is the name of the selected template, for the log.
    pub fn fallback(
        has_token: impl Fn(&str) -> bool,
        bos: &str,
        eos: &str,
    ) -> Result<(Self, &'static str), TemplateError> {
        let builtin = BuiltinTemplate::for_vocabulary(has_token);
        Ok((Self::new(builtin.source, bos, eos)?, builtin.name))
    }

    /// The source as the file or the user provided it, unchanged.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether the template shows the model which tools there are.
    pub fn supports_tools(&self) -> bool {
        self.capabilities.tools
    }

    /// Whether the template supports thinking before the answer.
    pub fn supports_reasoning(&self) -> bool {
        self.capabilities.reasoning
    }

    /// The prompt for a conversation as callers of the OpenAI contract write it, fitted to what this template expects:
    /// see `messages`. Tools are omitted under [`ToolChoice::None`](hearth_domain::ToolChoice), and described in a
    /// message if the template has no place for them. This is the method for a server to call.
    pub fn render_prompt(&self, prompt: &ChatPrompt) -> Result<String, TemplateError> {
        let (messages, tools) = messages::fitted(prompt, &self.capabilities);
        let mut kwargs = prompt.template_kwargs.clone();
        if let Some(Value::String(effort)) = kwargs.get_mut(EFFORT) {
            *effort = self.known_effort(effort).to_owned();
        }
        self.render(&messages, &tools, prompt.add_generation_prompt, &kwargs)
    }

    /// The effort itself if the template names it, else the nearest that the template names, else the nearest that all
    /// models with efforts were trained on.
    fn known_effort<'e>(&self, effort: &'e str) -> &'e str {
        let (nearest, usual): (&[&'e str], &'e str) = match effort {
            "max" => (&["max", "xhigh"], "high"),
            "xhigh" => (&["xhigh", "max"], "high"),
            "minimal" => (&["minimal"], "low"),
            _ => return effort,
        };
        let is_named =
            |effort: &&&str| ['\'', '"'].iter().any(|quote| self.source.contains(&format!("{quote}{effort}{quote}")));
        nearest.iter().find(is_named).copied().unwrap_or(usual)
    }

    /// The prompt for exactly these messages and tools, as `transformers` renders it.
    ///
    /// Without tools the template's `tools` is `none`. `kwargs` are additional variables, and may override all others.
    pub fn render(
        &self,
        messages: &[Value],
        tools: &[Value],
        add_generation_prompt: bool,
        kwargs: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let tools = if tools.is_empty() { Value::Null } else { Value::Array(tools.to_vec()) };
        let mut variables = Map::new();
        variables.insert("bos_token".to_owned(), Value::from(self.bos.as_str()));
        variables.insert("eos_token".to_owned(), Value::from(self.eos.as_str()));
        variables.insert("messages".to_owned(), Value::Array(messages::with_reasoning_names(messages)));
        variables.insert("tools".to_owned(), tools);
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), Value::from(add_generation_prompt));
        for (name, value) in kwargs {
            variables.insert(name.clone(), value.clone());
        }
        let template = self.environment.get_template(TEMPLATE_NAME).map_err(TemplateError::from)?;
        let mut prompt = output::BoundedText::new(MAX_PROMPT_BYTES);
        match template.render_captured_to(Serde(variables), &mut prompt) {
            Ok(_) => Ok(prompt.into_string()),
            Err(_) if prompt.overflowed() => Err(TemplateError::PromptTooLong),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<minijinja::Error> for TemplateError {
    fn from(error: minijinja::Error) -> Self {
        // A refusal may be wrapped in the errors of the macros it passed through.
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(inner) = cause {
            if let Some(environment::Refusal(message)) = inner.downcast_ref() {
                return Self::Refused(message.clone());
            }
            if let Some(inner) = inner.downcast_ref::<minijinja::Error>()
                && inner.kind() == ErrorKind::OutOfFuel
            {
                return Self::TooManySteps;
            }
            cause = inner.source();
        }
        let line = error.line().unwrap_or_default();
        let message = match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        };
        match error.kind() {
            ErrorKind::SyntaxError => Self::Syntax { line, message },
            _ => Self::Failed { line, message },
        }
    }
}

#[cfg(test)]
mod tests;
