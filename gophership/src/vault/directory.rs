//! The vault's directory: its lock, its files' names, and making changes to it durable.
//!
//! ```text
//! <dir>/lock                           flock; holds the owner's process id
//! <dir>/destinations                   bit of each destination
//! <dir>/cursors-a, cursors-b           what is settled, two slots
//! <dir>/lane-LL/SSSSSSSSSSSSSSSS.gsv   segment S (hexadecimal) of lane LL
//! <dir>/lane-LL/….gsv.new              a segment being filled with zeros
//! <dir>/lane-LL/….quarantine           an operator took segment … out of replay
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::error::{Error, io_error};

/// Suffix of a segment that isn't filled yet.
pub(super) const UNFINISHED: &str = "new";

/// The right to the directory; given up when dropped or when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock {
    /// Locks `dir`, which exists.
    ///
    /// # Errors
    /// Another process has it, or the lock file can't be written.
    pub(super) fn acquire(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        let mut lock = match try_lock(file) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(Error::Locked {
                    dir: dir.to_path_buf(),
                    pid: pid_in(file),
                });
            }
            Err((_, errno)) => return Err(io_error("locking", &path)(errno.into())),
        };
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(io_error("writing", &path))?;
        Ok(Self(lock))
    }
}

/// Locks a file for itself. Whoever inspects the directory holds the lock for an instant to see that it is
/// free, which must not keep a daemon from starting: hence a few attempts.
fn try_lock(mut file: File) -> Result<Flock<File>, (File, nix::errno::Errno)> {
    const ATTEMPTS: usize = 10;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..ATTEMPTS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((taken, nix::errno::Errno::EWOULDBLOCK)) => file = taken,
            decided => return decided,
        }
        std::thread::sleep(PAUSE);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

/// Who holds the lock of `dir`, if anybody does: `Some(None)` if the process isn't known.
///
/// # Errors
/// The lock file is there but can't be opened.
pub(super) fn holder(dir: &Path) -> Result<Option<Option<u32>>, Error> {
    let path = dir.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("opening", path)(error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => Ok(Some(pid_in(file))),
        // Free; or a file system without locks, where nobody can hold one.
        Ok(_) | Err(_) => Ok(None),
    }
}

fn pid_in(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes a directory that only the owner can look into, and its parents, where they are missing;
/// durably, since what is acknowledged must be found under them.
///
/// # Errors
/// It can't be made.
pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    let missing: Vec<_> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .collect();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("creating", path))?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let is_here = parent.as_os_str().is_empty();
        sync_dir(if is_here { Path::new(".") } else { parent })?;
    }
    Ok(())
}

/// Directory of a lane.
#[must_use]
pub(super) fn lane_dir(dir: &Path, lane: u16) -> PathBuf {
    dir.join(format!("lane-{lane:02}"))
}

/// File of a segment.
#[must_use]
pub(super) fn segment_path(dir: &Path, lane: u16, number: u64) -> PathBuf {
    lane_dir(dir, lane).join(format!("{number:016x}.gsv"))
}

/// A segment file found in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its lane, from the directory's name.
    pub(super) lane: u16,
    /// Its number, from the file's name.
    pub(super) number: u64,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

/// Finds all segments, in order of their numbers, and removes files that were never finished.
///
/// # Errors
/// A directory can't be read.
pub(super) fn scan(dir: &Path) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for lane_entry in fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let lane_path = lane_entry.map_err(io_error("listing", dir))?.path();
        let name = lane_path.file_name().and_then(|name| name.to_str());
        let lane = name
            .and_then(|name| name.strip_prefix("lane-"))
            .and_then(|lane| lane.parse().ok());
        let (Some(lane), true) = (lane, lane_path.is_dir()) else {
            continue;
        };
        for entry in fs::read_dir(&lane_path).map_err(io_error("listing", &lane_path))? {
            let path = entry.map_err(io_error("listing", &lane_path))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == UNFINISHED)
            {
                fs::remove_file(&path).map_err(io_error("removing", &path))?;
            } else if let Some(number) = number_of(&path) {
                let bytes = fs::metadata(&path)
                    .map_err(io_error("reading the length of", &path))?
                    .len();
                found.push(Found {
                    lane,
                    number,
                    path,
                    bytes,
                });
            }
        }
    }
    found.sort_unstable_by_key(|found| found.number);
    Ok(found)
}

/// Number of a segment, from its file's name.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gsv")?;
    u64::from_str_radix(name, 16)
        .ok()
        .filter(|_| name.len() == 16)
}

/// Makes creations, renames and removals in `dir` durable.
///
/// # Errors
/// The directory can't be opened or synced.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("syncing directory", dir))
}

/// Replaces a small file so that after a crash the old or the new content is there, never a mix.
///
/// # Errors
/// The file can't be written, renamed or synced.
pub(super) fn replace_file(dir: &Path, name: &str, content: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let staged = dir.join(format!("{name}.{UNFINISHED}"));
    File::create(&staged)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(io_error("writing", &staged))?;
    fs::rename(&staged, &path).map_err(io_error("renaming", &staged))?;
    sync_dir(dir)
}

/// The machine's id, zeros if it has none.
#[must_use]
pub(super) fn host_id() -> [u8; 16] {
    let mut id = [0; 16];
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if let Ok(number) = u128::from_str_radix(text.trim(), 16) {
        id = number.to_be_bytes();
    }
    id
}

/// Eight bytes from the kernel's random source.
///
/// # Errors
/// `/dev/urandom` can't be read.
pub(super) fn random_tag() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
