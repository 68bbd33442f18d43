//! What can go wrong with the vault.

use std::{io, path::PathBuf, time::Duration};

/// Why the vault can't be opened, read or closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process owns the directory.
    #[error("vault directory {} is in use by {}", dir.display(), holder(*pid))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other process, if it left its id.
        pid: Option<u32>,
    },
    /// A file or directory refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A configured value is below what works.
    #[error("vault.{key} is {value}, but must be at least {min}")]
    TooSmall {
        /// Key below `vault`.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least that works.
        min: u64,
    },
    /// A configured value is above what works.
    #[error("vault.{key} is {value}, but must be at most {max}")]
    TooBig {
        /// Key below `vault`.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The most that works.
        max: u64,
    },
    /// `segment_bytes` isn't a whole number of pages.
    #[error("vault.segment_bytes is {0}, but must be a multiple of 4096")]
    Unaligned(u64),
    /// More destinations over the vault's life than an entry has bits for.
    #[error("{} names {names} destinations; a vault can know at most {max}", path.display())]
    TooManyDestinations {
        /// The table.
        path: PathBuf,
        /// Names needed.
        names: usize,
        /// Bits of an entry.
        max: usize,
    },
    /// A destination's name can't be stored.
    #[error("destination name {0:?} is empty or has a line break")]
    DestinationName(String),
    /// The table that gives the bits their meaning is damaged or gone, though there are segments.
    #[error(
        "{}: {reason}; without this table nobody knows to whom the stored entries are owed. \
         Restore it, or move the segments away",
        path.display()
    )]
    DestinationTable {
        /// The table.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A lane's manifest can't be used.
    #[error("vault manifest {}: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: super::chain::ManifestError,
    },
    /// A directory that isn't a lane's.
    #[error("{} is not the directory of a vault's lane", .0.display())]
    NotALane(PathBuf),
    /// A lane that doesn't exist or was handed out before.
    #[error("vault lane {index} of {lanes} doesn't exist or is already in use")]
    Lane {
        /// Index asked for.
        index: usize,
        /// Lanes there are.
        lanes: usize,
    },
    /// The lane's ring can't be made.
    #[error(transparent)]
    Ring(#[from] crate::uring::Error),
    /// A thread can't be started.
    #[error("starting thread {name}: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A background thread panicked.
    #[error("a background thread of the vault panicked")]
    Panicked,
}

/// Why an entry wasn't stored. Nothing of it was promised to anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room until something is delivered; worth another try.
    #[error("the vault is full; try again in {} s", retry_after.as_secs_f32())]
    Full {
        /// When to try again.
        retry_after: Duration,
    },
    /// The disk refused, twice; worth another try.
    #[error("the vault can't write: {reason}")]
    Failed {
        /// The error of the disk.
        reason: String,
    },
    /// The lane was shut down.
    #[error("the vault is closed")]
    Closed,
    /// The entry can never be stored.
    #[error("an entry of {bytes} bytes; the vault takes at most {max}")]
    TooLarge {
        /// Bytes of the entry.
        bytes: usize,
        /// Most bytes.
        max: usize,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// Adds what was tried, and on what, to an I/O error.
pub(super) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
