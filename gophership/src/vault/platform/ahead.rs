//! Reading a file from its start to its end with the disk and the reader at work at the same time.
//!
//! Threads read what follows the last read while that is worked on; past the page cache, nobody else would. Several, for
//! a disk is faster with more than one read at a time. What they couldn't read, and what is elsewhere, is read as if there
//! were none, so that an error is told for the very place. Memory: four chunks. The threads end with the file.
//!
//! For files that nobody writes any more: what was read ahead is not read again.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    os::fd::RawFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use super::DiskFile;
use crate::uring::{AlignedBytes, Target};

/// Bytes that are read ahead at once.
const CHUNK: usize = 1 << 20;
/// Chunks that are read ahead, each by a thread.
const AHEAD: u64 = 3;

/// A file that is read ahead.
#[derive(Debug)]
pub(super) struct ReadAhead {
    file: Arc<dyn DiskFile>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the last read ended: one that goes on there begins to read ahead.
    end: u64,
    stream: Option<Stream>,
}

/// Chunks, one behind the other.
#[derive(Debug)]
struct Stream {
    /// Take the chunks in turn; the first has the next one.
    threads: VecDeque<Thread>,
    /// The chunk that is used up, as far as it is.
    current: Chunk,
    /// Where the chunk begins that comes next.
    next: u64,
}

#[derive(Debug)]
struct Thread {
    wanted: Sender<(u64, AlignedBytes)>,
    read: Receiver<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    start: u64,
    bytes: AlignedBytes,
    filled: usize,
}

impl ReadAhead {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            state: Mutex::new(State {
                end: 0,
                stream: None,
            }),
        }
    }
}

impl Thread {
    /// Begins with the chunk at `start`; `None` if there can't be a thread for it.
    fn start(file: &Arc<dyn DiskFile>, start: u64) -> Option<Self> {
        let (wanted, wishes) = channel::<(u64, AlignedBytes)>();
        let (done, read) = channel();
        let file = Arc::clone(file);
        thread::Builder::new()
            .name("vault-read".to_owned())
            .spawn(move || {
                while let Ok((start, mut bytes)) = wishes.recv() {
                    // What fails is tried again by whoever wants it, and told there.
                    let filled = file.read_at(&mut bytes, start).unwrap_or(0);
                    let chunk = Chunk {
                        start,
                        bytes,
                        filled,
                    };
                    if done.send(chunk).is_err() {
                        return;
                    }
                }
            })
            .ok()?;
        wanted.send((start, AlignedBytes::zeroed(CHUNK))).ok()?;
        Some(Self { wanted, read })
    }
}

impl Stream {
    /// Begins to read at `offset`; `None` if there can't be the threads for it.
    fn start(file: &Arc<dyn DiskFile>, offset: u64) -> Option<Self> {
        let starts = (0..AHEAD).map(|ahead| offset + ahead * CHUNK as u64);
        Some(Self {
            threads: starts
                .map(|start| Thread::start(file, start))
                .collect::<Option<_>>()?,
            current: Chunk {
                start: offset,
                bytes: AlignedBytes::zeroed(CHUNK),
                filled: 0,
            },
            next: offset,
        })
    }

    /// Copies what was read ahead from `offset` on; how many bytes that are.
    fn take(&mut self, bytes: &mut [u8], offset: u64) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let at = offset + taken as u64;
            if at == self.next && !self.advance() {
                break;
            }
            let had = self.current.from(at);
            if had.is_empty() {
                break;
            }
            let len = had.len().min(bytes.len() - taken);
            bytes[taken..taken + len].copy_from_slice(&had[..len]);
            taken += len;
        }
        taken
    }

    /// Waits for the next chunk, and lets one more be read; false if there is none.
    fn advance(&mut self) -> bool {
        let Some(thread) = self.threads.pop_front() else {
            return false;
        };
        let Ok(chunk) = thread.read.recv() else {
            return false;
        };
        let spare = std::mem::replace(&mut self.current, chunk);
        self.next = self.current.start + CHUNK as u64;
        let last = self.current.start + AHEAD * CHUNK as u64;
        let is_sent = thread.wanted.send((last, spare.bytes)).is_ok();
        self.threads.push_back(thread);
        is_sent
    }
}

impl Chunk {
    fn from(&self, offset: u64) -> &[u8] {
        let skip = offset.checked_sub(self.start);
        let skip = skip.and_then(|skip| usize::try_from(skip).ok());
        let filled = &self.bytes[..self.filled];
        skip.and_then(|skip| filled.get(skip..)).unwrap_or_default()
    }
}

impl Target for ReadAhead {
    fn fd(&self) -> RawFd {
        self.file.fd()
    }
}

impl DiskFile for ReadAhead {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = state
            .stream
            .as_mut()
            .map_or(0, |stream| stream.take(bytes, offset));
        if taken == bytes.len() {
            state.end = offset + taken as u64;
            return Ok(taken);
        }
        let rest = offset + taken as u64;
        let read = taken + self.file.read_at(&mut bytes[taken..], rest)?;
        if taken == 0 && offset == state.end && read == bytes.len() {
            state.stream = Stream::start(&self.file, offset + read as u64);
        }
        state.end = offset + read as u64;
        Ok(read)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_bytes(bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
