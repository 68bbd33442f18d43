//! What a walk knows so far, and the telling of it.

use std::ops::ControlFlow;

use super::{
    Directory, SegmentFile,
    seen::{BlockSeen, Damage, ENTRY_BYTES_MAX, EntrySeen, Visitor},
};
use crate::vault::{
    chain::Content,
    entry::{Part, Piece, Pieces},
    format::{BLOCK_HEADER, BlockHeader, BlockKind, PAGE},
    shared::ORPHAN,
    walk::{Chain, Identity, Joined, Position},
};

/// What a walk knows so far, and who is told.
pub(super) struct Account<'a> {
    pub(super) directory: &'a Directory,
    pub(super) segment: &'a SegmentFile,
    pub(super) identity: Identity,
    pub(super) position: Position,
    visitor: &'a mut dyn Visitor,
    joining: Joining,
    /// CRC fields of all blocks so far; `None` once one of them is unknown.
    crc: Option<crc32fast::Hasher>,
    /// Payloads of all blocks so far; `None` once one of them is unknown, or if nobody wants it.
    content: Option<Box<blake3::Hasher>>,
}

/// The pieces of the entry that is being put together.
#[derive(Default)]
struct Joining {
    chain: Chain,
    /// Payloads were passed over: a later piece may come without its first.
    skipped: bool,
    pieces: u32,
    bytes: Option<Vec<u8>>,
}

impl<'a> Account<'a> {
    pub(super) fn new(
        directory: &'a Directory,
        segment: &'a SegmentFile,
        visitor: &'a mut dyn Visitor,
    ) -> Self {
        Self {
            directory,
            segment,
            identity: Identity {
                segment: segment.number,
                tag: segment.header.whole().map(|header| header.tag),
            },
            position: Position::START,
            content: visitor.wants_content().then(Box::default),
            visitor,
            joining: Joining::default(),
            crc: Some(crc32fast::Hasher::new()),
        }
    }

    pub(super) fn wants_payload(&mut self, header: &BlockHeader) -> bool {
        self.visitor.wants_payload(header)
    }

    /// Notes that a payload isn't read.
    pub(super) fn pass_over(&mut self, header: &BlockHeader) {
        self.visitor.passed_over(header);
        self.content = None;
        self.joining = Joining {
            skipped: true,
            ..Joining::default()
        };
    }

    /// Tells of a block with a whole header.
    pub(super) fn meet(&mut self, header: &BlockHeader) -> ControlFlow<()> {
        if let Some(crc) = self.crc.as_mut().filter(|_| !is_seal(header)) {
            let mut encoded = [0; BLOCK_HEADER];
            let header_crc = header.encode(&mut encoded);
            crc.update(&header.crc_fields(header_crc));
        }
        self.visitor.block(&BlockSeen {
            offset: self.position.offset,
            header: *header,
        })
    }

    /// Tells of the entries that end in a block.
    pub(super) fn take_pieces(&mut self, header: &BlockHeader, payload: &[u8]) -> ControlFlow<()> {
        if let Some(content) = &mut self.content {
            content.update(payload);
        }
        let mut index = header.first_entry;
        for piece in Pieces::new(payload).flatten() {
            let joined = self.joining.chain.join(&piece.header);
            let gathered = self.gather(index, &piece, joined);
            if !piece.header.part.ends_entry() {
                continue;
            }
            if joined == Joined::Complete || self.joining.skipped {
                let whole = (piece.header.part == Part::Whole).then_some(piece.bytes);
                self.tell(header, index, &piece, gathered.as_deref().or(whole))?;
            } else {
                self.lose_entry(header, index, &piece);
            }
            self.joining.skipped = false;
            index += 1;
        }
        ControlFlow::Continue(())
    }

    /// Adds a piece to an entry of several; returns the entry's bytes once they are complete.
    fn gather(&mut self, index: u64, piece: &Piece<'_>, joined: Joined) -> Option<Vec<u8>> {
        let joining = &mut self.joining;
        match piece.header.part {
            Part::Whole => {
                (joining.pieces, joining.bytes) = (1, None);
                None
            }
            Part::First => {
                joining.skipped = false;
                joining.pieces = 1;
                let fits = piece.header.total as usize <= ENTRY_BYTES_MAX;
                let wanted = fits && self.visitor.wants_bytes(index);
                joining.bytes = wanted.then(|| piece.bytes.to_vec());
                None
            }
            Part::Middle | Part::Last => {
                joining.pieces += 1;
                if joined == Joined::Orphan {
                    joining.bytes = None;
                }
                let bytes = joining.bytes.as_mut()?;
                bytes.extend_from_slice(piece.bytes);
                joining.bytes.take_if(|_| joined == Joined::Complete)
            }
        }
    }

