//! An answer as it streams: packets to events, until the upstream is done, breaks off, or is silent too long.
//!
//! Dropping it closes the connection, which tells the upstream that the caller has left.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::anyhow;
use futures_util::StreamExt;
use hearth_domain::{
    GenerateEvent,
    error::{Error, ErrorKind, Result},
};
use reqwest::{Response, header::CONTENT_TYPE};

use super::{
    answer::{LAST_EVENT, Translator},
    engine::Visit,
    event_decoder::EventDecoder,
    failure::Failure,
    upstream::Upstream,
};
use crate::providers::GenerateStream;

/// How long to wait, once every choice has ended, for the usage and the end of the stream.
const PATIENCE_AFTER_THE_END: Duration = Duration::from_secs(2);

/// A started stream.
pub(super) struct HostedAnswer {
    upstream: Arc<Upstream>,
    response: Option<Response>,
    decoder: EventDecoder,
    translator: Translator,
    /// Translated events that have not been read.
    ready: VecDeque<GenerateEvent>,
    /// Comes after those events.
    failure: Option<Failure>,
    is_over: bool,
    visit: Option<Visit>,
}

impl HostedAnswer {
    /// Waits for the first event of the answer: until then a retry is invisible to the caller.
    pub(super) async fn begin(
        upstream: Arc<Upstream>,
        response: Response,
        translator: Translator,
    ) -> Result<Self, Failure> {
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !media_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
            let message = format!("The hosted upstream `{}` did not answer with a stream.", upstream.name());
            let source = anyhow!("its answer is of type {media_type:?}");
            return Err(Failure::lasting(Error::new(ErrorKind::UpstreamFailed, message).with_source(source)));
        }
        let mut answer = Self {
            upstream,
            response: Some(response),
            decoder: EventDecoder::default(),
            translator,
            ready: VecDeque::new(),
            failure: None,
            is_over: false,
            visit: None,
        };
        while answer.ready.is_empty() {
            match answer.failure.take() {
                Some(failure) => return Err(failure),
                None => answer.advance().await,
            }
        }
        Ok(answer)
    }

    /// The events; how they end is reported to the breaker.
    pub(super) fn into_stream(mut self, visit: Visit) -> GenerateStream {
        self.visit = Some(visit);
        futures_util::stream::unfold(self, |mut answer| async move {
            let event = answer.next().await?;
            Some((event, answer))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<GenerateEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if matches!(event, GenerateEvent::Done { .. })
                    && let Some(visit) = self.visit.take()
                {
                    visit.succeeded();
                }
                return Some(Ok(event));
            }
            if let Some(failure) = self.failure.take() {
                self.is_over = true;
                self.response = None;
                if let Some(visit) = self.visit.take() {
                    if failure.is_upstreams {
                        visit.failed();
                    } else {
                        visit.succeeded();
                    }
                }
                return Some(Err(failure.error));
            }
            if self.is_over {
                return None;
            }
            self.advance().await;
        }
    }

    /// Reads one packet, or handles its absence.
    async fn advance(&mut self) {
        let is_whole = self.translator.is_whole();
        let idle = self.upstream.timeouts().idle;
        let patience = if is_whole { idle.min(PATIENCE_AFTER_THE_END) } else { idle };
        let Some(response) = &mut self.response else { return self.broke_off(None) };
        let mut events = Vec::new();
        match tokio::time::timeout(patience, response.chunk()).await {
            Ok(Ok(Some(packet))) => {
                let decoded = self.decoder.push(&packet, &mut events);
                self.translate(events);
                if let Err(error) = decoded
                    && self.failure.is_none()
                {
                    self.malformed(error.to_string());
                }
            }
            Ok(Ok(None)) => {
                let decoded = self.decoder.finish(&mut events);
                self.translate(events);
                if decoded.is_err() || !self.is_over {
                    self.broke_off(None);
                }
            }
            Ok(Err(error)) => self.broke_off(Some(error)),
            Err(_elapsed) if is_whole => self.finish(),
            Err(_elapsed) => {
                self.failure = Some(Failure::timed_out(self.upstream.name(), "did not go on with its answer", idle));
            }
        }
    }

    fn translate(&mut self, events: Vec<String>) {
        for data in events {
            if self.is_over || self.failure.is_some() {
                return;
            }
            let data = data.trim();
            if data == LAST_EVENT {
                if self.translator.is_whole() {
                    self.finish();
                } else {
                    self.malformed("the stream ends before every choice has".to_owned());
                }
            } else if !data.is_empty()
                && let Err(fault) = self.translator.push(data, &mut self.ready)
            {
                self.failure = Some(Failure::of_stream(&self.upstream, fault));
            }
        }
    }

    fn malformed(&mut self, what: String) {
        self.failure = Some(Failure::of_stream(&self.upstream, super::answer::Fault::Malformed(what)));
    }

    /// No more bytes arrive. Everything essential may have arrived all the same.
    fn broke_off(&mut self, error: Option<reqwest::Error>) {
        if self.is_over || self.failure.is_some() {
            return;
        }
        if self.translator.is_whole() {
            return self.finish();
        }
        self.failure = Some(match error {
            Some(error) => Failure::of_transport(self.upstream.name(), error),
            None => {
                let message = format!("The hosted upstream `{}` broke off its answer.", self.upstream.name());
                Failure::passing(Error::new(ErrorKind::UpstreamFailed, message))
            }
        });
    }

    fn finish(&mut self) {
        self.ready.push_back(self.translator.done());
        self.is_over = true;
        if let Some(mut response) = self.response.take() {
            // A connection whose answer has been read to its end can carry the next request.
            tokio::spawn(async move {
                let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
                // A connection that does not end soon is closed.
                drop(tokio::time::timeout(PATIENCE_AFTER_THE_END, rest).await);
            });
        }
    }
}
