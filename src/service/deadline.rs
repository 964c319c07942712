//! The server's own deadline for every request's futures and streams.
//!
//! The engine knows the deadline too and releases the sequence's blocks by itself; this one also covers everything
//! between the caller and the engine.

use std::{future::Future, time::Instant};

use futures_util::{StreamExt, stream};
use hearth_domain::error::{Error, ErrorKind, Result};

use crate::providers::GenerateStream;

fn passed() -> Error {
    Error::new(
        ErrorKind::DeadlineExceeded,
        "The request took longer than its deadline. Ask for fewer tokens, or raise `timeout` or the server's limit.",
    )
}

/// Ends a future at the deadline.
pub async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        Some(deadline) => {
            tokio::time::timeout_at(deadline.into(), future).await.unwrap_or_else(|_elapsed| Err(passed()))
        }
        None => future.await,
    }
}

/// Ends a stream at the deadline with an error.
pub fn bounded(events: GenerateStream, deadline: Option<Instant>) -> GenerateStream {
    let Some(deadline) = deadline else { return events };
    stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        match tokio::time::timeout_at(deadline.into(), events.next()).await {
            Ok(Some(event)) => Some((event, Some(events))),
            Ok(None) => None,
            Err(_elapsed) => Some((Err(passed()), None)),
        }
    })
    .boxed()
}
