//! Page-aligned memory on the heap, for O_DIRECT.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
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
        let layout = Self::layout(len);
        // SAFETY: the layout's size is at least one page, so not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self { start, len }
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
        // SAFETY: allocated in `zeroed` with this very layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
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
