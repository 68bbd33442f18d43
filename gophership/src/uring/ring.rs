//! One io_uring: durable writes from registered buffers, and timers finer than the runtime's.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};
use tokio::io::unix::AsyncFd;

use super::{
    Buffer, BufferPool, Error,
    writer::{Completion, Event, Notifier, Target, Timer, Write, Writer, is_aligned},
};

/// Submissions tried again after EINTR, EAGAIN or EBUSY before the ring counts as broken.
const SUBMIT_ATTEMPTS_MAX: u32 = 64;
/// Set in the user data of timers; the rest of those bits is the timer's number.
const TIMER_BIT: u64 = 1 << 63;

#[derive(Debug)]
struct InFlight {
    buffer: Buffer,
    len: usize,
    token: u64,
    /// Held so that the descriptor stays open (and isn't another file's) while the kernel uses it.
    _file: Arc<dyn Target>,
}

/// A ring of one worker; not `Send`, since its buffers aren't.
pub struct Ring {
    io: IoUring,
    /// By the slot in the user data. Grows never: its length is the submission queue's.
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    timers: Box<[types::Timespec; 2]>,
    broken: bool,
    /// Whether the kernel has the buffers pinned once for all; else it pins them for each write.
    registered: bool,
    /// Keeps registered memory alive as long as the ring.
    _pools: Vec<BufferPool>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("writes", &self.writes())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for the buffers of `pools`, which are registered unless RLIMIT_MEMLOCK forbids it.
    ///
    /// # Errors
    /// The kernel refuses the ring, or the buffers for another reason.
    pub fn new(pools: Vec<BufferPool>) -> Result<Self, Error> {
        Self::with(pools, |io, vectors| {
            // SAFETY: the vectors describe memory of the pools, which the ring keeps (`_pools`) until
            // after `io` is dropped (fields drop in order, and `drop` waits for writes first).
            match unsafe { io.submitter().register_buffers(vectors) } {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(false),
                registered => registered.map(|()| true),
            }
        })
    }

    fn with(
        pools: Vec<BufferPool>,
        register: impl FnOnce(&IoUring, &[libc::iovec]) -> io::Result<bool>,
    ) -> Result<Self, Error> {
        let count: usize = pools.iter().map(BufferPool::count).sum();
        if count > usize::from(u16::MAX) {
            return Err(Error::TooManyBuffers { count });
        }
        // One entry for each buffer and each timer: the queue can't run full.
        let entries = u32::try_from((count + 2).next_power_of_two())
            .map_err(|_| Error::TooManyBuffers { count })?;
        let io = IoUring::new(entries).map_err(|source| Error::Setup { entries, source })?;
        let mut vectors = Vec::with_capacity(count);
        for pool in &pools {
            let first =
                u16::try_from(vectors.len()).map_err(|_| Error::TooManyBuffers { count })?;
            pool.set_registered_from(first);
            vectors.extend(pool.addresses().map(|address| libc::iovec {
                iov_base: address.as_ptr().cast(),
                iov_len: pool.buffer_bytes(),
            }));
        }
        let bytes = vectors.iter().map(|vector| vector.iov_len).sum();
        let registered =
            register(&io, &vectors).map_err(|source| Error::Register { bytes, source })?;
        Ok(Self {
            io,
            in_flight: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            timers: Box::new([types::Timespec::new(); 2]),
            broken: false,
            registered,
            _pools: pools,
        })
    }

    /// Whether the buffers are pinned once for all, rather than for each write.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    fn submit(&mut self) -> Result<(), Error> {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            match self.io.submit() {
                Ok(_) if self.io.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(source) if is_transient(&source) => {}
                Err(source) => {
                    self.broken = true;
                    return Err(Error::Enter(source));
                }
            }
        }
        self.broken = true;
        Err(Error::Enter(io::ErrorKind::WouldBlock.into()))
    }
}

impl Writer for Ring {
    fn notifier(&self) -> Result<Notifier, Error> {
        // SAFETY: the ring's descriptor is open while `self.io` lives, which is longer than this call.
        let ring = unsafe { BorrowedFd::borrow_raw(self.io.as_raw_fd()) };
        let own = ring.try_clone_to_owned().map_err(Error::Watch)?;
        // SAFETY: the `OwnedFd` moves into the `AsyncFd`, which alone owns it and closes it last.
        unsafe { AsyncFd::register_with_interest(own, tokio::io::Interest::READABLE) }
            .map(Notifier::ring)
            .map_err(|refused| Error::Watch(refused.into()))
    }

