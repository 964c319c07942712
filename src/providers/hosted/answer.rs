//! Translates an upstream's chunks into the domain's events: each token once, each count checked.
//!
//! Upstreams differ in what they leave out, repeat or put elsewhere; the known differences are handled here. A chunk
//! that cannot be understood is an error, never a gap in the text.

use std::{collections::VecDeque, time::Instant};

use serde_json::Value;

use super::{
    chunk::{self, ChatLogprob, Chunk, ChunkChoice, Delta, Logprobs, ReportedUsage},
    metrics,
    tool_calls::ToolCalls,
};
use hearth_domain::{
    FinishReason, GenerateEvent, GenerateRequest, Timings, TokenLogprob, TopLogprob, Usage, usage::UsageRecord,
};

/// Ends a stream in OpenAI's contract.
pub(super) const LAST_EVENT: &str = "[DONE]";

/// Why a stream cannot continue.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// The upstream reported a failure.
    Reported(Value),
    /// It sent something unintelligible.
    Malformed(String),
}

/// Translates one answer.
#[derive(Debug)]
pub(super) struct Translator {
    upstream: String,
    /// Where usage is recorded as it arrives.
    record: UsageRecord,
    choices: Vec<ChoiceAnswer>,
    wants_echo: bool,
    most_tokens: Option<usize>,
    reported: Option<ReportedUsage>,
    /// Counted here, to check the reported usage and to stand in for it.
    counted: Usage,
    sent_at: Instant,
    first_event_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct ChoiceAnswer {
    calls: ToolCalls,
    has_begun: bool,
    is_finished: bool,
}

impl Translator {
    pub(super) fn new(request: &GenerateRequest, upstream: &str, record: UsageRecord, sent_at: Instant) -> Self {
        let prompt_tokens = request.prompt.estimated_tokens();
        record.set_prompt_tokens(prompt_tokens, 0);
        Self {
            upstream: upstream.to_owned(),
            record,
            choices: (0..request.n).map(|_| ChoiceAnswer::default()).collect(),
            wants_echo: request.echo,
            most_tokens: request.max_tokens.map(|tokens| tokens.saturating_mul(request.n)),
            reported: None,
            counted: Usage { prompt_tokens, ..Usage::default() },
            sent_at,
            first_event_at: None,
        }
    }

    /// Every choice has its finish reason: nothing essential is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.choices.iter().all(|choice| choice.is_finished)
    }

    /// Takes the data of one event other than [`LAST_EVENT`].
    pub(super) fn push(&mut self, data: &str, events: &mut VecDeque<GenerateEvent>) -> Result<(), Fault> {
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            Fault::Malformed(format!("an event of {} bytes is not a chunk ({place})", data.len()))
        })?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(Fault::Reported(error));
        }
        if let Some(usage) = chunk.usage.filter(|usage| !usage.is_null()) {
            // Some upstreams report usage in every chunk: the last one counts.
            self.reported = Some(chunk::usage(&usage));
        }
        let already = events.len();
        let read =
            chunk.choices.unwrap_or_default().into_iter().try_for_each(|choice| self.push_choice(choice, events));
        if self.first_event_at.is_none() && events.len() > already {
            self.first_event_at = Some(Instant::now());
            self.record.set_timings(&self.timings());
            let prompt_tokens = self.counted.prompt_tokens;
            events.push_front(GenerateEvent::Prefilled { prompt_tokens, cached_tokens: 0 });
        }
        read
    }

    fn push_choice(&mut self, chunk: ChunkChoice, events: &mut VecDeque<GenerateEvent>) -> Result<(), Fault> {
        let index = chunk.index;
        let ChunkChoice { delta, text, logprobs, finish_reason, token_ids, .. } = chunk;
        let num_choices = self.choices.len();
        let Some(choice) = self.choices.get_mut(index) else {
            return Err(Fault::Malformed(format!("choice {index} of {num_choices}")));
        };
        let Delta { content, refusal, reasoning_content, reasoning, tool_calls } = delta.unwrap_or_default();
        let mut said = content.or(text).unwrap_or_default();
        said.push_str(&refusal.unwrap_or_default());
        let thought = reasoning_content.filter(|text| !text.is_empty()).or(reasoning).unwrap_or_default();
        let calls = tool_calls.unwrap_or_default();
        let token_ids = token_ids.unwrap_or_default();
        let logprobs = logprobs.map(|logprobs| scores(logprobs, &token_ids)).unwrap_or_default();
        let is_empty = said.is_empty() && thought.is_empty() && calls.is_empty() && logprobs.is_empty();
        if choice.is_finished && !is_empty {
            return Err(Fault::Malformed(format!("choice {index} goes on after its end")));
        }
        if !thought.is_empty() {
            choice.has_begun = true;
            self.counted.completion_tokens += 1;
            self.counted.reasoning_tokens += 1;
            self.record.count_token();
            events.push_back(GenerateEvent::Reasoning { choice: index, text: thought });
        }
        if !said.is_empty() || !logprobs.is_empty() || !token_ids.is_empty() {
            let is_echo = self.wants_echo && !choice.has_begun;
            choice.has_begun = true;
            if is_echo {
                events.push_back(GenerateEvent::Echo { choice: index, text: said, logprobs, token_ids });
            } else {
                // A chunk is one token, unless it says that it is several.
                let tokens = token_ids.len().max(logprobs.len()).max(1);
                self.counted.completion_tokens += tokens;
                (0..tokens).for_each(|_| self.record.count_token());
                events.push_back(GenerateEvent::Delta { choice: index, text: said, logprobs, token_ids });
            }
        }
        for call in calls {
            choice.has_begun = true;
            self.counted.completion_tokens += 1;
            self.record.count_token();
            choice.calls.push(index, call, events).map_err(Fault::Malformed)?;
        }
        if let Some(reason) = finish_reason
            && !choice.is_finished
        {
            if reason == "error" {
                return Err(Fault::Reported(Value::String("the model failed".to_owned())));
            }
            if !choice.calls.are_whole() {
                return Err(Fault::Malformed("a tool call without a name".to_owned()));
            }
            choice.is_finished = true;
            let reason = finish(&reason, !choice.calls.is_empty(), &self.upstream);
            events.push_back(GenerateEvent::Finished { choice: index, reason });
        }
        Ok(())
    }

    /// The last event, once every choice has ended.
    pub(super) fn done(&self) -> GenerateEvent {
        let usage = self.usage();
        let timings = self.timings();
        self.record.set_usage(&usage);
        self.record.set_timings(&timings);
        GenerateEvent::Done { usage, timings }
    }

    /// The time so far. Waiting in the upstream's queue counts as prefill, because it cannot be told apart from here.
    fn timings(&self) -> Timings {
        let now = Instant::now();
        let first = self.first_event_at.unwrap_or(now);
        Timings { prefill: first - self.sent_at, decode: now - first, ..Timings::default() }
    }

    /// The usage that the upstream reports, as it bills that, where it is plausible; otherwise what was counted here.
    fn usage(&self) -> Usage {
        let counted = self.counted;
        let reported = self.reported.unwrap_or_default();
        let said_something = counted.completion_tokens > 0;
        let prompt = reported.prompt_tokens.filter(|&tokens| tokens > 0 || counted.prompt_tokens == 0);
        let completion = reported.completion_tokens.filter(|&tokens| {
            let is_within = self.most_tokens.is_none_or(|most| tokens <= most);
            is_within && (tokens > 0 || !said_something)
        });
        if prompt.is_none() || completion.is_none() {
            metrics::estimated(&self.upstream);
            tracing::warn!(
                upstream = self.upstream,
                reported = ?self.reported,
                counted = ?counted,
                "the upstream's token counts are absent or impossible: this server's own stand in the ledger"
            );
        }
        let prompt_tokens = prompt.unwrap_or(counted.prompt_tokens);
        let completion_tokens = completion.unwrap_or(counted.completion_tokens);
        Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens: reported.cached_tokens.unwrap_or(0).min(prompt_tokens),
            reasoning_tokens: reported.reasoning_tokens.unwrap_or(counted.reasoning_tokens).min(completion_tokens),
        }
    }
}

