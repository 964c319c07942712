//! An earlier answer for a question that means the same. Off unless the server was started with a similarity.
//!
//! Two questions are compared only if all else is equal: who asks, which model answers and how, what was said before,
//! and, for an answer from documents, where was looked and what was there. So it is the services that look here, and
//! not the model's wrapper: there a question and the passages that were found for it are one prompt. What a caller
//! can hold against the very question is not answered by another one's answer: tools, constraints, log-probabilities,
//! several choices, a rating of the passages.
//!
//! To look costs embedding the question, which the caller pays; the answer itself costs nothing. Where the question
//! cannot be embedded, because it is too long or the embedding model is busy, the request goes on without.

use std::sync::Arc;

use hearth_domain::{
    Account, ChatPrompt, EmbedInput, EmbedInputType, EmbedRequest, GenerateEvent, GenerateRequest, Prompt,
    account::CacheUse,
    documents::{Collection, Grounding},
    error::Result,
};
use serde_json::Value;

use super::{
    ask::{self, AskRequest, Asked, Findings},
    chat::start,
    deadline,
    models::Models,
};
use crate::{
    providers::{
        ChatModel, Embedder, GenerateStream,
        cache::{
            CacheSettings, SEMANTIC,
            key::{Key, KeyWriter},
            recorded::{Progress, Recorded, Recorder, Watched},
            semantic::SemanticCache,
        },
    },
    retrieval::{passages::Passage, search::Retriever},
};

/// Of the cache's room, what one answer may take at most: one in so many parts.
const LARGEST_PART: usize = 4;

/// The answers; see the module.
#[derive(Clone, Debug)]
pub struct Semantic {
    cache: Arc<SemanticCache<Kept>>,
    max_answer_bytes: usize,
}

/// An answer, and what it was made from.
#[derive(Debug)]
struct Kept {
    answer: Arc<Recorded>,
    sources: Vec<Passage>,
    left_out: usize,
    findings: Arc<Findings>,
}

impl Kept {
    fn bytes(&self) -> usize {
        let sources: usize = self
            .sources
            .iter()
            .map(|passage| size_of_val(passage) + passage.text.len() + passage.filename.len() + passage.title().len())
            .sum();
        self.answer.bytes() + sources
    }
}

/// A question's place: where its answer is kept, or would be.
struct Place {
    semantic: Semantic,
    scope: Key,
    question: Vec<f32>,
}

impl Semantic {
    /// `None` where the settings ask for none.
    pub fn new(settings: &CacheSettings) -> Option<Self> {
        let cache = SemanticCache::new(settings.semantic_similarity?, settings.semantic_bytes, settings.response_ttl);
        Some(Self { cache: Arc::new(cache), max_answer_bytes: settings.semantic_bytes / LARGEST_PART })
    }
}

impl Place {
    /// `None` where the question cannot be embedded.
    async fn of(
        (semantic, embedder): (&Semantic, Arc<dyn Embedder>),
        account: &Arc<Account>,
        deadline: Option<std::time::Instant>,
        mut scope: KeyWriter,
        question: &str,
    ) -> Option<Self> {
        let embedded = embedder.embed(EmbedRequest {
            account: account.clone(),
            model: embedder.info().id.clone(),
            inputs: vec![EmbedInput::Text(question.to_owned())],
            input_type: EmbedInputType::Query,
            dimensions: None,
            // Two questions that begin alike are not the same.
            truncate: false,
            deadline,
        });
        let question = match deadline::within(deadline, embedded).await {
            Ok(embedded) => embedded.embeddings.into_iter().next()?,
            Err(error) => {
                tracing::debug!(%error, "no earlier answer was looked for");
                return None;
            }
        };
        scope.text(&embedder.identity().name);
        Some(Self { semantic: semantic.clone(), scope: scope.finish(), question })
    }

    fn find(&self, account: &Account) -> Option<Arc<Kept>> {
        match account.cache_use() {
            CacheUse::Full => self.semantic.cache.find(self.scope, &self.question),
            CacheUse::Refresh | CacheUse::Off => None,
        }
    }

    /// Takes down what passes and keeps it when it is whole.
    fn record(
        self,
        events: GenerateStream,
        sources: Vec<Passage>,
        left_out: usize,
        findings: Arc<Findings>,
    ) -> GenerateStream {
        let mut recorder = Recorder::new(self.semantic.max_answer_bytes);
        let mut sources = Some(sources);
        Watched::stream(events, move |event: &GenerateEvent| match recorder.push(event) {
            Progress::Going => true,
            Progress::TooLong => false,
            Progress::Whole(answer) => {
                let sources = sources.take().unwrap_or_default();
                // It was not held against its sources, and would be given again so.
                if !sources.is_empty() && findings.unsupported.get().is_none() {
                    return false;
                }
                let kept = Kept { answer, sources, left_out, findings: findings.clone() };
                let bytes = kept.bytes();
                self.semantic.cache.keep(self.scope, &self.question, Arc::new(kept), bytes);
                false
            }
        })
    }
}

