//! PDF, read with `pdf_oxide`: the paragraphs and list items of each page, in reading order, and headings where the
//! document's outline (its bookmarks) or a number such as 4.2 says that a line is one.
//!
//! A hostile file can overflow the reader's stack, which ends its process; [`super::sandbox`] is the process that
//! may end.

use std::{collections::HashMap, path::Path};

use pdf_oxide::{
    PdfDocument,
    converters::ConversionOptions,
    error::Error as PdfError,
    outline::{Destination, OutlineItem},
};

use super::{
    ExtractError, Format, Limit,
    document::{BlockKind, DocumentBuilder, Place},
};

/// Marks in front of an item of a list.
const BULLETS: [char; 9] = ['•', '◦', '▪', '‣', '●', '○', '■', '–', '·'];

/// A line longer than this, in bytes, is no heading.
const MAX_HEADING: usize = 150;

/// Bookmarks that are looked at.
const MAX_BOOKMARKS: usize = 20_000;

pub(super) fn read(path: &Path, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let document = PdfDocument::open(path).map_err(|error| failed(&error))?;
    // Many documents are encrypted with an empty password, which only forbids changes.
    if document.is_encrypted() && !document.authenticate(b"").unwrap_or(false) {
        return Err(ExtractError::Encrypted { format: Format::Pdf });
    }
    let pages = document.page_count().map_err(|error| failed(&error))?;
    if pages as u64 > builder.limits().pages {
        return Err(ExtractError::OverLimit {
            limit: Limit::Pages,
            allowed: builder.limits().pages,
            found: Some(pages as u64),
        });
    }
    // A document whose outline is damaged is read without it.
    let mut outline = Outline::of(document.get_outline().ok().flatten().unwrap_or_default());
    let options = ConversionOptions::default();
    for page in 0..pages {
        // Of the reader's ways to text this one keeps sentences whole around words in another font.
        match document.to_plain_text(page, &options) {
            Ok(text) => read_page(&text, page, &mut outline, builder)?,
            Err(PdfError::EncryptedPdf) => return Err(ExtractError::Encrypted { format: Format::Pdf }),
            Err(error) => builder.skip(format!("page {} cannot be read: {error}", page + 1)),
        }
    }
    Ok(())
}

/// `page` counts from 0 here.
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
        let place = || Place::page(page + 1);
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
    builder.push(kind, &block, Place::page(page + 1))
}

/// A line in which `exam- ple`, a word that was parted at the end of a line, is whole again. `pre- and suffix` stays.
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

/// The bookmarks that no line has matched yet, by their title in letters and digits.
struct Outline(HashMap<String, Vec<Bookmark>>);

struct Bookmark {
    level: u8,
    page: Option<usize>,
}

impl Outline {
    fn of(items: Vec<OutlineItem>) -> Self {
        let mut bookmarks: HashMap<String, Vec<Bookmark>> = HashMap::new();
        let mut open: Vec<(u8, OutlineItem)> = items.into_iter().map(|item| (1, item)).collect();
        for _ in 0..MAX_BOOKMARKS {
            let Some((level, item)) = open.pop() else { break };
            let page = match item.dest {
                Some(Destination::PageIndex(page)) => Some(page),
                _ => None,
            };
            bookmarks.entry(letters(&item.title)).or_default().push(Bookmark { level, page });
            open.extend(item.children.into_iter().map(|child| ((level + 1).min(9), child)));
        }
        bookmarks.remove("");
        Self(bookmarks)
    }

    /// The level of a line that a bookmark names, once for each bookmark: the title at the head of every page is no
    /// heading.
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

/// The level of `4.2 Functions`: as many as it has numbers, of which one alone may be an item of a list. Lines of a
/// table of contents end in dots and a number.
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
        PdfError::EncryptedPdf => ExtractError::Encrypted { format: Format::Pdf },
        error => ExtractError::damaged(Format::Pdf, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::extract::Limits;

    fn item(title: &str, page: usize, children: Vec<OutlineItem>) -> OutlineItem {
        OutlineItem { title: title.to_owned(), dest: Some(Destination::PageIndex(page)), children }
    }

    #[test]
    fn parted_words_are_whole_again() {
        assert_eq!(
            unhyphenated("an alter- native - and pre- and suf- fixes, A- b"),
            "an alternative - and pre- and suffixes, A- b"
        );
    }

    #[test]
    fn bookmarks_and_numbers_make_headings() {
        let mut outline = Outline::of(vec![item("The Pump", 0, vec![item("Use", 1, Vec::new())])]);
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
