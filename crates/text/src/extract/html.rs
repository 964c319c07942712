//! HTML as a stream of tags: headings, paragraphs, list items, table rows and `pre` become blocks; scripts, styles and
//! navigation are skipped.
//!
//! No tree is built. A page that nests its elements a million deep, or closes none of them, costs no more than its
//! bytes; in exchange, an unclosed element ends where the next block begins.

use std::{cell::RefCell, sync::Arc};

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts, states::RawKind,
    },
};

use super::{
    ExtractError,
    document::{BlockKind, DocumentBuilder, SourceLocation, TableRows, one_line},
};

/// Maximum nesting of tables; deeper ones are read as text.
const MAX_TABLES: usize = 32;

/// The encoding declared in the page's first 1024 bytes.
pub(super) fn declared_encoding(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = bytes[..bytes.len().min(1024)].to_ascii_lowercase();
    let at = head.windows(8).position(|window| window == b"charset=")? + 8;
    let label: Vec<u8> = head[at..]
        .iter()
        .copied()
        .skip_while(|byte| matches!(byte, b'"' | b'\''))
        .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        .collect();
    let encoding = Encoding::for_label(&label)?;
    // A page whose declaration is readable as bytes is not in UTF-16, even if it says so.
    Some(if encoding == UTF_16LE || encoding == UTF_16BE { UTF_8 } else { encoding })
}

