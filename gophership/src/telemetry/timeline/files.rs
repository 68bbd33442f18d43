//! The timeline on disk: two files of JSON lines, the newer one at the configured path.
//!
//! A line is appended whole; when the newer file would exceed half of the bound, it becomes the older
//! one and the former older one is gone. What a crash or a full disk left of a line stays where it
//! is, on a line of its own, and isn't understood by the reader, who goes on behind it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::{super::lines, entry::Header};

/// How far from the end of a file the last line is looked for.
const TAIL_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Files {
    newer: PathBuf,
    older: PathBuf,
    bytes_max: u64,
}

impl Files {
    /// `bytes_max`: of both files together.
    pub(super) fn new(path: &Path, bytes_max: u64) -> Self {
        let mut older = OsString::from(path);
        older.push(".1");
        Self {
            newer: path.to_owned(),
            older: older.into(),
            bytes_max,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.newer
    }

    /// The last line that can be understood, if there is one.
    pub(super) fn last(&self) -> Option<Header> {
        [&self.newer, &self.older]
            .into_iter()
            .filter_map(|path| tail(path).ok())
            .find_map(|tail| {
                let mut lines = tail.rsplit(|&byte| byte == b'\n');
                lines.find_map(|line| serde_json::from_slice(line).ok())
            })
    }

    /// Appends one line, which ends with its line break.
    pub(super) fn append(&self, line: &[u8]) -> io::Result<()> {
        let half = self.bytes_max / 2;
        if line.len() as u64 > half {
            let message = format!("a line of {} bytes, at most {half} fit", line.len());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let mut file = lines::open(&self.newer)?;
        let mut length = file.metadata()?.len();
        // One byte for the break that a torn line may need.
        if length > 0 && length + 1 + line.len() as u64 > half {
            file = self.rotate(file)?;
            length = 0;
        }
        let mut whole = Vec::with_capacity(line.len() + 1);
        if length > 0 {
            let mut end = [0];
            file.read_exact_at(&mut end, length - 1)?;
            if end != *b"\n" {
                whole.push(b'\n');
            }
        }
        whole.extend_from_slice(line);
        file.write_all(&whole)
    }

    /// Makes room; where the file can't be renamed, by emptying it, for the bound counts more.
    fn rotate(&self, full: File) -> io::Result<File> {
        // What is older than a second is to survive a loss of power.
        full.sync_data()?;
        match fs::rename(&self.newer, &self.older) {
            Ok(()) => lines::open(&self.newer),
            Err(error) => {
                tracing::warn!(path = %self.newer.display(), %error, "events: can't be renamed, is emptied");
                full.set_len(0)?;
                Ok(full)
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.newer)?.sync_data()
    }

    /// What is there to read, from old to new. Lines may appear twice if the files change places
    /// meanwhile, but none is left out.
    pub(super) fn read(&self) -> Reading {
        let newer = open(&self.newer);
        let older = open(&self.older);
        Reading(older.into_iter().chain(newer).collect())
    }
}

/// Both files, open.
#[derive(Debug)]
pub(super) struct Reading(Vec<File>);

impl Reading {
    /// The lines that can be understood as `T`. Each call begins at the beginning.
    pub(super) fn lines<T: DeserializeOwned>(&mut self) -> impl Iterator<Item = T> {
        self.0.iter_mut().flat_map(|file| {
            let whole = file.seek(SeekFrom::Start(0)).is_ok();
            BufReader::new(file)
                .split(b'\n')
                .take_while(Result::is_ok)
                .flatten()
                .filter(move |_| whole)
                .filter_map(|line| serde_json::from_slice(&line).ok())
        })
    }
}

/// Opens what can be read without waiting for anybody.
fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(path)
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}
