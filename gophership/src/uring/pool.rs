//! A fixed number of equal, page-aligned buffers, handed out and taken back without allocating.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    rc::Rc,
};

use super::{ALIGNMENT, AlignedBytes};

/// The buffers of one size of one worker.
#[derive(Debug, Clone)]
pub struct BufferPool {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: AlignedBytes,
    buffer_bytes: usize,
    count: usize,
    free: RefCell<Vec<u16>>,
    /// The ring's index of the pool's first buffer, once registered.
    registered_from: Cell<Option<u16>>,
}

impl BufferPool {
    /// `count` buffers (at most 65,535) of `buffer_bytes` each, rounded up to a page.
    #[must_use]
    pub fn new(count: usize, buffer_bytes: usize) -> Self {
        let count = count.min(usize::from(u16::MAX));
        let buffer_bytes = buffer_bytes.max(1).next_multiple_of(ALIGNMENT);
        let free = (0..count)
            .rev()
            .filter_map(|index| u16::try_from(index).ok())
            .collect();
        Self {
            shared: Rc::new(Shared {
                memory: AlignedBytes::zeroed(count * buffer_bytes),
                buffer_bytes,
                count,
                free: RefCell::new(free),
                registered_from: Cell::new(None),
            }),
        }
    }

    /// A buffer with whatever its last owner left in it, or `None` when all are in use.
    #[must_use]
    pub fn acquire(&self) -> Option<Buffer> {
        let index = self.shared.free.borrow_mut().pop()?;
        Some(Buffer {
            pool: Rc::clone(&self.shared),
            index,
        })
    }

    /// Buffers nobody owns.
    #[must_use]
    pub fn available(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// Buffers in the pool.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Bytes of one buffer.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// Address of each buffer, for registration.
    pub(super) fn addresses(&self) -> impl Iterator<Item = NonNull<u8>> + '_ {
        (0..self.shared.count).map(|index| self.shared.address(index))
    }

    pub(super) fn set_registered_from(&self, first: u16) {
        self.shared.registered_from.set(Some(first));
    }
}

impl Shared {
    fn address(&self, index: usize) -> NonNull<u8> {
        debug_assert!(index < self.count, "buffer {index} of {}", self.count);
        // SAFETY: `index < count`, so the result stays within `memory`.
        unsafe { self.memory.start().add(index * self.buffer_bytes) }
    }
}

/// One buffer, owned; it goes back to its pool when dropped.
#[derive(Debug)]
pub struct Buffer {
    pool: Rc<Shared>,
    index: u16,
}

impl Buffer {
    pub(super) fn address(&self) -> NonNull<u8> {
        self.pool.address(usize::from(self.index))
    }

    /// The ring's index of this buffer, or `None` if its pool isn't registered.
    pub(super) fn registered_index(&self) -> Option<u16> {
        self.pool
            .registered_from
            .get()
            .and_then(|first| first.checked_add(self.index))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the index was popped from the free list, so this value alone covers these
        // initialised bytes, and `pool` keeps the memory alive.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), self.pool.buffer_bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), self.pool.buffer_bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The list was made with room for every index, so this never grows it.
        self.pool.free.borrow_mut().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_gives_nothing_until_a_buffer_comes_back() {
        let pool = BufferPool::new(2, 100);
        assert_eq!(pool.buffer_bytes(), ALIGNMENT);
        let mut first = pool.acquire().unwrap();
        let mut second = pool.acquire().unwrap();
        assert!(pool.acquire().is_none());
        first.fill(1);
        second.fill(2);
        assert!(first.iter().all(|&byte| byte == 1));
        drop(first);
        assert_eq!(pool.available(), 1);
        assert!(pool.acquire().is_some());
    }

    #[test]
    fn a_buffer_outlives_the_pool_handle() {
        let pool = BufferPool::new(1, ALIGNMENT);
        let mut buffer = pool.acquire().unwrap();
        drop(pool);
        buffer.fill(3);
        assert_eq!(buffer[ALIGNMENT - 1], 3);
    }
}
