//! Several prompts in one request: one generation each, one stream out.

use std::sync::Arc;

use futures_util::{StreamExt, future, stream};
use hearth_domain::{GenerateEvent, GenerateRequest, Timings, Usage, error::Result};

use super::chat;
use crate::providers::{ChatModel, GenerateStream};

/// Admits all prompts or none: the first refusal drops the others. Choices are numbered consecutively, `n` per prompt,
/// and the last event has the total usage.
pub async fn start_all(model: &Arc<dyn ChatModel>, generations: Vec<GenerateRequest>) -> Result<GenerateStream> {
    let choices_per_prompt = generations.first().map_or(1, |generation| generation.n);
    let mut streams =
        future::try_join_all(generations.into_iter().map(|generation| chat::start(model, generation))).await?;
    if streams.len() == 1
        && let Some(only) = streams.pop()
    {
        return Ok(only);
    }
    Ok(merge(streams, choices_per_prompt))
}

fn merge(streams: Vec<GenerateStream>, choices_per_prompt: usize) -> GenerateStream {
    let mut running = streams.len();
    let mut usage = Usage::default();
    let mut timings = Timings::default();
    let numbered = streams.into_iter().enumerate().map(|(prompt, events)| {
        events.map(move |event| event.map(|event| renumber(event, prompt * choices_per_prompt)))
    });
    stream::select_all(numbered)
        .filter_map(move |event| {
            let out = match event {
                Ok(GenerateEvent::Done { usage: one, timings: spent }) => {
                    running -= 1;
                    usage.prompt_tokens += one.prompt_tokens;
                    usage.completion_tokens += one.completion_tokens;
                    usage.cached_tokens += one.cached_tokens;
                    usage.reasoning_tokens += one.reasoning_tokens;
                    // They ran concurrently: the caller waited for the longest.
                    timings.queue = timings.queue.max(spent.queue);
                    timings.prefill = timings.prefill.max(spent.prefill);
                    timings.decode = timings.decode.max(spent.decode);
                    timings.compute += spent.compute;
                    (running == 0).then_some(Ok(GenerateEvent::Done { usage, timings }))
                }
                other => Some(other),
            };
            future::ready(out)
        })
        .boxed()
}

fn renumber(event: GenerateEvent, first_choice: usize) -> GenerateEvent {
    match event {
        GenerateEvent::Echo { choice, text, logprobs, token_ids } => {
            GenerateEvent::Echo { choice: choice + first_choice, text, logprobs, token_ids }
        }
        GenerateEvent::Delta { choice, text, logprobs, token_ids } => {
            GenerateEvent::Delta { choice: choice + first_choice, text, logprobs, token_ids }
        }
        GenerateEvent::Reasoning { choice, text } => GenerateEvent::Reasoning { choice: choice + first_choice, text },
        GenerateEvent::ToolCall { choice, call, id, name, arguments } => {
            GenerateEvent::ToolCall { choice: choice + first_choice, call, id, name, arguments }
        }
        GenerateEvent::Finished { choice, reason } => GenerateEvent::Finished { choice: choice + first_choice, reason },
        same @ (GenerateEvent::Prefilled { .. } | GenerateEvent::Done { .. }) => same,
    }
}
