//! Markdown, read with pulldown-cmark: headings, paragraphs, list items, tables and fenced code, each with its lines.
//! Emphasis and link targets are dropped; front matter is kept as it is.

use std::{ops::Range, sync::Arc};

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::{
    ExtractError,
    document::{BlockKind, DocumentBuilder, SourceLocation, TableRows},
};

/// Maps byte offsets of a text to lines.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// Lines of a byte range, without trailing blank space.
    fn place(&self, text: &str, range: &Range<usize>) -> SourceLocation {
        let end = range.start + text[range.clone()].trim_end().len();
        let line = |at: usize| self.0.partition_point(|newline| *newline < at) + 1;
        SourceLocation::lines(line(range.start), line(end.max(range.start + 1) - 1))
    }
}

/// The text being collected, and its range.
#[derive(Default)]
struct Collecting {
    text: String,
    range: Option<Range<usize>>,
}

impl Collecting {
    fn add(&mut self, text: &str, range: &Range<usize>) {
        self.text.push_str(text);
        match &mut self.range {
            Some(all) => all.end = all.end.max(range.end),
            None => self.range = Some(range.clone()),
        }
    }
}

pub(super) fn read(text: &str, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let lines = Lines::of(text);
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut current = Collecting::default();
    let mut kind = BlockKind::Paragraph;
    let mut list_depth = 0_usize;
    let mut table = TableRows::default();
    let mut cells: Vec<String> = Vec::new();
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        let mut flush = |kind: &BlockKind, current: &mut Collecting| {
            let collected = std::mem::take(current);
            let place = collected.range.map(|range| lines.place(text, &range)).unwrap_or_default();
            builder.push(kind.clone(), &collected.text, place)
        };
        match event {
            Event::Start(tag @ (Tag::Heading { .. } | Tag::CodeBlock(_) | Tag::MetadataBlock(_) | Tag::Item)) => {
                flush(&kind, &mut current)?;
                kind = opened_by(&tag);
            }
            Event::Start(Tag::List(_)) => {
                flush(&kind, &mut current)?;
                list_depth += 1;
                kind = BlockKind::ListItem;
            }
            Event::End(TagEnd::List(_)) => {
                flush(&kind, &mut current)?;
                list_depth -= 1;
                kind = around(list_depth);
            }
            Event::End(
                TagEnd::Heading(_)
                | TagEnd::Paragraph
                | TagEnd::CodeBlock
                | TagEnd::MetadataBlock(_)
                | TagEnd::Item
                | TagEnd::HtmlBlock
                | TagEnd::FootnoteDefinition,
            ) => {
                flush(&kind, &mut current)?;
                kind = around(list_depth);
            }
            Event::Start(Tag::Table(_)) => {
                flush(&kind, &mut current)?;
                table = TableRows::default();
            }
            Event::End(TagEnd::TableCell) => cells.push(std::mem::take(&mut current).text),
            Event::End(TagEnd::TableHead | TagEnd::TableRow) => {
                table.push(std::mem::take(&mut cells), lines.place(text, &range), builder)?;
            }
            Event::End(TagEnd::Table) => std::mem::take(&mut table).finish(builder)?,
            Event::Text(piece) | Event::Code(piece) | Event::InlineMath(piece) | Event::DisplayMath(piece) => {
                current.add(&piece, &range);
            }
            // HTML inside Markdown: the visible text between the tags arrives as text events.
            Event::Html(piece) => current.add(&without_tags(&piece), &range),
            Event::InlineHtml(_) | Event::Rule => {}
            Event::SoftBreak | Event::HardBreak => current.add("\n", &range),
            Event::FootnoteReference(name) => current.add(&format!("[^{name}]"), &range),
            Event::TaskListMarker(done) => current.add(if done { "[x] " } else { "[ ] " }, &range),
            Event::Start(_) | Event::End(_) => {}
        }
    }
    let place = current.range.map(|range| lines.place(text, &range)).unwrap_or_default();
    builder.push(kind, &current.text, place)
}

/// The kind of block that a tag opens.
fn opened_by(tag: &Tag<'_>) -> BlockKind {
    match tag {
        Tag::Heading { level, .. } => BlockKind::Heading { level: level_number(*level) },
        Tag::CodeBlock(CodeBlockKind::Fenced(info)) => {
            let language = info.split([' ', ',', '{']).next().filter(|name| !name.is_empty());
            BlockKind::Code { language: language.map(Arc::from) }
        }
        Tag::CodeBlock(CodeBlockKind::Indented) | Tag::MetadataBlock(_) => BlockKind::Code { language: None },
        Tag::Item => BlockKind::ListItem,
        _ => BlockKind::Paragraph,
    }
}

fn around(list_depth: usize) -> BlockKind {
    if list_depth > 0 { BlockKind::ListItem } else { BlockKind::Paragraph }
}

fn level_number(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

fn without_tags(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for character in html.chars() {
        match character {
            '<' => inside = true,
            '>' if inside => inside = false,
            _ if !inside => text.push(character),
            _ => {}
        }
    }
    text
}

/// Whether a text without a telling file name is Markdown: two headings, or one and a code fence. Script comments look
/// like headings too, but are adjacent to other lines.
pub(super) fn is_evident(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().take(400).collect();
    let is_blank = |index: Option<usize>| index.and_then(|at| lines.get(at)).is_none_or(|line| line.trim().is_empty());
    let is_heading = |line: &str| {
        let marks = line.bytes().take_while(|byte| *byte == b'#').count();
        (1..=6).contains(&marks) && line[marks..].starts_with(' ')
    };
    let headings = lines
        .iter()
        .enumerate()
        .filter(|(at, line)| is_heading(line) && is_blank(at.checked_sub(1)) && is_blank(Some(at + 1)))
        .count();
    let fences = lines.iter().filter(|line| line.starts_with("```")).count();
    headings >= 2 || (headings == 1 && fences >= 2)
}
