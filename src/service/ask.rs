//! A question answered from documents: passages found, packed into a prompt, and an answer generated from them.
//!
//! Where no passage is near enough there is nothing to answer from, and the model is not asked: the answer is a fixed
//! sentence. How far the passages answer the question can be rated by a second generation beside the first.

use std::{sync::Arc, time::Instant};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream,
};
use hearth_domain::{
    Account, ChatPrompt, Constraint, FinishReason, GenerateEvent, GenerateRequest, Prompt, SamplingParams, Timings,
    Usage,
    documents::{AttributeFilter, Collection, SearchMode},
    error::{Error, Result},
    quote::estimated_tokens,
};
use hearth_text::work::off_the_async_threads;
use serde_json::{Value, json};

use super::{
    chat::{gather, start},
    deadline,
    models::Models,
    semantic,
};
use crate::{
    providers::{ChatModel, GenerateStream},
    retrieval::{
        context::{Context, SYSTEM, pack},
        passages::Passage,
        search::{Retriever, SearchRequest},
    },
    wire::ask::{Source, preview},
};

/// The answer where the documents hold nothing on a question.
pub const NOTHING_FOUND: &str = "The knowledge base holds nothing on this question.";

/// What the rating generation is asked, after the context and the question.
const RATE: &str = "Rate how fully the context answers the question. Reply with one number from 0 (not at all) to 1 \
                    (fully), such as 0.7, and nothing else.";
/// What it may reply.
const RATING: &str = r"0(\.[0-9]{1,2})?|1(\.0{1,2})?";
/// The confidence when a rating cannot be understood.
const UNKNOWN_CONFIDENCE: f32 = 0.5;

/// A question and where to look for its answer.
#[derive(Clone, Debug)]
pub struct AskRequest {
    pub account: Arc<Account>,
    pub question: String,
    /// Earlier turns of the conversation, as the chat template sees them.
    pub history: Vec<Value>,
    pub collections: Vec<Collection>,
    pub filter: Option<AttributeFilter>,
    pub mode: SearchMode,
    /// Have the rerank model put the passages in order.
    pub rerank: bool,
    pub top_k: usize,
    pub min_similarity: f32,
    pub max_tokens: usize,
    pub temperature: f32,
    /// Rate how far the passages answer the question.
    pub confidence: bool,
    pub deadline: Option<Instant>,
}

/// How far the passages answer the question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    /// 0 to 1.
    pub value: f32,
    /// Whether the model's rating could be understood; otherwise the value says nothing.
    pub is_rated: bool,
}

/// An answer on its way.
pub struct Asked {
    /// What the prompt holds, in the order of its numbers: `[1]` in the answer is the first.
    pub sources: Vec<Passage>,
    /// Passages that were found and did not fit into the model's context.
    pub left_out: usize,
    pub events: GenerateStream,
    /// To be waited for after the events.
    pub confidence: Option<BoxFuture<'static, Result<Confidence>>>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked")
            .field("sources", &self.sources.len())
            .field("left_out", &self.left_out)
            .finish_non_exhaustive()
    }
}

impl AskRequest {
    /// The conversation gone on with, without a look into any document.
    ///
    /// # Errors
    /// If the model refuses.
    pub async fn without_documents(mut self, models: &Models, model: &Arc<dyn ChatModel>) -> Result<Asked> {
        let mut messages = std::mem::take(&mut self.history);
        messages.push(json!({"role": "user", "content": self.question}));
        let events = semantic::chat(models, model, generation(&self, messages)).await?;
        Ok(Asked { sources: Vec::new(), left_out: 0, events, confidence: None })
    }
}

/// Resolves when the answer's generation has been admitted.
///
/// # Errors
/// If the search fails, not even one passage fits beside the question, or the model refuses.
pub async fn ask(model: &Arc<dyn ChatModel>, retriever: &Retriever, request: AskRequest) -> Result<Asked> {
    let search = retriever.search(SearchRequest {
        query: request.question.clone(),
        collections: request.collections.clone(),
        filter: request.filter.clone(),
        top_k: request.top_k,
        min_similarity: request.min_similarity,
        mode: request.mode,
        rerank: request.rerank,
        account: request.account.clone(),
    });
    let passages = deadline::within(request.deadline, search).await?;
    ask_over(model, request, passages).await
}

/// [`ask`] with passages that have been found already, best first; where the request would look is of no matter.
///
/// # Errors
/// If not even one passage fits beside the question, or the model refuses.
pub async fn ask_over(model: &Arc<dyn ChatModel>, request: AskRequest, passages: Vec<Passage>) -> Result<Asked> {
    if passages.is_empty() {
        return Ok(nothing_found(request.confidence));
    }
    let (context, passages) = packed(model, &request, passages).await?;
    let events = start(model, generation(&request, messages(&**model, &request.history, &context.prompt))).await?;
    let confidence = if request.confidence { Some(rate(model, &request, &context.prompt).await?) } else { None };
    let left_out = context.left_out.len();
    let mut passages: Vec<Option<Passage>> = passages.into_iter().map(Some).collect();
    let sources = context.included.iter().filter_map(|&place| passages[place].take()).collect();
    Ok(Asked { sources, left_out, events, confidence })
}

