//! One error for the whole server, in two voices: what the caller is told, and what the log is told.
//!
//! It knows nothing of HTTP. `http/error.rs` holds the one map from [`ErrorKind`] to a status, a type and a code; every
//! layer below speaks in kinds. Reuse a kind rather than inventing one. Modules whose failures people act upon (a GGUF
//! file, a template) have their own typed errors and convert them to this one at the boundary of their layer.

use std::{fmt, time::Duration};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with its causes as one sentence. A cause that the message before it already names is left out: our own
/// errors name theirs, most foreign errors do not.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A field is missing, malformed, out of range or not supported. 400
    InvalidRequest,
    /// Prompt plus answer do not fit the context. 400
    ContextLengthExceeded,
    /// No key or a wrong one. 401
    Unauthorized,
    /// A valid key without the required scope. 403
    Forbidden,
    /// No such route. 404
    NotFound,
    /// No such model. 404
    ModelNotFound,
    /// The caller may not use the model. 403
    ModelForbidden,
    /// The route exists, the method does not. 405
    MethodNotAllowed,
    /// The resource is not in a state that allows the request. 409
    Conflict,
    /// The client did not deliver its request in time. 408
    RequestTimeout,
    /// The request's head is over the limit. 431
    HeadTooLarge,
    /// The body is over the limit. 413
    PayloadTooLarge,
    /// Not JSON where JSON is needed. 415
    UnsupportedMediaType,
    /// The caller is over a request limit; waiting helps. 429
    RateLimited,
    /// The caller is over a token limit; waiting helps. 429
    TokensLimited,
    /// The caller's budget is used up. 429; retrying soon does not help
    QuotaExceeded,
    /// The queue is full. 503, retry
    Overloaded,
    /// Something that the request needs does not work. 503
    Unavailable,
    /// The model is still loading. 503, retry
    ModelLoading,
    /// The model could not be loaded, or has failed. 503, and no wait helps
    ModelFailed,
    /// A hosted upstream failed so often that it is not asked for now. 503, retry
    BreakerOpen,
    /// The server is shutting down. 503
    Draining,
    /// Not enough memory for this request now. 503
    OutOfMemory,
    /// The disk, or the caller's quota, has no room for the data to store. 507
    InsufficientStorage,
    /// The request's deadline passed. 504
    DeadlineExceeded,
    /// A hosted upstream failed or could not be reached. 502
    UpstreamFailed,
    /// A hosted upstream did not answer in time. 504
    UpstreamTimeout,
    /// A bug or a fault of the machine. 500
    Internal,
}

/// See the module's documentation.
pub struct Error {
    kind: ErrorKind,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
    is_lasting: bool,
    /// `(prompt tokens, context length)`, for [`ErrorKind::ContextLengthExceeded`].
    context: Option<(usize, usize)>,
    source: Option<anyhow::Error>,
}

impl Error {
    /// `message` is for the caller: what was wrong, where, and what to do next.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            is_lasting: false,
            context: None,
            source: None,
        }
    }

    /// A field of the request is wrong; `param` is its path, such as `messages[2].role`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message).with_param(param)
    }

    /// Prompt and answer do not fit; the caller is told both numbers.
    pub fn context_length_exceeded(prompt_tokens: usize, context_length: usize, param: &str) -> Self {
        let mut error = Self::new(
            ErrorKind::ContextLengthExceeded,
            format!(
                "This model's maximum context length is {context_length} tokens, but the prompt has {prompt_tokens} tokens \
                 and needs room for at least one more. Shorten the prompt or start the server with a larger --ctx-size."
            ),
        )
        .with_param(param);
        error.context = Some((prompt_tokens, context_length));
        error
    }

    /// A fault the caller cannot fix: the log gets the cause, the caller a generic sentence.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        let mut error = Self::new(ErrorKind::Internal, "The server failed on this request; its log has the cause.");
        error.source = Some(source.into());
        error
    }

    /// The model will be available soon.
    pub fn model_loading() -> Self {
        Self::new(ErrorKind::ModelLoading, "The model is still loading; try again shortly.")
            .with_retry_after(Duration::from_secs(2))
    }

    /// The model cannot be used, for this reason.
    pub fn model_failed(reason: &str) -> Self {
        Self::new(ErrorKind::ModelFailed, format!("The model cannot be used: {reason}"))
    }

    /// Appends a sentence for the caller.
    pub fn with_note(mut self, note: &str) -> Self {
        self.message = format!("{} {note}", self.message);
        self
    }

    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// `(tokens, limit)` of a text that does not fit, for errors with their own message.
    pub fn with_context(mut self, tokens: usize, limit: usize) -> Self {
        self.context = Some((tokens, limit));
        self
    }

    /// The machine-readable code, where the kind's own is not precise enough.
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same request would be refused again, however late it is retried.
    pub fn lasting(mut self) -> Self {
        self.is_lasting = true;
        self
    }

    /// The cause for the log, in addition to the message.
    pub fn with_source(mut self, source: impl Into<anyhow::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether waiting does not help.
    pub fn is_lasting(&self) -> bool {
        self.is_lasting || self.kind == ErrorKind::QuotaExceeded
    }

    /// `(prompt tokens, context length)` of a prompt that did not fit.
    pub fn context(&self) -> Option<(usize, usize)> {
        self.context
    }

    /// The cause, which the caller is not told.
    pub fn internal_source(&self) -> Option<&anyhow::Error> {
        self.source.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if let Some(param) = &self.param {
            write!(f, " (param {param})")?;
        }
        if let Some(source) = &self.source {
            write!(f, "; cause: {source:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let error =
            anyhow::anyhow!("name not known").context("refused").context("no connection: refused").context("top");
        assert_eq!(sentence(&error), "top: no connection: refused: name not known");
    }
}
