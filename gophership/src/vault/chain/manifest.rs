//! A lane's manifest: what each sealed segment held, and the chain through them.
//!
//! `lane-LL/manifest` is a header and records of a fixed size. It is appended to, and replaced as a
//! whole when much of it is of segments long gone. Everything is little-endian.
//!
//! ```text
//! header (64 bytes)                           record (192 bytes)
//!  0  u64  magic "GSVMANIF"                    0  u8   kind: 1 sealed, 2 removed
//!  8  u16  version (1)                         1  [7]  zero
//! 10  u16  lane                                8  u64  place in the chain, from 0
//! 12  u32  zero                               16  u64  segment number
//! 16  u64  places below this may be missing   24  u64  tag of the segment
//! 24  [36] zero                               32  u64  entries
//! 60  u32  CRC32 of bytes 0..60               40  u64  records
//!                                             48  u64  sealed, Unix ns
//!                                             56  u32  blocks
//!                                             60  u32  segment CRC, as in the seal
//!                                             64  [32] own hash
//!                                             96  [32] chained hash before it, zeros at place 0
//!                                             128 [32] chained hash
//!                                             160 [28] zero
//!                                             188 u32  CRC32 of bytes 0..188
//! ```
//!
//! A record of kind 2 says that the daemon is about to remove the segment; it has number and tag, and
//! is zero elsewhere. What is left of a record that was being appended when the machine stopped is no
//! record, and is written over.

use super::{Hash, Sealed};
use crate::vault::bytes::{u16_at, u32_at, u64_at};

/// Name of the file in a lane's directory.
pub(super) const NAME: &str = "manifest";
/// Bytes of the header.
pub(super) const HEADER: usize = 64;
/// Bytes of a record.
pub(super) const RECORD: usize = 192;
/// More than a manifest ever has: it is compacted long before. A longer file isn't read.
pub(super) const BYTES_MAX: u64 = 256 << 20;

const MAGIC: u64 = u64::from_le_bytes(*b"GSVMANIF");
const VERSION: u16 = 1;

/// Why a file isn't a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Fewer bytes than a header.
    #[error("shorter than its header")]
    Short,
    /// Longer than a manifest ever is.
    #[error("{0} bytes are more than a manifest ever has")]
    Long(u64),
    /// Another magic number.
    #[error("not the magic number of a manifest")]
    Magic,
    /// The CRC32 of the header doesn't match.
    #[error("checksum of its header doesn't match")]
    Checksum,
    /// Written by a newer version.
    #[error("format version {0} is not known")]
    Version(u16),
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A segment was sealed and hashed.
    Sealed(Sealed),
    /// A segment, by number and tag, is being removed because nobody needs it.
    Removed(u64, u64),
}

/// What a manifest's bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) lane: u16,
    /// Records at places below this may have been left out.
    pub(super) compacted_below: u64,
    pub(super) records: Vec<Record>,
    /// Records that a checksum refuses.
    pub(super) damaged: u64,
    /// Bytes of whole records and the header.
    pub(super) whole_bytes: u64,
    /// Bytes of a record that was never finished.
    pub(super) torn_bytes: u64,
}

/// Reads a manifest, of whatever bytes.
///
/// # Errors
/// It has no header of a known version.
pub(super) fn decode(bytes: &[u8]) -> Result<Image, ManifestError> {
    let header = bytes.get(..HEADER).ok_or(ManifestError::Short)?;
    if u64_at(header, 0) != MAGIC {
        return Err(ManifestError::Magic);
    }
    if crc32fast::hash(&header[..HEADER - 4]) != u32_at(header, HEADER - 4) {
        return Err(ManifestError::Checksum);
    }
    let version = u16_at(header, 8);
    if version != VERSION {
        return Err(ManifestError::Version(version));
    }
    let (records, torn) = bytes[HEADER..].as_chunks::<RECORD>();
    let mut image = Image {
        lane: u16_at(header, 10),
        compacted_below: u64_at(header, 16),
        records: Vec::with_capacity(records.len()),
        damaged: 0,
        whole_bytes: (HEADER + records.len() * RECORD) as u64,
        torn_bytes: torn.len() as u64,
    };
    let mut rest = records;
    while let Some((record, following)) = rest.split_first() {
        rest = following;
        match Record::decode(record) {
            Some(record) => image.records.push(record),
            // The length of a file may be durable before its last bytes are.
            None if rest.is_empty() => {
                image.whole_bytes -= RECORD as u64;
                image.torn_bytes += RECORD as u64;
            }
            None => image.damaged += 1,
        }
    }
    Ok(image)
}

