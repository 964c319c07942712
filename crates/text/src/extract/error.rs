//! Why a document yielded no text: each error says what is wrong with the file and what its owner can do.

use super::{Format, Limit};

/// What is wrong with one file. It is passed from the child process as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum ExtractError {
    #[error("the file is empty (0 bytes); upload it again if it should not be")]
    Empty,
    /// The file was read, but contains no text.
    #[error("there is no text in this {format}{}", no_text_advice(*format))]
    NoText { format: Format },
    #[error("this {format} is encrypted; remove its password and upload it again")]
    Encrypted { format: Format },
    #[error("this {format} is damaged: {reason}; open it in the program it comes from and save it again")]
    Damaged { format: Format, reason: String },
    /// `found` names what the file is.
    #[error(
        "the file is {found}, which is not supported; supported are plain text, Markdown, HTML, CSV, TSV, JSON, JSON \
         Lines, source code, DOCX, XLSX and PDF, each also packed with gzip"
    )]
    Unsupported { found: String },
    /// `found` is the actual amount, where known.
    #[error("the document is over a limit: {} {limit}, {allowed} are allowed; split it into smaller documents",
        found.map_or_else(|| format!("more than {allowed}"), |found| found.to_string()))]
    OverLimit { limit: Limit, allowed: u64, found: Option<u64> },
    /// The process that read this file, and only this file, ended before it was done.
    #[error("reading this file failed: its reader {how}; the file may be damaged, save it again or convert it to text")]
    Crashed { how: String },
    /// The bytes could not be read at all: a fault of the disk or the machine, not of the document.
    #[error("the file cannot be read: {reason}")]
    Unreadable { reason: String },
    /// The child process could not be started: a fault of the machine, so worth retrying.
    #[error("the reader of documents cannot be started: {reason}")]
    NoReader { reason: String },
}

fn no_text_advice(format: Format) -> &'static str {
    match format {
        Format::Pdf => "; its pages are pictures, as scans are: run text recognition (OCR) over it first",
        _ => "",
    }
}

impl ExtractError {
    #[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
    pub(super) fn unreadable(error: std::io::Error) -> Self {
        Self::Unreadable { reason: error.to_string() }
    }

    pub(super) fn damaged(format: Format, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { format, reason: reason.to_string() }
    }
}
