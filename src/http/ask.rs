//! The application contract's questions: `/ask`, `/api/v1/chat`, `/generate` and `/api/v1/search`, whole and streamed.
//!
//! A stream sends its sources first, then tokens, and last `{"done":true}` with usage and timings.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use hearth_domain::{Account, GenerateEvent, GenerateRequest, Timings, Usage, documents::Grounding, error::Error};
use serde::Serialize;

use super::{
    context::RequestCaller,
    error::ApiError,
    extract::JsonBody,
    ignored::name_ignored,
    partial::{asks_for_partial, marked, whole},
    receipt::GROUNDING,
    sse::{EventWriter, Frames, stream_response},
    state::AppState,
};
use crate::{
    providers::GenerateStream,
    retrieval::{passages::Passage, search::SearchRequest},
    service::{
        self,
        ask::{AskRequest, Asked, source},
        chat::start,
        deadline,
        documents::lookup::lookup_in,
        findings::Findings,
    },
    wire::{
        self, Parsed,
        ask::{
            AppEvent, AskAnswer, AskBody, Binding, ChatAnswer, ChatBody, Citation, FirstCitations, FirstSources,
            FoundPassage, GenerateAnswer, GenerateBody, SearchAnswer, SearchBody, Source,
        },
        documents::write_attributes,
        receipt::Receipt,
    },
};

pub(super) async fn ask(state: State<AppState>, caller: RequestCaller, body: JsonBody) -> Result<Response, ApiError> {
    answer_question(state, caller, body, false).await
}

pub(super) async fn ask_stream(
    state: State<AppState>,
    caller: RequestCaller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer_question(state, caller, body, true).await
}

async fn answer_question(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
    streams: bool,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let envelope = caller.envelope(&state, streams);
    let Parsed { request, ignored } = AskBody::read(body, &envelope)?;
    let model = state.chat_to_answer(caller.principal(), request.model.as_deref(), request.grounding)?;
    let lookup = caller.documents(&state).lookup(&request.lookup, request.deadline).await?;
    let asked = service::ask::ask(
        &state.models,
        model.as_ref(),
        state.documents.retriever()?,
        AskRequest {
            question: request.question,
            history: Vec::new(),
            lookup,
            grounding: request.grounding,
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            confidence: request.confidence,
            deadline: request.deadline,
        },
    )
    .await?;
    let shape = AskShape {
        began,
        account: caller.account().clone(),
        sources: request.include_sources.then(|| asked.sources.iter().map(source).collect()),
        left_out: asked.left_out,
        known: Known::of(&asked),
    };
    let grounding = asked.grounding;
    let response = answered(asked.events, shape, (streams, false), &state).await?;
    Ok(name_grounding(name_ignored(response, &ignored), grounding))
}

pub(super) async fn chat(
    state: State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let streams = body.get("stream") == Some(&serde_json::Value::Bool(true));
    answer_conversation(state, caller, body, streams).await
}

pub(super) async fn chat_stream(
    state: State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    answer_conversation(state, caller, body, true).await
}

async fn answer_conversation(
    State(state): State<AppState>,
    caller: RequestCaller,
    body: serde_json::Value,
    streams: bool,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let envelope = caller.envelope(&state, streams);
    let Parsed { request, ignored } = ChatBody::read(body, &envelope)?;
    let asked = converse(&state, &caller, request).await?;
    let citations = asked.sources.iter().map(citation).collect();
    let shape = ChatShape { began, account: caller.account().clone(), known: Known::of(&asked), citations };
    let grounding = asked.grounding;
    let response = answered(asked.events, shape, (streams, false), &state).await?;
    Ok(name_grounding(name_ignored(response, &ignored), grounding))
}

/// Answers the last message from documents or, without documents, continues the conversation.
async fn converse(state: &AppState, caller: &RequestCaller, request: ChatBody) -> Result<Asked, ApiError> {
    let ChatBody { mut messages, deadline, .. } = request;
    let name = request.model.as_deref();
    let question = messages.pop().and_then(|last| last["content"].as_str().map(str::to_owned)).unwrap_or_default();
    let asked = |lookup| AskRequest {
        question,
        history: messages,
        lookup,
        grounding: request.grounding,
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        confidence: false,
        deadline,
    };
    if !request.use_rag {
        let model = state.chat_or_first(caller.principal(), name)?;
        let nowhere = lookup_in(caller.account(), Vec::new(), &request.lookup);
        return Ok(asked(nowhere).without_documents(&state.models, &model).await?);
    }
    let model = state.chat_to_answer(caller.principal(), name, request.grounding)?;
    let lookup = caller.documents(state).lookup(&request.lookup, deadline).await?;
    Ok(service::ask::ask(&state.models, model.as_ref(), state.documents.retriever()?, asked(lookup)).await?)
}

