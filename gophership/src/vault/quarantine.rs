//! What an operator takes out of replay, durably: a small file beside the segment's.
//!
//! ```text
//! <dir>/lane-LL/SSSSSSSSSSSSSSSS.quarantine
//!
//! gophership-vault-quarantine 1 <CRC32 of the rest, 8 hex digits>
//! segment <number, 16 hex digits>
//! since <Unix nanoseconds>
//! by <who>
//! reason <why, may be empty>
//! ```
//!
//! While the file is there, whatever is in it, the segment is neither replayed nor removed nor written
//! to: a damaged file loses who and why, never that. Damage that the daemon finds by itself needs no such file, because
//! every start finds it again.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    directory::{lane_dir, replace_file, sync_dir},
    error::{Error, io_error},
    platform::Platform,
};

/// Suffix of the file.
pub(super) const SUFFIX: &str = "quarantine";
const MAGIC: &str = "gophership-vault-quarantine 1 ";
/// Longest reason, in bytes; longer ones are refused.
pub(super) const REASON_BYTES_MAX: usize = 1024;
/// Far above what is ever written; a larger file isn't ours and isn't read.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Who took a segment out of replay, when, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// When, Unix nanoseconds; 0 if the file that says so is damaged.
    pub since_unix_ns: u64,
    /// Who, such as `uid 0`.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// Why an operator's quarantine wasn't set or ended.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// There is no such segment.
    #[error("the vault has no segment {0:x}")]
    Unknown(u64),
    /// It may be one that isn't read yet.
    #[error("segment {0:x} isn't known yet: the vault is still being read; try again")]
    Recovering(u64),
    /// Its lane still writes it.
    #[error("segment {0:x} is being written; try again when it is sealed")]
    Writing(u64),
    /// It already is.
    #[error("segment {0:x} is already quarantined by an operator")]
    Already(u64),
    /// It isn't.
    #[error(
        "no operator has quarantined segment {0:x}, so there is nothing to release \
         (a damaged segment stays until it is repaired or moved away)"
    )]
    NotQuarantined(u64),
    /// The text can't be kept.
    #[error("the reason has {bytes} bytes; at most {max} are kept", max = REASON_BYTES_MAX)]
    Reason {
        /// Its length.
        bytes: usize,
    },
    /// Its file can't be written or removed.
    #[error(transparent)]
    File(#[from] Error),
}

/// The file of a segment.
pub(super) fn path_of(dir: &Path, lane: u16, number: u64) -> PathBuf {
    lane_dir(dir, lane).join(name_of(number))
}

fn name_of(number: u64) -> String {
    format!("{number:016x}.{SUFFIX}")
}

/// The quarantine of a segment, if an operator set one.
#[must_use]
pub(super) fn read(
    platform: &dyn Platform,
    dir: &Path,
    lane: u16,
    number: u64,
) -> Option<Quarantine> {
    let path = path_of(dir, lane, number);
    let unknown = |why: String| {
        Some(Quarantine {
            since_unix_ns: 0,
            by: "unknown".to_owned(),
            reason: format!("{}: {why}", path.display()),
        })
    };
    match platform.read(&path, FILE_BYTES_MAX + 1) {
        Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => {
            unknown(format!("more than {FILE_BYTES_MAX} bytes"))
        }
        Ok(bytes) => decode(&bytes, number).map_or_else(|| unknown("damaged".to_owned()), Some),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
        Err(error) => unknown(error.to_string()),
    }
}

/// Sets a quarantine, durably.
///
/// # Errors
/// The reason is too long, or the file can't be written.
pub(super) fn write(
    platform: &dyn Platform,
    dir: &Path,
    lane: u16,
    number: u64,
    quarantine: &Quarantine,
) -> Result<(), QuarantineError> {
    let bytes = quarantine.reason.len();
    if bytes > REASON_BYTES_MAX {
        return Err(QuarantineError::Reason { bytes });
    }
    let parent = lane_dir(dir, lane);
    replace_file(
        platform,
        &parent,
        &name_of(number),
        encode(quarantine, number).as_bytes(),
    )?;
    Ok(())
}

/// Ends a quarantine, durably.
///
/// # Errors
/// The file can't be removed.
pub(super) fn remove(
    platform: &dyn Platform,
    dir: &Path,
    lane: u16,
    number: u64,
) -> Result<(), Error> {
    let path = path_of(dir, lane, number);
    match platform.remove(&path) {
        Ok(()) => sync_dir(platform, &lane_dir(dir, lane)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("removing", path)(error)),
    }
}

fn encode(quarantine: &Quarantine, number: u64) -> String {
    let body = format!(
        "segment {number:016x}\nsince {}\nby {}\nreason {}\n",
        quarantine.since_unix_ns,
        line(&quarantine.by),
        line(&quarantine.reason)
    );
    format!("{MAGIC}{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

/// Text on one line.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn decode(bytes: &[u8], number: u64) -> Option<Quarantine> {
    let (head, body) = str::from_utf8(bytes).ok()?.split_once('\n')?;
    let crc = u32::from_str_radix(head.strip_prefix(MAGIC)?, 16).ok()?;
    if crc != crc32fast::hash(body.as_bytes()) {
        return None;
    }
    let mut lines = body.split('\n');
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    if field("segment")? != format!("{number:016x}") {
        return None;
    }
    Some(Quarantine {
        since_unix_ns: field("since")?.parse().ok()?,
        by: field("by")?.to_owned(),
        reason: field("reason")?.to_owned(),
    })
}

#[cfg(fuzzing)]
#[path = "fuzzing/quarantine.rs"]
pub(super) mod fuzzing;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vault::platform::Os;

    const PLATFORM: Os = Os::to_read();

    fn quarantine() -> Quarantine {
        Quarantine {
            since_unix_ns: 1_700_000_000_000_000_000,
            by: "uid 0".to_owned(),
            reason: "poison pill\nof two lines".to_owned(),
        }
    }

    #[test]
    fn it_comes_back_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(lane_dir(dir.path(), 3)).unwrap();
        assert_eq!(read(&PLATFORM, dir.path(), 3, 0x1a), None);
        write(&PLATFORM, dir.path(), 3, 0x1a, &quarantine()).unwrap();
        let back = read(&PLATFORM, dir.path(), 3, 0x1a).unwrap();
        assert_eq!(
            (back.by.as_str(), back.reason.as_str()),
            ("uid 0", "poison pill of two lines")
        );
        assert_eq!(back.since_unix_ns, quarantine().since_unix_ns);
        remove(&PLATFORM, dir.path(), 3, 0x1a).unwrap();
        remove(&PLATFORM, dir.path(), 3, 0x1a).unwrap();
        assert_eq!(read(&PLATFORM, dir.path(), 3, 0x1a), None);
    }

    #[test]
    fn a_damaged_file_still_quarantines() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(lane_dir(dir.path(), 0)).unwrap();
        let whole = encode(&quarantine(), 7);
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 0x10;
            fs::write(path_of(dir.path(), 0, 7), &bytes).unwrap();
            let read = read(&PLATFORM, dir.path(), 0, 7).unwrap();
            assert_eq!(
                (read.since_unix_ns, read.by.as_str()),
                (0, "unknown"),
                "byte {at}"
            );
        }
        let other = encode(&quarantine(), 8);
        assert_eq!(decode(other.as_bytes(), 7), None, "another segment's");
    }
}
