//! Reading a segment block by block, through everything that can be wrong with it.

use std::{io, ops::ControlFlow, path::Path, sync::Arc};

use super::{
    bytes::u64_at,
    entry::{Part, PieceHeader, Pieces},
    format::{BLOCK_BYTES_MAX, BLOCK_HEADER, BlockHeader, BlockKind, Codec, FormatError, PAGE},
    platform::{Access, DiskFile, Platform},
};
use crate::uring::AlignedBytes;

/// Which segment blocks must belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub segment: u64,
    /// Its tag; `None` while unknown because the segment's header is damaged.
    pub tag: Option<u64>,
}

/// Where the next block is, and what it must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Offset in the file.
    pub offset: u64,
    /// Index of the block.
    pub index: u32,
    /// Entries that ended before it.
    pub entry: u64,
    /// Records of those.
    pub record: u64,
}

impl Position {
    /// The first block.
    pub const START: Self = Self {
        offset: PAGE as u64,
        index: 0,
        entry: 0,
        record: 0,
    };

    /// Behind the block that begins at `offset`.
    #[must_use]
    pub fn after(offset: u64, header: &BlockHeader) -> Self {
        Self {
            offset: offset + header.padded_len() as u64,
            index: header.index.saturating_add(1),
            entry: header.first_entry + u64::from(header.entries),
            record: header.first_record + u64::from(header.records),
        }
    }
}

/// What is at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A whole block.
    Block(BlockHeader),
    /// A block whose header is whole and whose payload isn't.
    BadPayload(BlockHeader),
    /// Not the block that belongs here.
    NoBlock(FormatError),
    /// A block, but another than the one that belongs here.
    Foreign,
    /// The disk can't read it.
    Unreadable,
    /// The readable part ends here.
    End,
}

/// What follows a place without a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    /// The first later block of the segment, and where it is.
    pub next: Option<(u64, BlockHeader)>,
    /// Most blocks any later block knew to be durable.
    pub durable_through: u32,
    /// Index of the seal, if there is a whole one.
    pub seal: Option<u32>,
    /// The disk couldn't read something.
    pub unreadable: bool,
}

/// A segment file, read through one window.
#[derive(Debug)]
pub struct BlockSource {
    file: Arc<dyn DiskFile>,
    window: AlignedBytes,
    start: u64,
    filled: usize,
}

