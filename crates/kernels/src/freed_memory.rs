//! Gives memory that was freed back to the system.
//!
//! glibc keeps what was freed for the next allocation, in an arena for each thread: after a burst of large requests a process would
//! stay at its peak for good. Other allocators give back by themselves, and there is nothing to do.

/// Gives back what can be given. It takes milliseconds and locks the allocator meanwhile: not for every request.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes no pointer, changes nothing that the program can see, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    /// The reference is the memory itself: what is in use stays as it is.
    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 100_000]).collect();
        let freed: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 100_000]).collect();
        drop(freed);
        super::give_back();
        assert!((0..).zip(&kept).all(|(n, bytes)| bytes.iter().all(|&byte| byte == n)));
    }
}
