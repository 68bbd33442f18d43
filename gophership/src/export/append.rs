//! A file that grows by whole groups of lines: each is durable in full, or cut off again.
//!
//! Invariants:
//! - what was in the file before a group failed stays as it was, and nothing of that group stays;
//! - after a failure nothing is written until the cut has succeeded;
//! - at opening, only an incomplete last line is cut: it was never accepted, and complete lines are kept;
//! - one writer a file (advisory lock, held as long as the file is open);
//! - a group goes into the file that has the path's name: one that was moved or removed by others gets nothing more.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::rotate::{self, Rotation};
use crate::otel::json::{self, LineError};

/// Bytes gathered for one `write`; larger lines take several.
const BUFFER_BYTES: usize = 256 << 10;

/// Bytes read at once in search of the last newline.
const SEARCH_BYTES: u64 = 64 << 10;

/// Why a file can't be appended to.
#[derive(Debug)]
pub(super) enum OpenError {
    Io(io::Error),
    NotRegular,
    Locked,
    ForeignTail,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io(error) => error,
            OpenError::NotRegular => Self::other("not a regular file"),
            OpenError::Locked => Self::other("locked by another process that writes it"),
            OpenError::ForeignTail => Self::other("its last line isn't ours"),
        }
    }
}

/// An open file, at its end.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    file: File,
    rotation: Option<Rotation>,
    /// Whether the last rotation failed, which is told once.
    unrotated: bool,
    /// Set after a group failed: the length in bytes to cut back to before anything else.
    cut_to: Option<u64>,
}

impl AppendFile {
    /// Opens or creates the file, and cuts off a torn last line.
    pub(super) fn open(path: &Path, rotation: Option<Rotation>) -> Result<Self, OpenError> {
        Ok(Self {
            file: open(path)?,
            // A link stays where it is: what it leads to is rotated.
            path: path.canonicalize()?,
            rotation,
            unrotated: false,
            cut_to: None,
        })
    }

    /// Appends what `write` writes, and returns when that is durable. If the file is to be rotated, that comes first.
    ///
    /// # Errors
    /// Those of `write`, of the file and of `fdatasync`: then nothing of the group stays in the file.
    pub(super) fn append(
        &mut self,
        write: impl FnOnce(&mut Lines<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.cut()?;
        self.follow_the_name()?;
        // Measured, not remembered: others may truncate the file in place.
        let mut length = self.file.metadata()?.len();
        if length > 0
            && self
                .rotation
                .is_some_and(|rotation| length >= rotation.bytes)
        {
            self.rotate();
            length = self.file.metadata()?.len();
        }
        let written = self.write(write);
        if written.is_err() {
            self.cut_to = Some(length);
            // If this fails too, the next group tries again, and reports it.
            let _ = self.cut();
        }
        written
    }

    /// Opens the path anew if it is no longer the name of this file: what would be written to it might be lost with it.
    fn follow_the_name(&mut self) -> io::Result<()> {
        let own = self.file.metadata()?;
        let is_own = self
            .path
            .metadata()
            .is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino()));
        if !is_own {
            self.file = open(&self.path)?;
        }
        Ok(())
    }

    /// Where it fails, the file goes on growing: what is to be written counts more.
    fn rotate(&mut self) {
        let Some(rotation) = self.rotation else {
            return;
        };
        match rotate::rotate(&self.path, rotation.keep) {
            Ok(file) => {
                self.file = file;
                self.unrotated = false;
            }
            Err(error) if !self.unrotated => {
                self.unrotated = true;
                tracing::warn!(path = %self.path.display(), %error, "this file can't be rotated; it grows until it can");
            }
            Err(_) => {}
        }
    }

    fn write(&self, write: impl FnOnce(&mut Lines<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut lines = Lines {
            out: BufWriter::with_capacity(BUFFER_BYTES, &self.file),
            // A group isn't cut short for a rotation that can't be.
            full_from: match self.rotation {
                Some(rotation) if !self.unrotated => rotation.bytes,
                _ => u64::MAX,
            },
        };
        write(&mut lines)?;
        lines.out.flush()?;
        self.file.sync_data()
    }

    fn cut(&mut self) -> io::Result<()> {
        if let Some(length) = self.cut_to {
            if self.file.metadata()?.len() > length {
                self.file.set_len(length)?;
            }
            self.file.sync_data()?;
            self.cut_to = None;
        }
        Ok(())
    }
}

/// The lines of one group.
#[derive(Debug)]
pub(super) struct Lines<'f> {
    out: BufWriter<&'f File>,
    full_from: u64,
}

impl Lines<'_> {
    /// Writes one line; nothing of it stays if it is malformed, which is the inner error.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn line(&mut self, request: &[u8]) -> io::Result<Result<(), String>> {
        let before = self.length()?;
        match json::write_line(request, &mut self.out) {
            Ok(()) => Ok(Ok(())),
            Err(LineError::Io(error)) => Err(error),
            Err(malformed @ LineError::Malformed(_)) => {
                self.out.flush()?;
                self.out.get_ref().set_len(before)?;
                Ok(Err(malformed.to_string()))
            }
        }
    }

    /// Bytes of the file and of what is gathered for it.
    fn length(&self) -> io::Result<u64> {
        let written = self.out.get_ref().metadata()?.len();
        Ok(written + self.out.buffer().len() as u64)
    }

    /// Whether the file has reached the size at which it is rotated: what is left belongs to the next group.
    pub(super) fn is_full(&self) -> io::Result<bool> {
        Ok(self.length()? >= self.full_from)
    }
}

/// Opens or creates the file, makes its directory entry durable, and cuts off a torn last line.
fn open(path: &Path) -> Result<File, OpenError> {
    // Opening a pipe for writing would wait for its reader.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(OpenError::NotRegular);
    }
    let file = options().create(true).open(path)?;
    lock(&file)?;
    cut_torn_line(&file)?;
    file.sync_all()?;
    rotate::sync_directory(path)?;
    Ok(file)
}

/// How a file of lines is opened.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o640);
    options
}

/// Makes this process the file's only writer.
pub(super) fn lock(file: &File) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Cuts off what follows the last newline, if it looks like a line begun here.
fn cut_torn_line(file: &File) -> Result<(), OpenError> {
    let length = file.metadata()?.len();
    let kept = end_of_last_line(file, length)?;
    if kept == length {
        return Ok(());
    }
    let mut first = [0];
    file.read_exact_at(&mut first, kept)?;
    // NUL: the file's length was on disk before its bytes were.
    if !matches!(first, [b'{' | 0]) {
        return Err(OpenError::ForeignTail);
    }
    file.set_len(kept)?;
    Ok(())
}

/// The offset after the last newline; 0 if there is none.
fn end_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut buffer = Vec::new();
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(SEARCH_BYTES);
        // At most `SEARCH_BYTES`, so it fits.
        buffer.resize(usize::try_from(end - start).unwrap_or(usize::MAX), 0);
        file.read_exact_at(&mut buffer, start)?;
        if let Some(at) = buffer.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
