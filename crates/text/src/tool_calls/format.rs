//! The formats in which models write tool calls.

/// One way to write calls, named after the models that popularized it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": f, "arguments": {..}}</tool_call>`, once per call. Hermes, Qwen, and every model whose
    /// template has no format of its own.
    Hermes,
    /// The whole answer is `{"name": f, "parameters": {..}}`, with or without `<|python_tag|>` before it.
    Llama3,
    /// `[TOOL_CALLS][{"name": f, "arguments": {..}}, ..]`.
    Mistral,
    /// `[TOOL_CALLS]f[ARGS]{..}`, once per call. Mistral from tokenizer version 11.
    MistralNamed,
    /// `functools[{"name": f, "arguments": {..}}, ..]`.
    Functools,
    /// `<|tool_call|>[{"name": f, "arguments": {..}}, ..]<|/tool_call|>`. Phi-4-mini, Granite.
    PhiTags,
}

/// How a format arranges calls in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Marker, object, end marker; once per call.
    Tagged { close: &'static str },
    /// Marker, array of objects, and an end marker that may be missing.
    Array { close: &'static str },
    /// An object, optionally preceded by the marker.
    Bare,
    /// Marker, name, `[ARGS]`, arguments; once per call.
    Named,
}

/// Separates a name from its arguments in [`Layout::Named`].
pub(crate) const ARGUMENTS_MARK: &str = "[ARGS]";

impl ToolFormat {
    /// The format that a template teaches; [`ToolFormat::Hermes`] if it teaches none of the formats known here.
    pub fn detect(template_source: &str) -> Self {
        let has = |mark: &str| template_source.contains(mark);
        if has("[TOOL_CALLS]") {
            return if has(ARGUMENTS_MARK) { Self::MistralNamed } else { Self::Mistral };
        }
        if has("<tool_call>") {
            return Self::Hermes;
        }
        if has("functools[") {
            return Self::Functools;
        }
        if has("<|tool_call|>") {
            return Self::PhiTags;
        }
        let llama3 = has("<|start_header_id|>") && has("tool_calls") && has("\"parameters\"");
        if has("<|python_tag|>") || llama3 { Self::Llama3 } else { Self::Hermes }
    }

    /// The text that opens calls. It is optional for [`ToolFormat::Llama3`].
    pub(crate) fn marker(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral | Self::MistralNamed => "[TOOL_CALLS]",
            Self::Functools => "functools",
            Self::PhiTags => "<|tool_call|>",
        }
    }

    pub(crate) fn layout(self) -> Layout {
        match self {
            Self::Hermes => Layout::Tagged { close: "</tool_call>" },
            Self::Llama3 => Layout::Bare,
            Self::Mistral | Self::Functools => Layout::Array { close: "" },
            Self::PhiTags => Layout::Array { close: "<|/tool_call|>" },
            Self::MistralNamed => Layout::Named,
        }
    }

    /// The key of the arguments in a call's object.
    pub(crate) fn arguments_key(self) -> &'static str {
        match self {
            Self::Llama3 => "parameters",
            _ => "arguments",
        }
    }

    /// Whether one answer may contain more than one call.
    pub fn allows_parallel(self) -> bool {
        self != Self::Llama3
    }
}

/// Where a model's thinking is in its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// `<think>` is ordinary text.
    #[default]
    Never,
    /// The answer may begin with `<think>`.
    MayOpen,
    /// The prompt ended with `<think>`, so the answer begins inside the thought.
    Open,
}

/// The markers around thinking, in the templates of Qwen 3, `DeepSeek` and others modelled on them.
pub(crate) const THINK_OPEN: &str = "<think>";
pub(crate) const THINK_CLOSE: &str = "</think>";

impl Thinking {
    /// Detects it from a template and the prompt that it rendered.
    pub fn detect(template_source: &str, prompt: &str) -> Self {
        if !template_source.contains(THINK_CLOSE) {
            Self::Never
        } else if prompt.trim_end().ends_with(THINK_OPEN) {
            Self::Open
        } else if prompt.trim_end().ends_with(THINK_CLOSE) {
            // An empty thought in the prompt has disabled thinking.
            Self::Never
        } else {
            Self::MayOpen
        }
    }
}
