//! The result of extraction: a document as a list of blocks in reading order, and the builder that keeps it within its
//! limits.

use std::sync::Arc;

use super::{ExtractError, Format, Limit, Limits};

/// A document's text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extracted {
    pub format: Format,
    /// The document's own title, if it has one.
    pub title: Option<String>,
    /// In reading order; at least one, none of them blank.
    pub blocks: Vec<Block>,
    /// Parts that could not be read, such as a page of a PDF, and why; one sentence each.
    pub skipped: Vec<String>,
}

/// A piece of text that forms a unit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Block {
    #[serde(flatten)]
    pub kind: BlockKind,
    pub text: String,
    #[serde(default)]
    pub place: SourceLocation,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BlockKind {
    /// 1 is the highest level, 9 the lowest.
    Heading {
        level: u8,
    },
    Paragraph,
    ListItem,
    /// One row, with the column names where there are any: `name: value | name: value`.
    TableRow,
    /// Lines that keep their indentation.
    Code {
        language: Option<Arc<str>>,
    },
}

/// Where in the file a block is, as far as the format provides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceLocation {
    /// Counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// A spreadsheet's sheet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sheet: Option<Arc<str>>,
    /// Lines of a text, or rows of a sheet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<LineRange>,
}

/// Lines counted from 1, inclusive at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LineRange {
    pub first: u32,
    pub last: u32,
}

impl SourceLocation {
    pub(super) fn page(page: usize) -> Self {
        Self { page: Some(saturated(page)), ..Self::default() }
    }

    pub(super) fn lines(first: usize, last: usize) -> Self {
        Self { lines: Some(LineRange { first: saturated(first), last: saturated(last) }), ..Self::default() }
    }
}

fn saturated(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Parts named in [`Extracted::skipped`]; the others are only counted.
const SKIPPED_NAMED: usize = 20;

/// Collects blocks, cleans their text, and refuses a document as soon as it exceeds its limits.
#[derive(Debug)]
pub(super) struct DocumentBuilder<'l> {
    format: Format,
    limits: &'l Limits,
    title: Option<String>,
    blocks: Vec<Block>,
    text_bytes: u64,
    skipped: Vec<String>,
    skipped_unnamed: usize,
}

impl<'l> DocumentBuilder<'l> {
    pub fn new(format: Format, limits: &'l Limits) -> Self {
        Self { format, limits, title: None, blocks: Vec::new(), text_bytes: 0, skipped: Vec::new(), skipped_unnamed: 0 }
    }

    pub fn limits(&self) -> &'l Limits {
        self.limits
    }

    /// Sets the title; the first one that is not blank is kept.
    pub fn set_title(&mut self, title: &str) {
        let title = one_line(title);
        if self.title.is_none() && !title.is_empty() {
            self.title = Some(title.chars().take(300).collect());
        }
    }

    pub fn skip(&mut self, what: String) {
        if self.skipped.len() < SKIPPED_NAMED {
            self.skipped.push(what);
        } else {
            self.skipped_unnamed += 1;
        }
    }

    /// Adds a block; blank blocks are skipped. A heading is put on one line.
    pub fn push(&mut self, kind: BlockKind, text: &str, place: SourceLocation) -> Result<(), ExtractError> {
        let text = match kind {
            BlockKind::Heading { .. } => one_line(text),
            BlockKind::Code { .. } => cleaned(text).trim_start_matches('\n').trim_end().to_owned(),
            _ => cleaned(text).trim().to_owned(),
        };
        if text.trim().is_empty() {
            return Ok(());
        }
        self.text_bytes += text.len() as u64;
        if self.text_bytes > self.limits.text_bytes {
            return Err(ExtractError::OverLimit {
                limit: Limit::TextBytes,
                allowed: self.limits.text_bytes,
                found: None,
            });
        }
        if self.blocks.len() as u64 >= self.limits.blocks {
            return Err(ExtractError::OverLimit { limit: Limit::Blocks, allowed: self.limits.blocks, found: None });
        }
        // The first bookmark of a PDF is its first chapter, not its title.
        if matches!(kind, BlockKind::Heading { level: 1 }) && self.format != Format::Pdf {
            self.set_title(&text);
        }
        self.blocks.push(Block { kind, text, place });
        Ok(())
    }

    /// The document, unless it contains no text.
    pub fn finish(mut self) -> Result<Extracted, ExtractError> {
        if self.skipped_unnamed > 0 {
            self.skipped.push(format!("and {} more parts", self.skipped_unnamed));
        }
        if self.blocks.is_empty() {
            return Err(match self.skipped.into_iter().next() {
                Some(reason) => ExtractError::Damaged { format: self.format, reason },
                None => ExtractError::NoText { format: self.format },
            });
        }
        Ok(Extracted { format: self.format, title: self.title, blocks: self.blocks, skipped: self.skipped })
    }
}

