//! One generation: answered from the semantic cache, or checked against the model, admitted, and, if the caller does
//! not stream, collected.

use std::sync::Arc;

use futures_util::StreamExt;
use hearth_domain::{
    Account, CacheUse, ChatPrompt, FinishReason, GenerateEvent, GenerateRequest, Prompt, Timings, TokenLogprob, Usage,
    error::{Error, ErrorKind, Result},
};

use serde_json::Value;

use super::{deadline, models::Models, semantic::SemanticSlot};
use crate::providers::{
    ChatModel, GenerateStream,
    cache::{SEMANTIC, key::KeyWriter},
};

/// Answers a conversation, or returns the cached answer to one whose last message means the same.
///
/// # Errors
/// As [`start`].
pub async fn complete(
    models: &Models,
    model: &Arc<dyn ChatModel>,
    generation: GenerateRequest,
) -> Result<GenerateStream> {
    let Some(semantic) = models.semantic() else { return start(model, generation).await };
    let Some((question, scope)) = question_of(model, &generation) else { return start(model, generation).await };
    let (account, until) = (generation.account.clone(), generation.deadline);
    let Some(slot) = SemanticSlot::find(semantic, &account, until, scope, &question).await else {
        return start(model, generation).await;
    };
    if let Some(kept) = slot.kept() {
        return Ok(kept.answer.clone().replay(&account, &model.info().id, SEMANTIC));
    }
    Ok(slot.record(start(model, generation).await?, Vec::new(), 0, Arc::default()))
}

/// The question, and a hash of everything else, if the semantic cache applies.
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

/// Runs a generation. Resolves when it has been admitted; the stream is bounded by the request's deadline.
///
/// # Errors
/// 400 for token ids outside the vocabulary, 504 after the deadline, and the model's own refusals.
pub async fn start(model: &Arc<dyn ChatModel>, generation: GenerateRequest) -> Result<GenerateStream> {
    check_token_ids(&generation, model.info().vocab_size)?;
    let until = generation.deadline;
    let events = deadline::within(until, model.generate(generation)).await?;
    Ok(deadline::bounded(events, until))
}

/// Token ids from a request must exist: an id outside the vocabulary would index past the logits.
fn check_token_ids(generation: &GenerateRequest, vocab_size: usize) -> Result<()> {
    if vocab_size == 0 {
        // Only the upstream knows this model's vocabulary.
        return Ok(());
    }
    let outside = |id: u32| usize::try_from(id).map_or(true, |id| id >= vocab_size);
    let refuse = |param: &str, id: u32| {
        Err(Error::invalid(
            param,
            format!("Token id {id} in `{param}` is outside the vocabulary of {vocab_size} tokens."),
        )
        .with_code("invalid_value"))
    };
    if let Some(&(id, _)) = generation.sampling.logit_bias.iter().find(|(id, _)| outside(*id)) {
        return refuse("logit_bias", id);
    }
    if let Some(&id) = generation.stop_token_ids.iter().find(|id| outside(**id)) {
        return refuse("stop_token_ids", id);
    }
    if let Prompt::Tokens(ids) = &generation.prompt
        && let Some(&id) = ids.iter().find(|id| outside(**id))
    {
        return refuse("prompt", id);
    }
    Ok(())
}

/// A finished generation.
#[derive(Debug, Default)]
pub struct Generation {
    pub choices: Vec<GeneratedChoice>,
    pub usage: Usage,
    pub timings: Timings,
    /// The deadline passed before it was done.
    pub is_partial: bool,
}

#[derive(Debug, Default)]
pub struct GeneratedChoice {
    pub text: String,
    pub reasoning: String,
    pub tool_calls: Vec<ToolCallText>,
    pub logprobs: Vec<TokenLogprob>,
    pub token_ids: Vec<u32>,
    pub finish_reason: Option<FinishReason>,
}

