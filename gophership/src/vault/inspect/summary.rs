//! A segment in a few figures.

use std::ops::ControlFlow;

use super::{
    Directory, Owner, SegmentFile,
    seen::{BlockSeen, Damage, Depth, Ending, EntrySeen, Visitor, Walked},
    walk::walk,
};
use crate::vault::{
    chain::{Content, Known},
    entry::DestMask,
    error::Error,
    format::{BlockHeader, BlockKind, Codec},
};

/// Most damaged places that are kept of one segment; further ones are counted.
pub const DAMAGE_MAX: usize = 1000;

/// What an operator needs to know of a segment first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made ahead, never written to.
    Unused,
    /// A daemon writes it.
    Writing,
    /// No seal yet, nothing wrong: the next start seals it.
    Open,
    /// A part of a block that nobody was promised lies at its end: the next start cuts it off.
    Torn,
    /// Complete.
    Sealed,
    /// Acknowledged bytes are damaged: it is kept, and what is intact is delivered.
    Damaged,
    /// An operator took it out of replay.
    Quarantined,
    /// Removed while it was looked at.
    Gone,
}

impl State {
    /// As people and machines read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Writing => "writing",
            Self::Open => "open",
            Self::Torn => "torn",
            Self::Sealed => "sealed",
            Self::Damaged => "damaged",
            Self::Quarantined => "quarantined",
            Self::Gone => "gone",
        }
    }
}

/// What one destination still has to get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owed {
    /// Entries.
    pub entries: u64,
    /// Their records.
    pub records: u64,
}

/// How the data blocks are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Codecs {
    /// Blocks as they are.
    pub raw_blocks: u64,
    /// Blocks in LZ4.
    pub lz4_blocks: u64,
    /// Bytes of all payloads, decoded.
    pub raw_bytes: u64,
    /// Bytes of all payloads, as stored.
    pub stored_bytes: u64,
}

/// A segment in a few figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What to know first.
    pub state: State,
    /// Blocks, entries and records before its end, lost ones included, and how it ends.
    pub walked: Walked,
    /// Still owed, by the destinations' bits.
    pub owed: Vec<Owed>,
    /// Still owed to anybody.
    pub owed_any: Owed,
    /// How it is stored.
    pub codecs: Codecs,
    /// The first [`DAMAGE_MAX`] damaged places.
    pub damage: Vec<Damage>,
    /// Damaged places there are.
    pub damaged_places: u64,
    /// Entries in those.
    pub lost_entries: u64,
    /// Records in those.
    pub lost_records: u64,
    /// What it holds, if everything was read and nothing is wrong.
    pub content: Option<Content>,
}

impl Summary {
    /// What this says of the segment to whoever checks its lane's chain.
    #[must_use]
    pub fn known(&self) -> Known {
        match (self.damage.first(), self.content) {
            (Some(damage), _) => Known::Damaged {
                offset: damage.offset,
                reason: damage.reason,
            },
            (None, Some(content)) => Known::Whole(content),
            (None, None) => Known::Nothing,
        }
    }
}