pub(super) fn read(text: &str, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let sink = Sink(RefCell::new(Page::new(builder)));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(text));
    // The tokenizer stops midway only for sinks that run scripts.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    let mut page = tokenizer.sink.0.into_inner();
    page.leaving_out = None;
    while !page.tables.is_empty() {
        page.end("table");
    }
    page.flush();
    match page.refused {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

struct Sink<'b, 'l>(RefCell<Page<'b, 'l>>);

impl TokenSink for Sink<'_, '_> {
    type Handle = ();

    fn process_token(&self, token: Token, line: u64) -> TokenSinkResult<()> {
        let mut page = self.0.borrow_mut();
        page.line = usize::try_from(line).unwrap_or(usize::MAX).max(1);
        if page.refused.is_some() {
            return TokenSinkResult::Continue;
        }
        match token {
            Token::CharacterTokens(text) => page.characters(&text),
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => {
                page.start(&tag);
                return match &*tag.name {
                    "script" => TokenSinkResult::RawData(RawKind::ScriptData),
                    "style" | "xmp" | "iframe" | "noembed" | "noframes" => TokenSinkResult::RawData(RawKind::Rawtext),
                    "title" | "textarea" => TokenSinkResult::RawData(RawKind::Rcdata),
                    _ => TokenSinkResult::Continue,
                };
            }
            Token::TagToken(tag) => page.end(&tag.name),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[derive(Default)]
struct Table {
    rows: TableRows,
    cells: Vec<String>,
    first_line: usize,
    in_cell: bool,
}

struct Page<'b, 'l> {
    builder: &'b mut DocumentBuilder<'l>,
    refused: Option<ExtractError>,
    line: usize,
    kind: BlockKind,
    text: String,
    first_line: usize,
    last_line: usize,
    lists: usize,
    tables: Vec<Table>,
    in_title: bool,
    in_pre: bool,
    /// The element being skipped, and the number of open elements with its name.
    leaving_out: Option<(String, usize)>,
}

impl<'b, 'l> Page<'b, 'l> {
    fn new(builder: &'b mut DocumentBuilder<'l>) -> Self {
        Self {
            builder,
            refused: None,
            line: 1,
            kind: BlockKind::Paragraph,
            text: String::new(),
            first_line: 1,
            last_line: 1,
            lists: 0,
            tables: Vec::new(),
            in_title: false,
            in_pre: false,
            leaving_out: None,
        }
    }

    fn characters(&mut self, text: &str) {
        if self.leaving_out.is_some() {
            return;
        }
        if self.text.trim().is_empty() {
            self.first_line = self.line;
        }
        if !text.trim().is_empty() {
            self.last_line = self.line;
        }
        if self.in_pre {
            self.text.push_str(text);
        } else {
            self.text.extend(text.chars().map(|character| if character.is_whitespace() { ' ' } else { character }));
        }
    }

    fn start(&mut self, tag: &Tag) {
        let name = &*tag.name;
        if let Some((left_out, open)) = &mut self.leaving_out {
            let main_part = left_out == "nav" && matches!(name, "main" | "article");
            if name == left_out && !tag.self_closing {
                *open += 1;
            }
            if !main_part {
                return;
            }
            self.leaving_out = None;
        }
        match name {
            "svg" if tag.self_closing => {}
            "script" | "style" | "template" | "svg" | "nav" | "iframe" | "noembed" | "noframes" | "select" => {
                self.leaving_out = Some((name.to_owned(), 1));
            }
            "title" => {
                self.flush();
                self.in_title = true;
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.leave_cell();
                self.flush();
                self.kind = BlockKind::Heading { level: name.as_bytes()[1] - b'0' };
            }
            "li" | "dt" | "dd" => {
                self.flush();
                self.kind = BlockKind::ListItem;
            }
            "ul" | "ol" | "dl" => {
                self.flush();
                self.lists += 1;
            }
            "pre" => {
                self.flush();
                self.in_pre = true;
                self.kind = BlockKind::Code { language: language(tag) };
            }
            "code" if self.in_pre => {
                if let (BlockKind::Code { language: none @ None }, Some(named)) = (&mut self.kind, language(tag)) {
                    *none = Some(named);
                }
            }
            "table" if self.tables.len() < MAX_TABLES => {
                self.leave_cell();
                self.flush();
                self.tables.push(Table::default());
            }
            "tr" => {
                self.end_row();
                if let Some(table) = self.tables.last_mut() {
                    table.first_line = self.line;
                }
            }
            "td" | "th" => {
                self.end_cell();
                if self.tables.last().is_some_and(|table| !table.in_cell) {
                    self.flush();
                }
                if let Some(table) = self.tables.last_mut() {
                    table.in_cell = true;
                }
            }
            "br" => self.text.push('\n'),
            "hr" => self.flush(),
            _ if is_block(name) => self.flush(),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        if let Some((left_out, open)) = &mut self.leaving_out {
            if name == left_out {
                *open -= 1;
                if *open == 0 {
                    self.leaving_out = None;
                }
            }
            return;
        }
        match name {
            "title" if self.in_title => {
                self.in_title = false;
                self.builder.set_title(&std::mem::take(&mut self.text));
            }
            "ul" | "ol" | "dl" => {
                self.flush();
                self.lists = self.lists.saturating_sub(1);
                self.kind = self.around();
            }
            "pre" => {
                self.flush();
                self.in_pre = false;
            }
            "td" | "th" => self.end_cell(),
            "tr" => self.end_row(),
            "table" => {
                self.end_row();
                if let Some(table) = self.tables.pop() {
                    let finished = table.rows.finish(self.builder);
                    self.note(finished);
                }
            }
            _ if is_block(name) || matches!(name, "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "li" | "dt" | "dd") => {
                self.flush();
            }
            _ => {}
        }
    }

    fn around(&self) -> BlockKind {
        if self.lists > 0 { BlockKind::ListItem } else { BlockKind::Paragraph }
    }

    fn note(&mut self, result: Result<(), ExtractError>) {
        if let Err(error) = result {
            self.refused = Some(error);
        }
    }

    /// Ends the block; inside a table cell it only separates words.
    fn flush(&mut self) {
        if self.tables.last().is_some_and(|table| table.in_cell) {
            self.text.push('\n');
            return;
        }
        let kind = std::mem::replace(&mut self.kind, BlockKind::Paragraph);
        let text = std::mem::take(&mut self.text);
        self.kind = self.around();
        if text.trim().is_empty() {
            return;
        }
        let text = if matches!(kind, BlockKind::Code { .. }) { text } else { without_runs(&text) };
        let pushed = self.builder.push(kind, &text, SourceLocation::lines(self.first_line, self.last_line));
        self.note(pushed);
    }

    fn end_cell(&mut self) {
        if let Some(table) = self.tables.last_mut().filter(|table| table.in_cell) {
            table.in_cell = false;
            table.cells.push(std::mem::take(&mut self.text));
            self.kind = self.around();
        }
    }

    fn end_row(&mut self) {
        self.end_cell();
        if let Some(table) = self.tables.last_mut() {
            let cells = std::mem::take(&mut table.cells);
            let pushed = table.rows.push(cells, SourceLocation::lines(table.first_line, self.line), self.builder);
            self.note(pushed);
        }
    }

    /// Called for a heading or a table inside a cell: the outer table is for layout, and its cells are not real cells.
    fn leave_cell(&mut self) {
        if let Some(table) = self.tables.last_mut() {
            table.in_cell = false;
        }
    }
}

fn language(tag: &Tag) -> Option<Arc<str>> {
    let class = tag.attrs.iter().find(|attribute| &*attribute.name.local == "class")?;
    let named = class.value.split_whitespace().find_map(|class| class.strip_prefix("language-"))?;
    Some(Arc::from(named))
}

/// Each line with single spaces between its words; lines come from `br`.
fn without_runs(text: &str) -> String {
    text.lines().map(one_line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "details"
            | "dialog"
            | "div"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "head"
            | "header"
            | "html"
            | "legend"
            | "main"
            | "noscript"
            | "option"
            | "p"
            | "section"
            | "summary"
            | "textarea"
    )
}
