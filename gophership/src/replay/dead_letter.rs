//! Entries that a destination will never take: kept as files, counted and shown, never dropped.
//!
//! A dead letter is two files in `dead-letters/` of the vault's directory:
//! `LANE-SEGMENT-INDEX.DESTINATION.otlp` with the bytes as the producer sent them, and the same
//! with `.json` that says why. The `.json` is written last: a letter without it is incomplete.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::vault::{ContentEncoding, Entry};

/// The directory or a letter can't be written.
#[derive(Debug, thiserror::Error)]
#[error("dead letters: {}: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The directory of dead letters.
#[derive(Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    count: u64,
}

impl DeadLetters {
    /// Opens the directory below the vault's, making it if absent, and counts its letters.
    ///
    /// # Errors
    /// If it can't be made or read.
    pub fn open(vault_dir: &Path) -> Result<Self, Error> {
        let dir = vault_dir.join("dead-letters");
        let open = || {
            fs::create_dir_all(&dir)?;
            let mut count = 0;
            for entry in fs::read_dir(&dir)? {
                count += u64::from(
                    entry?
                        .path()
                        .extension()
                        .is_some_and(|extension| extension == "json"),
                );
            }
            Ok(count)
        };
        match open() {
            Ok(count) => Ok(Self { dir, count }),
            Err(source) => Err(Error { path: dir, source }),
        }
    }

    /// Letters in the directory.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Puts `entry` aside durably, for `destination` and with the reason.
    ///
    /// # Errors
    /// If it can't be written; then the entry must not be settled.
    pub fn put(&mut self, entry: &Entry, destination: &str, reason: &str) -> Result<(), Error> {
        let name = format!(
            "{:02}-{:016x}-{:08}.{destination}",
            entry.id.lane, entry.id.segment, entry.id.index
        );
        let about = serde_json::json!({
            "destination": destination,
            "reason": reason,
            "records": entry.records,
            "content_encoding": encoding_name(entry.encoding),
            "arrival_unix_ns": entry.arrival_unix_ns,
        });
        self.write(&format!("{name}.otlp"), &entry.bytes)?;
        self.write(&format!("{name}.json"), about.to_string().as_bytes())?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| Error {
            path: self.dir.clone(),
            source,
        })?;
        self.count += 1;
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| Error {
            path: path.clone(),
            source,
        })
    }
}

/// The encoding as HTTP and gRPC headers name it.
const fn encoding_name(encoding: ContentEncoding) -> &'static str {
    match encoding {
        ContentEncoding::Identity => "identity",
        ContentEncoding::Gzip => "gzip",
        ContentEncoding::Zstd => "zstd",
    }
}
