//! Memory shared with the kernel half (or with nobody), accessed word by word.
//!
//! A mapping lives as long as the process, so that handles to it are `Copy` and can't dangle. All
//! access goes through aligned 64-bit atomics: the kernel half writes at the same time.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    ptr, slice,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::Pod;

const WORD: usize = size_of::<u64>();

/// A process-lifetime mapping that holds one `T`.
pub(crate) struct Page<T> {
    words: &'static [AtomicU64],
    content: PhantomData<fn() -> T>,
}

impl<T> Clone for Page<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Page<T> {}

impl<T: Pod> Page<T> {
    /// Maps the first element of a `BPF_F_MMAPABLE` array.
    ///
    /// # Errors
    /// `mmap(2)`'s.
    pub(crate) fn of_map(map: BorrowedFd<'_>) -> io::Result<Self> {
        Self::map(libc::MAP_SHARED, map.as_raw_fd())
    }

    /// Maps zeroed memory of our own.
    ///
    /// # Errors
    /// `mmap(2)`'s.
    pub(crate) fn anonymous() -> io::Result<Self> {
        Self::map(libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    fn map(flags: libc::c_int, fd: libc::c_int) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(WORD) && align_of::<T>() == WORD) };
        Ok(Self {
            words: map_words(size_of::<T>(), flags, fd)?,
            content: PhantomData,
        })
    }

    /// The word at a byte offset (`offset_of!`). Panics if the offset isn't a word's.
    pub(crate) fn word(self, offset: usize) -> &'static AtomicU64 {
        assert!(
            offset.is_multiple_of(WORD),
            "offset {offset} is not a word's"
        );
        &self.words[offset / WORD]
    }

    /// The words of a field.
    pub(crate) fn words<U: Pod>(self, offset: usize) -> &'static [AtomicU64] {
        const { assert!(size_of::<U>().is_multiple_of(WORD)) };
        assert!(
            offset.is_multiple_of(WORD),
            "offset {offset} is not a word's"
        );
        &self.words[offset / WORD..][..size_of::<U>() / WORD]
    }

    /// Copies a field out; each word is whole, the field may be torn.
    pub(crate) fn read<U: Pod>(self, offset: usize) -> U {
        let mut value = MaybeUninit::<U>::uninit();
        for (i, word) in self.words::<U>(offset).iter().enumerate() {
            let word = word.load(Ordering::Relaxed).to_ne_bytes();
            // SAFETY: `words` is as long as `U`, so this stays inside `value`; bytes are unaligned.
            unsafe {
                value
                    .as_mut_ptr()
                    .cast::<[u8; WORD]>()
                    .add(i)
                    .write_unaligned(word);
            }
        }
        // SAFETY: every byte was written above, and any bit pattern is a valid `Pod`.
        unsafe { value.assume_init() }
    }

    /// Copies a field in.
    pub(crate) fn write<U: Pod>(self, offset: usize, value: &U) {
        for (i, word) in self.words::<U>(offset).iter().enumerate() {
            // SAFETY: `words` is as long as `U`; `Pod` has no uninitialised padding.
            let bytes = unsafe {
                ptr::from_ref(value)
                    .cast::<[u8; WORD]>()
                    .add(i)
                    .read_unaligned()
            };
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
    }
}

/// Maps the first `bytes` of a `BPF_F_MMAPABLE` array whose number of elements the loader chose.
///
/// # Errors
/// `mmap(2)`'s, one of which is that the array is shorter than that.
pub(crate) fn words_of_map(map: BorrowedFd<'_>, bytes: usize) -> io::Result<&'static [AtomicU64]> {
    map_words(bytes, libc::MAP_SHARED, map.as_raw_fd())
}

fn map_words(
    bytes: usize,
    flags: libc::c_int,
    fd: libc::c_int,
) -> io::Result<&'static [AtomicU64]> {
    // SAFETY: a new mapping at an address of the kernel's choice; `fd` is borrowed or -1.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: mapped read-write for at least this size, page-aligned, never unmapped; atomics are
    // the only access from this process.
    Ok(unsafe { slice::from_raw_parts(address.cast::<AtomicU64>(), bytes / WORD) })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use gophership_common::{EnginePage, WorkerLine};

    use super::*;

    #[test]
    fn fields_round_trip_without_touching_their_neighbours() {
        let page = Page::<EnginePage>::anonymous().unwrap();
        let line = WorkerLine {
            heartbeat_ns: 1,
            used: [2, 3, 4],
            limit: [5, 6, 7],
            operations: 8,
            vault_write_us: 9,
            vault_write_at_ns: 10,
            line1: [11; 6],
        };
        let offset = offset_of!(EnginePage, workers) + size_of::<WorkerLine>();
        page.write(offset, &line);
        assert_eq!(page.read::<WorkerLine>(offset), line);
        for neighbour in [
            offset - size_of::<WorkerLine>(),
            offset + size_of::<WorkerLine>(),
        ] {
            assert_eq!(page.read::<WorkerLine>(neighbour), WorkerLine::default());
        }
        assert_eq!(page.word(offset + 8).load(Ordering::Relaxed), 2);
    }
}
