//! The open block: entries are copied into its buffer once, then it is compressed and checksummed.

use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

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
    pub(super) fn new(buffer: Buffer, entries: Vec<Pending>, opened: Instant) -> Self {
        debug_assert!(entries.is_empty(), "an entry list is given back empty");
        Self {
            buffer,
            used: BLOCK_HEADER,
            entries,
            opened,
        }
    }

    /// Whether a piece of `len` bytes fits.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.entries.len() < BLOCK_ENTRIES_MAX
            && len + ENTRY_HEADER <= self.buffer.len() - self.used
    }

    /// Copies bytes `offset..offset + len` of the entry; the caller has checked that they fit.
    pub(super) fn push<P: AsRef<[u8]>>(
        &mut self,
        meta: &EntryMeta,
        part: Part,
        span: Span,
        parts: &[P],
    ) {
        let header = PieceHeader::new(meta, part, span.len, span.offset, span.total);
        let (_, free) = self.buffer.split_at_mut(self.used);
        let (head, mut body) = free.split_at_mut(ENTRY_HEADER);
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
        let raw_len = self.used - BLOCK_HEADER;
        let (mut stored_len, mut codec) = (raw_len, Codec::Raw);
        if let Some(len) =
            compressor.and_then(|compressor| compressor.shrink(&mut self.buffer, raw_len))
        {
            (stored_len, codec) = (len, Codec::Lz4);
        }
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

/// LZ4 with its table and output made once.
pub(super) struct Compressor {
    table: CompressTable,
    output: Vec<u8>,
}

impl Compressor {
    pub(super) fn new(compression: Compression, block_bytes: usize) -> Option<Self> {
        match compression {
            Compression::None => None,
            Compression::Auto | Compression::Lz4 => Some(Self {
                table: CompressTable::large(),
                output: vec![0; get_maximum_output_size(block_bytes)],
            }),
        }
    }

    /// Compresses the payload in place if that saves a page; returns its new length.
    fn shrink(&mut self, block: &mut [u8], raw_len: usize) -> Option<usize> {
        if padded_len(raw_len) == PAGE {
            return None;
        }
        let payload = &mut block[BLOCK_HEADER..BLOCK_HEADER + raw_len];
        let len = compress_into_with_table(payload, &mut self.output, &mut self.table).ok()?;
        if padded_len(len) >= padded_len(raw_len) {
            return None;
        }
        payload[..len].copy_from_slice(&self.output[..len]);
        Some(len)
    }
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a block is far below 4 GiB")
}