    fn tell(
        &mut self,
        header: &BlockHeader,
        index: u64,
        piece: &Piece<'_>,
        bytes: Option<&[u8]>,
    ) -> ControlFlow<()> {
        let settled = self.identity.tag.map_or(0, |tag| {
            let cursors = &self.directory.cursors;
            cursors.settled_by(self.segment.number, tag, index)
        });
        self.visitor.entry(&EntrySeen {
            index,
            block: header.index,
            pieces: self.joining.pieces,
            kind: piece.header.kind,
            encoding: piece.header.encoding,
            len: piece.header.total,
            records: piece.header.records,
            arrival_unix_ns: piece.header.arrival_unix_ns,
            stored_for: piece.header.owed,
            owed: piece.header.owed & !settled,
            bytes,
        })
    }

    fn lose_entry(&mut self, header: &BlockHeader, index: u64, piece: &Piece<'_>) {
        let offset = self.position.offset;
        let end = offset + header.padded_len() as u64;
        let lost = Damage {
            first_entry: index,
            entries: 1,
            records: u64::from(piece.header.records),
            unsettled: self.unsettled(index, index + 1),
            ..self.damage(offset, end, ORPHAN)
        };
        self.visitor.damage(&lost);
    }

    /// Counts a block with a whole header as lost.
    pub(super) fn lose_block(&mut self, header: &BlockHeader, reason: &'static str) {
        self.joining = Joining::default();
        self.content = None;
        let offset = self.position.offset;
        let end = header.first_entry + u64::from(header.entries);
        let lost = Damage {
            entries: u64::from(header.entries),
            records: u64::from(header.records),
            unsettled: self.unsettled(header.first_entry, end),
            ..self.damage(offset, offset + header.padded_len() as u64, reason)
        };
        self.visitor.damage(&lost);
    }

    /// Counts everything from here to the block `next` as lost, and goes there; false if there is none.
    pub(super) fn lose_gap(
        &mut self,
        next: Option<(u64, BlockHeader)>,
        reason: &'static str,
    ) -> bool {
        self.joining = Joining::default();
        (self.crc, self.content) = (None, None);
        let from = self.position;
        let Some((offset, next)) = next else {
            let lost = Damage {
                open_ended: true,
                ..self.damage(from.offset, self.segment.bytes.max(from.offset), reason)
            };
            self.visitor.damage(&lost);
            return false;
        };
        let lost = Damage {
            entries: next.first_entry.saturating_sub(from.entry),
            records: next.first_record.saturating_sub(from.record),
            unsettled: self.unsettled(from.entry, next.first_entry),
            // A later block may be in the very place of the missing one.
            ..self.damage(from.offset, offset.max(from.offset + PAGE as u64), reason)
        };
        self.visitor.damage(&lost);
        self.position = Position {
            offset,
            index: next.index,
            entry: next.first_entry,
            record: next.first_record,
        };
        true
    }

    /// Compares the seal with the blocks before it, as far as all their headers were whole.
    pub(super) fn check_seal(&mut self, seal: &BlockHeader) {
        let Some(crc) = self.crc.take().map(crc32fast::Hasher::finalize) else {
            return;
        };
        if let Some(content) = self.content.take()
            && crc == seal.segment_crc
        {
            self.visitor.content(&Content {
                seal: *seal,
                position: self.position,
                blocks: self.position.index,
                crc,
                hash: *content.finalize().as_bytes(),
            });
        }
        if crc != seal.segment_crc {
            let offset = self.position.offset;
            let reason = "the seal's checksum over all blocks doesn't match";
            let damage = self.damage(offset, offset + PAGE as u64, reason);
            self.visitor.damage(&damage);
        }
    }

    pub(super) fn report(&mut self, damage: &Damage) {
        self.visitor.damage(damage);
    }

    /// Damage here, with nothing counted as lost.
    pub(super) fn damage(&self, offset: u64, end: u64, reason: &'static str) -> Damage {
        Damage {
            offset,
            end,
            block: self.position.index,
            first_entry: self.position.entry,
            entries: 0,
            first_record: self.position.record,
            records: 0,
            unsettled: 0,
            open_ended: false,
            reason,
        }
    }

    fn unsettled(&self, from: u64, to: u64) -> u64 {
        let tag = self.identity.tag.unwrap_or(0);
        let cursors = &self.directory.cursors;
        cursors.unsettled(self.segment.number, tag, from..to)
    }
}

fn is_seal(header: &BlockHeader) -> bool {
    header.kind == BlockKind::Seal
}
