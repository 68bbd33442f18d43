//! Page-aligned memory for O_DIRECT, from the kernel itself.
//!
//! Not from the heap: there, buffers of a MiB that come and go between what stays leave holes that no other
//! aligned buffer fits into, and a recovery of many segments would take more and more memory.

use std::{
    alloc::{Layout, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

use super::ALIGNMENT;

/// Zero-initialised bytes whose address and length are multiples of [`ALIGNMENT`].
#[derive(Debug)]
pub struct AlignedBytes {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned by this value alone and reached only through it.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `len` bytes, rounded up to a page; at least one page.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(ALIGNMENT);
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping of whole pages, wherever the kernel likes, touches no other memory.
        let raw = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        match NonNull::new(raw.cast()) {
            Some(start) if raw != libc::MAP_FAILED => Self { start, len },
            Some(_) | None => handle_alloc_error(Self::layout(len)),
        }
    }

    /// The same in large pages, where the kernel has them: direct I/O pins page by page.
    #[must_use]
    pub fn zeroed_in_large_pages(len: usize) -> Self {
        let bytes = Self::zeroed(len);
        // SAFETY: the mapping is ours, and the advice changes nothing that is in it. Without large pages it is refused.
        unsafe { libc::madvise(bytes.start.as_ptr().cast(), bytes.len, libc::MADV_HUGEPAGE) };
        bytes
    }

    /// The first byte; the memory stays where it is for the value's whole life.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT).expect("a page-aligned length below isize::MAX")
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes while `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: mapped in `zeroed` with this very length, and unmapped once. It can't fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_page_aligned_zeroed_and_rounded_up() {
        let mut bytes = AlignedBytes::zeroed(ALIGNMENT + 1);
        assert_eq!(bytes.len(), 2 * ALIGNMENT);
        assert_eq!(bytes.as_ptr() as usize % ALIGNMENT, 0);
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes[ALIGNMENT] = 7;
        assert_eq!(bytes[ALIGNMENT], 7);
    }
}
