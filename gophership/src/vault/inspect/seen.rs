//! What a walk through a segment tells, and to whom.

use std::ops::ControlFlow;

use crate::vault::{
    chain::Content,
    entry::{ContentEncoding, DestMask, Kind},
    format::BlockHeader,
};

/// Largest entry that is put together from its pieces, in bytes.
pub const ENTRY_BYTES_MAX: usize = 128 << 20;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Headers alone: a page a block.
    Headers,
    /// Headers, and those payloads that the visitor wants.
    Needed,
    /// Everything, with every checksum.
    Everything,
}

/// A block, whole as far as it was read.
#[derive(Debug, Clone, Copy)]
pub struct BlockSeen {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its header.
    pub header: BlockHeader,
}

/// An entry, its pieces joined.
#[derive(Debug, Clone, Copy)]
pub struct EntrySeen<'a> {
    /// Entry of the segment, from 0.
    pub index: u64,
    /// Block that its last piece is in.
    pub block: u32,
    /// Pieces it is in.
    pub pieces: u32,
    /// What the bytes are.
    pub kind: Kind,
    /// Compression of the bytes, by the producer.
    pub encoding: ContentEncoding,
    /// Its length.
    pub len: u32,
    /// OpenTelemetry LogRecords in it.
    pub records: u32,
    /// When the request arrived, Unix nanoseconds.
    pub arrival_unix_ns: u64,
    /// Destinations it was stored for.
    pub stored_for: DestMask,
    /// Destinations that still have to get it, as far as the cursors on disk tell.
    pub owed: DestMask,
    /// The bytes; `None` for an entry of several pieces that the visitor didn't want, that is above
    /// [`ENTRY_BYTES_MAX`], or of which some weren't read.
    pub bytes: Option<&'a [u8]>,
}

/// A part of a file that isn't what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// Index of the first block concerned.
    pub block: u32,
    /// First entry lost.
    pub first_entry: u64,
    /// Entries lost, settled ones included.
    pub entries: u64,
    /// First record lost, counted in the segment.
    pub first_record: u64,
    /// Records lost, settled ones included.
    pub records: u64,
    /// Of the entries, those that somebody is still owed.
    pub unsettled: u64,
    /// Nothing intact follows: how much is lost isn't known.
    pub open_ended: bool,
    /// What is wrong.
    pub reason: &'static str,
}

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Zeros only: made ahead, never written to.
    Unused,
    /// With its seal.
    Sealed,
    /// Without a seal, behind its last whole block.
    Open,
    /// Without a seal, with a part of a block that nobody was promised.
    Torn,
    /// In damage that nothing follows.
    Lost,
    /// The visitor had seen enough.
    Stopped,
    /// The file was removed meanwhile.
    Gone,
}

/// What a walk came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// How the segment ends.
    pub ending: Ending,
    /// Blocks before the end, damaged ones included.
    pub blocks: u32,
    /// Entries that ended before it, lost ones included.
    pub entries: u64,
    /// Records of those.
    pub records: u64,
    /// Where the last block ends in the file.
    pub end: u64,
}

/// Who is told what a walk meets, in the file's order.
pub trait Visitor {
    /// Whether a block's payload shall be read; asked at [`Depth::Needed`] only.
    fn wants_payload(&mut self, _block: &BlockHeader) -> bool {
        false
    }

    /// A block whose payload wasn't read.
    fn passed_over(&mut self, _block: &BlockHeader) {}

    /// Whether the bytes of an entry of several pieces shall be kept together.
    fn wants_bytes(&mut self, _entry: u64) -> bool {
        false
    }

    /// Whether a segment's content shall be hashed, if all of it is read.
    fn wants_content(&self) -> bool {
        false
    }

    /// What a segment holds that was read from its first block to a seal that vouches for all of it.
    fn content(&mut self, _content: &Content) {}

    /// A block; its entries follow. Called for every block of which the header is whole.
    fn block(&mut self, _block: &BlockSeen) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A whole entry.
    fn entry(&mut self, _entry: &EntrySeen<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Damage.
    fn damage(&mut self, _damage: &Damage) {}
}