/// A manifest of these records.
#[must_use]
pub(super) fn encode(lane: u16, compacted_below: u64, records: &[Record]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&lane.to_le_bytes());
    bytes[16..24].copy_from_slice(&compacted_below.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..HEADER - 4]);
    bytes[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    for record in records {
        bytes.extend_from_slice(&record.encode());
    }
    bytes
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub(super) fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        match self {
            Self::Sealed(sealed) => {
                bytes[0] = 1;
                bytes[8..16].copy_from_slice(&sealed.place.to_le_bytes());
                bytes[16..64].copy_from_slice(&sealed.identity());
                bytes[64..96].copy_from_slice(&sealed.own);
                bytes[96..128].copy_from_slice(&sealed.before);
                bytes[128..160].copy_from_slice(&sealed.chained);
            }
            Self::Removed(number, tag) => {
                bytes[0] = 2;
                bytes[16..24].copy_from_slice(&number.to_le_bytes());
                bytes[24..32].copy_from_slice(&tag.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&bytes[..RECORD - 4]);
        bytes[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        if crc32fast::hash(&bytes[..RECORD - 4]) != u32_at(bytes, RECORD - 4) {
            return None;
        }
        let (number, tag) = (u64_at(bytes, 16), u64_at(bytes, 24));
        match bytes[0] {
            1 => Some(Self::Sealed(Sealed {
                place: u64_at(bytes, 8),
                number,
                tag,
                entries: u64_at(bytes, 32),
                records: u64_at(bytes, 40),
                sealed_unix_ns: u64_at(bytes, 48),
                blocks: u32_at(bytes, 56),
                segment_crc: u32_at(bytes, 60),
                own: hash_at(bytes, 64),
                before: hash_at(bytes, 96),
                chained: hash_at(bytes, 128),
            })),
            2 => Some(Self::Removed(number, tag)),
            _ => None,
        }
    }
}

fn hash_at(bytes: &[u8; RECORD], at: usize) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    hash
}

#[cfg(fuzzing)]
#[path = "../fuzzing/manifest.rs"]
pub(in crate::vault) mod fuzzing;

#[cfg(test)]
mod tests {
    use super::*;

    fn some(place: u64) -> Record {
        Record::Sealed(Sealed {
            place,
            number: place + 7,
            tag: 0xDEAD_BEEF ^ place,
            entries: 3,
            records: 9,
            sealed_unix_ns: 1_700_000_000_000_000_000,
            blocks: 2,
            segment_crc: 0x1234_5678,
            own: [5; 32],
            before: [6; 32],
            chained: [7; 32],
        })
    }

    fn image() -> Vec<u8> {
        encode(3, 1, &[some(1), Record::Removed(8, 9), some(2)])
    }

    #[test]
    fn a_manifest_decodes_to_what_was_encoded() {
        let image = decode(&image()).unwrap();
        let records = vec![some(1), Record::Removed(8, 9), some(2)];
        assert_eq!((image.lane, image.compacted_below), (3, 1));
        assert_eq!((image.damaged, image.torn_bytes), (0, 0));
        assert_eq!(image.records, records);
    }

    #[test]
    fn a_torn_last_record_is_dropped_wherever_it_tore() {
        let bytes = image();
        let two = HEADER + 2 * RECORD;
        for cut in two..bytes.len() {
            let image = decode(&bytes[..cut]).unwrap();
            assert_eq!(image.records.len(), 2, "{cut} bytes");
            assert_eq!((image.whole_bytes, image.damaged), (two as u64, 0));
            assert_eq!(image.torn_bytes, (cut - two) as u64);
        }
        let mut zeros = bytes.clone();
        zeros[two + 8..].fill(0);
        let image = decode(&zeros).unwrap();
        assert_eq!((image.records.len(), image.damaged), (2, 0));
        assert_eq!(image.torn_bytes, RECORD as u64);
    }

    #[test]
    fn any_flipped_bit_is_refused_and_none_panics() {
        let bytes = image();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match decode(&flipped) {
                Ok(image) => {
                    assert!(bit / 8 >= HEADER, "bit {bit} of the header");
                    assert_eq!(image.records.len(), 2, "bit {bit}");
                }
                Err(_) => assert!(bit / 8 < HEADER, "bit {bit} of a record"),
            }
        }
        for len in 0..bytes.len() {
            let _ = decode(&bytes[..len]);
        }
    }
}
