//! Memory for a model's matrices, one behind the other.
//!
//! A matrix is read from end to end for every token, and huge pages spare most of what finding its pages takes. But a huge page is
//! 2 MiB: with a mapping for each matrix, a small one would have none, and a large one none at its ends. Here matrices share
//! mappings, and so their huge pages. A mapping stays until the last matrix in it is dropped.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;

/// Of address space, a multiple of a huge page. What is not used of a mapping's last huge page is lost.
const MAPPING_BYTES: usize = 128 << 20;
/// Where a matrix may begin.
const LINE: usize = 64;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Arena(Mutex<Option<Rest>>);

/// What is left of the newest mapping.
#[derive(Debug)]
struct Rest {
    mapping: Arc<MmapRaw>,
    used: usize,
}

/// Bytes of an arena that belong to one owner.
#[derive(Debug)]
pub(super) struct ArenaBytes {
    mapping: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Arena {
    /// Zeroed bytes that begin on a cache line.
    ///
    /// # Errors
    /// If the system does not have enough memory.
    pub(super) fn bytes(&self, len: usize) -> io::Result<ArenaBytes> {
        let room = len.checked_next_multiple_of(LINE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut rest = self.0.lock();
        let rest = match &mut *rest {
            Some(rest) if rest.mapping.len() - rest.used >= room => rest,
            rest => {
                let mapping = MmapOptions::new().len(room.max(MAPPING_BYTES)).map_anon()?;
                // A kernel without huge pages rejects the advice, and does not need it.
                #[cfg(target_os = "linux")]
                let _ignored = mapping.advise(memmap2::Advice::HugePage);
                rest.insert(Rest { mapping: Arc::new(mapping.into()), used: 0 })
            }
        };
        let start = rest.used;
        rest.used += room;
        Ok(ArenaBytes { mapping: Arc::clone(&rest.mapping), start, len })
    }
}

impl Deref for ArenaBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie within the mapping, which lives as long as this owner; nothing else refers to them, because an
        // arena gives each byte once.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for ArenaBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for reading, and this reference to the owner is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_mut_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_has_bytes_of_its_own() {
        let arena = Arena::default();
        let lengths = [1, 0, 64, 100, MAPPING_BYTES - 200, 4096, MAPPING_BYTES + 1, 7];
        let mut owners: Vec<ArenaBytes> =
            lengths.iter().map(|&len| arena.bytes(len).expect("there is memory")).collect();
        for (owner, value) in owners.iter_mut().zip(1..) {
            assert!(owner.iter().take(5000).all(|&byte| byte == 0));
            let last = owner.len().saturating_sub(1);
            for at in [0, last] {
                if let Some(byte) = owner.get_mut(at) {
                    *byte = value;
                }
            }
        }
        drop(arena);
        for ((owner, value), len) in owners.iter().zip(1..).zip(lengths) {
            assert_eq!(owner.len(), len);
            assert!(owner.first().into_iter().chain(owner.last()).all(|&byte| byte == value));
            assert_eq!(owner.as_ptr().addr() % LINE, 0);
        }
        Arena::default().bytes(usize::MAX).expect_err("no machine has that much");
    }
}
