//! The vault's directory: its lock, its files' names, and making changes to it durable.
//!
//! ```text
//! <dir>/lock                           flock; holds the owner's process id
//! <dir>/destinations                   bit of each destination
//! <dir>/cursors-a, cursors-b           what is settled, two slots
//! <dir>/lane-LL/SSSSSSSSSSSSSSSS.gsv   segment S (hexadecimal) of lane LL
//! <dir>/lane-LL/….gsv.new              a segment being filled with zeros
//! <dir>/lane-LL/….quarantine           an operator took segment … out of replay
//! <dir>/lane-LL/manifest               what each sealed segment held, and the chain through them
//! ```

use std::path::{Path, PathBuf};

use super::{
    error::{Error, io_error},
    format::NUMBERS_END,
    platform::{Lock, LockError, Platform},
};

/// Suffix of a segment that isn't filled yet.
pub(super) const UNFINISHED: &str = "new";

/// Locks `dir`, which exists.
///
/// # Errors
/// Another process has it, or the lock file can't be written.
pub(super) fn lock(platform: &dyn Platform, dir: &Path) -> Result<Box<dyn Lock>, Error> {
    let path = dir.join("lock");
    platform.lock(&path).map_err(|error| match error {
        LockError::Held(pid) => Error::Locked {
            dir: dir.to_path_buf(),
            pid,
        },
        LockError::Io(source) => io_error("locking", &path)(source),
    })
}

/// Makes a directory that only the owner can look into, and its parents, where they are missing;
/// durably, since what is acknowledged must be found under them.
///
/// # Errors
/// It can't be made.
pub(super) fn make_dir(platform: &dyn Platform, path: &Path) -> Result<(), Error> {
    let mut missing: Vec<_> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !platform.exists(dir))
        .collect();
    while let Some(dir) = missing.pop() {
        platform.make_dir(dir).map_err(io_error("creating", dir))?;
        let parent = dir.parent().unwrap_or(Path::new(""));
        let is_here = parent.as_os_str().is_empty();
        sync_dir(platform, if is_here { Path::new(".") } else { parent })?;
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
    segment_path_in(&lane_dir(dir, lane), number)
}

/// File of a segment in its lane's directory.
#[must_use]
pub(super) fn segment_path_in(lane_dir: &Path, number: u64) -> PathBuf {
    lane_dir.join(format!("{number:016x}.gsv"))
}

/// The lane whose directory, by its name, this is.
#[must_use]
pub(super) fn lane_of(lane_dir: &Path) -> Option<u16> {
    let name = lane_dir.file_name()?.to_str()?;
    name.strip_prefix("lane-")?.parse().ok()
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
pub(super) fn scan(platform: &dyn Platform, dir: &Path) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for listed in platform.list(dir).map_err(io_error("listing", dir))? {
        let lane_path = listed.path;
        let (Some(lane), true) = (lane_of(&lane_path), listed.is_dir) else {
            continue;
        };
        let files = platform
            .list(&lane_path)
            .map_err(io_error("listing", &lane_path))?;
        for file in files {
            let path = file.path;
            if path
                .extension()
                .is_some_and(|extension| extension == UNFINISHED)
            {
                platform
                    .remove(&path)
                    .map_err(io_error("removing", &path))?;
            } else if let Some(number) = number_of(&path) {
                found.push(Found {
                    lane,
                    number,
                    path,
                    bytes: file.bytes,
                });
            }
        }
    }
    found.sort_unstable_by_key(|found| found.number);
    Ok(found)
}

/// Number of the segment whose file, by its name, this is.
#[must_use]
pub(super) fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gsv")?;
    u64::from_str_radix(name, 16)
        .ok()
        .filter(|&number| name.len() == 16 && number < NUMBERS_END)
}

/// Makes creations, renames and removals in `dir` durable.
///
/// # Errors
/// The directory can't be opened or synced.
pub(super) fn sync_dir(platform: &dyn Platform, dir: &Path) -> Result<(), Error> {
    platform
        .sync_dir(dir)
        .map_err(io_error("syncing directory", dir))
}

/// Replaces a small file so that after a crash the old or the new content is there, never a mix.
///
/// # Errors
/// The file can't be written, renamed or synced.
pub(super) fn replace_file(
    platform: &dyn Platform,
    dir: &Path,
    name: &str,
    content: &[u8],
) -> Result<(), Error> {
    let path = dir.join(name);
    let staged = dir.join(format!("{name}.{UNFINISHED}"));
    platform
        .write(&staged, content)
        .map_err(io_error("writing", &staged))?;
    platform
        .rename(&staged, &path)
        .map_err(io_error("renaming", &staged))?;
    sync_dir(platform, dir)
}