/// Reads a segment for its figures. At [`Depth::Needed`], payloads are read only where the cursors don't tell what is
/// owed, and at [`Depth::Headers`] none: then what the cursors don't tell isn't counted as owed. Damage in what isn't
/// read isn't noticed.
///
/// # Errors
/// The file can't be opened.
pub fn summarize(
    directory: &Directory,
    segment: &SegmentFile,
    depth: Depth,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, Error> {
    let mut tally = Tally {
        directory,
        progress,
        owed: vec![Owed::default(); directory.destinations().len()],
        owed_any: Owed::default(),
        codecs: Codecs::default(),
        damage: Vec::new(),
        damaged_places: 0,
        lost_entries: 0,
        lost_records: 0,
        content: None,
        depth,
    };
    let walked = walk(directory, segment, depth, &mut tally)?;
    Ok(Summary {
        state: state(directory, segment, walked.ending, tally.damaged_places > 0),
        walked,
        owed: tally.owed,
        owed_any: tally.owed_any,
        codecs: tally.codecs,
        damage: tally.damage,
        damaged_places: tally.damaged_places,
        lost_entries: tally.lost_entries,
        lost_records: tally.lost_records,
        content: tally.content,
    })
}

fn state(directory: &Directory, segment: &SegmentFile, ending: Ending, is_damaged: bool) -> State {
    let is_live = matches!(directory.owner(), Owner::Daemon(_)) && directory.is_last(segment);
    match ending {
        Ending::Gone => State::Gone,
        _ if segment.quarantine.is_some() => State::Quarantined,
        _ if is_damaged => State::Damaged,
        Ending::Unused => State::Unused,
        Ending::Sealed => State::Sealed,
        Ending::Open | Ending::Torn | Ending::Stopped if is_live => State::Writing,
        Ending::Open | Ending::Stopped => State::Open,
        Ending::Torn => State::Torn,
        Ending::Lost => State::Damaged,
    }
}

struct Tally<'a> {
    directory: &'a Directory,
    progress: &'a mut dyn FnMut(u64),
    owed: Vec<Owed>,
    owed_any: Owed,
    codecs: Codecs,
    damage: Vec<Damage>,
    damaged_places: u64,
    lost_entries: u64,
    lost_records: u64,
    content: Option<Content>,
    depth: Depth,
}

impl Tally<'_> {
    /// Who is owed all of a block's entries, if that is known without reading them.
    fn owed_alike(&self, header: &BlockHeader) -> Option<DestMask> {
        let entries = header.first_entry..header.first_entry + u64::from(header.entries);
        match entries.is_empty() {
            true => Some(0),
            false => self.directory.owed_alike(header, entries),
        }
    }

    fn owe(&mut self, mask: DestMask, entries: u64, records: u64) {
        let add = |owed: &mut Owed| {
            owed.entries += entries;
            owed.records += records;
        };
        for (bit, owed) in self.owed.iter_mut().enumerate() {
            if mask & (1 << bit) != 0 {
                add(owed);
            }
        }
        if mask != 0 {
            add(&mut self.owed_any);
        }
    }
}

impl Visitor for Tally<'_> {
    fn wants_payload(&mut self, header: &BlockHeader) -> bool {
        header.kind == BlockKind::Data && self.owed_alike(header).is_none()
    }

    fn wants_content(&self) -> bool {
        match self.depth {
            Depth::Headers | Depth::Needed => false,
            Depth::Everything => true,
        }
    }

    fn content(&mut self, content: &Content) {
        self.content = Some(*content);
    }

    fn block(&mut self, block: &BlockSeen) -> ControlFlow<()> {
        let header = &block.header;
        (self.progress)(header.padded_len() as u64);
        if header.kind != BlockKind::Data {
            return ControlFlow::Continue(());
        }
        match header.codec {
            Codec::Raw => self.codecs.raw_blocks += 1,
            Codec::Lz4 => self.codecs.lz4_blocks += 1,
        }
        self.codecs.raw_bytes += u64::from(header.raw_len);
        self.codecs.stored_bytes += u64::from(header.stored_len);
        ControlFlow::Continue(())
    }

    fn passed_over(&mut self, header: &BlockHeader) {
        if let Some(mask) = self.owed_alike(header) {
            self.owe(mask, u64::from(header.entries), u64::from(header.records));
        }
    }

    fn entry(&mut self, entry: &EntrySeen<'_>) -> ControlFlow<()> {
        self.owe(entry.owed, 1, u64::from(entry.records));
        ControlFlow::Continue(())
    }

    fn damage(&mut self, damage: &Damage) {
        self.damaged_places += 1;
        self.lost_entries += damage.entries;
        self.lost_records += damage.records;
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(*damage);
        }
    }
}
