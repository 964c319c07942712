//! A recorded answer, event by event, for replay.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, StreamExt, stream};
use hearth_domain::{
    Account, GenerateEvent, Timings, TokenLogprob, Usage,
    error::Result,
    usage::{SchemaViolation, ServedBy, UsageRecord},
};

use crate::providers::GenerateStream;

/// A complete answer.
#[derive(Debug)]
pub struct Recorded {
    /// The last is [`GenerateEvent::Done`].
    events: Vec<GenerateEvent>,
    usage: Usage,
    /// See [`UsageMeter::unenforced`](hearth_domain::usage::UsageMeter::unenforced).
    unenforced: Vec<String>,
    violations: Vec<SchemaViolation>,
    bytes: usize,
}

impl Recorded {
    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Replays the events on `account`, whose receipt names `cache` as their source. They report no device time,
    /// because they took none.
    pub fn replay(self: Arc<Self>, account: &Arc<Account>, model: &str, cache: &'static str) -> GenerateStream {
        account.set_cache(cache);
        account.add_unenforced(&self.unenforced);
        account.add_violations(&self.violations);
        let record = account.begin_record(model, ServedBy::Cache(cache));
        record.set_usage(&self.usage);
        let state = (self, 0, record);
        stream::unfold(state, |(recorded, place, record): (Arc<Self>, usize, UsageRecord)| async move {
            let mut event = recorded.events.get(place)?.clone();
            if let GenerateEvent::Done { timings, .. } = &mut event {
                *timings = Timings::default();
            }
            Some((Ok(event), (recorded, place + 1, record)))
        })
        .boxed()
    }
}

/// Records an answer as it streams.
#[derive(Debug)]
pub struct Recorder {
    account: Arc<Account>,
    events: Vec<GenerateEvent>,
    bytes: usize,
    max_bytes: usize,
}

/// The state of a recording after an event.
#[derive(Debug)]
pub enum Progress {
    Going,
    Whole(Arc<Recorded>),
    /// It exceeds the recorder's room.
    TooLong,
}

impl Recorder {
    pub fn new(account: Arc<Account>, max_bytes: usize) -> Self {
        Self { account, events: Vec::new(), bytes: size_of::<Recorded>(), max_bytes }
    }

    pub fn push(&mut self, event: &GenerateEvent) -> Progress {
        self.bytes += event_bytes(event);
        if self.bytes > self.max_bytes {
            self.events = Vec::new();
            return Progress::TooLong;
        }
        self.events.push(event.clone());
        let GenerateEvent::Done { usage, timings: _ } = event else { return Progress::Going };
        let mut events = std::mem::take(&mut self.events);
        events.shrink_to_fit();
        let (unenforced, violations) = (self.account.unenforced(), self.account.violations());
        let held = unenforced.iter().chain(violations.iter().flat_map(|found| [&found.argument, &found.rule]));
        let bytes = self.bytes + held.map(|text| size_of::<String>() + text.len()).sum::<usize>();
        Progress::Whole(Arc::new(Recorded { events, usage: *usage, unenforced, violations, bytes }))
    }
}

fn event_bytes(event: &GenerateEvent) -> usize {
    let held = match event {
        GenerateEvent::Prefilled { .. } | GenerateEvent::Finished { .. } | GenerateEvent::Done { .. } => 0,
        GenerateEvent::Echo { text, logprobs, token_ids, .. }
        | GenerateEvent::Delta { text, logprobs, token_ids, .. } => {
            text.len() + logprobs.iter().map(logprob_bytes).sum::<usize>() + size_of_val(token_ids.as_slice())
        }
        GenerateEvent::Reasoning { text, .. } => text.len(),
        GenerateEvent::ToolCall { id, name, arguments, .. } => {
            let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            length(id) + length(name) + arguments.len()
        }
    };
    size_of::<GenerateEvent>() + held
}

fn logprob_bytes(token: &TokenLogprob) -> usize {
    let TokenLogprob { token_id: _, text, bytes, logprob: _, top } = token;
    let top: usize = top.iter().map(|top| size_of_val(top) + top.text.len() + top.bytes.len()).sum();
    size_of::<TokenLogprob>() + text.len() + bytes.len() + top
}

/// Passes events on as they come and shows them to `watch` until it has seen enough. A stream that fails, ends early or
/// is dropped drops `watch` with it.
pub struct Watched<W> {
    events: GenerateStream,
    watch: Option<W>,
}

impl<W> std::fmt::Debug for Watched<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("is_watched", &self.watch.is_some()).finish_non_exhaustive()
    }
}

impl<W: FnMut(&GenerateEvent) -> bool + Send + Unpin + 'static> Watched<W> {
    /// `watch` says whether it wants more.
    pub fn stream(events: GenerateStream, watch: W) -> GenerateStream {
        Self { events, watch: Some(watch) }.boxed()
    }
}

impl<W: FnMut(&GenerateEvent) -> bool + Unpin> Stream for Watched<W> {
    type Item = Result<GenerateEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_next_unpin(context));
        match (&event, &mut self.watch) {
            (Some(Ok(event)), Some(watch)) => {
                if !watch(event) {
                    self.watch = None;
                }
            }
            _ => self.watch = None,
        }
        Poll::Ready(event)
    }
}
