//! Entries that a destination will never take: kept as files, counted and shown, never dropped.
//!
//! A dead letter is two files in `dead-letters/` of the vault's directory:
//! `LANE-SEGMENT-INDEX.DESTINATION.otlp` with the bytes as the producer sent them, and the same
//! with `.json` that says why. The `.json` is written last: a letter without it is incomplete.
//!
//! The directory is bounded. A letter that has no room isn't written, and its entry stays owed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::vault::{ContentEncoding, Entry, Kind};

/// Why a letter can't be put aside, or the directory not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or a letter can't be read or written.
    #[error("dead letters: {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for it; somebody has to look at the letters there are, and take them away.
    #[error(
        "dead letters: {} has {bytes} bytes of vault.dead_letters_max_bytes = {max_bytes}, too many for \
         {more} more",
        dir.display()
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Bytes in it.
        bytes: u64,
        /// Most bytes.
        max_bytes: u64,
        /// Bytes of the letter.
        more: u64,
    },
}

/// The directory of dead letters.
#[derive(Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    max_bytes: u64,
    held: Held,
}

/// What is in the directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Letters.
    pub letters: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

impl DeadLetters {
    /// Opens the directory below the vault's, making it if absent, and counts what is in it, which should
    /// never be more than `max_bytes`.
    ///
    /// # Errors
    /// If it can't be made or read.
    pub fn open(vault_dir: &Path, max_bytes: u64) -> Result<Self, Error> {
        let dir = vault_dir.join("dead-letters");
        fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        let mut letters = Self {
            dir,
            max_bytes,
            held: Held::default(),
        };
        letters.recount()?;
        Ok(letters)
    }

    /// What is in the directory, as far as nobody else has changed it since it was counted.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held
    }

    /// Counts again: somebody may have taken letters away.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn recount(&mut self) -> Result<Held, Error> {
        let count = || {
            let mut held = Held::default();
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                let is_reason = entry.path().extension().is_some_and(|ext| ext == "json");
                held.letters += u64::from(is_reason);
                held.bytes += match entry.metadata() {
                    Ok(metadata) => metadata.len(),
                    // Taken away meanwhile.
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(error),
                };
            }
            Ok(held)
        };
        self.held = count().map_err(io_error(&self.dir))?;
        Ok(self.held)
    }

    /// Puts `entry` aside durably, for `destination` and with the reason.
    ///
    /// # Errors
    /// If there is no room or it can't be written; then the entry must not be settled.
    pub fn put(&mut self, entry: &Entry, destination: &str, reason: &str) -> Result<(), Error> {
        let name = format!(
            "{:02}-{:016x}-{:08}.{destination}",
            entry.id.lane, entry.id.segment, entry.id.index
        );
        let about = serde_json::json!({
            "destination": destination,
            "reason": reason,
            "records": entry.records,
            "content_type": content_type(entry.kind),
            "content_encoding": encoding_name(entry.encoding),
            "arrival_unix_ns": entry.arrival_unix_ns,
        })
        .to_string();
        let (bytes, why) = (format!("{name}.otlp"), format!("{name}.json"));
        let more = (entry.bytes.len() + about.len()) as u64;
        // Written before a crash, and not settled: the same again, in its place.
        let before = [&bytes, &why].map(|name| fs::metadata(self.dir.join(name)).ok());
        let replaced: u64 = before.iter().flatten().map(fs::Metadata::len).sum();
        let rest = self.held.bytes.saturating_sub(replaced);
        if rest + more > self.max_bytes {
            return Err(Error::Full {
                dir: self.dir.clone(),
                bytes: rest,
                max_bytes: self.max_bytes,
                more,
            });
        }
        self.write(&bytes, &entry.bytes)?;
        self.write(&why, about.as_bytes())?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(io_error(&self.dir))?;
        self.held.bytes = rest + more;
        self.held.letters += u64::from(before[1].is_none());
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(&path))
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// The kind as HTTP's header names it.
const fn content_type(kind: Kind) -> &'static str {
    match kind {
        Kind::OtlpLogs => "application/x-protobuf",
        Kind::OtlpLogsJson => "application/json",
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
