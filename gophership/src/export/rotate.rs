//! Rotation of a file of lines: `logs.jsonl` becomes `logs.jsonl.1`, that becomes `.2`, and so on.
//!
//! What a file holds is durable before it is renamed, and only the oldest file is ever replaced. A crash between two
//! renames leaves a gap in the numbers, which the next rotation fills instead of giving up the oldest file, or no file
//! of the name itself, which opening makes again. Who follows the name (`tail -F`) finds a new file there when
//! the old one has its last line.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::append;

/// Suffix of the file that is about to take the name.
const NEW: &str = "new";

/// When a file is rotated, and what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// From this size, in bytes. The line that reaches it is the last one.
    pub bytes: u64,
    /// Rotated files that stay, besides the one that is written.
    pub keep: u32,
}

/// Whether `name` is one that rotating the file at `path` gives to a file, whatever is kept.
#[must_use]
pub fn is_name_of_rotated(name: &Path, path: &Path) -> bool {
    let suffix = name
        .as_os_str()
        .as_bytes()
        .strip_prefix(path.as_os_str().as_bytes())
        .and_then(|rest| rest.strip_prefix(b"."));
    suffix.is_some_and(|suffix| {
        suffix == NEW.as_bytes() || (!suffix.is_empty() && suffix.iter().all(u8::is_ascii_digit))
    })
}

/// Renames the file at `path`, whose content is durable, and gives the new, locked one that has its name now.
pub(super) fn rotate(path: &Path, keep: u32) -> io::Result<File> {
    // First what can fail for want of room: then the old file keeps its name.
    let fresh = with_suffix(path, NEW);
    let file = append::options().create(true).open(&fresh)?;
    append::lock(&file)?;
    // Ours, left by a crash, is empty.
    if file.metadata()?.len() > 0 {
        let what = format!("{} is in the way", fresh.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    file.sync_all()?;
    let first_free = (1..keep).find(|number| !numbered(path, *number).exists());
    for number in (1..first_free.unwrap_or(keep)).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    fs::rename(path, numbered(path, 1))?;
    if let Err(error) = fs::rename(&fresh, path) {
        // The writer goes on with the old file, which needs its name.
        fs::rename(numbered(path, 1), path)?;
        return Err(error);
    }
    sync_directory(path)?;
    Ok(file)
}

/// Makes what was renamed and created beside `path` durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &number.to_string())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    name.into()
}
