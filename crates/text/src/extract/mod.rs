//! A document's bytes to its text in blocks: headings, paragraphs, list items, table rows and code, with the page,
//! sheet or lines they come from.
//!
//! What a file is, its content decides; the extension is a hint for texts that look alike. PDF and Office files are
//! formats in which a hostile file can exhaust its reader, so [`extract`] reads those in a child process with
//! limits ([`sandbox`]). Everything else is read here, in time and memory proportional to the file. One format a
//! file; cutting the blocks into chunks is [`super::chunker`]'s.

mod archive;
mod delimited;
mod document;
mod docx;
mod encoding;
mod error;
mod format;
mod html;
mod json;
mod limits;
mod markdown;
#[cfg(feature = "pdf")]
mod pdf;
mod plain_text;
pub mod sandbox;
mod source_code;
mod xlsx;

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use self::{document::DocumentBuilder, format::Detected, sandbox::Sandbox};
pub use self::{
    document::{Block, BlockKind, Extracted, LineRange, Place},
    error::ExtractError,
    format::Format,
    limits::{Limit, Limits},
};

/// Bytes from which the kind of a file is told.
const HEAD_BYTES: u64 = 64 * 1024;

/// The text of a file. Blocks while it works: call it where blocking is allowed.
///
/// `file_name` is what the owner of the file calls it; only its extension is looked at, and only as a hint. `path`
/// is where its bytes are.
///
/// # Errors
/// [`ExtractError`] says what is wrong with the file and what to do; each is about this file alone.
pub fn extract(path: &Path, file_name: &str, limits: &Limits, sandbox: &Sandbox) -> Result<Extracted, ExtractError> {
    match detect(path, file_name, limits)? {
        Detected::Text(format, language) => extract_text(path, format, language, limits),
        Detected::Pdf | Detected::Zip => sandbox.extract(path, file_name, limits),
    }
}

/// The text of a file, whatever its format, in this process. Only a process that may die should do this: see
/// [`sandbox`].
///
/// # Errors
/// As [`extract`].
pub fn extract_unprotected(path: &Path, file_name: &str, limits: &Limits) -> Result<Extracted, ExtractError> {
    match detect(path, file_name, limits)? {
        Detected::Text(format, language) => extract_text(path, format, language, limits),
        Detected::Pdf => extract_pdf(path, limits),
        Detected::Zip => {
            let mut archive = archive::open(path, limits)?;
            let format = archive::office_format(&archive)?;
            let mut builder = DocumentBuilder::new(format, limits);
            match format {
                Format::Xlsx => xlsx::read(archive, path, &mut builder)?,
                _ => docx::read(&mut archive, &mut builder)?,
            }
            builder.finish()
        }
    }
}

#[cfg(feature = "pdf")]
fn extract_pdf(path: &Path, limits: &Limits) -> Result<Extracted, ExtractError> {
    let mut builder = DocumentBuilder::new(Format::Pdf, limits);
    pdf::read(path, &mut builder)?;
    builder.finish()
}

#[cfg(not(feature = "pdf"))]
fn extract_pdf(_: &Path, _: &Limits) -> Result<Extracted, ExtractError> {
    Err(ExtractError::Unsupported { found: "a PDF file, and this build of Hearth has no PDF reader".to_owned() })
}

fn detect(path: &Path, file_name: &str, limits: &Limits) -> Result<Detected, ExtractError> {
    let mut file = File::open(path).map_err(ExtractError::unreadable)?;
    let size = file.metadata().map_err(ExtractError::unreadable)?.len();
    if size > limits.file_bytes {
        return Err(ExtractError::OverLimit { limit: Limit::FileBytes, allowed: limits.file_bytes, found: Some(size) });
    }
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(HEAD_BYTES).read_to_end(&mut head).map_err(ExtractError::unreadable)?;
    format::detect(&head, file_name, || {
        file.seek(SeekFrom::Start(0))?;
        let mut whole = Vec::new();
        Read::by_ref(&mut file).take(limits.file_bytes).read_to_end(&mut whole)?;
        Ok(whole)
    })
}

/// Formats that are text; the whole file is held in memory, at most [`Limits::file_bytes`].
fn extract_text(
    path: &Path,
    format: Format,
    language: Option<&str>,
    limits: &Limits,
) -> Result<Extracted, ExtractError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ExtractError::unreadable)?;
    file.take(limits.file_bytes).read_to_end(&mut bytes).map_err(ExtractError::unreadable)?;
    let declared = if format == Format::Html { html::declared_encoding(&bytes) } else { None };
    let text = encoding::decode(&bytes, declared);
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
