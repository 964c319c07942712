//! Word documents: paragraphs, headings, lists and tables, read from the archive as a stream of XML.
//!
//! Element names are those of ECMA-376 Part 1, section 17 (the language of word processing). Namespace prefixes are
//! ignored: every producer uses the same local names. Deleted text, field codes, comments, headers and footers are
//! skipped; footnotes and endnotes come last.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
};

use quick_xml::{
    Reader,
    events::{BytesRef, BytesStart, Event},
};

use super::{
    ExtractError, Format, Limit,
    archive::{self, OfficeArchive},
    document::{BlockKind, DocumentBuilder, SourceLocation, TableRows},
};

/// Maximum nesting of paragraphs and tables.
const MAX_DEPTH: usize = 200;

pub(super) fn read(archive: &mut OfficeArchive, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let limits = builder.limits();
    let mut unpacked = 0;
    let mut part =
        |name: &str, read: &mut dyn FnMut(&mut dyn BufRead) -> Result<(), ExtractError>| match archive::entry(
            archive,
            name,
            Format::Docx,
            limits,
            &mut unpacked,
        )? {
            Some(entry) => read(&mut BufReader::new(entry)).map(|()| true),
            None => Ok(false),
        };
    let mut main = "word/document.xml".to_owned();
    part("_rels/.rels", &mut |xml| {
        if let Some(target) = main_part(xml)? {
            main = target;
        }
        Ok(())
    })?;
    let mut levels = HashMap::new();
    part("word/styles.xml", &mut |xml| {
        levels = heading_styles(xml)?;
        Ok(())
    })?;
    part("docProps/core.xml", &mut |xml| {
        if let Some(title) = title(xml)? {
            builder.set_title(&title);
        }
        Ok(())
    })?;
    if !part(&main, &mut |xml| Body::new(&levels, builder).read(xml))? {
        return Err(ExtractError::damaged(Format::Docx, format_args!("its main part, {main}, is missing")));
    }
    for notes in ["word/footnotes.xml", "word/endnotes.xml"] {
        part(notes, &mut |xml| Body::new(&levels, builder).read(xml))?;
    }
    Ok(())
}

/// Passes each event of an XML part to `handle` until the part ends.
fn events(
    xml: impl BufRead,
    mut handle: impl FnMut(Event<'_>) -> Result<(), ExtractError>,
) -> Result<(), ExtractError> {
    let mut reader = Reader::from_reader(xml);
    reader.config_mut().check_end_names = false;
    let mut buffer = Vec::new();
    loop {
        let event = reader.read_event_into(&mut buffer).map_err(xml_error)?;
        if matches!(event, Event::Eof) {
            return Ok(());
        }
        handle(event)?;
        buffer.clear();
    }
}

fn xml_error(error: quick_xml::Error) -> ExtractError {
    match error {
        quick_xml::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<ExtractError>()) {
            Some(ours) => ours.clone(),
            None => ExtractError::damaged(Format::Docx, error),
        },
        error => ExtractError::damaged(Format::Docx, error),
    }
}

/// An attribute by its local name.
fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element.attributes().flatten().find(|attribute| attribute.key.local_name().as_ref() == name)?;
    Some(quick_xml::escape::unescape(&found.value).map_or_else(|_| found.value.to_string(), |text| text.into_owned()))
}

/// The path of the main part, if the archive's relationships give it.
fn main_part(xml: impl BufRead) -> Result<Option<String>, ExtractError> {
    let mut found = None;
    events(xml, |event| {
        if let Event::Start(element) | Event::Empty(element) = event
            && attribute(&element, "Type").is_some_and(|kind| kind.ends_with("/officeDocument"))
        {
            found = attribute(&element, "Target").map(|target| target.trim_start_matches('/').to_owned());
        }
        Ok(())
    })?;
    Ok(found)
}

