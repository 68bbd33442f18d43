//! Entries that a destination will never take: kept as files, counted and shown, never dropped.
//!
//! A dead letter is two files in `dead-letters/` of the vault's directory:
//! `LANE-SEGMENT-INDEX.DESTINATION.otlp` with the bytes as the producer sent them, and the same
//! with `.json` that says why. The `.json` is written last: a letter without it is incomplete.
//!
//! The directory is bounded, by what its files take on the disk: a block each at least, however short, so that their
//! number is bounded, too. A letter that has no room isn't written, and its entry stays owed.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::vault::{ContentEncoding, Entry, Kind};

/// What a file takes is a multiple of this.
const BLOCK: u64 = 4096;

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
        /// Bytes that its files take.
        bytes: u64,
        /// Most bytes.
        max_bytes: u64,
        /// Bytes that the letter would take.
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
    /// Bytes that the files take on the disk.
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
                    Ok(metadata) => taken(&metadata),
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
        let more = in_blocks(entry.bytes.len() as u64) + in_blocks(about.len() as u64);
        // Written before a crash, and not settled: the same again, in its place.
        let before = [&bytes, &why].map(|name| fs::metadata(self.dir.join(name)).ok());
        let replaced: u64 = before.iter().flatten().map(taken).sum();
        let rest = self.held.bytes.saturating_sub(replaced);
        if rest + more > self.max_bytes {
            return Err(Error::Full {
                dir: self.dir.clone(),
                bytes: rest,
                max_bytes: self.max_bytes,
                more,
            });
        }
        let written = self.write_both((&bytes, &entry.bytes), (&why, about.as_bytes()));
        if written.is_err() {
            // What there is of it counts; if that isn't known either, the next recount tells.
            let _ = self.recount();
        }
        self.held.bytes = rest + written?;
        self.held.letters += u64::from(before[1].is_none());
        Ok(())
    }

    /// Gives what the files take on the disk.
    fn write_both(&self, bytes: (&str, &[u8]), why: (&str, &[u8])) -> Result<u64, Error> {
        let taken = self.write(bytes.0, bytes.1)? + self.write(why.0, why.1)?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(io_error(&self.dir))?;
        Ok(taken)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<u64, Error> {
        let path = self.dir.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            Ok(taken(&file.metadata()?))
        };
        write().map_err(io_error(&path))
    }
}

/// Bytes that a file takes on the disk. What the file system compresses or keeps beside its attributes counts as if it didn't.
fn taken(metadata: &fs::Metadata) -> u64 {
    in_blocks(metadata.len()).max(metadata.blocks() * 512)
}

fn in_blocks(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::EntryId;

    fn entry(index: u32, bytes: usize) -> Entry {
        Entry {
            id: EntryId {
                lane: 0,
                segment: 1,
                index,
            },
            kind: Kind::OtlpLogs,
            encoding: ContentEncoding::Identity,
            owed: 1,
            arrival_unix_ns: 7,
            records: 1,
            bytes: vec![b'x'; bytes],
        }
    }

    #[test]
    fn letters_are_bounded_by_what_they_take_on_the_disk() {
        const MAX_BYTES: u64 = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let mut letters = DeadLetters::open(dir.path(), MAX_BYTES).unwrap();
        let fit =
            (0..1000).take_while(|&index| letters.put(&entry(index, 50), "main", "no").is_ok());
        assert_eq!(fit.count(), 8);
        let on_disk: u64 = fs::read_dir(dir.path().join("dead-letters"))
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().blocks() * 512)
            .sum();
        assert!(on_disk <= MAX_BYTES, "{on_disk}");
        let held = letters.held();
        assert_eq!((held.letters, held.bytes), (8, MAX_BYTES));
        assert_eq!(letters.recount().unwrap(), held);

        // The same again takes no more, and a larger one has no room.
        letters.put(&entry(3, 60), "main", "no").unwrap();
        assert_eq!(letters.held(), held);
        let larger = letters.put(&entry(3, 5000), "main", "no");
        assert!(
            matches!(larger, Err(Error::Full { more: 12_288, .. })),
            "{larger:?}"
        );
    }
}