/// [`start`], or an earlier answer. The last message is the question, all before it its scope.
///
/// # Errors
/// As [`start`].
pub async fn chat(
    models: &Models,
    model: &Arc<dyn ChatModel>,
    mut generation: GenerateRequest,
) -> Result<GenerateStream> {
    generation.model.clone_from(&model.info().id);
    let Some(semantic) = models.semantic() else { return start(model, generation).await };
    let Some((question, scope)) = question_of(model, &generation) else { return start(model, generation).await };
    let (account, until) = (generation.account.clone(), generation.deadline);
    let Some(place) = Place::of(semantic, &account, until, scope, &question).await else {
        return start(model, generation).await;
    };
    if let Some(kept) = place.find(&account) {
        return Ok(kept.answer.clone().replay(&account, &model.info().id, SEMANTIC));
    }
    Ok(place.record(start(model, generation).await?, Vec::new(), 0, Arc::default()))
}

/// The question, and a hash of all else, where a near answer is one.
fn question_of(model: &Arc<dyn ChatModel>, generation: &GenerateRequest) -> Option<(String, KeyWriter)> {
    let Prompt::Chat(chat) = &generation.prompt else { return None };
    let is_plain = generation.account.cache_use() != CacheUse::Off
        && chat.tools.is_empty()
        && chat.add_generation_prompt
        && generation.constraint.is_none()
        && generation.logprobs.is_none()
        && generation.n == 1
        && !generation.echo
        && !generation.return_token_ids;
    let last = chat.messages.last().filter(|last| is_plain && last["role"] == "user")?;
    let question = last["content"].as_str().filter(|question| !question.trim().is_empty())?.to_owned();
    let mut messages = chat.messages.clone();
    if let Some(Value::Object(last)) = messages.last_mut() {
        last.insert("content".to_owned(), Value::Null);
    }
    let prompt = Prompt::Chat(ChatPrompt { messages, ..chat.clone() });
    let mut scope = KeyWriter::new("semantic chat");
    scope.model(model.info()).generation(&GenerateRequest { prompt, ..generation.clone() });
    Some((question, scope))
}

/// [`ask::ask`], or an earlier answer with the passages that it was made from. Quoted answers are not kept: to find the
/// sentences takes little more than to look here.
///
/// # Errors
/// As [`ask::ask`].
pub async fn ask(
    models: &Models,
    model: Option<&Arc<dyn ChatModel>>,
    retriever: &Retriever,
    mut request: AskRequest,
) -> Result<Asked> {
    let grounding = request.settle_grounding(model.map(|model| &**model));
    let writer = model.filter(|_| grounding == Grounding::Free);
    // A rating is of the passages and this very question.
    let may_be_another = !request.confidence && request.account.cache_use() != CacheUse::Off;
    let (Some(writer), Some(semantic), true) = (writer, models.semantic(), may_be_another) else {
        return ask::ask(model, retriever, request).await;
    };
    let account = request.account.clone();
    let scope = ask_scope(writer, retriever, &request);
    let Some(place) = Place::of(semantic, &account, request.deadline, scope, &request.question).await else {
        return ask::ask(model, retriever, request).await;
    };
    if let Some(kept) = place.find(&account) {
        return Ok(Asked {
            grounding: Some(Grounding::Free),
            model: writer.info().id.clone(),
            sources: kept.sources.clone(),
            left_out: kept.left_out,
            events: kept.answer.clone().replay(&account, &writer.info().id, SEMANTIC),
            findings: kept.findings.clone(),
        });
    }
    let asked = ask::ask(model, retriever, request).await?;
    // Nothing was found, and no model was asked.
    if asked.sources.is_empty() {
        return Ok(asked);
    }
    let events = place.record(asked.events, asked.sources.clone(), asked.left_out, asked.findings.clone());
    Ok(Asked { events, ..asked })
}

/// All that an answer from documents depends on beside the question. What is in the collections is told by their
/// versions, read before they are searched.
fn ask_scope(model: &Arc<dyn ChatModel>, retriever: &Retriever, request: &AskRequest) -> KeyWriter {
    let versions = retriever.versions(&request.collections);
    let AskRequest {
        account,
        question: _,
        history,
        collections,
        filter,
        mode,
        rerank,
        top_k,
        min_similarity,
        max_tokens,
        temperature,
        confidence,
        grounding,
        deadline: _,
    } = request;
    let mut scope = KeyWriter::new("semantic ask");
    scope.model(model.info()).account(account);
    scope.list(history, KeyWriter::json);
    scope.list(collections, |scope, Collection { id, embedding, .. }| {
        scope.text(id).option(embedding.as_ref(), |scope, embedding| {
            scope.text(&embedding.name);
        });
    });
    scope.list(&versions, |scope, version| {
        scope.number(*version);
    });
    scope.option(filter.as_ref(), |scope, filter| {
        scope.text(&format!("{filter:?}"));
    });
    scope.text(&format!("{mode:?}")).flag(*rerank).count(*top_k).float(*min_similarity);
    scope.count(*max_tokens).float(*temperature).flag(*confidence).text(&format!("{grounding:?}"));
    scope
}

#[cfg(test)]
mod tests;