pub(super) async fn generate(
    state: State<AppState>,
    caller: RequestCaller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    continue_prompt(state, caller, body, false).await
}

pub(super) async fn generate_stream(
    state: State<AppState>,
    caller: RequestCaller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    continue_prompt(state, caller, body, true).await
}

async fn continue_prompt(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
    streams: bool,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let partial = asks_for_partial(&body);
    let Parsed { request, ignored } = GenerateBody::read(body, &caller.envelope(&state, streams))?;
    let model = state.chat_or_first(caller.principal(), request.model.as_deref())?;
    let generation: GenerateRequest = request.generation;
    let events = start(&model, generation).await?;
    let shape = GenerateShape { began, account: caller.account().clone(), model: model.info().id.clone() };
    let response = answered(events, shape, (streams, partial), &state).await?;
    Ok(name_ignored(response, &ignored))
}

pub(super) async fn search(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let envelope = caller.envelope(&state, false);
    let Parsed { request, ignored } = SearchBody::read(body, &envelope)?;
    let lookup = caller.documents(&state).lookup(&request.lookup, request.deadline).await?;
    let search = state.documents.retriever()?.search(SearchRequest { query: request.query.clone(), lookup });
    let passages = deadline::within(request.deadline, search).await?;
    let found = |passage: &Passage| FoundPassage {
        source: source(passage),
        text: passage.text.clone(),
        attributes: write_attributes(&passage.attributes),
    };
    let answer = SearchAnswer {
        query: request.query,
        passages: passages.iter().map(found).collect(),
        latency_ms: milliseconds(began),
    };
    Ok(name_ignored(Json(answer).into_response(), &ignored))
}

/// Names the answer's grounding in a header, as the receipt does in the body.
fn name_grounding(mut response: Response, grounding: Option<Grounding>) -> Response {
    if let Some(grounding) = grounding {
        response.headers_mut().insert(GROUNDING, HeaderValue::from_static(grounding.as_str()));
    }
    response
}

fn citation(passage: &Passage) -> Citation {
    Citation {
        document_id: passage.file_id.clone(),
        chunk_index: passage.chunks.0,
        text: passage.text.clone(),
        score: passage.similarity,
        title: passage.title().to_owned(),
        filename: passage.filename.clone(),
    }
}

fn milliseconds(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// What is known about an answer: its model and grounding, and at its end what checks found.
struct Known {
    model: String,
    grounding: Option<Grounding>,
    findings: Arc<Findings>,
}

impl Known {
    fn of(asked: &Asked) -> Self {
        Self { model: asked.model.clone(), grounding: asked.grounding, findings: asked.findings.clone() }
    }

    fn receipt(&self, account: &Account) -> Receipt {
        Receipt { grounding: self.grounding.map(Grounding::as_str), ..Receipt::of(account) }
    }

    fn binding(&self) -> Binding {
        Binding {
            grounding: self.grounding.map(Grounding::as_str),
            unsupported: self.findings.unsupported.get().cloned(),
        }
    }
}

/// The body that one of these routes answers with, whole or at the end of a stream.
trait AppAnswer: Send + 'static {
    type Answer: Serialize;

    /// `text` is `None` at the end of a stream, which has already sent it.
    fn answer(&self, text: Option<String>, usage: Usage, timings: Timings) -> Self::Answer;

    fn account(&self) -> &Arc<Account>;

    /// The sources, which a stream sends first.
    fn write_first(&self, _frames: &mut Frames) {}
}

struct AskShape {
    began: Instant,
    account: Arc<Account>,
    sources: Option<Vec<Source>>,
    left_out: usize,
    known: Known,
}

impl AppAnswer for AskShape {
    type Answer = AskAnswer;

    fn account(&self) -> &Arc<Account> {
        &self.account
    }

