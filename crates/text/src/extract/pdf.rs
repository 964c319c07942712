//! PDF, read with `pdfboss`: the paragraphs, list items and table rows of each page in reading order (column by
//! column), and headings where the document's outline (its bookmarks) or a number such as 4.2 marks a line as one.
//!
//! A hostile file can exhaust the reader's stack or memory, which ends its process; [`super::sandbox`] runs it in a
//! process that may die.

use std::collections::HashMap;

use pdfboss_core::{
    Destination, DestinationPage, Document, Error as PdfError, Immediate, ObjRef, OcState, OutlineItem, StructureTree,
    block_on,
};
use pdfboss_output::{
    Block, Cell, FontCache, LayoutOptions, Line, ListItem, Marker, PageLayout, ReadingOrder, page_layout_opts,
    retain_rulings_on_page, retain_spans_on_page, structure_for,
};
use pdfboss_text::extract_spans_and_rulings_reporting_cached_with;

use super::{
    ExtractError, Format, Limit,
    document::{BlockKind, DocumentBuilder, SourceLocation},
};

/// Bullet characters in front of list items.
const BULLETS: [char; 9] = ['•', '◦', '▪', '‣', '●', '○', '■', '–', '·'];

/// A line longer than this, in bytes, is not a heading.
const MAX_HEADING: usize = 150;

/// Maximum number of bookmarks that are read.
const MAX_BOOKMARKS: usize = 20_000;

pub(super) fn read(bytes: Vec<u8>, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    // Many documents are encrypted with an empty password, which only prohibits changes; `load` tries it.
    let document = Document::load(bytes).map_err(|error| failed(&error))?;
    if document.is_locked() {
        return Err(ExtractError::Encrypted { format: Format::Pdf });
    }
    // The page count stated in the file may be any number; only the pages that exist count.
    let claimed = document.page_count();
    let pages = document.flattened_page_count();
    if pages == 0 {
        return Err(ExtractError::damaged(Format::Pdf, "it has no pages; was it cut off?"));
    }
    if claimed > pages {
        builder.skip(format!("{} of {claimed} pages are not in the file", claimed - pages));
    }
    if pages as u64 > builder.limits().pages {
        return Err(ExtractError::OverLimit {
            limit: Limit::Pages,
            allowed: builder.limits().pages,
            found: Some(pages as u64),
        });
    }
    let mut outline = Outline::of(document.outline(), &PageNumbers::of(&document, pages));
    let reader = PageReader::of(&document);
    for page in 0..pages {
        match reader.page(page) {
            Ok(PageText { text, missing }) => {
                if let Some(missing) = missing {
                    builder.skip(format!("page {}: {missing}", page + 1));
                }
                read_page(&text, page, &mut outline, builder)?;
            }
            Err(error) => builder.skip(format!("page {} cannot be read: {error}", page + 1)),
        }
    }
    Ok(())
}

/// The author's order if the document is tagged, otherwise the order of the page's content.
const ORDER: ReadingOrder = ReadingOrder::StructureTree;

/// What the pages of a document share and is costly to read for each page.
struct PageReader<'d> {
    document: &'d Document,
    fonts: FontCache,
    layers: Option<OcState>,
    structure: Option<StructureTree>,
}

struct PageText {
    /// Lines, with a blank line between blocks and a bullet in front of each list item.
    text: String,
    /// Which part of the page could not be read, and why.
    missing: Option<String>,
}

impl<'d> PageReader<'d> {
    fn of(document: &'d Document) -> Self {
        Self {
            document,
            fonts: FontCache::default(),
            layers: document.oc_state(),
            structure: structure_for(document, ORDER),
        }
    }

    fn page(&self, page: usize) -> Result<PageText, PdfError> {
        let page = self.document.page(page)?;
        let (mut spans, mut rulings, report) = block_on(extract_spans_and_rulings_reporting_cached_with(
            Immediate(self.document),
            &page,
            &self.fonts,
            self.layers.as_ref(),
            self.structure.as_ref(),
            ORDER,
        ))?;
        retain_spans_on_page(&mut spans, &page);
        retain_rulings_on_page(&mut rulings, &page);
        let text = text_of(&page_layout_opts(&spans, &rulings, report.order, &LayoutOptions::default()));
        let missing = report.skipped.first().map(|first| {
            let others = match report.skipped.len() - 1 {
                0 => String::new(),
                others => format!(", and {others} more"),
            };
            format!("{}: {}{others}", first.kind, first.cause)
        });
        Ok(PageText { text, missing })
    }
}

fn text_of(layout: &PageLayout) -> String {
    let mut text = String::new();
    for block in &layout.blocks {
        match block {
            Block::Heading { lines, .. } | Block::Paragraph { lines, .. } => {
                push_line(&mut text, &joined(lines.iter().map(text_of_line)));
            }
            Block::List { items, .. } => {
                for item in items {
                    push_line(&mut text, &text_of_item(item));
                }
            }
            Block::Table { rows, .. } => {
                for row in rows {
                    push_line(&mut text, &joined_cells(row));
                }
            }
        }
        text.push('\n');
    }
    text
}

