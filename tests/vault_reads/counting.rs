//! The real machine, which counts what is read of segments, can't read every page of them, and does
//! something else between two reads.

use std::{
    fmt::{self, Debug, Formatter},
    io,
    os::fd::RawFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use gophership::{
    uring::{self, BufferPool, Target, Writer},
    vault::{
        format::PAGE,
        platform::{Access, DiskFile, Listed, Lock, LockError, Os, Platform},
    },
};

#[derive(Debug)]
pub(crate) struct Counting {
    os: Os,
    counts: Arc<Counts>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;

/// What was asked for, whether or not it could be read.
#[derive(Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    reads: AtomicU64,
    /// Every other page of what is opened can't be read, from the first block on.
    is_bad: AtomicBool,
    /// Done before the first read at or behind an offset.
    meanwhile: Mutex<Option<(u64, Meanwhile)>>,
}

impl Debug for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

impl Counts {
    /// Bytes and reads since the last time.
    pub(crate) fn take(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&self.bytes), take(&self.reads))
    }

    /// Does something before the first read at or behind `offset`.
    pub(crate) fn before_reading(&self, offset: u64, meanwhile: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some((offset, Box::new(meanwhile)));
    }

    fn about_to_read(&self, at: u64) {
        let due = self
            .meanwhile
            .lock()
            .unwrap()
            .take_if(|(offset, _)| at >= *offset);
        if let Some((_, meanwhile)) = due {
            meanwhile();
        }
    }

    pub(crate) fn set_bad(&self, is_bad: bool) {
        self.is_bad.store(is_bad, Ordering::Relaxed);
    }
}

impl Counting {
    pub(crate) fn new() -> (Arc<Self>, Arc<Counts>) {
        let counts = Arc::<Counts>::default();
        let machine = Self {
            os: Os::to_read(),
            counts: Arc::clone(&counts),
        };
        (Arc::new(machine), counts)
    }
}

#[derive(Debug)]
struct CountedFile {
    file: Arc<dyn DiskFile>,
    counts: Arc<Counts>,
}

impl Target for CountedFile {
    fn fd(&self) -> RawFd {
        self.file.fd()
    }
}

impl DiskFile for CountedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.counts.about_to_read(offset);
        self.counts
            .bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let first = offset / PAGE as u64;
        let pages = bytes.len().div_ceil(PAGE) as u64;
        let has_bad = (first..first + pages).any(|page| page != 0 && page.is_multiple_of(2));
        if has_bad && self.counts.is_bad.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.read_at(bytes, offset)
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

impl Platform for Counting {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(CountedFile {
            file: self.os.open(path, access)?,
            counts: Arc::clone(&self.counts),
        }))
    }

    fn read(&self, path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
        self.os.read(path, at_most)
    }

    fn append(&self, path: &Path, end: u64, content: &[u8]) -> io::Result<()> {
        self.os.append(path, end, content)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.os.write(path, content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.os.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.os.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.os.list(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.os.exists(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.os.make_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.os.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError> {
        self.os.lock(path)
    }

    fn writer(&self, pools: Vec<BufferPool>) -> Result<Box<dyn Writer>, uring::Error> {
        self.os.writer(pools)
    }

    fn rung(&self) -> &'static str {
        self.os.rung()
    }

    fn now(&self) -> Instant {
        self.os.now()
    }

    fn unix_nanos(&self) -> u64 {
        self.os.unix_nanos()
    }

    fn random(&self) -> io::Result<u64> {
        self.os.random()
    }

    fn host_id(&self) -> [u8; 16] {
        self.os.host_id()
    }
}
