//! Large zeroed arrays of which only the written pages take memory.
//!
//! An allocator promises zeroed memory but not how it is zeroed: glibc clears memory that it takes from its heap, and
//! it does so for everything below a threshold that rises, up to 32 MiB, with each mapping that is freed. The pages
//! here are a separate mapping, which the operating system fills on first touch, independent of the allocator. It
//! declines huge pages, with which one touched element would make 2 MiB resident. A touched page stays resident until the
//! array is dropped.

use std::{
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A slice of plain numbers over an anonymous mapping.
#[derive(Debug)]
pub(super) struct ZeroedPages<T> {
    map: MmapMut,
    elements: usize,
    _element: PhantomData<T>,
}

impl<T: Pod> ZeroedPages<T> {
    /// # Errors
    /// If the byte count overflows, or the system does not have enough memory.
    pub fn new(elements: usize) -> io::Result<Self> {
        let bytes = elements.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // A kernel without huge pages rejects the advice, and does not need it.
        let _ignored = map.advise(memmap2::Advice::NoHugePage);
        Ok(Self { map, elements, _element: PhantomData })
    }
}

impl<T: Pod> Deref for ZeroedPages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // A mapping begins on a page boundary, which suits any number. An empty one still has one byte.
        bytemuck::cast_slice(&self.map[..self.elements * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for ZeroedPages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.elements * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_slice_of_zeroes() {
        let mut pages = ZeroedPages::<u16>::new(10_000).expect("there is memory");
        assert!(pages.len() == 10_000 && pages.iter().all(|number| *number == 0));
        pages[9_999] = 7;
        assert_eq!((pages[9_998], pages[9_999]), (0, 7));
        assert!(ZeroedPages::<f32>::new(0).expect("nothing is needed").is_empty());
        ZeroedPages::<f32>::new(usize::MAX / 2).expect_err("no count has room for its bytes");
    }
}