/// A passage as it is named to the caller.
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

/// An answer that no model is asked for.
fn nothing_found(confidence: bool) -> Asked {
    let text = NOTHING_FOUND.to_owned();
    let events = [
        GenerateEvent::Delta { choice: 0, text, logprobs: Vec::new(), token_ids: Vec::new() },
        GenerateEvent::Finished { choice: 0, reason: FinishReason::Stop },
        GenerateEvent::Done { usage: Usage::default(), timings: Timings::default() },
    ];
    let certain = Confidence { value: 0.0, is_rated: true };
    Asked {
        sources: Vec::new(),
        left_out: 0,
        events: stream::iter(events.map(Ok)).boxed(),
        confidence: confidence.then(|| futures_util::future::ready(Ok(certain)).boxed()),
    }
}

/// Packs as many passages as leave room for the answer: all of it, or half of the context if that is less.
async fn packed(
    model: &Arc<dyn ChatModel>,
    request: &AskRequest,
    passages: Vec<Passage>,
) -> Result<(Context, Vec<Passage>)> {
    let (model, question, history) = (model.clone(), request.question.clone(), request.history.clone());
    let context_length = model.info().context_length;
    let budget = context_length - request.max_tokens.min(context_length / 2);
    // How long passages are is the server's doing; the caller's are the question and the conversation.
    let bytes = question.len() + history.iter().map(|message| message.to_string().len()).sum::<usize>();
    off_the_async_threads(bytes, move |wanted| {
        let count = |prompt: &str| {
            wanted.check()?;
            let chat = chat_prompt(messages(&*model, &history, prompt));
            let counted = model.render(&chat).and_then(|text| model.tokenize(&text, false, true));
            match counted {
                Ok(tokens) => Ok(tokens.len()),
                Err(error) if is_elsewhere(&error) => {
                    let text: usize = chat.messages.iter().map(|message| message.to_string().len()).sum();
                    Ok(estimated_tokens(text))
                }
                Err(error) => Err(error),
            }
        };
        let context = pack(&question, &passages, budget, count)?;
        if context.included.is_empty() {
            let tokens = count(&context.prompt)?;
            return Err(Error::context_length_exceeded(tokens, context_length, "question"));
        }
        Ok((context, passages))
    })
    .await
}

/// The template and the tokenizer of a hosted model are not here, so that its tokens can only be estimated.
fn is_elsewhere(error: &Error) -> bool {
    error.code() == Some("unsupported_model")
}

/// The conversation that the model continues. Where its template has no place for a system turn, the instructions go
/// before the question.
fn messages(model: &dyn ChatModel, history: &[Value], prompt: &str) -> Vec<Value> {
    let with = |first: Option<Value>, last: String| -> Vec<Value> {
        first.into_iter().chain(history.iter().cloned()).chain([json!({"role": "user", "content": last})]).collect()
    };
    // A conversation that brings its own instructions keeps them.
    if history.iter().any(|message| message["role"] == "system") {
        return with(None, prompt.to_owned());
    }
    let usual = with(Some(json!({"role": "system", "content": SYSTEM})), prompt.to_owned());
    match model.render(&chat_prompt(usual.clone())) {
        Ok(_) => usual,
        Err(error) if is_elsewhere(&error) => usual,
        Err(_no_system_turn) => with(None, format!("{SYSTEM}\n\n{prompt}")),
    }
}

fn chat_prompt(messages: Vec<Value>) -> ChatPrompt {
    ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() }
}

fn generation(request: &AskRequest, messages: Vec<Value>) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { temperature: request.temperature, ..SamplingParams::default() },
        max_tokens: Some(request.max_tokens),
        deadline: request.deadline,
        ..GenerateRequest::new(request.account.clone(), Prompt::Chat(chat_prompt(messages)))
    }
}

/// Starts the rating, which runs beside the answer.
async fn rate(
    model: &Arc<dyn ChatModel>,
    request: &AskRequest,
    prompt: &str,
) -> Result<BoxFuture<'static, Result<Confidence>>> {
    let asked = messages(&**model, &[], &format!("{prompt}\n\n{RATE}"));
    let rating = GenerateRequest {
        max_tokens: Some(8),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        constraint: Some(Arc::new(Constraint::Regex(RATING.to_owned()))),
        ..generation(request, asked)
    };
    let events = start(model, rating).await?;
    Ok(async move {
        let generation = gather(events, 1).await?;
        Ok(understood(generation.choices.first().map_or("", |choice| &choice.text)))
    }
    .boxed())
}

/// A rating is a number from 0 to 1 and nothing else.
fn understood(rating: &str) -> Confidence {
    match rating.trim().parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Confidence { value, is_rated: true },
        _ => Confidence { value: UNKNOWN_CONFIDENCE, is_rated: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rating_is_a_number_and_nothing_else() {
        for (text, value) in [("0.7", 0.7), (" 1 ", 1.0), ("0", 0.0)] {
            assert_eq!(understood(text), Confidence { value, is_rated: true });
        }
        for text in ["", "high", "0.7 because", "7", "-0.1", "NaN", "0,7"] {
            assert_eq!(understood(text), Confidence { value: 0.5, is_rated: false }, "{text}");
        }
    }
}