/// A list item. Any kind of bullet is replaced by one that [`read_page`] recognizes; a label with a meaning, such as
/// `(b)` or `4.2`, stays.
fn text_of_item(item: &ListItem) -> String {
    let Some((first, rest)) = item.lines.split_first() else { return String::new() };
    let raw: String = first.inlines.iter().map(|inline| inline.text.as_str()).collect();
    let marker: String = raw.chars().take(item.marker_len).collect();
    if !matches!(item.marker, Marker::Bullet) || marker.chars().any(char::is_alphanumeric) {
        return joined(item.lines.iter().map(text_of_line));
    }
    let first = raw.chars().skip(item.marker_len).collect::<String>().trim().to_owned();
    format!("• {}", joined(std::iter::once(first).chain(rest.iter().map(text_of_line))))
}

fn push_line(text: &mut String, line: &str) {
    if !line.is_empty() {
        text.push_str(line);
        text.push('\n');
    }
}

/// The lines of one block. Two lines that split a word at a hyphen become one, with a space after the hyphen:
/// [`unhyphenated`] looks for that.
fn joined(lines: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for line in lines.filter(|line| !line.is_empty()) {
        if text.ends_with('-') && line.starts_with(char::is_lowercase) {
            text.push(' ');
        } else if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

fn text_of_line(line: &Line) -> String {
    let text: String = line.inlines.iter().map(|inline| inline.text.as_str()).collect();
    text.trim().to_owned()
}

fn joined_cells(row: &[Cell]) -> String {
    let cells = row.iter().filter_map(|cell| cell.line.as_ref()).map(text_of_line);
    cells.filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join(" | ")
}

/// `page` is 0-based here.
fn read_page(
    text: &str,
    page: usize,
    outline: &mut Outline,
    builder: &mut DocumentBuilder<'_>,
) -> Result<(), ExtractError> {
    let mut kind = BlockKind::Paragraph;
    let mut block = String::new();
    let mut after_blank = true;
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let place = || SourceLocation::page(page + 1);
        let stands_alone = after_blank && lines.peek().is_none_or(|next| next.is_empty());
        let level = outline.level_of(line, page).or_else(|| numbered_level(line).filter(|_| stands_alone));
        let item = line.strip_prefix(BULLETS).filter(|item| item.starts_with(char::is_whitespace));
        if line.is_empty() || level.is_some() || item.is_some() {
            builder.push(kind, &block, place())?;
            kind = BlockKind::Paragraph;
            block.clear();
        }
        after_blank = line.is_empty();
        if let Some(level) = level {
            builder.push(BlockKind::Heading { level }, line, place())?;
            continue;
        }
        if item.is_some() {
            kind = BlockKind::ListItem;
        }
        if !block.is_empty() {
            block.push('\n');
        }
        block.push_str(&unhyphenated(item.unwrap_or(line)));
    }
    builder.push(kind, &block, SourceLocation::page(page + 1))
}

/// Rejoins words split at a line end, such as `exam- ple`. `pre- and suffix` stays.
fn unhyphenated(line: &str) -> String {
    let mut whole = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("- ") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        whole.push_str(before);
        let next = after.split(|letter: char| !letter.is_alphabetic()).next().unwrap_or_default();
        let is_parted = before.ends_with(char::is_lowercase)
            && next.starts_with(char::is_lowercase)
            && !matches!(next, "and" | "or" | "to" | "und" | "oder" | "bis" | "et" | "ou" | "y" | "o");
        if !is_parted {
            whole.push_str("- ");
        }
        rest = after;
    }
    whole.push_str(rest);
    whole
}

/// Bookmarks not yet matched by a line, keyed by the letters and digits of their title.
struct Outline(HashMap<String, Vec<Bookmark>>);

struct Bookmark {
    level: u8,
    page: Option<usize>,
}

/// The index of each page's object among the pages, from 0.
struct PageNumbers(HashMap<ObjRef, usize>);

impl PageNumbers {
    fn of(document: &Document, pages: usize) -> Self {
        Self((0..pages).filter_map(|page| Some((document.page(page).ok()?.object_ref()?, page))).collect())
    }

    fn number(&self, destination: &Destination) -> Option<usize> {
        match destination.page {
            DestinationPage::Object(object) => self.0.get(&object).copied(),
            DestinationPage::Number(page) => Some(page as usize),
        }
    }
}

impl Outline {
    fn of(items: Vec<OutlineItem>, pages: &PageNumbers) -> Self {
        let mut bookmarks: HashMap<String, Vec<Bookmark>> = HashMap::new();
        let mut open: Vec<(u8, OutlineItem)> = items.into_iter().map(|item| (1, item)).collect();
        for _ in 0..MAX_BOOKMARKS {
            let Some((level, item)) = open.pop() else { break };
            let page = item.destination.as_ref().and_then(|destination| pages.number(destination));
            bookmarks.entry(letters(&item.title)).or_default().push(Bookmark { level, page });
            open.extend(item.children.into_iter().map(|child| ((level + 1).min(9), child)));
        }
        bookmarks.remove("");
        Self(bookmarks)
    }

