//! Detects what a file is: its content decides, and the extension is used only where texts look alike.
//!
//! A CSV named `.txt` is a CSV, a web page named `.md` is a web page, a PNG named `.pdf` is refused as a PNG. Content
//! cannot reliably tell Markdown, source code and plain text apart, so for those the extension comes first.

use std::{fmt, io};

use encoding_rs::Encoding;

use super::{ExtractError, delimited, encoding, json, markdown, source_code::language_of};

/// The formats that text can be extracted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    PlainText,
    Markdown,
    Html,
    Csv,
    Tsv,
    Json,
    JsonLines,
    /// Source code or a configuration file.
    Code,
    Docx,
    Xlsx,
    Pdf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PlainText => "text file",
            Self::Markdown => "Markdown file",
            Self::Html => "HTML page",
            Self::Csv => "CSV file",
            Self::Tsv => "TSV file",
            Self::Json => "JSON file",
            Self::JsonLines => "JSON Lines file",
            Self::Code => "source file",
            Self::Docx => "Word document",
            Self::Xlsx => "Excel workbook",
            Self::Pdf => "PDF",
        })
    }
}

/// How many bytes are inspected to detect a file's format.
pub(super) const HEAD_BYTES: u64 = 64 * 1024;

/// How a file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detected {
    /// A text format, and the language if it is code.
    Text(Format, Option<&'static str>),
    Pdf,
    /// DOCX, XLSX or another archive; only its directory says which.
    Zip,
    /// The content's format is known only after unpacking.
    Gzip,
}

/// Like [`detect`], for a file in memory.
pub(super) fn detect_all(bytes: &[u8], file_name: &str) -> Result<Detected, ExtractError> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES as usize)];
    detect(head, file_name, || Ok(bytes.to_vec()))
}

