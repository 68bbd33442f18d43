//! Reading one sealed segment from its first block to its seal, a block at a time, and checking
//! everything that can be checked: each block's CRCs, the seal's, and the hash of what is in it.

use std::{io, path::Path};

use super::{
    format::{BlockHeader, BlockKind, PAGE},
    platform::Platform,
    walk::{BlockSource, Identity, Look, Position, is_consistent},
};

/// One segment while it is read. Memory: the source's window and one decoded block.
#[derive(Debug)]
pub(super) struct Examination {
    source: BlockSource,
    identity: Identity,
    limit: u64,
    position: Position,
    decoded: Vec<u8>,
    crc: crc32fast::Hasher,
    content: blake3::Hasher,
    blocks: u32,
}

/// What one step found.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole block of this many bytes, padding included.
    Block(u64),
    /// Something else than the block that belongs here.
    Damage(Damaged),
    /// The seal; all was read.
    Seal(Content),
    /// The end, at this offset, without a seal.
    End(u64),
}

/// A damaged place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Damaged {
    pub(super) position: Position,
    /// Header of the damaged block, if that is whole.
    pub(super) header: Option<BlockHeader>,
    /// Header of the next intact block.
    pub(super) following: Option<BlockHeader>,
    pub(super) reason: &'static str,
    /// Bytes that were passed over.
    pub(super) bytes: u64,
}

/// What is in a segment, from its blocks alone, beside what its seal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The seal.
    pub(super) seal: BlockHeader,
    /// Where it is.
    pub(super) position: Position,
    /// Blocks that were read.
    pub(super) blocks: u32,
    /// CRC32 over their CRC fields.
    pub(super) crc: u32,
    /// BLAKE3 of their payloads.
    pub(super) hash: [u8; 32],
}

impl Content {
    /// Whether the seal vouches for these very blocks.
    #[must_use]
    pub(super) fn is_sealed_so(&self) -> bool {
        self.blocks == self.seal.index && self.crc == self.seal.segment_crc
    }
}

impl Examination {
    /// Opens a segment whose file is read below `limit`.
    ///
    /// # Errors
    /// The file can't be opened.
    pub(super) fn open(
        platform: &dyn Platform,
        path: &Path,
        identity: Identity,
        limit: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            source: BlockSource::open(platform, path)?,
            identity,
            limit,
            position: Position::START,
            decoded: Vec::new(),
            crc: crc32fast::Hasher::new(),
            content: blake3::Hasher::new(),
            blocks: 0,
        })
    }

    /// Reads the next block; always advances until the seal or the end.
    pub(super) fn step(&mut self) -> Found {
        let position = self.position;
        match self.source.look(self.identity, position, self.limit) {
            Look::End => Found::End(position.offset),
            Look::Block(header) if header.kind == BlockKind::Seal => Found::Seal(Content {
                seal: header,
                position,
                blocks: self.blocks,
                crc: self.crc.clone().finalize(),
                hash: *self.content.finalize().as_bytes(),
            }),
            Look::Block(header) => {
                if !self.take(&header) {
                    return self.pass_bad(header, "payload is not a run of entries");
                }
                self.pass(&header);
                Found::Block(header.padded_len() as u64)
            }
            Look::BadPayload(header) => {
                self.pass_bad(header, "checksum of the payload doesn't match")
            }
            Look::NoBlock(_) => self.search("block header damaged"),
            Look::Foreign => self.search("another block is in its place"),
            Look::Unreadable => self.search("the disk can't read it"),
        }
    }

    /// Adds a block to the sums; false if it isn't what its header says.
    fn take(&mut self, header: &BlockHeader) -> bool {
        let offset = self.position.offset;
        let payload = self.source.payload(offset, header, &mut self.decoded);
        let Some(payload) = payload.filter(|payload| is_consistent(header, payload)) else {
            return false;
        };
        self.content.update(payload);
        self.crc.update(&header.own_crc_fields());
        self.blocks += 1;
        true
    }

    fn pass(&mut self, header: &BlockHeader) {
        self.position = Position::after(self.position.offset, header);
    }

    fn pass_bad(&mut self, header: BlockHeader, reason: &'static str) -> Found {
        let position = self.position;
        self.pass(&header);
        Found::Damage(Damaged {
            position,
            header: Some(header),
            following: None,
            reason,
            bytes: header.padded_len() as u64,
        })
    }

    /// Goes on at the next intact block, or at the end if there is none.
    fn search(&mut self, reason: &'static str) -> Found {
        let position = self.position;
        let next = self.source.next_block(self.identity, position, self.limit);
        self.position = match &next {
            Some((offset, header)) => Position {
                offset: *offset,
                index: header.index,
                entry: header.first_entry,
                record: header.first_record,
            },
            None => Position {
                offset: self.limit.max(position.offset + PAGE as u64),
                ..position
            },
        };
        Found::Damage(Damaged {
            position,
            header: None,
            following: next.map(|(_, header)| header),
            reason,
            bytes: self.position.offset - position.offset,
        })
    }
}
