//! The machine itself: its files, its kernel's ways to write them, its clocks.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{Access, DiskFile, Listed, Lock, LockError, Platform, ahead::ReadAhead};
use crate::uring::{
    self, ALIGNMENT, AlignedBytes, BufferPool, Ring, Syncing, Writer, WriterThread,
};

/// How blocks get to stable storage, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// io_uring with registered buffers, O_DIRECT, RWF_DSYNC.
    IoUring,
    /// `pwritev2` on a thread of its own, O_DIRECT, RWF_DSYNC. Where a container's seccomp profile or the
    /// kernel's settings forbid io_uring.
    Pwrite,
    /// `pwritev2` through the page cache, and `fdatasync`. Where the file system knows no O_DIRECT.
    Buffered,
}

impl Rung {
    /// Name in logs and in `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring+o_direct",
            Self::Pwrite => "pwritev2+o_direct",
            Self::Buffered => "buffered+fdatasync",
        }
    }
}

/// The kernel below us.
#[derive(Debug)]
pub struct Os {
    rung: Rung,
}

impl Os {
    /// The kernel by way of `rung`, whether or not that works here.
    #[must_use]
    pub const fn on(rung: Rung) -> Self {
        Self { rung }
    }

    /// The kernel for whoever only reads: past the page cache where that works.
    #[must_use]
    pub const fn to_read() -> Self {
        Self::on(Rung::Pwrite)
    }

    /// The kernel by the best way that works for files in `dir`, which is there. What keeps a better one
    /// from being used is logged.
    #[must_use]
    pub fn best_for(dir: &Path) -> Self {
        if let Err(refused) = try_direct(dir) {
            tracing::warn!(
                dir = %dir.display(), rung = Rung::Buffered.as_str(), reason = %refused,
                "the vault's file system refuses O_DIRECT: blocks go through the page cache"
            );
            return Self::on(Rung::Buffered);
        }
        match Ring::new(vec![BufferPool::new(1, ALIGNMENT)]) {
            Ok(_) => Self::on(Rung::IoUring),
            Err(refused) => {
                tracing::warn!(
                    rung = Rung::Pwrite.as_str(), reason = %refused,
                    "io_uring isn't allowed: a thread for each lane writes the vault's blocks"
                );
                Self::on(Rung::Pwrite)
            }
        }
    }

    /// Who holds a lock file, if anybody does: `Some(None)` if the process isn't known.
    ///
    /// # Errors
    /// The file is there but can't be opened.
    pub fn holder(&self, path: &Path) -> io::Result<Option<Option<u32>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((file, Errno::EWOULDBLOCK)) => Ok(Some(pid_in(file))),
            // Free; or a file system without locks, where nobody can hold one.
            Ok(_) | Err(_) => Ok(None),
        }
    }

    fn flags(&self) -> i32 {
        match self.rung {
            Rung::IoUring | Rung::Pwrite => libc::O_DIRECT,
            Rung::Buffered => 0,
        }
    }
}

/// Writes a page past the page cache, and reads it back likewise.
fn try_direct(dir: &Path) -> io::Result<()> {
    let path = dir.join(".o_direct");
    let mut page = AlignedBytes::zeroed(ALIGNMENT);
    let tried = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .and_then(|file| {
            FileExt::write_all_at(&file, &page, 0)?;
            FileExt::read_exact_at(&file, &mut page, 0)
        });
    // Some file systems create the file before they refuse the flag.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && tried.is_ok() => {
            return Err(error);
        }
        Ok(()) | Err(_) => {}
    }
    match tried {
        // Anything else than the flag is met again, and said, where it matters.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Ok(()),
        tried => tried,
    }
}

impl Platform for Os {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let (reads, is_ahead) = match access {
            Access::Read => (true, false),
            Access::ReadThrough => (true, true),
            Access::Write | Access::Create => (false, false),
        };
        let open = |flags: i32| {
            OpenOptions::new()
                .read(true)
                .write(!reads)
                .create(access == Access::Create)
                .truncate(access == Access::Create)
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let file = match open(self.flags()) {
            // Whoever only reads needn't know what the file system can do.
            Err(refused) if reads && refused.raw_os_error() == Some(libc::EINVAL) => open(0)?,
            opened => opened?,
        };
        Ok(match is_ahead {
            true => Arc::new(ReadAhead::new(file)),
            false => Arc::new(file),
        })
    }

    fn read(&self, path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(at_most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&self, path: &Path, end: u64, content: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(end)?;
        FileExt::write_all_at(&file, content, end)?;
        file.sync_data()
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // Written by root offline, it must still be readable for the daemon; the directory guards it.
            .mode(0o644)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let about = match entry.metadata() {
                Ok(about) => about,
                // Removed meanwhile.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            listed.push(Listed {
                path: entry.path(),
                is_dir: about.is_dir(),
                bytes: about.len(),
            });
        }
        Ok(listed)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(LockError::Io)?;
        let mut lock = match try_lock(file) {
            Ok(lock) => lock,
            Err((file, Errno::EWOULDBLOCK)) => return Err(LockError::Held(pid_in(file))),
            Err((_, errno)) => return Err(LockError::Io(errno.into())),
        };
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(LockError::Io)?;
        Ok(Box::new(FileLock(lock)))
    }

    fn writer(&self, pools: Vec<BufferPool>) -> Result<Box<dyn Writer>, uring::Error> {
        Ok(match self.rung {
            Rung::IoUring => {
                let ring = Ring::new(pools)?;
                if !ring.is_registered() {
                    tracing::warn!(
                        "RLIMIT_MEMLOCK is too low to register the vault's buffers: each write pins its own"
                    );
                }
                Box::new(ring)
            }
            Rung::Pwrite => Box::new(WriterThread::start(pools, Syncing::Each)?),
            Rung::Buffered => Box::new(WriterThread::start(pools, Syncing::Round)?),
        })
    }

    fn rung(&self) -> &'static str {
        self.rung.as_str()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_nanos(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn host_id(&self) -> [u8; 16] {
        let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        u128::from_str_radix(text.trim(), 16).map_or([0; 16], u128::to_be_bytes)
    }
}

/// Locks a file for itself. Whoever inspects the directory holds the lock for an instant to see that it is
/// free, which must not keep a daemon from starting: hence a few attempts.
fn try_lock(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    const ATTEMPTS: usize = 10;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..ATTEMPTS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((taken, Errno::EWOULDBLOCK)) => file = taken,
            decided => return decided,
        }
        std::thread::sleep(PAUSE);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

fn pid_in(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[derive(Debug)]
struct FileLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock for FileLock {}

impl DiskFile for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(nix::fcntl::posix_fallocate(self, 0, length)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}
