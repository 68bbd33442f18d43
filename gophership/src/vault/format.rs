//! Segment and block headers on disk.
//!
//! Everything is little-endian; every block starts on a 4 KiB page and is padded with zeros to one.
//! A segment file is: header page, blocks, seal block, and the zeros it was filled with ahead.
//!
//! ```text
//! segment header (page 0)                     block header (128 bytes, then the payload)
//!  0  u64  magic "GSVSEGMT"                    0  u32  magic "GSVB"
//!  8  u16  version (1)                         4  u16  version (1)
//! 10  u16  lane                                6  u8   kind: 1 data, 2 mark, 3 seal
//! 12  u32  flags: 1 previous given up, 2 ready 7  u8   codec: 0 raw, 1 LZ4 block format
//! 16  u64  segment number                      8  u64  segment number
//! 24  u64  tag, random                        16  u64  tag of the segment
//! 32  u64  lane's previous segment, 0 none    24  u32  index of the block, from 0
//! 40  u32  its blocks known durable           28  u32  entries that end in the block
//! 44  u32  zero                               32  u64  entries that ended before it
//! 48  u64  created, Unix ns                   40  u64  records of those
//! 56  u64  bytes of the file                  48  u32  records of the entries that end in it
//! 64  [16] host id                            52  u32  payload, decoded bytes
//! 80  [44] zero                               56  u32  payload, stored bytes
//! 124 u32  CRC32 of bytes 0..124              60  u32  durable_through
//!                                             64  u64  wall clock, Unix ns
//!                                             72  u64  monotonic clock, ns
//!                                             80  u8   zone   81 u8 cause   82 u16 zero
//!                                             84  u32  seal: CRC32 of all blocks' CRC fields
//!                                             88  [32] zero
//!                                             120 u32  CRC32 of the stored payload
//!                                             124 u32  CRC32 of bytes 0..124
//! ```
//!
//! `durable_through` is how many blocks of the segment were known durable when this one was built:
//! damage below it is rot of acknowledged bytes, above it a torn tail that nobody was promised.
//! The tag keeps a producer from planting blocks in its payload, and tells a segment from another
//! that had the same number. A payload is a run of entries, see [`super::entry`]. A mark has no
//! payload; it is written when a lane idles, so that its last block is covered by `durable_through`.
//! A seal has none either; its index is the number of blocks, its cumulative counts the segment's.

use super::bytes::{u16_at, u32_at, u64_at};

/// Bytes of a page: alignment of blocks, size of the segment header.
pub const PAGE: usize = crate::uring::ALIGNMENT;
/// Bytes of a block header.
pub const BLOCK_HEADER: usize = 128;
/// Version of both headers.
pub const VERSION: u16 = 1;
/// Largest block that is read back, in bytes, header included.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Most entries of a segment; bounds the cursors.
pub const ENTRIES_MAX: u32 = 1 << 16;

/// Numbers of segments and generations of cursors stay below: nobody counts that far, so that what is
/// above was never written, and the next one always has a number too.
pub(super) const NUMBERS_END: u64 = 1 << 63;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"GSVSEGMT");
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"GSVB");
const CRC_AT: usize = 124;
/// Flags of a segment header.
const GIVEN_UP: u32 = 1;
const READY: u32 = 2;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Entries.
    Data,
    /// Nothing; carries `durable_through`.
    Mark,
    /// The end of the segment.
    Seal,
}

/// How a payload is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// LZ4 block format.
    Lz4,
}

/// First page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Lane that wrote it.
    pub lane: u16,
    /// Number of the segment, unique in the vault.
    pub segment: u64,
    /// Random; repeated in every block.
    pub tag: u64,
    /// The lane's previous segment, 0 if none.
    pub previous: u64,
    /// Blocks of the previous segment that were known durable when this one began.
    pub previous_durable: u32,
    /// The lane gave the previous segment up after an error: nothing beyond those blocks was ever
    /// acknowledged, sealed or not.
    pub previous_given_up: bool,
    /// It was made ahead, and the lane hasn't begun it: all of this but number, lane and tag is still to come.
    pub is_ready: bool,
    /// When it began, Unix nanoseconds.
    pub created_unix_ns: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The machine, zero if it has no id.
    pub host: [u8; 16],
}