    /// The level of a line that a bookmark names. Each bookmark matches once, so the title at the top of every page is
    /// not a heading.
    fn level_of(&mut self, line: &str, page: usize) -> Option<u8> {
        if self.0.is_empty() || line.len() > MAX_HEADING {
            return None;
        }
        let bookmarks = self.0.get_mut(&letters(line))?;
        let at = bookmarks.iter().position(|bookmark| bookmark.page.is_none_or(|wanted| wanted == page))?;
        Some(bookmarks.swap_remove(at).level)
    }
}

/// A title without its number, spacing and punctuation, in which the outline and the page often differ.
fn letters(title: &str) -> String {
    let title = title.trim_start().trim_start_matches(|first: char| first.is_ascii_digit() || first == '.');
    title.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The level of `4.2 Functions` is the count of its numbers. A single number gives no level, since it may number a list
/// item; neither does a line of a table of contents, which ends in dots and a number.
fn numbered_level(line: &str) -> Option<u8> {
    let (number, title) = line.split_once(' ')?;
    let parts: Vec<&str> = number.trim_end_matches('.').split('.').collect();
    let is_number = |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_title = line.len() <= MAX_HEADING
        && title.trim_start().starts_with(char::is_uppercase)
        && !title.contains(". .")
        && !title.contains("...")
        && !title.ends_with(['.', ',', ';']);
    let level = u8::try_from(parts.len()).ok()?;
    ((2..=6).contains(&level) && parts.iter().all(is_number) && is_title).then_some(level)
}

fn failed(error: &PdfError) -> ExtractError {
    match error {
        PdfError::Encrypted => ExtractError::Encrypted { format: Format::Pdf },
        error => ExtractError::damaged(Format::Pdf, error),
    }
}

#[cfg(test)]
mod tests {
    use pdfboss_core::Fit;
    use pdfboss_output::{BBox, Inline};

    use super::*;
    use crate::extract::Limits;

    fn item(title: &str, page: u32, children: Vec<OutlineItem>) -> OutlineItem {
        OutlineItem {
            title: title.to_owned(),
            destination: Some(Destination { page: DestinationPage::Number(page), fit: Fit::Fit }),
            open: true,
            color: [0.0; 3],
            italic: false,
            bold: false,
            structure_element: None,
            children,
        }
    }

    #[test]
    fn parted_words_are_whole_again() {
        assert_eq!(
            unhyphenated("an alter- native - and pre- and suf- fixes, A- b"),
            "an alternative - and pre- and suffixes, A- b"
        );
    }

    #[test]
    fn bullets_go_and_labels_stay() {
        let item = |marker, text: &str, marker_len| {
            let inline = Inline { text: text.to_owned(), bold: false, italic: false, code: false };
            let line = Line { inlines: vec![inline], y: 0.0, x: 0.0, end_x: 9.0, size: 1.0 };
            let bbox = BBox { x0: 0.0, y0: 0.0, x1: 9.0, y1: 1.0 };
            text_of_item(&ListItem { marker, marker_len, lines: vec![line], bbox })
        };
        assert_eq!(item(Marker::Bullet, " • Apple", 3), "• Apple");
        assert_eq!(item(Marker::Bullet, "(b) The supplier", 4), "(b) The supplier");
        assert_eq!(item(Marker::Number(2), "2. Turn", 3), "2. Turn");
    }

    #[test]
    fn bookmarks_and_numbers_make_headings() {
        let no_pages = PageNumbers(HashMap::new());
        let mut outline = Outline::of(vec![item("The Pump", 0, vec![item("Use", 1, Vec::new())])], &no_pages);
        let limits = Limits::default();
        let mut builder = DocumentBuilder::new(Format::Pdf, &limits);
        let first = "1 The pump\nIt pumps.\n\n1.1 Parts . . . . 7\n\n• a wheel\nof iron\n• a bolt\n\n2.3 Care\n\n2.5 Bar\nis much.";
        read_page(first, 0, &mut outline, &mut builder).unwrap();
        read_page("The pump\n\n1.2 Use\nTurn it on.", 1, &mut outline, &mut builder).unwrap();
        let extracted = builder.finish().unwrap();
        let shown: Vec<_> = extracted
            .blocks
            .iter()
            .map(|block| match block.kind {
                BlockKind::Heading { level } => format!("h{level}: {}", block.text),
                BlockKind::ListItem => format!("li: {}", block.text),
                _ => block.text.clone(),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "h1: 1 The pump",
                "It pumps.",
                "1.1 Parts . . . . 7",
                "li: a wheel\nof iron",
                "li: a bolt",
                "h2: 2.3 Care",
                "2.5 Bar\nis much.",
                "The pump",
                "h2: 1.2 Use",
                "Turn it on.",
            ]
        );
        assert_eq!(extracted.title, None);
    }
}
