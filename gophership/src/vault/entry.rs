//! Entries: what a producer's request becomes in a block's payload.
//!
//! ```text
//!  0  u32  bytes of this piece, after the header
//!  4  u8   kind: 1 OTLP logs export request in protobuf, 2 in JSON
//!  5  u8   content encoding: 0 identity, 1 gzip, 2 zstd
//!  6  u8   piece: 0 whole, 1 first, 2 middle, 3 last
//!  7  u8   zero
//!  8  u32  destinations owed, one bit each
//! 12  u32  records
//! 16  u64  arrival, Unix ns
//! 24  u32  bytes of the entry over all its pieces
//! 28  u32  where this piece starts in the entry
//! 32  …    bytes
//! ```
//!
//! An entry larger than a block is cut into pieces in consecutive blocks; the entry counts in the
//! block that has its last piece. A run of pieces without a last one was given up by its writer and
//! never acknowledged.

use super::bytes::{u32_at, u64_at};

/// Bytes before each piece.
pub const ENTRY_HEADER: usize = 32;

/// One bit for each destination, at its durable index.
pub type DestMask = u32;

/// What the bytes of an entry are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A protobuf `ExportLogsServiceRequest`.
    OtlpLogs,
    /// An `ExportLogsServiceRequest` in OTLP JSON.
    OtlpLogsJson,
}

/// Compression the producer applied to the bytes, which the vault leaves as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentEncoding {
    /// None.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Where an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// Lane that wrote it.
    pub lane: u16,
    /// Segment, by number.
    pub segment: u64,
    /// Entry of the segment, from 0.
    pub index: u32,
}

/// What is known of an entry besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMeta {
    /// What the bytes are.
    pub kind: Kind,
    /// Compression of the bytes.
    pub encoding: ContentEncoding,
    /// Destinations that haven't accepted it.
    pub owed: DestMask,
    /// When the request arrived, Unix nanoseconds.
    pub arrival_unix_ns: u64,
    /// OpenTelemetry LogRecords in it.
    pub records: u32,
    /// An export of it is in flight: replay skips it until it is settled or released.
    pub held: bool,
}

/// An entry as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub id: EntryId,
    /// What the bytes are.
    pub kind: Kind,
    /// Compression of the bytes.
    pub encoding: ContentEncoding,
    /// Destinations that still haven't accepted it.
    pub owed: DestMask,
    /// When the request arrived, Unix nanoseconds.
    pub arrival_unix_ns: u64,
    /// OpenTelemetry LogRecords in it.
    pub records: u32,
    /// The bytes as received.
    pub bytes: Vec<u8>,
}

/// Which part of an entry a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The beginning.
    First,
    /// Neither beginning nor end.
    Middle,
    /// The end.
    Last,
}

impl Part {
    /// Whether an entry is complete with this piece, and so counts in its block.
    #[must_use]
    pub fn ends_entry(self) -> bool {
        match self {
            Self::Whole | Self::Last => true,
            Self::First | Self::Middle => false,
        }
    }
}

/// Header of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHeader {
    /// Bytes of the piece.
    pub len: u32,
    /// Which part it is.
    pub part: Part,
    /// What the bytes are.
    pub kind: Kind,
    /// Compression of the bytes.
    pub encoding: ContentEncoding,
    /// Destinations owed when it was written.
    pub owed: DestMask,
    /// Records of the entry.
    pub records: u32,
    /// Arrival, Unix nanoseconds.
    pub arrival_unix_ns: u64,
    /// Bytes of the whole entry.
    pub total: u32,
    /// Where the piece starts in the entry.
    pub offset: u32,
}

/// A piece of an entry, borrowed from a decoded payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its header.
    pub header: PieceHeader,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// A payload that isn't a run of entries although its checksum matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no entry at byte {at} of the payload")]
pub struct NotAnEntry {
    /// Byte of the decoded payload.
    pub at: usize,
}

impl PieceHeader {
    /// A whole entry, or a piece of one, of `meta`.
    #[must_use]
    pub fn new(meta: &EntryMeta, part: Part, len: u32, offset: u32, total: u32) -> Self {
        Self {
            len,
            part,
            kind: meta.kind,
            encoding: meta.encoding,
            owed: meta.owed,
            records: meta.records,
            arrival_unix_ns: meta.arrival_unix_ns,
            total,
            offset,
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_HEADER] {
        let mut bytes = [0; ENTRY_HEADER];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = match self.kind {
            Kind::OtlpLogs => 1,
            Kind::OtlpLogsJson => 2,
        };
        bytes[5] = match self.encoding {
            ContentEncoding::Identity => 0,
            ContentEncoding::Gzip => 1,
            ContentEncoding::Zstd => 2,
        };
        bytes[6] = match self.part {
            Part::Whole => 0,
            Part::First => 1,
            Part::Middle => 2,
            Part::Last => 3,
        };
        bytes[8..12].copy_from_slice(&self.owed.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.records.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.arrival_unix_ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.total.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..ENTRY_HEADER)?;
        let header = Self {
            len: u32_at(bytes, 0),
            kind: match bytes[4] {
                1 => Kind::OtlpLogs,
                2 => Kind::OtlpLogsJson,
                _ => return None,
            },
            encoding: match bytes[5] {
                0 => ContentEncoding::Identity,
                1 => ContentEncoding::Gzip,
                2 => ContentEncoding::Zstd,
                _ => return None,
            },
            part: match bytes[6] {
                0 => Part::Whole,
                1 => Part::First,
                2 => Part::Middle,
                3 => Part::Last,
                _ => return None,
            },
            owed: u32_at(bytes, 8),
            records: u32_at(bytes, 12),
            arrival_unix_ns: u64_at(bytes, 16),
            total: u32_at(bytes, 24),
            offset: u32_at(bytes, 28),
        };
        let end = header.offset.checked_add(header.len)?;
        let fits = match header.part {
            Part::Whole => header.offset == 0 && end == header.total,
            Part::First => header.offset == 0 && end < header.total,
            Part::Middle => header.offset > 0 && end < header.total,
            Part::Last => header.offset > 0 && end == header.total,
        };
        fits.then_some(header)
    }
}

/// Walks the pieces of a decoded payload; ends after the first error.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    /// From the payload's start.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, NotAnEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self
            .payload
            .get(self.at..)
            .filter(|rest| !rest.is_empty())?;
        let piece = PieceHeader::decode(rest).and_then(|header| {
            let end = ENTRY_HEADER.checked_add(header.len as usize)?;
            Some((
                Piece {
                    header,
                    bytes: rest.get(ENTRY_HEADER..end)?,
                },
                end,
            ))
        });
        match piece {
            Some((piece, len)) => {
                self.at += len;
                Some(Ok(piece))
            }
            None => {
                let at = self.at;
                self.at = self.payload.len();
                Some(Err(NotAnEntry { at }))
            }
        }
    }
}