    fn writes(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    fn write(&mut self, write: Write) -> Result<(), Error> {
        let Write {
            file,
            buffer,
            len,
            offset,
            durable,
            token,
        } = write;
        let index = buffer
            .registered_index()
            .filter(|_| is_aligned(&buffer, len, offset));
        let (Some(index), Ok(length)) = (index, u32::try_from(len)) else {
            return Err(Error::Misaligned {
                length: len,
                offset,
                capacity: buffer.len(),
            });
        };
        if self.broken {
            return Err(Error::Enter(io::ErrorKind::BrokenPipe.into()));
        }
        let slot = self.free.pop().ok_or(Error::QueueFull)?;
        let start = buffer.address().as_ptr();
        let fd = types::Fd(file.fd());
        let index = self.registered.then_some(index);
        let entry = entry(fd, start, length, index, offset, durable).user_data(slot as u64);
        self.in_flight[slot] = Some(InFlight {
            buffer,
            len,
            token,
            _file: file,
        });
        // SAFETY: buffer and file are owned by `in_flight` until the completion for this slot is
        // seen, so both stay valid for as long as the kernel uses them.
        if unsafe { self.io.submission().push(&entry) }.is_err() {
            self.in_flight[slot] = None;
            self.free.push(slot);
            return Err(Error::QueueFull);
        }
        self.submit()
    }

    fn arm(&mut self, timer: Timer, after: Duration) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Enter(io::ErrorKind::BrokenPipe.into()));
        }
        let number = timer as usize;
        self.timers[number] = types::Timespec::from(after);
        let entry = opcode::Timeout::new(&raw const self.timers[number])
            .build()
            .user_data(TIMER_BIT | number as u64);
        // SAFETY: the timespec lives in a box the ring owns; the kernel copies it in `submit`.
        if unsafe { self.io.submission().push(&entry) }.is_err() {
            return Err(Error::QueueFull);
        }
        self.submit()
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let entry = self.io.completion().next()?;
            let data = entry.user_data();
            if data & TIMER_BIT != 0 {
                let timer = if data & 1 == 0 { Timer::A } else { Timer::B };
                return Some(Event::Elapsed(timer));
            }
            let slot = usize::try_from(data).unwrap_or(usize::MAX);
            // A completion for a slot that isn't in use can't come from this ring's writes.
            let Some(done) = self.in_flight.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            return Some(Event::Written(Completion {
                token: done.token,
                result: written(entry.result(), done.len),
                buffer: done.buffer,
            }));
        }
    }
}

