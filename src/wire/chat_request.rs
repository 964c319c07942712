//! The body of `POST /v1/chat/completions`.

use hearth_domain::{ChatPrompt, GenerateRequest, Prompt, error::Result};
use serde_json::Value;

use super::{
    Envelope, Parsed,
    fields::{Fields, bad_value},
    generation::{Common, TOP_LOGPROBS_MAX},
    messages, policy,
    reasoning::read_reasoning,
    tools,
};

/// What one chat completion asks for.
#[derive(Debug)]
pub struct ChatCompletionRequest {
    /// The model as the caller wrote it.
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    /// `generation.model` is empty until the service has resolved it.
    pub generation: GenerateRequest,
}

impl ChatCompletionRequest {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let prompt = read_chat_prompt(&mut fields)?;
        let common = Common::read(&mut fields, envelope)?;
        let logprobs = read_logprobs(&mut fields)?;
        let ignored = policy::apply(fields.rest(), &[policy::GENERATION, policy::CHAT], envelope.strict)?;
        let request = Self {
            model: common.model,
            stream: common.stream,
            include_usage: common.include_usage,
            return_token_ids: common.return_token_ids,
            generation: GenerateRequest {
                account: envelope.account.clone(),
                model: String::new(),
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
        // 0 alternatives of nothing: some SDKs send it unasked.
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(bad_value("top_logprobs", "`top_logprobs` needs `logprobs` to be true.")),
    }
}

/// The conversation and what the template makes of it; `/apply-template` reads the same fields.
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
