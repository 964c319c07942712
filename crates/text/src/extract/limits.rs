//! How much of a document is read: each limit has a name, a default and a unit, and errors name the limit.

use std::{fmt, time::Duration};

/// How much a document may contain and how much reading it may cost.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Extracted text of all blocks, in bytes of UTF-8.
    pub text_bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Pages of a PDF.
    pub pages: u64,
    /// Files inside an Office document.
    pub archive_entries: u64,
    /// Bytes inside an Office document, unpacked.
    pub archive_bytes: u64,
    /// Ratio of unpacked to packed bytes, for entries above one MiB.
    pub archive_ratio: u64,
    /// Memory that the child process may map beyond what it starts with, in bytes.
    pub memory_bytes: u64,
    /// Wall-clock time for the child process.
    pub wall_time: Duration,
    /// CPU time for the child process, in whole seconds.
    pub cpu_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            file_bytes: 100 * MIB,
            text_bytes: 64 * MIB,
            blocks: 1_000_000,
            pages: 20_000,
            archive_entries: 20_000,
            archive_bytes: 512 * MIB,
            archive_ratio: 250,
            memory_bytes: 1024 * MIB,
            wall_time: Duration::from_secs(300),
            cpu_time: Duration::from_secs(120),
        }
    }
}

/// The limit that a document exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Size of the file, in bytes.
    FileBytes,
    /// Extracted text, in bytes.
    TextBytes,
    /// Number of blocks.
    Blocks,
    /// Number of pages.
    Pages,
    /// Files inside an Office document.
    ArchiveEntries,
    /// Bytes inside an Office document, unpacked.
    ArchiveBytes,
    /// Ratio of unpacked to packed bytes.
    ArchiveRatio,
    /// Nesting depth of elements.
    Depth,
    /// Memory of the child process, in bytes.
    Memory,
    /// Wall-clock seconds.
    WallSeconds,
    /// CPU seconds.
    CpuSeconds,
    /// Bytes of the child process's answer.
    AnswerBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileBytes => "bytes in the file",
            Self::TextBytes => "bytes of text",
            Self::Blocks => "headings, paragraphs and rows",
            Self::Pages => "pages",
            Self::ArchiveEntries => "files inside the document",
            Self::ArchiveBytes => "unpacked bytes",
            Self::ArchiveRatio => "unpacked bytes for each packed one",
            Self::Depth => "levels of elements inside one another",
            Self::Memory => "bytes of memory to read it",
            Self::WallSeconds => "seconds to read it",
            Self::CpuSeconds => "seconds of processor time to read it",
            Self::AnswerBytes => "bytes of extracted document",
        })
    }
}
