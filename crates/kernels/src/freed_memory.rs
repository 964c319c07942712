//! Returns freed memory to the system.
//!
//! glibc keeps freed memory for the next allocation, in one arena per thread, so after a burst of large requests a
//! process would stay at its peak for good. Other allocators return memory on their own and need nothing here.

/// Returns what can be returned. It takes milliseconds and locks the allocator meanwhile, so do not call it for every
/// request.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes no pointer, changes nothing visible to the program, and may be called from any thread
    // at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    /// The reference is the memory itself: memory in use keeps its contents.
    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 100_000]).collect();
        let freed: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 100_000]).collect();
        drop(freed);
        super::give_back();
        assert!((0..).zip(&kept).all(|(n, bytes)| bytes.iter().all(|&byte| byte == n)));
    }
}