/// Detects a file's format by its first bytes; `whole` reads all of it, for the few formats that need that.
pub(super) fn detect(
    head: &[u8],
    file_name: &str,
    whole: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Detected, ExtractError> {
    if head.is_empty() {
        return Err(ExtractError::Empty);
    }
    // Readers accept a header anywhere in the first 1024 bytes; a plain text may mention one there.
    let holds_header = contains(&head[..head.len().min(1024)], b"%PDF-");
    if head.starts_with(b"%PDF-") || (holds_header && !looks_like_text(head)) {
        return Ok(Detected::Pdf);
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Ok(Detected::Zip);
    }
    // The magic number and deflate, the only compression method (RFC 1952, 2.3.1).
    if head.starts_with(b"\x1F\x8B\x08") {
        return Ok(Detected::Gzip);
    }
    if head.starts_with(b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1") {
        // The container format of Office before 2007, and of newer documents with a password.
        let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
        return Err(if contains(&whole().map_err(ExtractError::unreadable)?, &name) {
            ExtractError::Encrypted { format: office_by_name(file_name) }
        } else {
            ExtractError::Unsupported {
                found: "an Office file of the format before 2007 (save it as DOCX or XLSX)".to_owned(),
            }
        });
    }
    if !looks_like_text(head) {
        return Err(ExtractError::Unsupported { found: binary_name(head) });
    }
    let text = encoding::decode(head, None);
    if text.starts_with("{\\rtf") {
        return Err(ExtractError::Unsupported { found: "an RTF document (save it as DOCX)".to_owned() });
    }
    if text.starts_with("%!PS") {
        return Err(ExtractError::Unsupported { found: "a PostScript file (convert it to PDF)".to_owned() });
    }
    let (format, language) = text_format(&text, &extension(file_name), || {
        whole().map(|bytes| encoding::decode(&bytes, None).into_owned()).map_err(ExtractError::unreadable)
    })?;
    Ok(Detected::Text(format, language))
}

fn text_format(
    head: &str,
    extension: &str,
    whole: impl FnOnce() -> Result<String, ExtractError>,
) -> Result<(Format, Option<&'static str>), ExtractError> {
    let start = head.trim_start();
    if begins_like_a_page(start) {
        return Ok((Format::Html, None));
    }
    if start.starts_with("<?xml") {
        return Ok((Format::Code, Some("xml")));
    }
    if start.starts_with(['{', '[']) {
        let whole = whole()?;
        if json::is_document(&whole) {
            return Ok((Format::Json, None));
        }
        if json::is_lines(&whole) {
            return Ok((Format::JsonLines, None));
        }
    }
    if matches!(extension, "md" | "markdown" | "mdown" | "mkd" | "mdx") {
        return Ok((Format::Markdown, None));
    }
    if let Some(language) = language_of(extension) {
        return Ok((Format::Code, Some(language)));
    }
    if matches!(extension, "html" | "htm" | "xhtml") && start.contains('<') {
        return Ok((Format::Html, None));
    }
    if extension == "tsv" {
        return Ok((Format::Tsv, None));
    }
    if extension == "csv" {
        return Ok((Format::Csv, None));
    }
    if let Some(interpreter) = start.strip_prefix("#!") {
        let line = interpreter.lines().next().unwrap_or_default();
        let language = ["python", "perl", "ruby", "node"].into_iter().find(|name| line.contains(name));
        return Ok((Format::Code, Some(language.unwrap_or("shell"))));
    }
    if let Some(delimiter) = delimited::evident_delimiter(head) {
        return Ok((if delimiter == b'\t' { Format::Tsv } else { Format::Csv }, None));
    }
    if markdown::is_evident(head) {
        return Ok((Format::Markdown, None));
    }
    Ok((Format::PlainText, None))
}

fn begins_like_a_page(start: &str) -> bool {
    let mut rest = start;
    // A declaration and comments may come first.
    loop {
        let end = if rest.starts_with("<!--") {
            rest.find("-->").map(|at| at + 3)
        } else if rest.starts_with("<?xml") {
            rest.find("?>").map(|at| at + 2)
        } else {
            None
        };
        match end {
            Some(end) => rest = rest[end..].trim_start(),
            None => break,
        }
    }
    let beginning: String = rest.chars().take(20).collect::<String>().to_ascii_lowercase();
    ["<!doctype html", "<html", "<head>", "<body"].iter().any(|tag| beginning.starts_with(tag))
}

/// The name of the file inside a gzip file.
pub(super) fn without_gz(file_name: &str) -> &str {
    let dot = file_name.len().saturating_sub(3);
    match file_name.get(dot..) {
        Some(end) if end.eq_ignore_ascii_case(".gz") => &file_name[..dot],
        _ => file_name,
    }
}

/// Letters and digits after the last dot of the name's last component, in lower case. A name may come from anywhere and
/// contain separators of any operating system.
pub(super) fn extension(file_name: &str) -> String {
    let base = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    match base.rsplit_once('.') {
        Some((_, extension)) if extension.len() <= 12 => extension.to_ascii_lowercase(),
        _ => match base {
            "Makefile" | "Dockerfile" | "Justfile" | "justfile" => base.to_ascii_lowercase(),
            _ => String::new(),
        },
    }
}

fn office_by_name(file_name: &str) -> Format {
    if extension(file_name).starts_with("xls") { Format::Xlsx } else { Format::Docx }
}

/// Text outside UTF-16 has no zero bytes, and hardly any control characters.
fn looks_like_text(head: &[u8]) -> bool {
    if Encoding::for_bom(head).is_some() || encoding::utf_16_without_mark(head).is_some() {
        return true;
    }
    let is_control = |byte: &&u8| matches!(**byte, 0x01..=0x08 | 0x0E..=0x1A | 0x1C..=0x1F | 0x7F);
    !head.contains(&0) && head.iter().filter(is_control).count() <= 2 + head.len() / 50
}

fn binary_name(head: &[u8]) -> String {
    match infer::get(head) {
        Some(kind) if kind.mime_type() == "application/x-tar" => {
            "a TAR archive (unpack it and ingest its folder)".to_owned()
        }
        Some(kind) if kind.matcher_type() != infer::MatcherType::Text => {
            format!("binary data of the type {}", kind.mime_type())
        }
        _ => "binary data of an unknown type".to_owned(),
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