/// Normalizes line endings to `\n` and removes control characters, which would otherwise reach prompts, terminals and
/// logs.
fn cleaned(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\r' if characters.peek() == Some(&'\n') => {}
            '\r' | '\u{0B}' | '\u{0C}' | '\u{85}' | '\u{2028}' | '\u{2029}' => clean.push('\n'),
            '\n' | '\t' => clean.push(character),
            // A soft hyphen marks a possible word break and is not part of the word.
            '\u{AD}' | '\u{FEFF}' => {}
            _ if character.is_control() => {}
            _ => clean.push(character),
        }
    }
    clean
}

/// The words, separated by single spaces.
pub(super) fn one_line(text: &str) -> String {
    let clean = cleaned(text);
    let mut line = String::with_capacity(clean.len());
    for word in clean.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// Rows of a table in any format: the first row supplies the column names if it looks like names.
#[derive(Debug, Default)]
pub(super) struct TableRows {
    first: Option<(Vec<String>, SourceLocation)>,
    names: Option<Vec<String>>,
    seen: usize,
}

impl TableRows {
    pub fn push(
        &mut self,
        mut cells: Vec<String>,
        place: SourceLocation,
        builder: &mut DocumentBuilder<'_>,
    ) -> Result<(), ExtractError> {
        for cell in &mut cells {
            *cell = one_line(cell);
        }
        while cells.last().is_some_and(String::is_empty) {
            cells.pop();
        }
        if cells.is_empty() {
            return Ok(());
        }
        self.seen += 1;
        if self.seen == 1 {
            self.first = Some((cells, place));
            return Ok(());
        }
        if let Some((first, first_place)) = self.first.take() {
            if looks_like_names(&first) {
                self.names = Some(first);
            } else {
                builder.push(BlockKind::TableRow, &joined(&first, None), first_place)?;
            }
        }
        builder.push(BlockKind::TableRow, &joined(&cells, self.names.as_deref()), place)
    }

    /// A table with a single row becomes that row.
    pub fn finish(self, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
        match self.first {
            Some((cells, place)) => builder.push(BlockKind::TableRow, &joined(&cells, None), place),
            None => Ok(()),
        }
    }
}

/// Names are short, non-empty, distinct and not numbers.
fn looks_like_names(cells: &[String]) -> bool {
    let is_name = |cell: &String| {
        !cell.is_empty() && cell.len() <= 100 && cell.parse::<f64>().is_err() && !starts_like_date(cell)
    };
    let mut sorted: Vec<&str> = cells.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    cells.len() > 1 && cells.iter().all(is_name) && sorted.windows(2).all(|pair| pair[0] != pair[1])
}

fn starts_like_date(cell: &str) -> bool {
    cell.len() >= 8 && cell.bytes().take(4).all(|byte| byte.is_ascii_digit()) && cell.as_bytes()[4] == b'-'
}

fn joined(cells: &[String], names: Option<&[String]>) -> String {
    let mut row = String::new();
    for (column, cell) in cells.iter().enumerate() {
        if cell.is_empty() {
            continue;
        }
        if !row.is_empty() {
            row.push_str(" | ");
        }
        if let Some(name) = names.and_then(|names| names.get(column)) {
            row.push_str(name);
            row.push_str(": ");
        }
        row.push_str(cell);
    }
    row
}
