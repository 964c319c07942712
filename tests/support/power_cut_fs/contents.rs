//! The bytes of one file: what a reader sees, and what is left of them when the power fails.
//!
//! Bytes are kept in pages, and pages survive one by one: of those that were changed since the file was last synced,
//! any may be on the disk and any may not, in no order. The same holds for the size. This is what a kernel is allowed to
//! do that writes pages back when it likes. Pages that neither state has are holes and read as zeros.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub const PAGE: usize = 4096;

#[derive(Clone, Debug, Default)]
struct Bytes {
    size: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    seen: Bytes,
    durable: Bytes,
    /// Pages that were written or cut off since the last sync.
    changed: BTreeSet<u64>,
}

/// How many pages this many bytes take.
pub fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE as u64)
}

/// The pages that a range of bytes touches, each with the range inside the page.
fn touched(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset + length as u64;
    (offset / PAGE as u64..pages_of(end)).map(move |page| {
        let start = page * PAGE as u64;
        let range = offset.max(start) - start..end.min(start + PAGE as u64) - start;
        (page, range.start as usize..range.end as usize)
    })
}

impl Bytes {
    /// Cuts off what is beyond the size, so that a file that grows again reads zeros there. Returns the pages it touched.
    fn trim(&mut self) -> Vec<u64> {
        let mut touched: Vec<u64> = self.pages.split_off(&pages_of(self.size)).into_keys().collect();
        let inside = (self.size % PAGE as u64) as usize;
        let last = self.size / PAGE as u64;
        if inside > 0
            && let Some(page) = self.pages.get_mut(&last)
            && page[inside..].iter().any(|byte| *byte != 0)
        {
            Arc::make_mut(page)[inside..].fill(0);
            touched.push(last);
        }
        touched
    }
}

impl Contents {
    pub fn size(&self) -> u64 {
        self.seen.size
    }

    /// The pages that take room.
    pub fn pages(&self) -> u64 {
        self.seen.pages.len() as u64
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let length = self.seen.size.saturating_sub(offset).min(length as u64) as usize;
        let mut bytes = Vec::with_capacity(length);
        for (page, range) in touched(offset, length) {
            match self.seen.pages.get(&page) {
                Some(page) => bytes.extend_from_slice(&page[range]),
                None => bytes.resize(bytes.len() + range.len(), 0),
            }
        }
        bytes
    }

    /// Writes as much as fits into this many new pages, and returns how much that was.
    pub fn write(&mut self, offset: u64, bytes: &[u8], mut free_pages: u64) -> usize {
        let mut written = 0;
        for (page, range) in touched(offset, bytes.len()) {
            if !self.seen.pages.contains_key(&page) {
                if free_pages == 0 {
                    break;
                }
                free_pages -= 1;
            }
            let next = written + range.len();
            let page_bytes = self.seen.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page_bytes)[range].copy_from_slice(&bytes[written..next]);
            self.changed.insert(page);
            written = next;
        }
        if written > 0 {
            self.seen.size = self.seen.size.max(offset + written as u64);
        }
        written
    }

    /// Gives a range pages of its own, if there are as many free ones. The size follows unless it is to be kept.
    pub fn reserve(&mut self, offset: u64, length: u64, keep_size: bool, free_pages: u64) -> bool {
        let range = offset / PAGE as u64..pages_of(offset + length);
        let missing: Vec<u64> = range.filter(|page| !self.seen.pages.contains_key(page)).collect();
        if missing.len() as u64 > free_pages {
            return false;
        }
        for page in missing {
            self.seen.pages.insert(page, Arc::new([0; PAGE]));
            self.changed.insert(page);
        }
        if !keep_size {
            self.seen.size = self.seen.size.max(offset + length);
        }
        true
    }

    pub fn truncate(&mut self, size: u64) {
        self.seen.size = size;
        self.changed.extend(self.seen.trim());
    }

    /// Makes durable what is seen.
    pub fn sync(&mut self) {
        for page in std::mem::take(&mut self.changed) {
            match self.seen.pages.get(&page) {
                Some(bytes) => self.durable.pages.insert(page, bytes.clone()),
                None => self.durable.pages.remove(&page),
            };
        }
        self.durable.size = self.seen.size;
    }

    /// Lets go of the room of a file that has no name and is not open any more. Should its last name have been taken away
    /// in vain, what was synced is still there.
    pub fn discard(&mut self) {
        self.seen = self.durable.clone();
        self.changed.clear();
    }

    /// What is found after the power has failed. `survives` is asked for each page that was not synced, and for the size.
    pub fn after_power_cut(&self, mut survives: impl FnMut() -> bool) -> Self {
        let mut left = self.durable.clone();
        for page in &self.changed {
            if survives() {
                match self.seen.pages.get(page) {
                    Some(bytes) => left.pages.insert(*page, bytes.clone()),
                    None => left.pages.remove(page),
                };
            }
        }
        if self.seen.size != left.size && survives() {
            left.size = self.seen.size;
        }
        left.trim();
        Self { seen: left.clone(), durable: left, changed: BTreeSet::new() }
    }
}
