//! The open block: entries are copied together once, then they are compressed and checksummed.
//!
//! A raw block is gathered in the buffer that is written. One to be compressed is gathered in memory of the
//! lane's own, always the same, which therefore stays in the CPU's cache, and is compressed from there into the
//! buffer.

use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table};

use super::waiters::Ticket;
use crate::{
    uring::Buffer,
    vault::{
        Compression, EntryMeta,
        entry::{DestMask, ENTRY_HEADER, Part, PieceHeader},
        format::{BLOCK_HEADER, Codec, PAGE, padded_len},
    },
};

/// Most entries of one block.
pub(super) const BLOCK_ENTRIES_MAX: usize = 512;

/// An entry of a block that isn't acknowledged yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) owed: DestMask,
    pub(super) records: u32,
    pub(super) held: bool,
    pub(super) ticket: Ticket,
}

/// A block being gathered.
#[derive(Debug)]
pub(super) struct OpenBlock {
    buffer: Buffer,
    /// Raw: its payload is in `buffer`; LZ4: in the lane's [`Compressor`].
    pub(super) codec: Codec,
    /// Most bytes of its payload.
    room: usize,
    /// Bytes of its payload so far.
    used: usize,
    pub(super) entries: Vec<Pending>,
    pub(super) opened: Instant,
}

/// A block whose payload is final; its header is written when it gets its place.
#[derive(Debug)]
pub(super) struct Packed {
    /// `None` while the ring has it.
    pub(super) buffer: Option<Buffer>,
    pub(super) entries: Vec<Pending>,
    pub(super) codec: Codec,
    pub(super) raw_len: u32,
    pub(super) stored_len: u32,
    pub(super) payload_crc: u32,
    pub(super) records: u32,
}

impl OpenBlock {
    /// A block of at most `block_bytes` with its header.
    pub(super) fn new(
        buffer: Buffer,
        block_bytes: usize,
        codec: Codec,
        entries: Vec<Pending>,
        opened: Instant,
    ) -> Self {
        debug_assert!(entries.is_empty(), "an entry list is given back empty");
        Self {
            buffer,
            codec,
            room: block_bytes - BLOCK_HEADER,
            used: 0,
            entries,
            opened,
        }
    }

    /// Whether a piece of `len` bytes fits.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.entries.len() < BLOCK_ENTRIES_MAX && len + ENTRY_HEADER <= self.room - self.used
    }

    /// Copies bytes `offset..offset + len` of the entry; the caller has checked that they fit.
    pub(super) fn push<P: AsRef<[u8]>>(
        &mut self,
        compressor: Option<&mut Compressor>,
        meta: &EntryMeta,
        part: Part,
        span: Span,
        parts: &[P],
    ) {
        let header = PieceHeader::new(meta, part, span.len, span.offset, span.total);
        let payload = match compressor {
            Some(compressor) if self.codec == Codec::Lz4 => &mut compressor.gathered[..],
            Some(_) | None => &mut self.buffer[BLOCK_HEADER..],
        };
        let (head, mut body) = payload[self.used..].split_at_mut(ENTRY_HEADER);
        head.copy_from_slice(&header.encode());
        let (mut skip, mut left) = (span.offset as usize, span.len as usize);
        for part in parts.iter().map(AsRef::as_ref) {
            let from = skip.min(part.len());
            skip -= from;
            let bytes = &part[from..part.len().min(from + left)];
            let (to, rest) = body.split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            body = rest;
            left -= bytes.len();
        }
        assert_eq!(
            left, 0,
            "an entry's parts are shorter than they were measured"
        );
        self.used += ENTRY_HEADER + span.len as usize;
    }

    /// Compresses, pads and checksums the payload.
    pub(super) fn pack(mut self, compressor: Option<&mut Compressor>) -> Packed {
        let raw_len = self.used;
        let (stored_len, codec) = match compressor {
            Some(compressor) if self.codec == Codec::Lz4 => {
                compressor.pack_into(&mut self.buffer[BLOCK_HEADER..], raw_len)
            }
            Some(_) | None => (raw_len, Codec::Raw),
        };
        let end = BLOCK_HEADER + stored_len;
        self.buffer[end..padded_len(stored_len)].fill(0);
        let records = self
            .entries
            .iter()
            .fold(0_u32, |sum, entry| sum.saturating_add(entry.records));
        Packed {
            payload_crc: crc32fast::hash(&self.buffer[BLOCK_HEADER..end]),
            buffer: Some(self.buffer),
            entries: self.entries,
            codec,
            raw_len: len_u32(raw_len),
            stored_len: len_u32(stored_len),
            records,
        }
    }
}

/// Which bytes of an entry a piece has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) total: u32,
}

/// LZ4 with its table, and the payload that is gathered for it.
pub(super) struct Compressor {
    table: CompressTable,
    gathered: Vec<u8>,
}

impl Compressor {
    pub(super) fn new(compression: Compression, block_bytes: usize) -> Option<Self> {
        match compression {
            Compression::None => None,
            Compression::Auto | Compression::Lz4 => Some(Self {
                table: CompressTable::large(),
                gathered: vec![0; block_bytes - BLOCK_HEADER],
            }),
        }
    }

    /// Brings what was gathered to `payload`: compressed if that saves a page. `payload` has room for what LZ4
    /// makes of bytes that don't shrink.
    fn pack_into(&mut self, payload: &mut [u8], raw_len: usize) -> (usize, Codec) {
        let gathered = &self.gathered[..raw_len];
        if padded_len(raw_len) > PAGE
            && let Ok(len) = compress_into_with_table(gathered, payload, &mut self.table)
            && padded_len(len) < padded_len(raw_len)
        {
            return (len, Codec::Lz4);
        }
        payload[..raw_len].copy_from_slice(gathered);
        (raw_len, Codec::Raw)
    }
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a block is far below 4 GiB")
}
