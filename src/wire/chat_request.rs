//! The body of `POST /v1/chat/completions`.

use hearth_domain::{ChatPrompt, GenerateRequest, Prompt, error::Result};
use serde_json::Value;

use super::{
    Envelope, Parsed,
    body::{BOOLEAN, COUNT, FieldSpec, RequestBody, honoured, ignored, refused},
    fields::{Fields, bad_value},
    generation::{self, Common, TOP_LOGPROBS_MAX},
    messages,
    reasoning::read_reasoning,
    tools,
};

/// A `tool_choice` that requires a call needs tools to choose from.
pub(super) const CHOICE_NEEDS_TOOLS: &str = r#"{"anyOf":[{"properties":{"tool_choice":{"enum":["auto","none",null]}}},{"required":["tools"],"properties":{"tools":{"type":"array","minItems":1}}}]}"#;

/// Fields that become the prompt.
pub(super) const PROMPT_FIELDS: &[FieldSpec] = &[
    honoured(
        "messages",
        r##"{"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/ChatMessage"}}"##,
        "The conversation.",
    ),
    honoured(
        "tools",
        r##"{"type":"array","maxItems":128,"items":{"$ref":"#/components/schemas/Tool"}}"##,
        "Functions that the model may call.",
    ),
    honoured(
        "tool_choice",
        r#"{"anyOf":[{"enum":["auto","none","required"]},{"type":"object","required":["type","function"],"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],"properties":{"name":{"type":"string"}}}}}]}"#,
        "`required` and a named function always yield a call that fits its schema.",
    ),
    honoured("parallel_tool_calls", BOOLEAN, "Whether one answer may hold several calls. Default true."),
    honoured(
        "chat_template_kwargs",
        r#"{"type":"object"}"#,
        "Further variables of the chat template, such as `enable_thinking`.",
    ),
    honoured(
        "reasoning_effort",
        r#"{"enum":["none","minimal","low","medium","high","xhigh","max"]}"#,
        "Given to the chat template, the highest that it knows for `xhigh` and `max`; `none` also sets `enable_thinking` to false.",
    ),
    honoured(
        "reasoning",
        r#"{"type":"object","properties":{"effort":{"enum":["none","minimal","low","medium","high","xhigh","max",null]},"enabled":{"type":["boolean","null"]},"exclude":{"enum":[false,null]}}}"#,
        "OpenRouter's form: `effort` as above, and `enabled`. `max_tokens` is no bound here.",
    ),
    honoured(
        "thinking",
        r#"{"type":"object","required":["type"],"properties":{"type":{"enum":["enabled","adaptive","disabled"]}}}"#,
        "DeepSeek's form: sets `enable_thinking`. `budget_tokens` is no bound here.",
    ),
    honoured(
        "add_generation_prompt",
        BOOLEAN,
        "End the prompt with the opening of the assistant's turn. Default true.",
    ),
];

/// What `/v1/chat/completions` accepts beyond these and [`generation::FIELDS`].
const FIELDS: &[FieldSpec] = &[
    honoured("max_completion_tokens", COUNT, "The newer name of `max_tokens`; wins over it."),
    honoured("logprobs", BOOLEAN, "Report each token's log-probability."),
    honoured("top_logprobs", r#"{"type":"integer","minimum":0,"maximum":20}"#, "Needs `logprobs`."),
    refused("modalities", &[r#"["text"]"#], "Text is the only modality."),
    ignored("audio", "It says how audio sounds, which only `modalities` would ask for."),
    refused("web_search_options", &["{}"], "The server makes no outgoing connection for a request."),
    ignored("prediction", "It could make an answer faster, and does not change it."),
    refused("verbosity", &[r#""medium""#], "Say in a message how long the answer should be."),
    refused("functions", &["[]"], "Use `tools`."),
    refused("function_call", &[r#""none""#, r#""auto""#], "Use `tool_choice`."),
    refused("reasoning_format", &[r#""auto""#, r#""deepseek""#], "Thinking is always reported as `reasoning_content`."),
    refused("continue_final_message", &["false"], "Render with /apply-template and use /v1/completions."),
    refused("echo", &["false"], "Use /v1/completions."),
    refused("chat_template", &[], "The template is the model's own; the server can be started with another."),
    refused("documents", &["[]"], "Put the documents into a message."),
    refused("mm_processor_kwargs", &["{}"], "Text is the only modality."),
];

/// What one chat completion asks for.
#[derive(Debug)]
pub struct ChatCompletionRequest {
    /// The model as the caller wrote it.
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    pub generation: GenerateRequest,
}

impl RequestBody for ChatCompletionRequest {
    const NAME: &'static str = "ChatRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[generation::FIELDS, PROMPT_FIELDS, FIELDS];
    const REQUIRED: &'static [&'static str] = &["model", "messages"];
    const RULES: &'static [&'static str] = &[
        r#"{"anyOf":[{"properties":{"top_logprobs":{"type":"null"}}},{"required":["logprobs"],"properties":{"logprobs":{"const":true}}}]}"#,
        CHOICE_NEEDS_TOOLS,
    ];
}

impl ChatCompletionRequest {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let prompt = read_chat_prompt(&mut fields)?;
        let common = Common::read(&mut fields, envelope)?;
        let logprobs = read_logprobs(&mut fields)?;
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        let request = Self {
            model: common.model,
            stream: common.stream,
            include_usage: common.include_usage,
            return_token_ids: common.return_token_ids,
            generation: GenerateRequest {
                account: envelope.account.clone(),
                prompt: Prompt::Chat(prompt),
                sampling: common.sampling,
                max_tokens: common.max_tokens,
                min_tokens: common.min_tokens,
                stop: common.stop,
                stop_token_ids: common.stop_token_ids,
                ignore_eos: common.ignore_eos,
                n: common.n,
                logprobs,
                echo: false,
                return_token_ids: common.return_token_ids,
                constraint: common.constraint,
                deadline: common.deadline,
                session: common.session,
            },
        };
        Ok(Parsed { request, ignored })
    }
}

fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.and_then(|top| usize::try_from(top).ok()).unwrap_or(0))),
        // Zero alternatives without log-probabilities: some SDKs send this unasked.
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(bad_value("top_logprobs", "`top_logprobs` needs `logprobs` to be true.")),
    }
}

/// The conversation and its template's inputs; `/apply-template` reads the same fields.
pub(super) fn read_chat_prompt(fields: &mut Fields) -> Result<ChatPrompt> {
    let messages = messages::read_messages(fields)?;
    let tools = tools::read_tools(fields)?;
    let tool_choice = tools::read_tool_choice(fields, &tools)?;
    let mut template_kwargs = fields.map("chat_template_kwargs")?.unwrap_or_default();
    read_reasoning(fields, &mut template_kwargs)?;
    Ok(ChatPrompt {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
        template_kwargs,
    })
}
