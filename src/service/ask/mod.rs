//! Answers a question from documents: finds passages, and binds the answer to them in one of three ways.
//!
//! `extract.rs` quotes the sentences that answer, chosen by their vectors. `quote.rs` has the chat model choose among
//! them. `free.rs` has it write, and checks the text against the passages. Small models choose and write badly, so
//! unless a request says how, the size of the chat model decides.
//!
//! If no passage is near enough there is nothing to answer from, and the model is not asked: the answer is a fixed
//! sentence.

mod cached;
mod extract;
mod free;
mod quote;

use std::{sync::Arc, time::Instant};

use futures_util::{StreamExt, stream};
use hearth_domain::{
    ChatPrompt, FinishReason, GenerateEvent, GenerateRequest, Prompt, SamplingParams, Timings, Usage,
    documents::Grounding,
    error::{Error, ErrorKind, Result},
};
use serde_json::{Value, json};

use super::{
    chat, deadline,
    findings::{Confidence, Findings},
    models::Models,
};
use crate::{
    providers::{ChatModel, GenerateStream},
    retrieval::{
        passages::Passage,
        search::{Lookup, Retriever, SearchRequest},
    },
    wire::ask::{Source, preview},
};

/// The answer when the documents hold nothing on a question.
pub const NOTHING_FOUND: &str = "The knowledge base holds nothing on this question.";

/// A chat model with fewer parameters is not asked to write: most answers of the bundled model of 6 million and of
/// SmolLM2 of 135 million were wrong where quoting was right (`scripts/bench_answers.py`). Larger ones have not been
/// measured; models from about this size on are trained to answer from a context.
const WRITES_FROM_PARAMETERS: u64 = 1_000_000_000;

/// A question and where to search for its answer.
#[derive(Clone, Debug)]
pub struct AskRequest {
    pub question: String,
    /// Earlier turns of the conversation, as the chat template sees them.
    pub history: Vec<Value>,
    pub lookup: Arc<Lookup>,
    /// `None` leaves it to the size of the chat model.
    pub grounding: Option<Grounding>,
    /// Limits what a model writes; sentences are quoted whole.
    pub max_tokens: usize,
    pub temperature: f32,
    /// Rate how far the passages answer the question.
    pub confidence: bool,
    pub deadline: Option<Instant>,
}

/// An answer that is being generated.
pub struct Asked {
    /// `None` if no document was searched.
    pub grounding: Option<Grounding>,
    /// The model that answers: the embedding model if it chose the sentences.
    pub model: String,
    /// The passages that the answer may cite, in the order of their numbers: `[1]` in the answer is the first.
    pub sources: Vec<Passage>,
    /// Passages that were found and did not fit into the model's context.
    pub left_out: usize,
    pub events: GenerateStream,
    /// Complete when the last event has arrived.
    pub findings: Arc<Findings>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked")
            .field("grounding", &self.grounding)
            .field("sources", &self.sources.len())
            .field("left_out", &self.left_out)
            .finish_non_exhaustive()
    }
}

impl AskRequest {
    /// Continues the conversation without searching any document.
    ///
    /// # Errors
    /// If the model refuses.
    pub async fn without_documents(mut self, models: &Models, model: &Arc<dyn ChatModel>) -> Result<Asked> {
        let mut messages = std::mem::take(&mut self.history);
        messages.push(json!({"role": "user", "content": self.question}));
        let events = chat::complete(models, model, generation(&self, messages)).await?;
        Ok(Asked {
            grounding: None,
            model: model.info().id.clone(),
            sources: Vec::new(),
            left_out: 0,
            events,
            findings: Arc::default(),
        })
    }

    /// How an answer of this model is bound to its sources; decided once, because models may be loaded meanwhile.
    pub fn settle_grounding(&mut self, model: Option<&dyn ChatModel>) -> Grounding {
        let of_size = || match model.map(|model| model.parameters_for(&self.lookup.account)) {
            // Only the upstream knows how large a hosted model is.
            Some(0 | WRITES_FROM_PARAMETERS..) => Grounding::Free,
            Some(_) | None => Grounding::Extract,
        };
        let grounding = self.grounding.unwrap_or_else(of_size);
        self.grounding = Some(grounding);
        grounding
    }
}

/// Answers a question, or returns the cached answer to a question with the same meaning. Resolves when the answer's
/// generation has been admitted or, if sentences are quoted, has ended. `model` may be `None` if none is needed.
///
/// # Errors
/// If the search fails, a model is needed and `None`, not even one passage fits beside the question, or a model
/// refuses.
pub async fn ask(
    models: &Models,
    model: Option<&Arc<dyn ChatModel>>,
    retriever: &Retriever,
    mut request: AskRequest,
) -> Result<Asked> {
    let grounding = request.settle_grounding(model.map(|model| &**model));
    let writer = model.filter(|_| grounding == Grounding::Free);
    let Some((writer, slot)) = cached::slot(models, writer, retriever, &request).await else {
        return search_and_answer(model, retriever, request).await;
    };
    if let Some(asked) = cached::earlier(&slot, writer, &request.lookup.account) {
        return Ok(asked);
    }
    Ok(cached::recorded(slot, search_and_answer(model, retriever, request).await?))
}