#[derive(Debug, Default)]
pub struct ToolCallText {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// Collects a stream of `num_choices` choices. A stream that ends early is an error, never a finished answer.
pub async fn gather(events: GenerateStream, num_choices: usize) -> Result<Generation> {
    let mut generation = Generation::of(num_choices);
    generation.add_all(events).await?;
    Ok(generation)
}

/// The same, but if the deadline cuts the stream off, the text so far, if any, is the answer.
pub async fn gather_partial(events: GenerateStream, num_choices: usize, account: &Account) -> Result<Generation> {
    let mut generation = Generation::of(num_choices);
    match generation.add_all(events).await {
        Err(error) if error.kind() == ErrorKind::DeadlineExceeded && generation.has_begun() => {
            generation.cut_off(account);
            Ok(generation)
        }
        outcome => outcome.map(|()| generation),
    }
}

impl Generation {
    fn of(num_choices: usize) -> Self {
        let mut generation = Self::default();
        generation.choices.resize_with(num_choices, GeneratedChoice::default);
        generation
    }

    fn has_begun(&self) -> bool {
        let has_begun = |choice: &GeneratedChoice| {
            !(choice.text.is_empty() && choice.reasoning.is_empty() && choice.tool_calls.is_empty())
        };
        self.choices.iter().any(has_begun)
    }

    /// Marks the unfinished choices as cut off; their usage is in the account.
    fn cut_off(&mut self, account: &Account) {
        self.is_partial = true;
        for choice in &mut self.choices {
            choice.finish_reason.get_or_insert(FinishReason::Length);
        }
        let count = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        if let Some(record) = account.receipt().main_model() {
            self.usage = Usage {
                prompt_tokens: count(record.prompt_tokens),
                completion_tokens: count(record.completion_tokens),
                cached_tokens: count(record.cached_tokens),
                reasoning_tokens: count(record.reasoning_tokens),
            };
            self.timings = Timings {
                queue: record.queue,
                prefill: record.prefill,
                decode: record.decode,
                compute: record.compute,
            };
        }
    }

    /// Reads until the stream's `Done`.
    async fn add_all(&mut self, mut events: GenerateStream) -> Result<()> {
        let generation = self;
        while let Some(event) = events.next().await {
            match event? {
                GenerateEvent::Prefilled { .. } => {}
                GenerateEvent::Echo { choice, text, logprobs, token_ids }
                | GenerateEvent::Delta { choice, text, logprobs, token_ids } => {
                    let choice = choice_at(generation, choice)?;
                    choice.text.push_str(&text);
                    choice.logprobs.extend(logprobs);
                    choice.token_ids.extend(token_ids);
                }
                GenerateEvent::Reasoning { choice, text } => choice_at(generation, choice)?.reasoning.push_str(&text),
                GenerateEvent::ToolCall { choice, call, id, name, arguments } => {
                    let calls = &mut choice_at(generation, choice)?.tool_calls;
                    if calls.len() <= call {
                        calls.resize_with(call + 1, ToolCallText::default);
                    }
                    let entry = &mut calls[call];
                    if let Some(id) = id {
                        entry.id = id;
                    }
                    if let Some(name) = name {
                        entry.name = name;
                    }
                    entry.arguments.push_str(&arguments);
                }
                GenerateEvent::Finished { choice, reason } => {
                    choice_at(generation, choice)?.finish_reason = Some(reason);
                }
                GenerateEvent::Done { usage, timings } => {
                    generation.usage = usage;
                    generation.timings = timings;
                    return Ok(());
                }
            }
        }
        Err(ended_early())
    }
}

fn choice_at(generation: &mut Generation, choice: usize) -> Result<&mut GeneratedChoice> {
    generation.choices.get_mut(choice).ok_or_else(|| Error::internal(anyhow::anyhow!("event for choice {choice}")))
}

/// The error for a stream that ended without `Done`.
pub fn ended_early() -> Error {
    Error::internal(anyhow::anyhow!("the generation's stream ended before it was done"))
}
