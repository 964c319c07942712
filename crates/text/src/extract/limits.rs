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

/// Processor time that a file of any size may take.
const CPU_TIME_MIN: Duration = Duration::from_secs(15);
/// Further processor time for each MiB: several times what the slowest format takes on a slow machine.
const CPU_TIME_PER_MIB: Duration = Duration::from_secs(20);

impl Limits {
    /// These limits for a file of this many bytes: a small file that takes long to read is broken or hostile, and must not hold
    /// up the others for as long as a large one may.
    #[must_use]
    pub(super) fn for_file(&self, bytes: u64) -> Self {
        let earned = CPU_TIME_PER_MIB.mul_f64(bytes as f64 / (1 << 20) as f64);
        let cpu_time = CPU_TIME_MIN.saturating_add(earned).min(self.cpu_time);
        Self { cpu_time, ..self.clone() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_with_the_file_up_to_the_limit() {
        let limits = Limits { cpu_time: Duration::from_secs(60), ..Limits::default() };
        let seconds = |bytes| limits.for_file(bytes).cpu_time.as_secs();
        assert_eq!([0, 1 << 20, 3 << 20, u64::MAX].map(seconds), [15, 35, 60, 60]);
        let short = Limits { cpu_time: Duration::from_secs(2), ..Limits::default() };
        assert_eq!(short.for_file(0).cpu_time.as_secs(), 2, "a lower limit holds");
    }
}
