//! What the vault takes from the machine: files, a writer, time and chance.
//!
//! The vault reaches them only through [`Platform`], so that the very same lanes, recovery and
//! readers run on a simulated disk too. [`Os`] is the machine itself.

mod ahead;
mod os;

use std::{
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::uring::{self, BufferPool, Target, Writer};

pub use os::{Os, Rung};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read whole pages into page-aligned memory, past the page cache where the rung has it.
    Read,
    /// As `Read`, mostly from the start to the end: what comes next may be read ahead.
    ReadThrough,
    /// To read and write likewise.
    Write,
    /// As `Write`, and empty: made if it isn't there, cut to nothing if it is. Its owner alone may use it.
    Create,
}

/// A file that is open. Offsets are in bytes.
pub trait DiskFile: Target {
    /// Reads up to `bytes.len()` bytes; fewer at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`, which needn't be durable before a sync.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Bytes of the file.
    ///
    /// # Errors
    /// As `fstat(2)`.
    fn bytes(&self) -> io::Result<u64>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Takes room for `bytes` from the file system, and lengthens the file to as many if it has fewer.
    ///
    /// # Errors
    /// As `posix_fallocate(3)`: above all, no space.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// Makes the content durable, and of the rest what finding it again needs.
    ///
    /// # Errors
    /// As `fdatasync(2)`. What was written since the last sync may be lost then, whatever a later one says.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes everything about the file durable.
    ///
    /// # Errors
    /// As `fsync(2)`, and see [`DiskFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;
}

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// It is a directory.
    pub is_dir: bool,
    /// Bytes of a file.
    pub bytes: u64,
}

/// Held as long as the directory is this process's.
pub trait Lock: Debug + Send {}

/// The machine below a vault.
pub trait Platform: Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// The first bytes of a small file, at most so many.
    ///
    /// # Errors
    /// It isn't there, or can't be read.
    fn read(&self, path: &Path, at_most: u64) -> io::Result<Vec<u8>>;

    /// Cuts a small file that is there to `end`, writes `content` behind that, and makes it durable.
    ///
    /// # Errors
    /// It can't be written; what was behind `end` may be gone, and part of `content` there.
    fn append(&self, path: &Path, end: u64, content: &[u8]) -> io::Result<()>;

    /// Makes or overwrites a small file, and makes its content durable, but not its name.
    ///
    /// # Errors
    /// It can't be written; it may be there in part.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Renames a file, over another one of that name.
    ///
    /// # Errors
    /// As `rename(2)`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// What a directory holds, in no order.
    ///
    /// # Errors
    /// It can't be read.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;

    /// Whether there is something of that name.
    fn exists(&self, path: &Path) -> bool;

    /// Makes a directory that its owner alone may look into, if it isn't there; its parent is.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// As `fsync(2)` of the directory.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Locks a directory by a file in it.
    ///
    /// # Errors
    /// The file can't be locked; the process that has it, if it left its id, comes with
    /// [`io::ErrorKind::WouldBlock`].
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError>;

    /// Whoever writes for one lane; called on the lane's thread.
    ///
    /// # Errors
    /// The kernel refuses what it needs.
    fn writer(&self, pools: Vec<BufferPool>) -> Result<Box<dyn Writer>, uring::Error>;

    /// How blocks get to the disk, as it is named in logs and in `status`.
    fn rung(&self) -> &'static str;

    /// A clock that never steps back.
    fn now(&self) -> Instant;

    /// The wall clock, in nanoseconds since 1970.
    fn unix_nanos(&self) -> u64;

    /// A number nobody can guess.
    ///
    /// # Errors
    /// The kernel's random source can't be read.
    fn random(&self) -> io::Result<u64>;

    /// The machine's id, zeros if it has none.
    fn host_id(&self) -> [u8; 16];
}

/// Why a directory can't be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it, and may have left its id.
    Held(Option<u32>),
    /// The lock file can't be used.
    Io(io::Error),
}
