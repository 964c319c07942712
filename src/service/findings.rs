//! Findings about an answer from documents, filled in while it is generated.

use std::sync::OnceLock;

/// See the module. Complete when the last event of the answer has arrived.
#[derive(Debug, Default)]
pub struct Findings {
    /// Empty unless it was requested.
    pub confidence: OnceLock<Confidence>,
    /// Sentences that a model wrote and that no passage supports. Empty if nothing was written, or if the check failed.
    pub unsupported: OnceLock<Vec<String>>,
}

/// How far the passages answer the question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    /// 0 to 1.
    pub value: f32,
    /// Whether the model's rating could be parsed; otherwise the value means nothing.
    pub is_rated: bool,
}
