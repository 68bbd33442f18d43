//! Files of JSON lines that the daemon appends to.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Opens `path` for appending; makes it, for its owner and group, and its directory where they are
/// absent. It is meant to be opened for each of the few lines: then it may be renamed at any time.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)?;
    }
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}
