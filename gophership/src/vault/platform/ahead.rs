//! Reading a file from its start to its end with the disk and the reader at work at the same time.
//!
//! A thread reads what follows the last read while that is worked on; past the page cache, nobody else would.
//! What it couldn't read, and what is elsewhere, is read as if there were no thread, so that an error is told
//! for the very place. Memory: three chunks. The thread ends with the file.

use std::{
    fs::File,
    io,
    os::{fd::RawFd, unix::fs::FileExt},
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
/// Chunks that are read ahead: with one alone the disk would wait each time for the reader to wake up.
const AHEAD: u64 = 2;

/// A file that is read ahead.
#[derive(Debug)]
pub(super) struct ReadAhead {
    file: Arc<File>,
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
    wanted: Sender<(u64, AlignedBytes)>,
    read: Receiver<Chunk>,
    /// The chunk that is used up, as far as it is.
    current: Chunk,
    /// Where the chunk begins that comes next.
    next: u64,
}

#[derive(Debug)]
struct Chunk {
    start: u64,
    bytes: AlignedBytes,
    filled: usize,
}

impl ReadAhead {
    pub(super) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            state: Mutex::new(State {
                end: 0,
                stream: None,
            }),
        }
    }
}

impl Stream {
    /// Begins to read at `offset`; `None` if there can't be a thread for it.
    fn start(file: &Arc<File>, offset: u64) -> Option<Self> {
        let (wanted, wishes) = channel::<(u64, AlignedBytes)>();
        let (done, read) = channel();
        let file = Arc::clone(file);
        thread::Builder::new()
            .name("vault-read".to_owned())
            .spawn(move || {
                while let Ok((start, mut bytes)) = wishes.recv() {
                    // What fails is tried again by whoever wants it, and told there.
                    let filled = FileExt::read_at(&*file, &mut bytes, start).unwrap_or(0);
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
        let current = Chunk {
            start: offset,
            bytes: AlignedBytes::zeroed(CHUNK),
            filled: 0,
        };
        for ahead in 0..AHEAD {
            let start = offset + ahead * CHUNK as u64;
            wanted.send((start, AlignedBytes::zeroed(CHUNK))).ok()?;
        }
        Some(Self {
            wanted,
            read,
            current,
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
        let Ok(chunk) = self.read.recv() else {
            return false;
        };
        let spare = std::mem::replace(&mut self.current, chunk);
        self.next = self.current.start + CHUNK as u64;
        let last = self.current.start + AHEAD * CHUNK as u64;
        self.wanted.send((last, spare.bytes)).is_ok()
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
        let read = taken + FileExt::read_at(&*self.file, &mut bytes[taken..], rest)?;
        if taken == 0 && offset == state.end && read == bytes.len() {
            state.stream = Stream::start(&self.file, offset + read as u64);
        }
        state.end = offset + read as u64;
        Ok(read)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&*self.file, bytes, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        DiskFile::bytes(&*self.file)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_bytes(bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        DiskFile::sync_data(&*self.file)
    }

    fn sync_all(&self) -> io::Result<()> {
        DiskFile::sync_all(&*self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(pages: usize) -> (File, Vec<u8>) {
        let content: Vec<u8> = (0..pages * 4096)
            .map(|at| (at / 4096 * 31 + at % 251).to_le_bytes()[0])
            .collect();
        let file = tempfile::tempfile().unwrap();
        FileExt::write_all_at(&file, &content, 0).unwrap();
        (file, content)
    }

    /// Reads `len` bytes as any file would give them.
    fn check(ahead: &ReadAhead, content: &[u8], offset: usize, len: usize) {
        let mut bytes = vec![0; len];
        let read = ahead.read_at(&mut bytes, offset as u64).unwrap();
        let expected = content.get(offset..).unwrap_or_default();
        let expected = &expected[..expected.len().min(len)];
        assert_eq!(read, expected.len(), "{len} bytes at {offset}");
        assert!(bytes[..read] == *expected, "{len} bytes at {offset}");
    }

    #[test]
    fn what_is_read_ahead_is_what_the_file_has_wherever_it_is_read() {
        let (file, content) = file_of(1500);
        let ahead = ReadAhead::new(file);
        let mut seed = 7_usize;
        let mut next = |limit: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        let mut offset = 0;
        for _ in 0..600 {
            let len = (1 + next(300)) * 4096;
            check(&ahead, &content, offset, len);
            offset += len;
            // Mostly on, now and then elsewhere, and from the start again.
            if next(8) == 0 || offset >= content.len() {
                offset = next(1500) * 4096;
            }
        }
    }

    #[test]
    fn a_file_that_is_read_through_is_read_ahead_from_the_second_read_on() {
        let (file, content) = file_of(2500);
        let ahead = ReadAhead::new(file);
        check(&ahead, &content, 0, 4096);
        for offset in (4096..content.len()).step_by(70 * 4096) {
            let len = (70 * 4096).min(content.len() - offset);
            check(&ahead, &content, offset, len);
            let state = ahead.state.lock().unwrap();
            let last = (offset + len - 1) as u64;
            let is_ahead = |stream: &Stream| !stream.current.from(last).is_empty();
            assert!(state.stream.as_ref().is_some_and(is_ahead), "{offset}");
        }
    }

    #[test]
    fn what_comes_to_the_file_behind_its_old_end_is_read() {
        let (file, content) = file_of(900);
        let end = 600 * 4096;
        file.set_len(end as u64).unwrap();
        let ahead = ReadAhead::new(file);
        for offset in (0..end).step_by(100 * 4096) {
            check(&ahead, &content[..end], offset, 100 * 4096);
        }
        check(&ahead, &content[..end], end, 4096);
        FileExt::write_all_at(&*ahead.file, &content[end..], end as u64).unwrap();
        for offset in (end..content.len()).step_by(100 * 4096) {
            check(&ahead, &content, offset, 100 * 4096);
        }
    }
}