impl BlockSource {
    /// Opens a segment.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(platform: &dyn Platform, path: &Path) -> io::Result<Self> {
        Self::open_with_window(platform, path, BLOCK_BYTES_MAX)
    }

    /// Opens a segment to look at headers alone: what is read at once is one page.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open_for_headers(platform: &dyn Platform, path: &Path) -> io::Result<Self> {
        Self::open_with_window(platform, path, PAGE)
    }

    fn open_with_window(platform: &dyn Platform, path: &Path, window: usize) -> io::Result<Self> {
        Ok(Self {
            file: platform.open(path, Access::Read)?,
            window: AlignedBytes::zeroed(window),
            start: 0,
            filled: 0,
        })
    }

    /// Up to `want` bytes from `offset` on; fewer where the file or `limit` ends.
    ///
    /// # Errors
    /// The disk can't read them.
    pub fn bytes(&mut self, offset: u64, want: usize, limit: u64) -> io::Result<&[u8]> {
        let want = usize::try_from(limit.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(want);
        let inside = offset
            .checked_sub(self.start)
            .and_then(|skip| usize::try_from(skip).ok());
        let cached = inside.filter(|&skip| skip + want <= self.filled);
        let skip = if let Some(skip) = cached {
            skip
        } else {
            self.fill(offset, want, limit)?;
            0
        };
        let end = self.filled.min(skip + want);
        Ok(&self.window[skip.min(end)..end])
    }

    fn fill(&mut self, offset: u64, want: usize, limit: u64) -> io::Result<()> {
        (self.start, self.filled) = (offset, 0);
        let room = usize::try_from(limit.saturating_sub(offset)).unwrap_or(usize::MAX);
        let room = room.min(self.window.len());
        let most = room.next_multiple_of(PAGE).min(self.window.len());
        let least = want.next_multiple_of(PAGE).min(most);
        // A bad sector further on must not hide what can be read here.
        let read = self
            .file
            .read_at(&mut self.window[..most], offset)
            .or_else(|wide| {
                if least < most {
                    self.file.read_at(&mut self.window[..least], offset)
                } else {
                    Err(wide)
                }
            });
        self.filled = read?.min(room);
        Ok(())
    }

    /// What is at `position`, below `limit`.
    pub fn look(&mut self, identity: Identity, position: Position, limit: u64) -> Look {
        let offset = position.offset;
        let header = match self.look_at_header(identity, position, limit) {
            Look::Block(header) => header,
            other => return other,
        };
        let end = BLOCK_HEADER + header.stored_len as usize;
        match self.bytes(offset, header.padded_len(), limit) {
            Ok(block)
                if block.len() >= end
                    && crc32fast::hash(&block[BLOCK_HEADER..end]) == header.payload_crc =>
            {
                Look::Block(header)
            }
            Ok(_) => Look::BadPayload(header),
            Err(_) => Look::Unreadable,
        }
    }

    /// What the header at `position` says, below `limit`; the payload isn't looked at.
    pub fn look_at_header(&mut self, identity: Identity, position: Position, limit: u64) -> Look {
        let offset = position.offset;
        if offset + PAGE as u64 > limit {
            return Look::End;
        }
        let page = match self.bytes(offset, PAGE, limit) {
            Ok([]) => return Look::End,
            Ok(page) => page,
            Err(_) => return Look::Unreadable,
        };
        let header = match BlockHeader::decode(page) {
            Ok(header) => header,
            // What a producer once planted in a payload, in the old bytes of a recycled file: it can't
            // know the tag. All blocks of a segment are of one version, and so is this place in them.
            Err(FormatError::Version(_) | FormatError::Field) if !is_tagged(identity, page) => {
                return Look::Foreign;
            }
            Err(error) => return Look::NoBlock(error),
        };
        if !belongs(identity, &header)
            || header.index != position.index
            || header.first_entry != position.entry
            || header.first_record != position.record
        {
            return Look::Foreign;
        }
        Look::Block(header)
    }

    /// Looks for the segment's blocks behind `position`, page by page, up to `limit`.
    pub fn look_ahead(&mut self, identity: Identity, position: Position, limit: u64) -> Ahead {
        let mut ahead = Ahead::default();
        ahead.unreadable = self.scan(identity, position, limit, |offset, header| {
            ahead.next.get_or_insert((offset, header));
            ahead.durable_through = ahead.durable_through.max(header.durable_through);
            if header.kind == BlockKind::Seal {
                ahead.seal = Some(header.index);
            }
            ControlFlow::Continue(())
        });
        ahead
    }

    /// The segment's first block behind `position`, below `limit`, and where it is.
    pub fn next_block(
        &mut self,
        identity: Identity,
        position: Position,
        limit: u64,
    ) -> Option<(u64, BlockHeader)> {
        let mut next = None;
        self.scan(identity, position, limit, |offset, header| {
            next = Some((offset, header));
            ControlFlow::Break(())
        });
        next
    }

    /// Calls `found` for the segment's blocks behind `position`; returns whether something couldn't be read.
    fn scan(
        &mut self,
        identity: Identity,
        position: Position,
        limit: u64,
        mut found: impl FnMut(u64, BlockHeader) -> ControlFlow<()>,
    ) -> bool {
        let mut unreadable = false;
        // A later block may be in the very place of the missing one.
        let mut offset = position.offset;
        let (mut entry, mut index) = (position.entry, position.index);
        while offset + PAGE as u64 <= limit {
            let Ok(page) = self.bytes(offset, PAGE, limit) else {
                unreadable = true;
                offset += PAGE as u64;
                continue;
            };
            if page.is_empty() {
                break;
            }
            let header = BlockHeader::decode(page).ok().filter(|header| {
                belongs(identity, header) && header.index > index && header.first_entry >= entry
            });
            let Some(header) = header else {
                offset += PAGE as u64;
                continue;
            };
            if found(offset, header).is_break() {
                break;
            }
            (entry, index) = (header.first_entry, header.index);
            offset += header.padded_len() as u64;
        }
        unreadable
    }

    /// Whether there are only zeros below `limit`; false too if something can't be read.
    pub fn is_blank(&mut self, limit: u64) -> bool {
        let mut offset = 0;
        while offset < limit {
            match self.bytes(offset, BLOCK_BYTES_MAX, limit) {
                Ok([]) => return true,
                Ok(bytes) if bytes.iter().all(|&byte| byte == 0) => offset += bytes.len() as u64,
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// The decoded payload of the block at `offset`, which [`BlockSource::look`] found whole; `None`
    /// if it can't be decompressed.
    pub fn payload<'a>(
        &'a mut self,
        offset: u64,
        header: &BlockHeader,
        decoded: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        let end = BLOCK_HEADER + header.stored_len as usize;
        let block = self.bytes(offset, header.padded_len(), u64::MAX).ok()?;
        let stored = block.get(BLOCK_HEADER..end)?;
        decode_payload(header, stored, decoded)
    }
}

/// Undoes the codec. `header` has bounded the lengths.
pub fn decode_payload<'a>(
    header: &BlockHeader,
    stored: &'a [u8],
    decoded: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    match header.codec {
        Codec::Raw => Some(stored),
        Codec::Lz4 => {
            decoded.clear();
            decoded.resize(header.raw_len as usize, 0);
            let len = lz4_flex::block::decompress_into(stored, decoded).ok()?;
            (len == decoded.len()).then_some(decoded.as_slice())
        }
    }
}

/// Whether a payload is a run of pieces in which as many entries end as the header says, and a piece of
/// a larger entry is by itself: who needs no entry of a block passes over all of it.
#[must_use]
pub fn is_consistent(header: &BlockHeader, payload: &[u8]) -> bool {
    let (mut pieces, mut ended, mut is_cut) = (0, 0, false);
    for piece in Pieces::new(payload) {
        match piece {
            Ok(piece) => {
                pieces += 1;
                ended += u32::from(piece.header.part.ends_entry());
                is_cut |= piece.header.part != Part::Whole;
            }
            Err(_) => return false,
        }
    }
    ended == header.entries && !(is_cut && pieces > 1)
}

fn belongs(identity: Identity, header: &BlockHeader) -> bool {
    header.segment == identity.segment && identity.tag.is_none_or(|tag| header.tag == tag)
}

/// Whether bytes that look like a block's header name the segment.
fn is_tagged(identity: Identity, header: &[u8]) -> bool {
    u64_at(header, 8) == identity.segment
        && identity.tag.is_none_or(|tag| u64_at(header, 16) == tag)
}

/// How a piece goes with the pieces before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// The entry is complete.
    Complete,
    /// More pieces must follow.
    Partial,
    /// Pieces before it are missing.
    Orphan,
}

/// Follows the pieces of entries larger than a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chain {
    /// Bytes of the entry, and how many of them have come.
    open: Option<(u32, u32)>,
}

impl Chain {
    /// Takes the next piece.
    pub fn join(&mut self, piece: &PieceHeader) -> Joined {
        let end = piece.offset + piece.len;
        let follows = self.open == Some((piece.total, piece.offset));
        match piece.part {
            Part::Whole => {
                self.open = None;
                Joined::Complete
            }
            Part::First => {
                self.open = Some((piece.total, end));
                Joined::Partial
            }
            Part::Middle if follows => {
                self.open = Some((piece.total, end));
                Joined::Partial
            }
            Part::Last if follows => {
                self.open = None;
                Joined::Complete
            }
            Part::Middle | Part::Last => {
                self.open = None;
                Joined::Orphan
            }
        }
    }

    /// Whether an entry is begun and not complete.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets what was begun, because something in between is lost.
    pub fn break_off(&mut self) {
        self.open = None;
    }
}
