//! A directory for one input after the other, in memory where there is such a file system.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

/// Where Linux keeps files in memory.
const MEMORY: &str = "/dev/shm";

/// The directory of this process.
pub(crate) fn path() -> PathBuf {
    let memory = Path::new(MEMORY);
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    parent.join(format!("gophership-fuzz-{}", process::id()))
}

/// The directory, and nothing in it.
pub(crate) fn empty() -> Scratch {
    let path = path();
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a directory can be made");
    Scratch(path)
}

/// Goes with what is in it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
