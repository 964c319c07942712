//! What is found out about an answer from documents while it is given.

use std::sync::OnceLock;

/// See the module. Complete when the last event of the answer has come.
#[derive(Debug, Default)]
pub struct Findings {
    /// Empty unless it was asked for.
    pub confidence: OnceLock<Confidence>,
    /// Sentences that a model wrote and that no passage supports. Empty where nothing was written, or where the check failed.
    pub unsupported: OnceLock<Vec<String>>,
}

/// How far the passages answer the question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    /// 0 to 1.
    pub value: f32,
    /// Whether the model's rating could be understood; otherwise the value says nothing.
    pub is_rated: bool,
}