fn title(xml: impl BufRead) -> Result<Option<String>, ExtractError> {
    let mut inside = false;
    let mut title = String::new();
    events(xml, |event| {
        match event {
            Event::Start(element) => inside = element.local_name().as_ref() == "title",
            Event::End(_) => inside = false,
            Event::Text(text) if inside => title.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) if inside => title.extend(referred(&reference)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Some(title).filter(|title| !title.trim().is_empty()))
}

/// Heading levels of styles, by style id.
fn heading_styles(xml: impl BufRead) -> Result<HashMap<String, u8>, ExtractError> {
    let mut levels = HashMap::new();
    let mut style = String::new();
    events(xml, |event| {
        if let Event::Start(element) | Event::Empty(element) = event {
            match element.local_name().as_ref() {
                "style" => style = attribute(&element, "styleId").unwrap_or_default(),
                "name" => {
                    if let Some(level) = attribute(&element, "val").and_then(|name| level_of_name(&name)) {
                        levels.insert(style.clone(), level);
                    }
                }
                "outlineLvl" => {
                    if let Some(level) = outline_level(&element) {
                        levels.entry(style.clone()).or_insert(level);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(levels)
}

/// `heading 2`, `Heading2` and `Title` are headings regardless of the authoring program's language.
fn level_of_name(name: &str) -> Option<u8> {
    let name = name.to_ascii_lowercase();
    if name == "title" {
        return Some(1);
    }
    let level = name.strip_prefix("heading")?.trim().parse::<u8>().ok()?;
    (1..=9).contains(&level).then_some(level)
}

/// Nine is the level of body text.
fn outline_level(element: &BytesStart<'_>) -> Option<u8> {
    let level = attribute(element, "val")?.parse::<u8>().ok()?;
    (level < 9).then_some(level + 1)
}

fn referred(reference: &BytesRef<'_>) -> Option<char> {
    if let Ok(Some(character)) = reference.resolve_char_ref() {
        return Some(character);
    }
    match &**reference {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

#[derive(Default)]
struct Paragraph {
    text: String,
    level: Option<u8>,
    is_list_item: bool,
}

#[derive(Default)]
struct Table {
    rows: TableRows,
    cells: Vec<String>,
    cell: String,
    in_cell: bool,
}

struct Body<'b, 'l> {
    levels: &'b HashMap<String, u8>,
    builder: &'b mut DocumentBuilder<'l>,
    /// A stack, since a text box puts paragraphs inside a paragraph.
    paragraphs: Vec<Paragraph>,
    tables: Vec<Table>,
    in_text: bool,
    /// Number of open elements within a skipped one.
    left_out: usize,
}

impl<'b, 'l> Body<'b, 'l> {
    fn new(levels: &'b HashMap<String, u8>, builder: &'b mut DocumentBuilder<'l>) -> Self {
        Self { levels, builder, paragraphs: Vec::new(), tables: Vec::new(), in_text: false, left_out: 0 }
    }

    fn read(mut self, xml: &mut dyn BufRead) -> Result<(), ExtractError> {
        events(xml, |event| match event {
            Event::Start(_) | Event::End(_) if self.left_out > 0 => {
                if matches!(event, Event::Start(_)) {
                    self.left_out += 1;
                } else {
                    self.left_out -= 1;
                }
                Ok(())
            }
            _ if self.left_out > 0 => Ok(()),
            Event::Start(element) => self.start(&element),
            Event::Empty(element) => {
                self.mark(&element);
                Ok(())
            }
            Event::End(element) => self.end(element.local_name().as_ref()),
            Event::Text(text) if self.in_text => {
                self.add(&text.xml10_content());
                Ok(())
            }
            Event::CData(text) if self.in_text => {
                self.add(&text.xml10_content());
                Ok(())
            }
            Event::GeneralRef(reference) if self.in_text => {
                if let Some(character) = referred(&reference) {
                    self.add(character.encode_utf8(&mut [0; 4]));
                }
                Ok(())
            }
            _ => Ok(()),
        })?;
        // A part that breaks off keeps the content read so far.
        while !self.paragraphs.is_empty() {
            self.end("p")?;
        }
        while !self.tables.is_empty() {
            self.end("tbl")?;
        }
        Ok(())
    }

    fn add(&mut self, text: &str) {
        if let Some(paragraph) = self.paragraphs.last_mut() {
            paragraph.text.push_str(text);
        }
    }

    fn start(&mut self, element: &BytesStart<'_>) -> Result<(), ExtractError> {
        match element.local_name().as_ref() {
            "p" => {
                self.check_depth()?;
                self.paragraphs.push(Paragraph::default());
            }
            "tbl" => {
                self.check_depth()?;
                self.tables.push(Table::default());
            }
            "tc" => {
                if let Some(table) = self.tables.last_mut() {
                    table.in_cell = true;
                }
            }
            "t" => self.in_text = true,
            // Skipped: the same content repeated for older programs, deleted text, field codes, and the notes that are
            // only a separator line.
            "Fallback" | "del" | "moveFrom" | "instrText" => self.left_out = 1,
            "footnote" | "endnote" if attribute(element, "type").is_some_and(|kind| kind != "normal") => {
                self.left_out = 1;
            }
            _ => self.mark(element),
        }
        Ok(())
    }

    /// Handles elements that have no content of their own.
    fn mark(&mut self, element: &BytesStart<'_>) {
        let name = element.local_name();
        let Some(paragraph) = self.paragraphs.last_mut() else { return };
        match name.as_ref() {
            "pStyle" => {
                if let Some(style) = attribute(element, "val") {
                    paragraph.level = self.levels.get(&style).copied().or_else(|| level_of_name(&style));
                }
            }
            "outlineLvl" => paragraph.level = outline_level(element),
            "numPr" => paragraph.is_list_item = true,
            "tab" | "ptab" => paragraph.text.push('\t'),
            "br" | "cr" => paragraph.text.push('\n'),
            "noBreakHyphen" => paragraph.text.push('-'),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) -> Result<(), ExtractError> {
        match name {
            "t" => self.in_text = false,
            "p" => {
                let Some(paragraph) = self.paragraphs.pop() else { return Ok(()) };
                if let Some(table) = self.tables.last_mut().filter(|table| table.in_cell) {
                    table.cell.push_str(&paragraph.text);
                    table.cell.push('\n');
                    return Ok(());
                }
                let kind = match paragraph.level {
                    Some(level) => BlockKind::Heading { level },
                    None if paragraph.is_list_item => BlockKind::ListItem,
                    None => BlockKind::Paragraph,
                };
                self.builder.push(kind, &paragraph.text, SourceLocation::default())?;
            }
            "tc" => {
                if let Some(table) = self.tables.last_mut() {
                    table.in_cell = false;
                    table.cells.push(std::mem::take(&mut table.cell));
                }
            }
            "tr" => {
                if let Some(table) = self.tables.last_mut() {
                    table.rows.push(std::mem::take(&mut table.cells), SourceLocation::default(), self.builder)?;
                }
            }
            "tbl" => {
                if let Some(table) = self.tables.pop() {
                    let mut cells = table.cells;
                    cells.push(table.cell);
                    let mut rows = table.rows;
                    rows.push(cells, SourceLocation::default(), self.builder)?;
                    rows.finish(self.builder)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_depth(&self) -> Result<(), ExtractError> {
        if self.paragraphs.len() + self.tables.len() < MAX_DEPTH {
            return Ok(());
        }
        Err(ExtractError::OverLimit { limit: Limit::Depth, allowed: MAX_DEPTH as u64, found: None })
    }
}
