//! What vouches for a segment's blocks: later blocks, the lane's next segment, and the seal.
//!
//! A walk asks at each place that has no block whether some block from there on was durable. However many
//! such places there are, each byte behind them is read once for that: the search goes on where it was
//! left, since what lies before couldn't vouch for more than it did, and it stops as soon as something
//! vouches. Memory: one window, once it is used.

use std::path::Path;

use super::{
    format::{BlockKind, PAGE, SegmentHeader},
    platform::Platform,
    recovery::Vouched,
    walk::{BlockSource, Identity, Page, Position},
};

/// What the lane began after the segment in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Nothing that is still here.
    None,
    /// This.
    Here(Successor<'a>),
    /// The disk can't read the header of one of the lane's segments, which may be it.
    Unknown,
}

/// A segment and its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Successor<'a> {
    pub(super) header: &'a SegmentHeader,
    pub(super) path: &'a Path,
    /// Bytes of its file.
    pub(super) bytes: u64,
}

/// What vouches for a segment's blocks, as far as it was looked at.
#[derive(Debug)]
pub(super) struct Outlook<'a> {
    platform: &'a dyn Platform,
    identity: Identity,
    /// The lane's next segment.
    next: Next<'a>,
    /// Whether a block of that was acknowledged, once that was looked for.
    next_acknowledged: Option<bool>,
    ahead: BlockSource,
    /// All before it was searched.
    searched_to: u64,
    /// Most blocks that something says were durable.
    durable: u32,
    /// Index of the seal, if one was found.
    seal: Option<u32>,
    /// The disk couldn't read something.
    unreadable: bool,
}

impl<'a> Outlook<'a> {
    /// Of the segment that `source` reads.
    pub(super) fn new(
        platform: &'a dyn Platform,
        source: &BlockSource,
        identity: Identity,
        next: Next<'a>,
    ) -> Self {
        Self {
            platform,
            identity,
            next,
            next_acknowledged: None,
            ahead: source.another_window(),
            searched_to: 0,
            durable: match next {
                Next::Here(next) => next.header.previous_durable,
                Next::None | Next::Unknown => 0,
            },
            seal: None,
            unreadable: next == Next::Unknown,
        }
    }

    /// What vouches for the block at `position` and those behind it; all that is below `limit` was looked at,
    /// unless it is known to have been durable.
    pub(super) fn vouched_from(&mut self, position: Position, limit: u64) -> Vouched {
        self.search(position, limit);
        // Blocks are acknowledged in order over segments too: once one of the next segment was, all of
        // this one were.
        if self.durable <= position.index
            && let Some(seal) = self.seal.filter(|&seal| seal > self.durable)
            && self.is_next_acknowledged()
        {
            self.durable = seal;
        }
        Vouched {
            durable: self.durable,
            unsure: self.unreadable,
        }
    }

    /// Whether there is a seal, and the lane went on with a segment in which something was acknowledged.
    pub(super) fn is_seal_acknowledged(&mut self) -> bool {
        self.seal.is_some() && self.is_next_acknowledged()
    }

    fn search(&mut self, position: Position, limit: u64) {
        // A later block may be in the very place of the missing one.
        let mut offset = self.searched_to.max(position.offset);
        while self.durable <= position.index {
            match self.ahead.page_at(self.identity, offset, limit) {
                Page::Header(header) => {
                    self.durable = self.durable.max(header.durable_through);
                    if header.kind == BlockKind::Seal {
                        self.seal = Some(header.index);
                    }
                    // Of a damaged block all is looked at.
                    offset += match header.index > position.index {
                        true => header.padded_len() as u64,
                        false => PAGE as u64,
                    };
                }
                Page::Other => offset += PAGE as u64,
                Page::Unreadable => {
                    self.unreadable = true;
                    offset += PAGE as u64;
                }
                Page::End => break,
            }
        }
        self.searched_to = offset;
    }

    fn is_next_acknowledged(&mut self) -> bool {
        let Next::Here(next) = self.next else {
            return false;
        };
        if next.header.previous_given_up {
            return false;
        }
        if let Some(known) = self.next_acknowledged {
            return known;
        }
        let found = has_durable_block(self.platform, &next);
        // What can't be read may say so.
        self.unreadable |= found.is_none();
        *self.next_acknowledged.insert(found.unwrap_or(false))
    }
}

/// Whether some block of a segment says that one before it was durable; `None` if the disk can't read all that
/// may say so.
fn has_durable_block(platform: &dyn Platform, segment: &Successor<'_>) -> Option<bool> {
    let identity = Identity {
        segment: segment.header.segment,
        tag: Some(segment.header.tag),
    };
    let source = BlockSource::open(platform, segment.path).ok()?;
    let mut outlook = Outlook::new(platform, &source, identity, Next::None);
    outlook.search(Position::START, segment.bytes);
    match (outlook.durable > 0, outlook.unreadable) {
        (true, _) => Some(true),
        (false, false) => Some(false),
        (false, true) => None,
    }
}
