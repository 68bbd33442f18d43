//! Reading a segment block by block, through everything that can be wrong with it.

use std::{io, path::Path, sync::Arc};

use super::{
    bytes::u64_at,
    entry::{Part, PieceHeader, Pieces},
    format::{BLOCK_BYTES_MAX, BLOCK_HEADER, BlockHeader, Codec, FormatError, PAGE},
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

    /// The segment's header; what follows it is looked for, not expected.
    pub const BEFORE_FIRST: Self = Self {
        offset: 0,
        ..Self::START
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

/// What a page is to whoever looks for blocks without knowing where they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// A block of the segment begins here.
    Header(BlockHeader),
    /// Something else.
    Other,
    /// The disk can't read it.
    Unreadable,
    /// The readable part ends here.
    End,
}

/// A segment file, read through one window: going forward, each byte is read from the disk once.
#[derive(Debug)]
pub struct BlockSource {
    file: Arc<dyn DiskFile>,
    /// Bytes that are read at once, where nothing keeps them from it.
    read_ahead: usize,
    /// Allocated when something is read.
    window: Option<AlignedBytes>,
    start: u64,
    filled: usize,
    /// Before this, something can't be read: what is read at once is what is asked for.
    narrow_to: u64,
}

impl BlockSource {
    /// Opens a segment.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(platform: &dyn Platform, path: &Path) -> io::Result<Self> {
        Ok(Self::new(
            platform.open(path, Access::Read)?,
            BLOCK_BYTES_MAX,
        ))
    }

    /// Opens a segment that nobody writes any more, to read all of it.
    ///
    /// # Errors
    /// The file can't be opened.
    pub(super) fn open_through(platform: &dyn Platform, path: &Path) -> io::Result<Self> {
        let file = platform.open(path, Access::ReadThrough)?;
        Ok(Self::new(file, BLOCK_BYTES_MAX))
    }

    /// Opens a segment to look at headers, or at single blocks: no more is read than is asked for.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open_for_headers(platform: &dyn Platform, path: &Path) -> io::Result<Self> {
        Ok(Self::new(platform.open(path, Access::Read)?, PAGE))
    }

    /// The same file through a window of its own, for whoever reads at two places in turn.
    pub(super) fn another_window(&self) -> Self {
        Self::new(Arc::clone(&self.file), BLOCK_BYTES_MAX)
    }

    fn new(file: Arc<dyn DiskFile>, read_ahead: usize) -> Self {
        Self {
            file,
            read_ahead,
            window: None,
            start: 0,
            filled: 0,
            narrow_to: 0,
        }
    }

    /// Up to `want` bytes from `offset` on, which is a page's; fewer where the file or `limit` ends, and
    /// never more than a block has.
    ///
    /// # Errors
    /// The disk can't read them.
    pub fn bytes(&mut self, offset: u64, want: usize, limit: u64) -> io::Result<&[u8]> {
        let want = usize::try_from(limit.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(want)
            .min(BLOCK_BYTES_MAX);
        if self.held(offset).len() < want {
            self.fill(offset, want, limit)?;
        }
        let bytes = self.held(offset);
        Ok(&bytes[..bytes.len().min(want)])
    }

    /// What the window has from `offset` on.
    fn held(&self, offset: u64) -> &[u8] {
        let skip = offset.checked_sub(self.start);
        let skip = skip.and_then(|skip| usize::try_from(skip).ok());
        let window = self.window.as_deref().unwrap_or_default();
        let filled = &window[..self.filled.min(window.len())];
        skip.and_then(|skip| filled.get(skip..)).unwrap_or_default()
    }

    /// Lets the window begin at `offset`, and reads what it doesn't have.
    fn fill(&mut self, offset: u64, want: usize, limit: u64) -> io::Result<()> {
        let had = self.held(offset).len();
        // Behind the file's end may be more by now, and the disk is read in whole pages.
        let kept = if had.is_multiple_of(PAGE) { had } else { 0 };
        self.make_room(want.max(self.read_ahead), kept);
        (self.start, self.filled) = (offset, kept);
        let Some(window) = &mut self.window else {
            return Ok(());
        };
        let rest = &mut window[kept..];
        let from = offset + kept as u64;
        let room = usize::try_from(limit.saturating_sub(from)).unwrap_or(usize::MAX);
        let room = room.min(rest.len());
        let most = room.next_multiple_of(PAGE).min(rest.len());
        let least = (want - kept).next_multiple_of(PAGE).min(most);
        let most = if from < self.narrow_to { least } else { most };
        let read = match self.file.read_at(&mut rest[..most], from) {
            // A bad sector further on must not hide what can be read here.
            Err(_) if least < most => {
                self.narrow_to = from + most as u64;
                self.file.read_at(&mut rest[..least], from)
            }
            read => read,
        };
        self.filled = kept + read?.min(room);
        Ok(())
    }

    /// Makes the window at least so long, with the last `kept` bytes that it has at its start.
    fn make_room(&mut self, bytes: usize, kept: usize) {
        let tail = self.filled - kept..self.filled;
        match &mut self.window {
            Some(window) if window.len() >= bytes => window.copy_within(tail, 0),
            window => {
                let mut longer = AlignedBytes::zeroed(bytes);
                if let Some(window) = window {
                    longer[..kept].copy_from_slice(&window[tail]);
                }
                *window = Some(longer);
            }
        }
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

    /// The segment's first block behind `position`, below `limit`, and where it is.
    pub fn next_block(
        &mut self,
        identity: Identity,
        position: Position,
        limit: u64,
    ) -> Option<(u64, BlockHeader)> {
        // A later block may be in the very place of the missing one.
        let mut offset = position.offset;
        loop {
            match self.page_at(identity, offset, limit) {
                Page::Header(header)
                    if header.index > position.index && header.first_entry >= position.entry =>
                {
                    return Some((offset, header));
                }
                Page::Header(_) | Page::Other | Page::Unreadable => offset += PAGE as u64,
                Page::End => return None,
            }
        }
    }

    /// What the page at `offset`, below `limit`, is to whoever looks for any block of the segment.
    pub(super) fn page_at(&mut self, identity: Identity, offset: u64, limit: u64) -> Page {
        if offset.saturating_add(PAGE as u64) > limit {
            return Page::End;
        }
        match self.bytes(offset, PAGE, limit) {
            Ok([]) => Page::End,
            Ok(page) => match BlockHeader::decode(page) {
                Ok(header) if belongs(identity, &header) => Page::Header(header),
                Ok(_) | Err(_) => Page::Other,
            },
            Err(_) => Page::Unreadable,
        }
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
            let raw_len = header.raw_len as usize;
            // What an earlier block has left is written over: zeros would cost as much again as its CRC.
            if decoded.len() < raw_len {
                decoded.resize(raw_len, 0);
            }
            let decoded = &mut decoded[..raw_len];
            let len = lz4_flex::block::decompress_into(stored, decoded).ok()?;
            (len == raw_len).then_some(&*decoded)
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
