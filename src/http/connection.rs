//! One TCP connection, guarded against clients that hold it without using it.
//!
//! hyper's own header timeout starts once it knows the protocol, which it learns from the first bytes, and it never
//! notices a client that stops reading. So the stream itself times out when the first bytes do not arrive or a write
//! makes no progress. The number of connections is limited here too.

use std::{
    future::{Future, Ready, ready},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_server::accept::Accept;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

use super::settings::HttpSettings;

/// Accepts connections up to the limit and guards them.
#[derive(Clone, Debug)]
pub(super) struct GuardedAcceptor {
    permits: Arc<Semaphore>,
    first_bytes_timeout: Duration,
    write_timeout: Duration,
}

impl GuardedAcceptor {
    pub(super) fn new(settings: &HttpSettings) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            first_bytes_timeout: settings.header_read_timeout,
            write_timeout: settings.write_timeout,
        }
    }
}

impl<S> Accept<TcpStream, S> for GuardedAcceptor {
    type Stream = GuardedStream<TcpStream>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::warn!("connection closed: the limit of connections is reached");
            return ready(Err(io::Error::other("the limit of connections is reached")));
        };
        // Tokens are small writes that must not wait for one another.
        if let Err(error) = stream.set_nodelay(true) {
            return ready(Err(error));
        }
        let guarded = GuardedStream::new(stream, self.first_bytes_timeout, self.write_timeout, Some(permit));
        ready(Ok((guarded, service)))
    }
}

/// Long enough to tell HTTP/2's preface (`PRI * HTTP/2.0...`) from any other first line.
const PREFACE_BYTES: usize = 24;

/// A stream that fails with `TimedOut` when the peer stalls.
#[derive(Debug)]
pub(super) struct GuardedStream<S> {
    inner: S,
    /// Runs until the protocol is known.
    first_bytes: Option<Pin<Box<Sleep>>>,
    bytes_read: usize,
    write_timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> GuardedStream<S> {
    fn new(inner: S, first_bytes: Duration, write_timeout: Duration, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            inner,
            first_bytes: Some(Box::pin(sleep(first_bytes))),
            bytes_read: 0,
            write_timeout,
            stalled: None,
            _permit: permit,
        }
    }

    /// Passes on a write's result, unless the write has waited for too long.
    fn watch_write<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let timeout = self.write_timeout;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(context, buffer);
        let Some(timer) = this.first_bytes.as_mut() else { return polled };
        match polled {
            Poll::Pending => match timer.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came"))),
                Poll::Pending => Poll::Pending,
            },
            ready => {
                let fresh = &buffer.filled()[before..];
                // A first line that does not begin with `P` cannot be the preface.
                let is_other = this.bytes_read == 0 && fresh.first().is_some_and(|first| *first != b'P');
                this.bytes_read += fresh.len();
                if is_other || this.bytes_read >= PREFACE_BYTES {
                    this.first_bytes = None;
                }
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch_write(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.watch_write(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.watch_write(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch_write(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_at_the_start_ends_the_connection() {
        let (client, server) = tokio::io::duplex(64);
        let mut guarded = GuardedStream::new(server, Duration::from_secs(30), Duration::from_secs(30), None);
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_without_its_end_ends_the_connection() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI * HTTP").await.unwrap();
        let mut guarded = GuardedStream::new(server, Duration::from_secs(30), Duration::from_secs(30), None);
        let mut buffer = [0; 64];
        assert_eq!(guarded.read(&mut buffer).await.unwrap(), 10);
        assert_eq!(guarded.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_dropped_and_one_that_does_is_not() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut guarded = GuardedStream::new(server, Duration::from_secs(30), Duration::from_secs(30), None);
        let error = guarded.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let mut buffer = [0; 16];
        client.read_exact(&mut buffer).await.unwrap();
        guarded.write_all(&[0; 16]).await.unwrap();
    }
}
