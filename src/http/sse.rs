//! Server-sent events: from a generation's events to frames.
//!
//! The status line waits until the request has its place in the queue, so a refusal has its own status. From then on,
//! comments break silence, an error becomes an error frame without a `finish_reason` or `[DONE]`, and dropping the
//! body, as when the client disconnects, drops the generation.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use hearth_domain::{Account, GenerateEvent, error::Error, usage::Outcome};
use serde::Serialize;

use super::error::{Ended, error_body, log_failure};
use crate::{providers::GenerateStream, service::chat::ended_early};

/// Turns events into the frames of one contract.
pub(super) trait EventWriter: Send + 'static {
    /// What is sent at the very end, after the frames of [`GenerateEvent::Done`].
    const LAST: &'static [u8] = b"data: [DONE]\n\n";

    /// Writes the frames that come before any event.
    fn begin(&mut self, _frames: &mut Frames) {}

    /// Writes the frames for one event, if it has any. [`GenerateEvent::Done`] is the last.
    fn write(&mut self, event: GenerateEvent, frames: &mut Frames);
}

/// Frames that are ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    /// `data: {json}` and an empty line.
    pub(super) fn push(&mut self, data: &impl Serialize) {
        let start = self.0.len();
        self.0.extend_from_slice(b"data: ");
        if let Err(error) = serde_json::to_writer(&mut self.0, data) {
            // Our own structs always serialize; if one did not, half a frame must not go out.
            self.0.truncate(start);
            tracing::error!("a frame could not be written: {error}");
            return;
        }
        self.0.extend_from_slice(b"\n\n");
    }

    fn push_raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

struct EventBody<W> {
    events: GenerateStream,
    writer: W,
    /// Records how the stream ended.
    account: Arc<Account>,
    keep_alive: Duration,
    begun: bool,
    ended: bool,
}

/// The answer to an admitted, streaming request.
pub(super) fn stream_response<W: EventWriter>(
    events: GenerateStream,
    writer: W,
    account: Arc<Account>,
    keep_alive: Duration,
) -> Response {
    let state = EventBody { events, writer, account, keep_alive, begun: false, ended: false };
    let frames = stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let bytes = state.next_frames().await;
        Some((Ok::<_, std::convert::Infallible>(bytes), state))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<W: EventWriter> EventBody<W> {
    /// Waits until there is something to send.
    async fn next_frames(&mut self) -> Bytes {
        let mut frames = Frames::default();
        if !std::mem::replace(&mut self.begun, true) {
            self.writer.begin(&mut frames);
        }
        while frames.0.is_empty() {
            // A panic here would reset the connection; as an error it reaches the client.
            let next = AssertUnwindSafe(self.events.next()).catch_unwind();
            match tokio::time::timeout(self.keep_alive, next).await {
                Err(_elapsed) => frames.push_raw(b": ping\n\n"),
                Ok(Ok(Some(Ok(event)))) => {
                    self.ended = matches!(event, GenerateEvent::Done { .. });
                    self.writer.write(event, &mut frames);
                    if self.ended {
                        frames.push_raw(W::LAST);
                        // Many clients disconnect at the last frame, without waiting for the end of the body.
                        self.account.set_outcome(Outcome::Finished, None);
                    }
                }
                Ok(Ok(Some(Err(error)))) => self.fail(error, &mut frames),
                Ok(Ok(None)) => self.fail(ended_early(), &mut frames),
                Ok(Err(_panic)) => self.fail(Error::internal(anyhow::anyhow!("the stream panicked")), &mut frames),
            }
        }
        Bytes::from(frames.0)
    }

    fn fail(&mut self, error: Error, frames: &mut Frames) {
        log_failure(&error);
        let Ended { outcome, code } = Ended::by(&error);
        self.account.set_outcome(outcome, code);
        frames.push(&error_body(&error));
        self.ended = true;
    }
}
