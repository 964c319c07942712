//! Memory that will be used soon, fetched before it is.
//!
//! These are hints: nothing is read, so any address will do, and where there is no instruction for it they do nothing. They pay
//! where the processor cannot know what comes next: rows listed by number, blocks of a cache, a few columns of many rows.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Into the L1 cache.
#[inline(always)]
pub fn to_l1(from: *const u8, bytes: usize) {
    fetch::<true>(from, bytes);
}

/// Into the L2 cache.
#[inline(always)]
pub fn to_l2(from: *const u8, bytes: usize) {
    fetch::<false>(from, bytes);
}

#[inline(always)]
fn fetch<const L1: bool>(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..bytes).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let line = from.wrapping_add(offset).cast();
        // SAFETY: a prefetch of any address is no access to it, and SSE is part of x86-64.
        unsafe { if L1 { _mm_prefetch::<_MM_HINT_T0>(line) } else { _mm_prefetch::<_MM_HINT_T1>(line) } };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes, LINE, L1);
}
