//! The ZIP archive that contains an Office document, with limits on its contents: the number of files, the unpacked
//! bytes, and the ratio of unpacked to packed bytes. Declared sizes may be false, so bytes are counted as they are
//! unpacked.

use std::io::{self, Cursor, Read};

use zip::{ZipArchive, result::ZipError};

use super::{ExtractError, Format, Limit, Limits};

pub(super) type OfficeArchive = ZipArchive<Cursor<Vec<u8>>>;

/// Below this size an entry may have any compression ratio.
const RATIO_FREE_BYTES: u64 = 1024 * 1024;

pub(super) fn open(bytes: Vec<u8>, limits: &Limits) -> Result<OfficeArchive, ExtractError> {
    let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| ExtractError::Unsupported {
        found: format!("a ZIP archive that cannot be opened ({error})"),
    })?;
    let entries = archive.len() as u64;
    if entries > limits.archive_entries {
        return Err(ExtractError::OverLimit {
            limit: Limit::ArchiveEntries,
            allowed: limits.archive_entries,
            found: Some(entries),
        });
    }
    Ok(archive)
}

/// The archive's format, recognized by parts that only that kind of document has.
pub(super) fn office_format(archive: &OfficeArchive) -> Result<Format, ExtractError> {
    let has = |name: &str| archive.index_for_name(name).is_some();
    let has_folder = |folder: &str| archive.file_names().flatten().any(|name| name.starts_with(folder));
    if has("xl/workbook.xml") {
        return Ok(Format::Xlsx);
    }
    if has("word/document.xml") || (has("[Content_Types].xml") && has_folder("word/")) {
        return Ok(Format::Docx);
    }
    let found = if has_folder("ppt/") {
        "a PowerPoint presentation (save it as PDF)"
    } else if has("xl/workbook.bin") {
        "a binary Excel workbook (save it as XLSX)"
    } else if has("mimetype") {
        "an OpenDocument file or an e-book (save it as DOCX or PDF)"
    } else if has("META-INF/MANIFEST.MF") {
        "a Java archive"
    } else {
        "a ZIP archive (`hearth ingest` reads the files in it; else unpack it and upload them)"
    };
    Err(ExtractError::Unsupported { found: found.to_owned() })
}

/// Unpacks one entry as a stream that fails once it exceeds a limit; [`read_error`] says which one. `None` if there is
/// no such entry. `unpacked` counts across all entries.
pub(super) fn entry<'a>(
    archive: &'a mut OfficeArchive,
    name: &str,
    format: Format,
    limits: &Limits,
    unpacked: &'a mut u64,
) -> Result<Option<impl Read + 'a>, ExtractError> {
    let Some(index) = archive.index_for_name(name) else { return Ok(None) };
    entry_at(archive, index, format, limits, unpacked).map(Some)
}

fn entry_at<'a>(
    archive: &'a mut OfficeArchive,
    index: usize,
    format: Format,
    limits: &Limits,
    unpacked: &'a mut u64,
) -> Result<impl Read + 'a, ExtractError> {
    let file = archive.by_index(index).map_err(|error| match error {
        ZipError::InvalidPassword => ExtractError::Encrypted { format },
        ZipError::UnsupportedArchive(reason) if reason == ZipError::PASSWORD_REQUIRED => {
            ExtractError::Encrypted { format }
        }
        error => ExtractError::damaged(format, error),
    })?;
    let ratio_bytes = ratio_allows(file.compressed_size(), limits);
    Ok(Unpacking {
        inner: file,
        read: 0,
        total: unpacked,
        allowed: limits.archive_bytes,
        ratio_bytes,
        ratio: limits.archive_ratio,
    })
}

/// How many unpacked bytes this number of packed bytes may produce.
pub(super) fn ratio_allows(packed: u64, limits: &Limits) -> u64 {
    packed.saturating_mul(limits.archive_ratio).max(RATIO_FREE_BYTES)
}

/// Unpacks everything once and discards it, for readers that do their own unpacking.
pub(super) fn check_all(archive: &mut OfficeArchive, format: Format, limits: &Limits) -> Result<(), ExtractError> {
    let mut unpacked = 0;
    for index in 0..archive.len() {
        let mut entry = entry_at(archive, index, format, limits, &mut unpacked)?;
        io::copy(&mut entry, &mut io::sink()).map_err(|error| read_error(error, format))?;
    }
    Ok(())
}

/// Converts an error of a stream from [`entry`].
pub(super) fn read_error(error: io::Error, format: Format) -> ExtractError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ExtractError>()) {
        Some(ours) => ours.clone(),
        None => ExtractError::damaged(format, error),
    }
}

struct Unpacking<'t, R> {
    inner: R,
    read: u64,
    total: &'t mut u64,
    allowed: u64,
    ratio_bytes: u64,
    ratio: u64,
}

impl<R: Read> Read for Unpacking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        *self.total += read as u64;
        let (limit, allowed) = if *self.total > self.allowed {
            (Limit::ArchiveBytes, self.allowed)
        } else if self.read > self.ratio_bytes {
            (Limit::ArchiveRatio, self.ratio)
        } else {
            return Ok(read);
        };
        Err(io::Error::other(ExtractError::OverLimit { limit, allowed, found: None }))
    }
}