async fn search_and_answer(
    model: Option<&Arc<dyn ChatModel>>,
    retriever: &Retriever,
    request: AskRequest,
) -> Result<Asked> {
    let search = retriever.search(SearchRequest { query: request.question.clone(), lookup: request.lookup.clone() });
    let passages = deadline::within(request.deadline, search).await?;
    ask_over(model, retriever, request, passages).await
}

/// [`ask`] with passages that have been found already, best first, and without cached answers. The request's lookup is
/// not used.
///
/// # Errors
/// As [`ask`].
pub async fn ask_over(
    model: Option<&Arc<dyn ChatModel>>,
    retriever: &Retriever,
    mut request: AskRequest,
    passages: Vec<Passage>,
) -> Result<Asked> {
    let grounding = request.settle_grounding(model.map(|model| &**model));
    match (grounding, model) {
        (Grounding::Quote | Grounding::Free, None) => {
            let message = "No chat model is served, and `grounding` asks for one: `extract` needs none.";
            Err(Error::new(ErrorKind::ModelNotFound, message).with_param("model"))
        }
        _ if passages.is_empty() => Ok(nothing_found(
            grounding,
            answering(grounding, model, retriever),
            &request,
            Usage::default(),
            Timings::default(),
        )),
        (Grounding::Quote, Some(model)) => quote::answer(model, retriever, request, passages).await,
        (Grounding::Free, Some(model)) => free::answer(model, retriever, request, passages).await,
        (Grounding::Extract, _) => extract::answer(retriever, request, passages).await,
    }
}

/// A passage as reported to the caller.
pub fn source(passage: &Passage) -> Source {
    Source {
        title: passage.title().to_owned(),
        content_preview: preview(&passage.text),
        similarity_score: passage.similarity,
        rerank_score: passage.rerank_score,
        document_id: passage.file_id.clone(),
        filename: passage.filename.clone(),
        chunks: passage.chunks,
        place: passage.place,
    }
}

/// The model that an answer is attributed to.
fn answering(grounding: Grounding, model: Option<&Arc<dyn ChatModel>>, retriever: &Retriever) -> String {
    match model {
        Some(model) if grounding != Grounding::Extract => model.info().id.clone(),
        _ => retriever.embedding_model().to_owned(),
    }
}

/// The fixed refusal, with the usage so far.
fn nothing_found(grounding: Grounding, model: String, request: &AskRequest, usage: Usage, timings: Timings) -> Asked {
    let findings = Findings::default();
    if request.confidence {
        let _ = findings.confidence.set(Confidence { value: 0.0, is_rated: true });
    }
    Asked {
        grounding: Some(grounding),
        model,
        sources: Vec::new(),
        left_out: 0,
        events: whole(NOTHING_FOUND.to_owned(), usage, timings),
        findings: Arc::new(findings),
    }
}

/// The events of a finished text.
fn whole(text: String, usage: Usage, timings: Timings) -> GenerateStream {
    let events = [
        GenerateEvent::Delta { choice: 0, text, logprobs: Vec::new(), token_ids: Vec::new() },
        GenerateEvent::Finished { choice: 0, reason: FinishReason::Stop },
        GenerateEvent::Done { usage, timings },
    ];
    stream::iter(events.map(Ok)).boxed()
}

fn chat_prompt(messages: Vec<Value>) -> ChatPrompt {
    ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() }
}

fn generation(request: &AskRequest, messages: Vec<Value>) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { temperature: request.temperature, ..SamplingParams::default() },
        max_tokens: Some(request.max_tokens),
        deadline: request.deadline,
        ..GenerateRequest::new(request.lookup.account.clone(), Prompt::Chat(chat_prompt(messages)))
    }
}

/// Tokens of a conversation as the model will see it; for a hosted model they can only be estimated.
fn count_tokens(model: &dyn ChatModel, messages: &[Value]) -> Result<usize> {
    let prompt = chat_prompt(messages.to_vec());
    match model.tokenizer() {
        Some(tokenizer) => Ok(tokenizer.tokenize(&tokenizer.render(&prompt)?, false, true)?.len()),
        None => Ok(Prompt::Chat(prompt).estimated_tokens()),
    }
}

/// The conversation that the model continues. If its template has no system turn, the instructions go before the
/// question.
fn messages(model: &dyn ChatModel, instructions: &str, history: &[Value], prompt: &str) -> Vec<Value> {
    let with = |first: Option<Value>, last: String| -> Vec<Value> {
        first.into_iter().chain(history.iter().cloned()).chain([json!({"role": "user", "content": last})]).collect()
    };
    // A conversation that brings its own instructions keeps them.
    if history.iter().any(|message| message["role"] == "system") {
        return with(None, prompt.to_owned());
    }
    let usual = with(Some(json!({"role": "system", "content": instructions})), prompt.to_owned());
    match model.tokenizer().map(|tokenizer| tokenizer.render(&chat_prompt(usual.clone()))) {
        None | Some(Ok(_)) => usual,
        Some(Err(_no_system_turn)) => with(None, format!("{instructions}\n\n{prompt}")),
    }
}
