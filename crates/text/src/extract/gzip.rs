//! Documents packed with gzip (RFC 1952): the unpacked content has the same size limit as a document that is not
//! packed.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;

use super::{ExtractError, Limit, Limits, archive::ratio_allows};

pub(super) fn unpack(packed: &[u8], limits: &Limits) -> Result<Vec<u8>, ExtractError> {
    let by_ratio = ratio_allows(packed.len() as u64, limits);
    let allowed = limits.file_bytes.min(by_ratio);
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed).take(allowed + 1).read_to_end(&mut bytes).map_err(|error| {
        ExtractError::Unsupported { found: format!("a gzip file that cannot be unpacked ({error})") }
    })?;
    if bytes.len() as u64 <= allowed {
        return Ok(bytes);
    }
    let (limit, allowed) = if by_ratio < limits.file_bytes {
        (Limit::ArchiveRatio, limits.archive_ratio)
    } else {
        (Limit::FileBytes, limits.file_bytes)
    };
    Err(ExtractError::OverLimit { limit, allowed, found: None })
}