/// First 128 bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// What the block holds.
    pub kind: BlockKind,
    /// How the payload is stored.
    pub codec: Codec,
    /// Number of the segment.
    pub segment: u64,
    /// Tag of the segment.
    pub tag: u64,
    /// Index of the block in the segment, from 0.
    pub index: u32,
    /// Entries that end in this block.
    pub entries: u32,
    /// Entries that ended in earlier blocks.
    pub first_entry: u64,
    /// Records of those.
    pub first_record: u64,
    /// Records of the entries that end in this block.
    pub records: u32,
    /// Bytes of the decoded payload.
    pub raw_len: u32,
    /// Bytes of the stored payload.
    pub stored_len: u32,
    /// Blocks of the segment known durable when this one was built.
    pub durable_through: u32,
    /// Wall clock, Unix nanoseconds.
    pub wall_unix_ns: u64,
    /// Monotonic clock, nanoseconds.
    pub monotonic_ns: u64,
    /// Zone when the block was built.
    pub zone: u8,
    /// Cause of the zone.
    pub cause: u8,
    /// Seal only: CRC32 over the CRC fields of all blocks before it.
    pub segment_crc: u32,
    /// CRC32 of the stored payload.
    pub payload_crc: u32,
}

/// Why bytes aren't a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than a header.
    #[error("fewer bytes than a header has")]
    Short,
    /// Only zeros: nothing was ever written here.
    #[error("only zeros: never written")]
    Blank,
    /// Another magic number.
    #[error("not the magic number of a header")]
    Magic,
    /// The CRC32 of the header doesn't match.
    #[error("checksum of the header doesn't match")]
    Checksum,
    /// Written by a newer version.
    #[error("format version {0} is not known")]
    Version(u16),
    /// A field has a value that is never written.
    #[error("a field of the header is out of its range")]
    Field,
}

impl SegmentHeader {
    /// Writes the header over a whole page.
    pub fn encode(&self, page: &mut [u8]) {
        page.fill(0);
        put(page, 0, &SEGMENT_MAGIC.to_le_bytes());
        put(page, 8, &VERSION.to_le_bytes());
        put(page, 10, &self.lane.to_le_bytes());
        put(page, 16, &self.segment.to_le_bytes());
        put(page, 24, &self.tag.to_le_bytes());
        put(page, 32, &self.previous.to_le_bytes());
        put(page, 40, &self.previous_durable.to_le_bytes());
        let given_up = if self.previous_given_up { GIVEN_UP } else { 0 };
        let ready = if self.is_ready { READY } else { 0 };
        put(page, 12, &(given_up | ready).to_le_bytes());
        put(page, 48, &self.created_unix_ns.to_le_bytes());
        put(page, 56, &self.bytes.to_le_bytes());
        put(page, 64, &self.host);
        put_header_crc(page);
    }

    /// Reads the header from the first page of a file.
    ///
    /// # Errors
    /// The bytes are not a header of a known version.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        let header = page.get(..BLOCK_HEADER).ok_or(FormatError::Short)?;
        if header.iter().all(|&byte| byte == 0) {
            return Err(FormatError::Blank);
        }
        check(
            header,
            u64_at(header, 0) == SEGMENT_MAGIC,
            u16_at(header, 8),
        )?;
        let mut host = [0; 16];
        host.copy_from_slice(&header[64..80]);
        Ok(Self {
            lane: u16_at(header, 10),
            segment: u64_at(header, 16),
            tag: u64_at(header, 24),
            previous: u64_at(header, 32),
            previous_durable: u32_at(header, 40),
            previous_given_up: u32_at(header, 12) & GIVEN_UP != 0,
            is_ready: u32_at(header, 12) & READY != 0,
            created_unix_ns: u64_at(header, 48),
            bytes: u64_at(header, 56),
            host,
        })
    }
}

impl BlockHeader {
    /// Writes the header over the first 128 bytes of `block`; returns its CRC32.
    pub fn encode(&self, block: &mut [u8]) -> u32 {
        let header = &mut block[..BLOCK_HEADER];
        header.fill(0);
        put(header, 0, &BLOCK_MAGIC.to_le_bytes());
        put(header, 4, &VERSION.to_le_bytes());
        header[6] = self.kind.code();
        header[7] = self.codec.code();
        put(header, 8, &self.segment.to_le_bytes());
        put(header, 16, &self.tag.to_le_bytes());
        put(header, 24, &self.index.to_le_bytes());
        put(header, 28, &self.entries.to_le_bytes());
        put(header, 32, &self.first_entry.to_le_bytes());
        put(header, 40, &self.first_record.to_le_bytes());
        put(header, 48, &self.records.to_le_bytes());
        put(header, 52, &self.raw_len.to_le_bytes());
        put(header, 56, &self.stored_len.to_le_bytes());
        put(header, 60, &self.durable_through.to_le_bytes());
        put(header, 64, &self.wall_unix_ns.to_le_bytes());
        put(header, 72, &self.monotonic_ns.to_le_bytes());
        header[80] = self.zone;
        header[81] = self.cause;
        put(header, 84, &self.segment_crc.to_le_bytes());
        put(header, 120, &self.payload_crc.to_le_bytes());
        put_header_crc(header)
    }

