//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use hearth_domain::{Account, FinishReason};
use serde_json::Value;

use super::{
    chat_stream::ChatStreamWriter,
    context::RequestCaller,
    error::ApiError,
    extract::JsonBody,
    ignored::name_ignored,
    partial::{asks_for_partial, marked, whole},
    sse::stream_response,
    state::AppState,
};
use crate::{
    service::chat::{self, GeneratedChoice, Generation},
    wire::{
        Parsed,
        chat_request::ChatCompletionRequest,
        chat_response::{AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs, ToolCall, ToolCallFunction},
        receipt::Receipt,
        usage::{Timings, Usage},
    },
};

pub(super) async fn create_chat_completion(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let partial = asks_for_partial(&body);
    let envelope = caller.envelope(&state, asks_for_stream(&body));
    let Parsed { request, ignored } = ChatCompletionRequest::read(body, &envelope)?;
    let model = state.chat(caller.principal(), request.model.as_deref())?;
    let num_choices = request.generation.n;
    let with_logprobs = request.generation.logprobs.is_some();
    let events = chat::complete(&state.models, &model, request.generation).await?;
    let identity = AnswerIdentity::new("chatcmpl", &model.info().id, caller.account());
    let response = if request.stream {
        let writer = ChatStreamWriter::new(
            identity,
            num_choices,
            request.include_usage,
            with_logprobs,
            request.return_token_ids,
        );
        stream_response(events, writer, caller.account().clone(), state.settings.keep_alive_interval)
    } else {
        let generation = whole(events, num_choices, partial, caller.account()).await?;
        let is_partial = generation.is_partial;
        let answer = Json(whole_answer(identity, generation, with_logprobs, request.return_token_ids));
        marked(answer.into_response(), is_partial)
    };
    Ok(name_ignored(response, &ignored))
}

/// Whether the body asks for a stream, checked before the rest of it is read.
pub(super) fn asks_for_stream(body: &Value) -> bool {
    body.get("stream") == Some(&Value::Bool(true))
}

/// What all parts of one answer repeat.
#[derive(Clone, Debug)]
pub(super) struct AnswerIdentity {
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    pub(super) model: String,
    account: Arc<Account>,
}

/// The backend version that answered: the same seed gives the same text within one.
pub(super) fn system_fingerprint() -> String {
    format!("fp_hearth_{}", env!("CARGO_PKG_VERSION"))
}

impl AnswerIdentity {
    pub(super) fn new(prefix: &str, model: &str, account: &Arc<Account>) -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: since_epoch.as_secs(),
            model: model.to_owned(),
            account: account.clone(),
        }
    }

    /// The receipt so far.
    pub(super) fn receipt(&self) -> Receipt {
        Receipt::of(&self.account)
    }
}

fn whole_answer(
    identity: AnswerIdentity,
    generation: Generation,
    with_logprobs: bool,
    with_token_ids: bool,
) -> ChatCompletion {
    let Generation { choices, usage, timings, .. } = generation;
    ChatCompletion {
        receipt: identity.receipt(),
        id: identity.id,
        object: "chat.completion",
        created: identity.created,
        model: identity.model,
        choices: choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| whole_choice(index, choice, with_logprobs, with_token_ids))
            .collect(),
        usage: Usage::from(usage),
        system_fingerprint: system_fingerprint(),
        timings: Timings::new(&usage, &timings),
    }
}

fn whole_choice(index: usize, choice: GeneratedChoice, with_logprobs: bool, with_token_ids: bool) -> ChatChoice {
    let tool_calls: Vec<ToolCall> = choice
        .tool_calls
        .into_iter()
        .map(|call| ToolCall {
            id: call.id,
            kind: "function",
            function: ToolCallFunction { name: call.name, arguments: call.arguments },
        })
        .collect();
    let content = (!choice.text.is_empty() || tool_calls.is_empty()).then_some(choice.text);
    ChatChoice {
        index,
        message: AssistantMessage {
            role: "assistant",
            content,
            refusal: None,
            annotations: [],
            reasoning_content: (!choice.reasoning.is_empty()).then_some(choice.reasoning),
            tool_calls,
        },
        logprobs: with_logprobs.then(|| ChatLogprobs::new(choice.logprobs, with_token_ids)),
        finish_reason: choice.finish_reason.unwrap_or(FinishReason::Stop).as_str(),
        token_ids: with_token_ids.then_some(choice.token_ids),
    }
}