    fn answer(&self, text: Option<String>, usage: Usage, timings: Timings) -> AskAnswer {
        let confidence = self
            .known
            .findings
            .confidence
            .get()
            .map(|rated| wire::ask::Confidence { confidence: rated.value, confidence_is_rated: rated.is_rated });
        AskAnswer {
            done: text.is_none().then_some(true),
            answer: text,
            sources: self.sources.clone(),
            sources_left_out: self.left_out,
            binding: self.known.binding(),
            model: self.known.model.clone(),
            tokens_used: usage.total_tokens(),
            latency_ms: milliseconds(self.began),
            confidence,
            usage: usage.into(),
            timings: wire::usage::Timings::new(&usage, &timings),
            receipt: self.known.receipt(&self.account),
        }
    }

    fn write_first(&self, frames: &mut Frames) {
        if let Some(sources) = &self.sources {
            frames.push(&FirstSources { sources });
        }
    }
}

struct ChatShape {
    began: Instant,
    account: Arc<Account>,
    known: Known,
    citations: Vec<Citation>,
}

impl AppAnswer for ChatShape {
    type Answer = ChatAnswer;

    fn account(&self) -> &Arc<Account> {
        &self.account
    }

    fn answer(&self, text: Option<String>, usage: Usage, timings: Timings) -> ChatAnswer {
        ChatAnswer {
            done: text.is_none().then_some(true),
            response: text,
            citations: self.citations.clone(),
            binding: self.known.binding(),
            tokens_used: usage.total_tokens(),
            model: self.known.model.clone(),
            processing_time_ms: milliseconds(self.began),
            usage: usage.into(),
            timings: wire::usage::Timings::new(&usage, &timings),
            receipt: self.known.receipt(&self.account),
        }
    }

    fn write_first(&self, frames: &mut Frames) {
        frames.push(&FirstCitations { citations: &self.citations });
    }
}

struct GenerateShape {
    began: Instant,
    account: Arc<Account>,
    model: String,
}

impl AppAnswer for GenerateShape {
    type Answer = GenerateAnswer;

    fn account(&self) -> &Arc<Account> {
        &self.account
    }

    fn answer(&self, text: Option<String>, usage: Usage, timings: Timings) -> GenerateAnswer {
        GenerateAnswer {
            done: text.is_none().then_some(true),
            output: text,
            model: self.model.clone(),
            tokens_used: usage.total_tokens(),
            latency_ms: milliseconds(self.began),
            usage: usage.into(),
            timings: wire::usage::Timings::new(&usage, &timings),
            receipt: Receipt::of(&self.account),
        }
    }
}

/// The answer, streamed or whole.
async fn answered(
    events: GenerateStream,
    shape: impl AppAnswer,
    (streams, partial): (bool, bool),
    state: &AppState,
) -> Result<Response, Error> {
    if streams {
        let account = shape.account().clone();
        return Ok(stream_response(events, AppStreamWriter(shape), account, state.settings.keep_alive_interval));
    }
    let mut generation = whole(events, 1, partial, shape.account()).await?;
    let text = generation.choices.pop().map(|choice| choice.text).unwrap_or_default();
    let answer = Json(shape.answer(Some(text), generation.usage, generation.timings));
    Ok(marked(answer.into_response(), generation.is_partial))
}

/// Frames of these routes: `{"sources"}`, `{"token"}` and last `{"done":true}`.
struct AppStreamWriter<S>(S);

impl<S: AppAnswer> EventWriter for AppStreamWriter<S> {
    // `done` marks the end.
    const LAST: &'static [u8] = b"";

    fn begin(&mut self, frames: &mut Frames) {
        self.0.write_first(frames);
    }

    fn write(&mut self, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Delta { text, .. } if !text.is_empty() => {
                frames.push(&AppEvent::<S::Answer>::Token { token: text });
            }
            GenerateEvent::Reasoning { text, .. } => frames.push(&AppEvent::<S::Answer>::Reasoning { reasoning: text }),
            GenerateEvent::Done { usage, timings } => {
                frames.push(&AppEvent::Done(self.0.answer(None, usage, timings)));
            }
            GenerateEvent::Delta { .. }
            | GenerateEvent::Prefilled { .. }
            | GenerateEvent::Echo { .. }
            | GenerateEvent::ToolCall { .. }
            | GenerateEvent::Finished { .. } => {}
        }
    }
}
