//! The chunks of a streamed chat completion.
//!
//! Each choice opens with its role and closes with its finish reason. The last closing chunk waits for the event after
//! it, so that it can carry `timings` and `receipt`: no client reads a chunk without choices unless it asked for
//! `include_usage`.

use hearth_domain::{GenerateEvent, TokenLogprob};

use super::{
    chat::{AnswerIdentity, system_fingerprint},
    sse::{EventWriter, Frames},
};
use crate::wire::{
    chat_response::{
        ChatChunkChoice, ChatCompletionChunk, ChatDelta, ChatLogprobs, ToolCallDelta, ToolCallFunctionDelta,
    },
    usage::{Timings, Usage},
};

#[derive(Debug)]
pub(super) struct ChatStreamWriter {
    identity: AnswerIdentity,
    include_usage: bool,
    with_logprobs: bool,
    with_token_ids: bool,
    /// Per choice: whether its role has been sent.
    opened: Vec<bool>,
    /// A closing chunk that waits for the next event.
    closing: Option<ChatCompletionChunk>,
}

impl ChatStreamWriter {
    pub(super) fn new(
        identity: AnswerIdentity,
        num_choices: usize,
        include_usage: bool,
        with_logprobs: bool,
        with_token_ids: bool,
    ) -> Self {
        Self { identity, include_usage, with_logprobs, with_token_ids, opened: vec![false; num_choices], closing: None }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.identity.id.clone(),
            object: "chat.completion.chunk",
            created: self.identity.created,
            model: self.identity.model.clone(),
            system_fingerprint: system_fingerprint(),
            choices,
            usage: self.include_usage.then_some(None),
            timings: None,
            receipt: None,
        }
    }

    fn delta_chunk(&self, index: usize, delta: ChatDelta) -> ChatCompletionChunk {
        self.chunk(vec![ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, token_ids: None }])
    }

    fn open(&mut self, choice: usize, frames: &mut Frames) {
        if let Some(opened) = self.opened.get_mut(choice)
            && !std::mem::replace(opened, true)
        {
            let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()), ..ChatDelta::default() };
            frames.push(&self.delta_chunk(choice, delta));
        }
    }

    fn write_text(
        &self,
        choice: usize,
        text: String,
        logprobs: Vec<TokenLogprob>,
        token_ids: Vec<u32>,
        frames: &mut Frames,
    ) {
        let has_logprobs = self.with_logprobs && !logprobs.is_empty();
        let has_token_ids = self.with_token_ids && !token_ids.is_empty();
        if text.is_empty() && !has_logprobs && !has_token_ids {
            return;
        }
        frames.push(&self.chunk(vec![ChatChunkChoice {
            index: choice,
            delta: ChatDelta { content: Some(text), ..ChatDelta::default() },
            logprobs: has_logprobs.then(|| ChatLogprobs::new(logprobs, self.with_token_ids)),
            finish_reason: None,
            token_ids: has_token_ids.then_some(token_ids),
        }]));
    }
}

impl EventWriter for ChatStreamWriter {
    fn write(&mut self, event: GenerateEvent, frames: &mut Frames) {
        if !matches!(event, GenerateEvent::Done { .. })
            && let Some(closing) = self.closing.take()
        {
            frames.push(&closing);
        }
        match event {
            GenerateEvent::Prefilled { .. } => {}
            GenerateEvent::Echo { choice, text, logprobs, token_ids }
            | GenerateEvent::Delta { choice, text, logprobs, token_ids } => {
                self.open(choice, frames);
                self.write_text(choice, text, logprobs, token_ids, frames);
            }
            GenerateEvent::Reasoning { choice, text } => {
                self.open(choice, frames);
                if !text.is_empty() {
                    let delta = ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() };
                    frames.push(&self.delta_chunk(choice, delta));
                }
            }
            GenerateEvent::ToolCall { choice, call, id, name, arguments } => {
                self.open(choice, frames);
                let kind = id.is_some().then_some("function");
                let function = ToolCallFunctionDelta { name, arguments };
                let delta = ChatDelta {
                    tool_calls: Some(vec![ToolCallDelta { index: call, id, kind, function }]),
                    ..ChatDelta::default()
                };
                frames.push(&self.delta_chunk(choice, delta));
            }
            GenerateEvent::Finished { choice, reason } => {
                self.open(choice, frames);
                let mut chunk = self.delta_chunk(choice, ChatDelta::default());
                chunk.choices[0].finish_reason = Some(reason.as_str());
                self.closing = Some(chunk);
            }
            GenerateEvent::Done { usage, timings } => {
                let (timings, receipt) = (Timings::new(&usage, &timings), self.identity.receipt());
                if let Some(mut closing) = self.closing.take() {
                    closing.timings = Some(timings.clone());
                    closing.receipt = Some(receipt.clone());
                    frames.push(&closing);
                }
                if self.include_usage {
                    let mut chunk = self.chunk(Vec::new());
                    chunk.usage = Some(Some(Usage::from(usage)));
                    chunk.timings = Some(timings);
                    chunk.receipt = Some(receipt);
                    frames.push(&chunk);
                }
            }
        }
    }
}