/// The one place that decides how durable a write is when it completes.
fn entry(
    fd: types::Fd,
    start: *const u8,
    length: u32,
    registered: Option<u16>,
    offset: u64,
    durable: bool,
) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match registered {
        Some(index) => opcode::WriteFixed::new(fd, start, length, index)
            .offset(offset)
            .rw_flags(flags)
            .build(),
        None => opcode::Write::new(fd, start, length)
            .offset(offset)
            .rw_flags(flags)
            .build(),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

fn written(result: i32, len: usize) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(bytes) if bytes == len => Ok(()),
        Ok(bytes) => Err(io::Error::new(
            io::ErrorKind::WriteZero,
            format!("{bytes} of {len} bytes written"),
        )),
        Err(_) => Err(io::Error::from_raw_os_error(result.wrapping_neg())),
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel reads the buffers until their writes finish: wait for them.
        while self.writes() > 0 {
            match self.io.submit_and_wait(1) {
                Ok(_) => while self.next_event().is_some() {},
                Err(source) if is_transient(&source) => while self.next_event().is_some() {},
                Err(source) => {
                    tracing::error!(error = %source, writes = self.writes(), "leaking buffers of unfinished writes");
                    std::mem::forget(std::mem::take(&mut self.in_flight));
                    std::mem::forget(std::mem::take(&mut self._pools));
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::ALIGNMENT;
    use std::{fs::File, os::unix::fs::OpenOptionsExt};

    fn direct_file(dir: &std::path::Path) -> Arc<File> {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(dir.join("file"))
            .unwrap();
        Arc::new(file)
    }

    fn real_disk() -> tempfile::TempDir {
        // Beside the test's binary: /tmp may be a tmpfs, which knows no O_DIRECT.
        let binary = std::env::current_exe().unwrap();
        tempfile::tempdir_in(binary.parent().unwrap()).unwrap()
    }

    #[test]
    fn a_dropped_ring_waits_for_its_writes() {
        let dir = real_disk();
        let pool = BufferPool::new(4, 2 * ALIGNMENT);
        let mut ring = Ring::new(vec![pool.clone()]).unwrap();
        for number in 0..4_u8 {
            let mut buffer = pool.acquire().unwrap();
            buffer.fill(number);
            let write = Write {
                file: direct_file(dir.path()),
                buffer,
                len: ALIGNMENT,
                offset: u64::from(number) * ALIGNMENT as u64,
                durable: true,
                token: 0,
            };
            ring.write(write).unwrap();
        }
        assert_eq!(pool.available(), 0);
        drop(ring);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn a_durable_write_carries_rwf_dsync_to_the_kernel() {
        // `rw_flags` of `struct io_uring_sqe`, linux/io_uring.h.
        const RW_FLAGS_AT: usize = 28;
        for (durable, flags) in [(true, libc::RWF_DSYNC), (false, 0)] {
            for registered in [Some(0), None] {
                let entry = entry(types::Fd(0), std::ptr::null(), 4096, registered, 0, durable);
                // SAFETY: `Entry` is the kernel's 64-byte entry, plain numbers, any of whose bytes may be read.
                let bytes: [u8; 64] = unsafe { std::mem::transmute_copy(&entry) };
                let field = bytes[RW_FLAGS_AT..RW_FLAGS_AT + 4].try_into().unwrap();
                assert_eq!(i32::from_ne_bytes(field), flags);
            }
        }
    }

    #[test]
    fn writes_work_where_the_buffers_may_not_be_registered() {
        let dir = real_disk();
        let pool = BufferPool::new(1, ALIGNMENT);
        let mut ring = Ring::with(vec![pool.clone()], |_, _| Ok(false)).unwrap();
        assert!(!ring.is_registered());
        let mut buffer = pool.acquire().unwrap();
        buffer.fill(5);
        let write = Write {
            file: direct_file(dir.path()),
            buffer,
            len: ALIGNMENT,
            offset: 0,
            durable: true,
            token: 3,
        };
        ring.write(write).unwrap();
        drop(ring);
        let written = std::fs::read(dir.path().join("file")).unwrap();
        assert_eq!(written, vec![5; ALIGNMENT]);
    }

    #[test]
    fn misaligned_writes_are_refused() {
        let dir = real_disk();
        let pool = BufferPool::new(1, ALIGNMENT);
        let mut ring = Ring::new(vec![pool.clone()]).unwrap();
        for (len, offset) in [(100, 0), (ALIGNMENT, 1), (2 * ALIGNMENT, 0), (0, 0)] {
            let write = Write {
                file: direct_file(dir.path()),
                buffer: pool.acquire().unwrap(),
                len,
                offset,
                durable: true,
                token: 0,
            };
            assert!(matches!(ring.write(write), Err(Error::Misaligned { .. })));
        }
        assert_eq!(pool.available(), 1);
    }

    #[tokio::test]
    async fn writes_and_timers_complete_through_the_notifier() {
        let dir = real_disk();
        let pool = BufferPool::new(1, ALIGNMENT);
        let mut ring = Ring::new(vec![pool.clone()]).unwrap();
        let notifier = ring.notifier().unwrap();
        ring.arm(Timer::B, Duration::from_micros(200)).unwrap();
        let mut buffer = pool.acquire().unwrap();
        buffer.fill(9);
        let write = Write {
            file: direct_file(dir.path()),
            buffer,
            len: ALIGNMENT,
            offset: 0,
            durable: true,
            token: 42,
        };
        ring.write(write).unwrap();
        let (mut written, mut elapsed) = (false, false);
        while !(written && elapsed) {
            tokio::time::timeout(Duration::from_secs(10), notifier.wait())
                .await
                .unwrap()
                .unwrap();
            while let Some(event) = ring.next_event() {
                match event {
                    Event::Written(done) => {
                        assert_eq!(done.token, 42);
                        done.result.unwrap();
                        written = true;
                    }
                    Event::Elapsed(timer) => {
                        assert_eq!(timer, Timer::B);
                        elapsed = true;
                    }
                }
            }
        }
        assert_eq!(
            std::fs::read(dir.path().join("file")).unwrap(),
            vec![9; ALIGNMENT]
        );
    }
}
