//! Which fields an upstream understands beyond OpenAI's own, and its defaults for absent fields.
//!
//! Sources: OpenAI's API reference; vLLM's `protocol.py` (`ChatCompletionRequest`, `SamplingParams`, whose defaults
//! come from the model's `generation_config.json`); llama-server's README ("Using the CLI", sampling defaults of its
//! own).

/// What kind of server an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI itself.
    OpenAi,
    /// Any server that follows OpenAI's contract; nothing beyond it is requested.
    Compatible,
    Vllm,
    LlamaServer,
    Hearth,
}

impl Dialect {
    pub const ALL: [Self; 5] = [Self::OpenAi, Self::Compatible, Self::Vllm, Self::LlamaServer, Self::Hearth];

    /// As written in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Compatible => "compatible",
            Self::Vllm => "vllm",
            Self::LlamaServer => "llama-server",
            Self::Hearth => "hearth",
        }
    }

    /// The default for an address: OpenAI's own host speaks OpenAI's dialect, any other the common subset.
    pub fn of_host(host: &str) -> Self {
        let is_openai = host == "api.openai.com" || host.ends_with(".api.openai.com");
        if is_openai { Self::OpenAi } else { Self::Compatible }
    }

    /// Has sampling defaults of its own, so every parameter must be sent.
    pub(super) fn has_own_defaults(self) -> bool {
        matches!(self, Self::Vllm | Self::LlamaServer)
    }

    /// The name of a chat's token limit. OpenAI's reasoning models refuse the old name, and others do not know the new
    /// one.
    pub(super) fn max_tokens_field(self) -> &'static str {
        if self == Self::OpenAi { "max_completion_tokens" } else { "max_tokens" }
    }

    /// `top_k` and `min_p`.
    pub(super) fn has_top_k(self) -> bool {
        self.is_self_hosted()
    }

    pub(super) fn has_typical_p(self) -> bool {
        matches!(self, Self::LlamaServer | Self::Hearth)
    }

    /// The name of the repetition penalty.
    pub(super) fn repetition_penalty_field(self) -> Option<&'static str> {
        match self {
            Self::Vllm | Self::Hearth => Some("repetition_penalty"),
            Self::LlamaServer => Some("repeat_penalty"),
            Self::OpenAi | Self::Compatible => None,
        }
    }

    /// `min_tokens`, `stop_token_ids`, `return_token_ids`, and `structured_outputs`.
    pub(super) fn has_token_fields(self) -> bool {
        matches!(self, Self::Vllm | Self::Hearth)
    }

    pub(super) fn has_ignore_eos(self) -> bool {
        self.is_self_hosted()
    }

    /// `chat_template_kwargs` and `add_generation_prompt`.
    pub(super) fn has_template_fields(self) -> bool {
        self.is_self_hosted()
    }

    /// A field that names a conversation, so that one machine behind the address serves all of it.
    pub(super) fn has_prompt_cache_key(self) -> bool {
        matches!(self, Self::OpenAi | Self::Hearth)
    }

    /// `response_format` on `/completions`, too.
    pub(super) fn constrains_completions(self) -> bool {
        self.is_self_hosted()
    }

    /// A grammar in llguidance's dialect.
    pub(super) fn has_lark(self) -> bool {
        self == Self::Hearth
    }

    /// Where a server says whether it takes requests, beside `/v1`. `None` if the contract does not say.
    pub fn health_path(self) -> Option<&'static str> {
        match self {
            Self::Vllm | Self::LlamaServer => Some("/health"),
            Self::Hearth => Some("/health/ready"),
            Self::OpenAi | Self::Compatible => None,
        }
    }

    fn is_self_hosted(self) -> bool {
        matches!(self, Self::Vllm | Self::LlamaServer | Self::Hearth)
    }
}

impl std::str::FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dialect| dialect.as_str() == text);
        found
            .ok_or_else(|| format!("{text:?} is no kind of upstream: openai, compatible, vllm, llama-server or hearth"))
    }
}
