//! PDF, read with `pdf_oxide`: the paragraphs of each page, in reading order.
//!
//! A hostile file can overflow the reader's stack, which ends its process; [`super::sandbox`] is the process that
//! may end.

use std::path::Path;

use pdf_oxide::{PdfDocument, error::Error as PdfError};

use super::{
    ExtractError, Format, Limit,
    document::{BlockKind, DocumentBuilder, Place},
};

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
    for page in 0..pages {
        match document.extract_text(page) {
            Ok(text) => read_page(&text, page + 1, builder)?,
            Err(PdfError::EncryptedPdf) => return Err(ExtractError::Encrypted { format: Format::Pdf }),
            Err(error) => builder.skip(format!("page {} cannot be read: {error}", page + 1)),
        }
    }
    Ok(())
}

fn read_page(text: &str, page: usize, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let mut paragraph = String::new();
    for line in text.lines() {
        let line = line.trim_end();
        if line.is_empty() {
            builder.push(BlockKind::Paragraph, &paragraph, Place::page(page))?;
            paragraph.clear();
        } else {
            if !paragraph.is_empty() {
                paragraph.push('\n');
            }
            paragraph.push_str(line);
        }
    }
    builder.push(BlockKind::Paragraph, &paragraph, Place::page(page))
}

fn failed(error: &PdfError) -> ExtractError {
    match error {
        PdfError::EncryptedPdf => ExtractError::Encrypted { format: Format::Pdf },
        error => ExtractError::damaged(Format::Pdf, error),
    }
}
