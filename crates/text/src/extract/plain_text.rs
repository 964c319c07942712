//! Text without markup: blank lines separate paragraphs.

use super::{
    ExtractError,
    document::{BlockKind, DocumentBuilder, SourceLocation},
};

pub(super) fn read(text: &str, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let mut paragraph = String::new();
    let mut first = 0;
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            builder.push(BlockKind::Paragraph, &paragraph, SourceLocation::lines(first, last))?;
            paragraph.clear();
            continue;
        }
        if paragraph.is_empty() {
            first = index + 1;
        } else {
            paragraph.push('\n');
        }
        last = index + 1;
        paragraph.push_str(line.trim_end());
    }
    builder.push(BlockKind::Paragraph, &paragraph, SourceLocation::lines(first, last))
}
