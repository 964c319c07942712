//! Maps files into memory, and gives pages of the maps back.

use std::{fs::File, path::Path};

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a whole file, read-only.
///
/// The map reflects the file's pages: if another process rewrites the file, the contents change under us, and if it
/// truncates the file, the next access beyond the new end kills the process with SIGBUS. Both are accepted, as in every
/// server that maps its weights: the alternative is a private copy of gigabytes. Bounds come from the length at this
/// moment, so the reader itself stays inside the map, and changed weights can only be wrong numbers: every bit pattern
/// is a valid block of every type. `hearth pull` and `models import` write to a temporary file and rename it, so
/// neither changes a file in place.
#[expect(unsafe_code, reason = "a file is mapped")]
pub(crate) fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    // SAFETY: the map is private to this process and read-only. Its contents may change if the file does, which the
    // comment above accepts: they are only ever read as plain bytes, through slices whose bounds were checked against
    // the map's own length, and after it was checked no value in them is relied on except tensor data.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

/// Takes the pages that lie within a part of a [`map`] out of this process's memory. They stay in the system's page cache as long as
/// there is room, and are read from the file again when they are needed. Does nothing on systems other than Linux, where the advice
/// means something else.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "pages of a map are given back")]
pub(super) fn release(map: &Bytes, part: &[u8]) {
    let page = rustix::param::page_size();
    let (map, part) = (map.as_ptr_range(), part.as_ptr_range());
    if part.start < map.start || part.end > map.end {
        return;
    }
    // The pages at the ends may hold parts of other tensors.
    let (start, end) = (part.start.addr().next_multiple_of(page), part.end.addr() / page * page);
    if start >= end {
        return;
    }
    let pages = part.start.with_addr(start).cast_mut().cast();
    // SAFETY: whole pages within a read-only map of a file: dropping them loses nothing.
    let _advice = unsafe { rustix::mm::madvise(pages, end - start, rustix::mm::Advice::LinuxDontNeed) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn release(_map: &Bytes, _part: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_still_there() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        let contents: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &contents).expect("a writable directory");
        let map = map(&path).expect("it is there");
        assert_eq!(&map[..], &contents[..]);
        for part in [&map[..], &map[5000..90_000], &map[1..2], &contents[..]] {
            release(&map, part);
            assert_eq!(&map[..], &contents[..]);
        }
    }
}
