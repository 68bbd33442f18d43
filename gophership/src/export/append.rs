//! A file that grows by whole groups of lines: each is durable in full, or cut off again.
//!
//! Invariants:
//! - what was in the file before a group failed stays as it was, and nothing of that group stays;
//! - after a failure nothing is written until the cut has succeeded;
//! - at opening, only an incomplete last line is cut: it was never accepted, and complete lines are kept;
//! - one writer a file (advisory lock, held as long as the file is open).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

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

/// An open file, at its end.
#[derive(Debug)]
pub(super) struct AppendFile {
    file: File,
    /// Set after a group failed: the length in bytes to cut back to before anything else.
    cut_to: Option<u64>,
}

impl AppendFile {
    /// Opens or creates the file, makes its directory entry durable, and cuts off a torn last line.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        // Opening a pipe for writing would wait for its reader.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(OpenError::NotRegular);
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        cut_torn_line(&file)?;
        file.sync_all()?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()?;
        Ok(Self { file, cut_to: None })
    }

    /// Appends what `write` writes, and returns when that is durable.
    ///
    /// # Errors
    /// Those of `write`, of the file and of `fdatasync`: then nothing of the group stays in the file.
    pub(super) fn append(
        &mut self,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.cut()?;
        // Measured, not remembered: log rotation may truncate the file in place.
        let length = self.file.metadata()?.len();
        let written = self.write(write);
        if written.is_err() {
            self.cut_to = Some(length);
            // If this fails too, the next group tries again, and reports it.
            let _ = self.cut();
        }
        written
    }

    fn write(&self, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &self.file);
        write(&mut out)?;
        out.flush()?;
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