impl Drop for Translator {
    /// When a stream breaks off or is dropped, the time so far is recorded; its tokens are already.
    fn drop(&mut self) {
        if self.first_event_at.is_none() {
            // Nothing arrived, so there is nothing to charge.
            self.record.set_prompt_tokens(0, 0);
        } else if !self.is_whole() {
            self.record.set_timings(&self.timings());
        }
    }
}

/// A choice's finish reason in the contract's words. Calls that ended by themselves are `tool_calls`, whatever the
/// upstream says.
fn finish(reason: &str, has_calls: bool, upstream: &str) -> FinishReason {
    match reason {
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "content_filter" => FinishReason::ContentFilter,
        _ if has_calls => FinishReason::ToolCalls,
        "stop" | "eos" | "end_turn" | "stop_sequence" => FinishReason::Stop,
        other => {
            tracing::warn!(upstream, reason = other, "an unknown finish_reason is passed on as `stop`");
            FinishReason::Stop
        }
    }
}

/// Scores of either shape. Ids come from the scores themselves, else from the chunk if the counts match.
fn scores(logprobs: Logprobs, token_ids: &[u32]) -> Vec<TokenLogprob> {
    let Logprobs { content, refusal, tokens, token_logprobs, top_logprobs } = logprobs;
    let mut scores: Vec<TokenLogprob> = if let Some(tokens) = tokens {
        let mut logprobs = token_logprobs.unwrap_or_default().into_iter();
        let mut tops = top_logprobs.unwrap_or_default().into_iter();
        tokens
            .into_iter()
            .map(|text| {
                let top = tops.next().flatten().unwrap_or_default();
                let top = top.into_iter().filter_map(|(text, logprob)| {
                    let logprob = narrowed(logprob.as_f64()?);
                    Some(TopLogprob { token_id: 0, bytes: text.clone().into_bytes(), text, logprob })
                });
                TokenLogprob {
                    token_id: 0,
                    bytes: text.clone().into_bytes(),
                    text,
                    logprob: logprobs.next().flatten().map(narrowed),
                    top: top.collect(),
                }
            })
            .collect()
    } else {
        let all = content.unwrap_or_default().into_iter().chain(refusal.unwrap_or_default());
        all.map(chat_score).collect()
    };
    if scores.len() == token_ids.len() {
        for (score, &id) in scores.iter_mut().zip(token_ids) {
            score.token_id = id;
        }
    }
    scores
}

fn chat_score(score: ChatLogprob) -> TokenLogprob {
    let ChatLogprob { id, token, logprob, bytes, top_logprobs } = score;
    let top = top_logprobs.unwrap_or_default().into_iter().map(|top| TopLogprob {
        token_id: top.id.unwrap_or(0),
        bytes: top.bytes.unwrap_or_else(|| top.token.clone().into_bytes()),
        text: top.token,
        logprob: top.logprob.map_or(f32::NEG_INFINITY, narrowed),
    });
    TokenLogprob {
        token_id: id.unwrap_or(0),
        bytes: bytes.unwrap_or_else(|| token.clone().into_bytes()),
        text: token,
        logprob: logprob.map(narrowed),
        top: top.collect(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "precision only: log-probabilities are small")]
fn narrowed(logprob: f64) -> f32 {
    logprob as f32
}
