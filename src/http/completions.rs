//! `POST /v1/completions`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use hearth_domain::{FinishReason, GenerateEvent, TokenLogprob};

use super::{
    chat::{AnswerIdentity, asks_for_stream, system_fingerprint},
    context::RequestCaller,
    error::ApiError,
    extract::JsonBody,
    ignored::name_ignored,
    partial::{asks_for_partial, marked, whole},
    sse::{EventWriter, Frames, stream_response},
    state::AppState,
};
use crate::{
    service::{chat::Generation, completions},
    wire::{
        Parsed,
        completion_request::CompletionRequest,
        completion_response::{Completion, CompletionChoice, CompletionLogprobs},
        usage::{Timings, Usage},
    },
};

pub(super) async fn create_completion(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let partial = asks_for_partial(&body);
    let envelope = caller.envelope(&state, asks_for_stream(&body));
    let Parsed { request, ignored } = CompletionRequest::read(body, &envelope)?;
    let model = state.chat(caller.principal(), request.model.as_deref())?;
    let num_choices = request.generations.iter().map(|generation| generation.n).sum();
    let with_logprobs = request.generations.iter().any(|generation| generation.logprobs.is_some());
    let events = completions::start_all(&model, request.generations).await?;
    let writer = CompletionWriter {
        identity: AnswerIdentity::new("cmpl", &model.info().id, caller.account()),
        include_usage: request.include_usage,
        with_logprobs,
        with_token_ids: request.return_token_ids,
        offsets: vec![0; num_choices],
        closing: None,
    };
    let response = if request.stream {
        stream_response(events, writer, caller.account().clone(), state.settings.keep_alive_interval)
    } else {
        let generation = whole(events, num_choices, partial, caller.account()).await?;
        let is_partial = generation.is_partial;
        marked(Json(writer.whole_answer(generation)).into_response(), is_partial)
    };
    Ok(name_ignored(response, &ignored))
}

/// Whole answers and chunks have one shape, so one writer makes both.
#[derive(Debug)]
struct CompletionWriter {
    identity: AnswerIdentity,
    include_usage: bool,
    with_logprobs: bool,
    with_token_ids: bool,
    /// Per choice: characters of the tokens written so far, for `text_offset`.
    offsets: Vec<usize>,
    /// A closing chunk that waits for the next event, to carry `timings` if it is the last.
    closing: Option<Completion>,
}

impl CompletionWriter {
    fn completion(&self, choices: Vec<CompletionChoice>) -> Completion {
        Completion {
            id: self.identity.id.clone(),
            object: "text_completion",
            created: self.identity.created,
            model: self.identity.model.clone(),
            system_fingerprint: system_fingerprint(),
            choices,
            usage: self.include_usage.then_some(None),
            timings: None,
            receipt: None,
        }
    }

    fn choice(
        &mut self,
        index: usize,
        text: String,
        logprobs: Vec<TokenLogprob>,
        token_ids: Vec<u32>,
        finish_reason: Option<FinishReason>,
    ) -> CompletionChoice {
        let mut unknown_choice = 0;
        let offset = self.offsets.get_mut(index).unwrap_or(&mut unknown_choice);
        CompletionChoice {
            index,
            text,
            logprobs: self.with_logprobs.then(|| CompletionLogprobs::new(logprobs, offset)),
            finish_reason: finish_reason.map(FinishReason::as_str),
            token_ids: self.with_token_ids.then_some(token_ids),
        }
    }

    fn whole_answer(mut self, generation: Generation) -> Completion {
        let choices = generation
            .choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let reason = choice.finish_reason.unwrap_or(FinishReason::Stop);
                self.choice(index, choice.text, choice.logprobs, choice.token_ids, Some(reason))
            })
            .collect();
        let mut completion = self.completion(choices);
        completion.timings = Some(Timings::new(&generation.usage, &generation.timings));
        completion.receipt = Some(self.identity.receipt());
        completion.usage = Some(Some(Usage::from(generation.usage)));
        completion
    }
}

impl EventWriter for CompletionWriter {
    fn write(&mut self, event: GenerateEvent, frames: &mut Frames) {
        if !matches!(event, GenerateEvent::Done { .. })
            && let Some(closing) = self.closing.take()
        {
            frames.push(&closing);
        }
        match event {
            GenerateEvent::Echo { choice, text, logprobs, token_ids }
            | GenerateEvent::Delta { choice, text, logprobs, token_ids } => {
                if text.is_empty() && logprobs.is_empty() && token_ids.is_empty() {
                    return;
                }
                let choice = self.choice(choice, text, logprobs, token_ids, None);
                frames.push(&self.completion(vec![choice]));
            }
            GenerateEvent::Finished { choice, reason } => {
                let mut choice = self.choice(choice, String::new(), Vec::new(), Vec::new(), Some(reason));
                choice.logprobs = None;
                self.closing = Some(self.completion(vec![choice]));
            }
            GenerateEvent::Done { usage, timings } => {
                let (timings, receipt) = (Timings::new(&usage, &timings), self.identity.receipt());
                if let Some(mut closing) = self.closing.take() {
                    closing.timings = Some(timings.clone());
                    closing.receipt = Some(receipt.clone());
                    frames.push(&closing);
                }
                if self.include_usage {
                    let mut last = self.completion(Vec::new());
                    last.usage = Some(Some(Usage::from(usage)));
                    last.timings = Some(timings);
                    last.receipt = Some(receipt);
                    frames.push(&last);
                }
            }
            // Raw text has no turns: no parser splits thinking or calls out of it.
            GenerateEvent::Prefilled { .. } | GenerateEvent::Reasoning { .. } | GenerateEvent::ToolCall { .. } => {}
        }
    }
}