    /// Reads a header; its lengths and counts are within their limits afterwards.
    ///
    /// # Errors
    /// The bytes are not a header of a known version.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let header = block.get(..BLOCK_HEADER).ok_or(FormatError::Short)?;
        if header.iter().all(|&byte| byte == 0) {
            return Err(FormatError::Blank);
        }
        check(header, u32_at(header, 0) == BLOCK_MAGIC, u16_at(header, 4))?;
        let decoded = Self {
            kind: BlockKind::from_code(header[6]).ok_or(FormatError::Field)?,
            codec: Codec::from_code(header[7]).ok_or(FormatError::Field)?,
            segment: u64_at(header, 8),
            tag: u64_at(header, 16),
            index: u32_at(header, 24),
            entries: u32_at(header, 28),
            first_entry: u64_at(header, 32),
            first_record: u64_at(header, 40),
            records: u32_at(header, 48),
            raw_len: u32_at(header, 52),
            stored_len: u32_at(header, 56),
            durable_through: u32_at(header, 60),
            wall_unix_ns: u64_at(header, 64),
            monotonic_ns: u64_at(header, 72),
            zone: header[80],
            cause: header[81],
            segment_crc: u32_at(header, 84),
            payload_crc: u32_at(header, 120),
        };
        if decoded.is_sane() {
            Ok(decoded)
        } else {
            Err(FormatError::Field)
        }
    }

    /// Bytes of the block in the file, padding included.
    #[must_use]
    pub fn padded_len(&self) -> usize {
        padded_len(self.stored_len as usize)
    }

    /// The bytes this block adds to the segment's checksum.
    #[must_use]
    pub fn crc_fields(&self, header_crc: u32) -> [u8; 8] {
        let mut fields = [0; 8];
        fields[..4].copy_from_slice(&header_crc.to_le_bytes());
        fields[4..].copy_from_slice(&self.payload_crc.to_le_bytes());
        fields
    }

    /// [`BlockHeader::crc_fields`] of a block as it was read.
    #[must_use]
    pub fn own_crc_fields(&self) -> [u8; 8] {
        let mut encoded = [0; BLOCK_HEADER];
        let header_crc = self.encode(&mut encoded);
        self.crc_fields(header_crc)
    }

    fn is_sane(&self) -> bool {
        let payload_max = (BLOCK_BYTES_MAX - BLOCK_HEADER) as u64;
        let counts = u64::from(self.entries).saturating_add(self.first_entry)
            <= u64::from(ENTRIES_MAX)
            && self.first_record <= self.first_entry.saturating_mul(u64::from(u32::MAX));
        let lengths =
            u64::from(self.raw_len) <= payload_max && u64::from(self.stored_len) <= payload_max;
        let codec = self.codec != Codec::Raw || self.raw_len == self.stored_len;
        let lengths_and_counts = [self.raw_len, self.stored_len, self.entries, self.records];
        let empty = self.kind == BlockKind::Data || lengths_and_counts == [0; 4];
        counts && lengths && codec && empty && self.durable_through <= self.index
    }
}

/// Bytes of a block in the file whose stored payload has `stored_len` bytes.
#[must_use]
pub fn padded_len(stored_len: usize) -> usize {
    (BLOCK_HEADER + stored_len).next_multiple_of(PAGE)
}

/// CRC32 field of an encoded header.
#[must_use]
pub fn header_crc(header: &[u8]) -> u32 {
    u32_at(header, CRC_AT)
}

fn check(header: &[u8], magic: bool, version: u16) -> Result<(), FormatError> {
    if !magic {
        return Err(FormatError::Magic);
    }
    if crc32fast::hash(&header[..CRC_AT]) != u32_at(header, CRC_AT) {
        return Err(FormatError::Checksum);
    }
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put_header_crc(header: &mut [u8]) -> u32 {
    let crc = crc32fast::hash(&header[..CRC_AT]);
    put(header, CRC_AT, &crc.to_le_bytes());
    crc
}

impl BlockKind {
    fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Mark => 2,
            Self::Seal => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Mark),
            3 => Some(Self::Seal),
            _ => None,
        }
    }
}

impl Codec {
    fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}
