//! Extracts a document's text in blocks: headings, paragraphs, list items, table rows and code, with the page, sheet or
//! lines they come from.
//!
//! A file's content decides its format; the extension is a hint for texts that look alike. A hostile PDF or Office file
//! can exhaust its reader, and a gzip file may contain one, so [`extract`] reads those in a child process with limits
//! ([`sandbox`]). Everything else is read here, in time and memory proportional to the file. There is one file per
//! format. Cutting the blocks into chunks is left to [`super::chunker`]. The files of a ZIP archive are documents of
//! their own: [`packed`] takes them out for its caller to upload.

mod archive;
mod delimited;
mod document;
mod docx;
mod encoding;
mod error;
mod format;
mod gzip;
mod html;
mod json;
mod limits;
mod lockdown;
mod markdown;
pub mod packed;
#[cfg(feature = "pdf")]
mod pdf;
mod plain_text;
pub mod sandbox;
mod source_code;
mod xlsx;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use self::{document::DocumentBuilder, format::Detected, sandbox::Sandbox};
pub use self::{
    document::{Block, BlockKind, Extracted, LineRange, SourceLocation},
    error::ExtractError,
    format::Format,
    limits::{Limit, Limits},
    lockdown::Lockdown,
};

/// The text of a file. Blocks the thread: call it where blocking is allowed.
///
/// `file_name` is the owner's name for the file; only its extension is used, and only as a hint. `path` is where its
/// bytes are.
///
/// # Errors
/// [`ExtractError`] says what is wrong with the file and what to do; each error is about this file alone.
pub fn extract(path: &Path, file_name: &str, limits: &Limits, sandbox: &Sandbox) -> Result<Extracted, ExtractError> {
    let whole = || read(path, limits.file_bytes);
    match format::detect(&head(path, limits)?, file_name, whole)? {
        Detected::Text(format, language) => {
            extract_text(&whole().map_err(ExtractError::unreadable)?, format, language, limits)
        }
        Detected::Pdf | Detected::Zip | Detected::Gzip => sandbox.extract(path, file_name, limits),
    }
}

/// The bytes of a file, unless it is too large.
fn read_whole(path: &Path, limits: &Limits) -> Result<Vec<u8>, ExtractError> {
    head(path, limits)?;
    read(path, limits.file_bytes).map_err(ExtractError::unreadable)
}

/// The text of a file of any format, read in this process. Call it only in a process that may die: see [`sandbox`].
///
/// # Errors
/// As [`extract`].
pub fn extract_unprotected(
    mut bytes: Vec<u8>,
    mut file_name: &str,
    limits: &Limits,
) -> Result<Extracted, ExtractError> {
    let mut detected = format::detect_all(&bytes, file_name)?;
    if detected == Detected::Gzip {
        bytes = gzip::unpack(&bytes, limits)?;
        file_name = format::without_gz(file_name);
        detected = format::detect_all(&bytes, file_name)?;
    }
    match detected {
        Detected::Text(format, language) => extract_text(&bytes, format, language, limits),
        Detected::Pdf => extract_pdf(bytes, limits),
        Detected::Zip => {
            let mut archive = archive::open(bytes, limits)?;
            let format = archive::office_format(&archive)?;
            let mut builder = DocumentBuilder::new(format, limits);
            match format {
                Format::Xlsx => xlsx::read(archive, &mut builder)?,
                _ => docx::read(&mut archive, &mut builder)?,
            }
            builder.finish()
        }
        Detected::Gzip => {
            Err(ExtractError::Unsupported { found: "a gzip file within a gzip file (unpack it once)".to_owned() })
        }
    }
}

#[cfg(feature = "pdf")]
fn extract_pdf(bytes: Vec<u8>, limits: &Limits) -> Result<Extracted, ExtractError> {
    let mut builder = DocumentBuilder::new(Format::Pdf, limits);
    pdf::read(bytes, &mut builder)?;
    builder.finish()
}

#[cfg(not(feature = "pdf"))]
fn extract_pdf(_: Vec<u8>, _: &Limits) -> Result<Extracted, ExtractError> {
    Err(ExtractError::Unsupported { found: "a PDF file, and this build of Hearth has no PDF reader".to_owned() })
}

/// The first bytes of a file, unless it is too large.
fn head(path: &Path, limits: &Limits) -> Result<Vec<u8>, ExtractError> {
    let size = path.metadata().map_err(ExtractError::unreadable)?.len();
    if size > limits.file_bytes {
        return Err(ExtractError::OverLimit { limit: Limit::FileBytes, allowed: limits.file_bytes, found: Some(size) });
    }
    read(path, format::HEAD_BYTES).map_err(ExtractError::unreadable)
}

/// The first bytes of a file, at most `most`.
fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Extracts the formats that are text.
fn extract_text(
    bytes: &[u8],
    format: Format,
    language: Option<&str>,
    limits: &Limits,
) -> Result<Extracted, ExtractError> {
    let declared = if format == Format::Html { html::declared_encoding(bytes) } else { None };
    let text = encoding::decode(bytes, declared);
    let mut builder = DocumentBuilder::new(format, limits);
    match format {
        Format::Markdown => markdown::read(&text, &mut builder)?,
        Format::Html => html::read(&text, &mut builder)?,
        Format::Csv | Format::Tsv => delimited::read(&text, format, &mut builder)?,
        Format::Json => json::read(&text, &mut builder)?,
        Format::JsonLines => json::read_lines(&text, &mut builder)?,
        Format::Code => source_code::read(&text, language, &mut builder)?,
        Format::PlainText | Format::Docx | Format::Xlsx | Format::Pdf => plain_text::read(&text, &mut builder)?,
    }
    builder.finish()
}

#[cfg(test)]
mod tests;
