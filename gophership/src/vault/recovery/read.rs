//! Walking one segment of an earlier run from its start to its end, through damage.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::atomic::Ordering,
};

use super::verdict::{Verdict, judge};
use crate::{
    uring::AlignedBytes,
    vault::{
        cursors::Cursors,
        directory::Found,
        entry::{DestMask, Pieces},
        error::{Error, io_error},
        format::{BlockHeader, BlockKind, Codec, FormatError, PAGE, SegmentHeader},
        ledger::Pending,
        outlook::{Next, Outlook, Successor},
        platform::Access,
        segment::Segment,
        shared::{Damage, ORPHAN, SEAL_MISMATCH, Shared},
        walk::{BlockSource, Chain, Identity, Joined, Look, Position, is_consistent},
    },
};

/// Headers of the lanes' segments by the segment before.
#[derive(Debug, Default)]
pub(super) struct Successors {
    pub(super) by_previous: HashMap<u64, (SegmentHeader, Found)>,
    /// Lanes with a segment whose header the disk can't read.
    pub(super) unreadable: HashSet<u16>,
}

/// A segment while it is read.
pub(super) struct Walk<'a> {
    pub(super) shared: &'a Shared,
    pub(super) cursors: &'a Cursors,
    pub(super) segment: Segment,
    pub(super) identity: Identity,
    pub(super) limit: u64,
    pub(super) source: BlockSource,
    pub(super) outlook: Outlook<'a>,
    pub(super) position: Position,
    pub(super) chain: Chain,
    pub(super) decoded: &'a mut Vec<u8>,
    /// CRC fields of the blocks so far.
    pub(super) crc: crc32fast::Hasher,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Sealed,
    Torn,
    /// Behind damage that nothing follows.
    Damaged,
    Stopped,
}

impl Walk<'_> {
    pub(super) fn run(&mut self) -> Ended {
        loop {
            if self.shared.is_stopping() {
                return Ended::Stopped;
            }
            self.shared.recovery.reached(self.position.offset);
            let look = self.source.look(self.identity, self.position, self.limit);
            match look {
                Look::Block(header) if header.kind == BlockKind::Seal => {
                    self.check_seal(&header);
                    return Ended::Sealed;
                }
                Look::Block(header) => self.take(&header),
                bad => {
                    if let Some(ended) = self.skip(bad) {
                        return ended;
                    }
                }
            }
        }
    }

    /// Takes in a whole block.
    fn take(&mut self, header: &BlockHeader) {
        let offset = self.position.offset;
        self.note_crc(header);
        let payload = self
            .source
            .payload(offset, header, self.decoded)
            .filter(|payload| is_consistent(header, payload));
        let Some(payload) = payload else {
            self.lose(header, "payload is not a run of entries");
            self.position = Position::after(offset, header);
            return;
        };
        let mut orphans = Vec::new();
        {
            let mut ledger = self.segment.ledger();
            for piece in Pieces::new(payload).flatten() {
                let ends = piece.header.part.ends_entry();
                match self.chain.join(&piece.header) {
                    Joined::Complete => ledger.push(piece.header.owed, piece.header.records, false),
                    Joined::Orphan if ends => {
                        let entry = ledger.len() as u64;
                        let records = u64::from(piece.header.records);
                        let lost =
                            lost_with(self.cursors, &self.segment, entry..entry + 1, records);
                        let owed = owed_some(self.cursors, &self.segment, entry..entry + 1);
                        ledger.push_lost(1, lost.records, owed);
                        orphans.push(lost);
                    }
                    Joined::Orphan | Joined::Partial => {}
                }
            }
        }
        for lost in orphans {
            self.report(ORPHAN, lost);
        }
        self.position = Position::after(offset, header);
    }

    /// Deals with a place that has no block; `None` to go on behind it.
    fn skip(&mut self, look: Look) -> Option<Ended> {
        let vouched = self.outlook.vouched_from(self.position, self.limit);
        if judge(look, self.position.index, vouched) != Some(Verdict::Damaged) {
            return Some(Ended::Torn);
        }
        if let Look::BadPayload(header) = look {
            let offset = self.position.offset;
            self.note_crc(&header);
            self.lose(&header, "checksum of the payload doesn't match");
            self.position = Position::after(offset, &header);
            return None;
        }
        let next = self
            .source
            .next_block(self.identity, self.position, self.limit);
        let Some((offset, next)) = next else {
            let lost = lose_known(self.cursors, &self.segment, self.position.entry);
            self.report(reason(look), lost);
            return Some(Ended::Damaged);
        };
        let entries = u32::try_from(next.first_entry - self.position.entry).unwrap_or(u32::MAX);
        let records = next.first_record.saturating_sub(self.position.record);
        let lost = lost_with(
            self.cursors,
            &self.segment,
            self.position.entry..next.first_entry,
            records,
        );
        let entries_lost = self.position.entry..next.first_entry;
        let owed = owed_some(self.cursors, &self.segment, entries_lost);
        self.segment.ledger().push_lost(entries, lost.records, owed);
        self.report(reason(look), lost);
        self.chain.break_off();
        self.position = Position {
            offset,
            index: next.index,
            entry: next.first_entry,
            record: next.first_record,
        };
        None
    }

    fn lose(&mut self, header: &BlockHeader, why: &str) {
        let entries = header.first_entry..header.first_entry + u64::from(header.entries);
        let lost = lost_with(
            self.cursors,
            &self.segment,
            entries.clone(),
            u64::from(header.records),
        );
        let owed = owed_some(self.cursors, &self.segment, entries);
        self.segment
            .ledger()
            .push_lost(header.entries, lost.records, owed);
        self.report(why, lost);
        self.chain.break_off();
    }

    pub(super) fn report(&self, reason: &str, lost: Pending) {
        let damage = Damage {
            offset: self.position.offset,
            block: self.position.index,
            first_entry: self.position.entry,
            entries: lost.entries,
            first_record: self.position.record,
            records: lost.records,
            reason,
        };
        self.shared.quarantine(&self.segment, &damage);
    }

    fn note_crc(&mut self, header: &BlockHeader) {
        self.crc.update(&header.own_crc_fields());
    }

    /// Compares the seal with the blocks. Behind damage it can't match, and says nothing new.
    fn check_seal(&self, seal: &BlockHeader) {
        if !self.segment.is_quarantined() && self.crc.clone().finalize() != seal.segment_crc {
            self.report(SEAL_MISMATCH, Pending::default());
        }
    }

    /// Ends a whole segment at its torn tail.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        let path = &self.segment.path;
        let Position {
            offset,
            index,
            entry,
            record,
        } = self.position;
        let header = BlockHeader {
            kind: BlockKind::Seal,
            codec: Codec::Raw,
            segment: self.identity.segment,
            tag: self.segment.tag,
            index,
            entries: 0,
            first_entry: entry,
            first_record: record,
            records: 0,
            raw_len: 0,
            stored_len: 0,
            durable_through: index,
            wall_unix_ns: self.shared.platform.unix_nanos(),
            monotonic_ns: 0,
            zone: 0,
            cause: 0,
            segment_crc: self.crc.clone().finalize(),
            payload_crc: crc32fast::hash(&[]),
        };
        let mut page = AlignedBytes::zeroed(PAGE);
        header.encode(&mut page);
        let end = offset + PAGE as u64;
        // The blocks before it were read, but a crash may have left them in the page cache of the
        // device only: sync before the seal vouches for them.
        self.shared
            .platform
            .open(path, Access::Write)
            .and_then(|file| {
                file.sync_data()?;
                file.write_all_at(&page, offset)?;
                file.set_bytes(end)?;
                file.sync_all()
            })
            .map_err(io_error("sealing", path))?;
        self.shared
            .committed_bytes
            .fetch_sub(self.segment.note_cut(end), Ordering::Relaxed);
        tracing::info!(path = %path.display(), offset, entries = entry, "sealed a vault segment at its torn tail");
        Ok(())
    }
}

/// What is lost with `entries`, which have `records` in all: those delivered before aren't. If some are,
/// nobody knows how many of the records are theirs, and all count as lost.
fn lost_with(cursors: &Cursors, segment: &Segment, entries: Range<u64>, records: u64) -> Pending {
    let entries = cursors.unsettled(segment.number, segment.tag, entries);
    Pending {
        entries,
        records: if entries == 0 { 0 } else { records },
    }
}

/// Takes in, as lost, what only the cursors know of a segment from entry `from` on: nothing of it can be read, and
/// what is settled of it must not be forgotten. There may have been more.
pub(super) fn lose_known(cursors: &Cursors, segment: &Segment, from: u64) -> Pending {
    let known = match cursors.known(segment.number) {
        Some((tag, entries)) if tag == segment.tag => u64::from(entries),
        Some(_) | None => 0,
    };
    let entries = from..known.max(from);
    let count = u32::try_from(entries.end - entries.start).unwrap_or(u32::MAX);
    let owed = owed_some(cursors, segment, entries.clone());
    segment.ledger().push_lost(count, 0, owed);
    lost_with(cursors, segment, entries, 0)
}

/// Destinations that haven't settled all of `entries`.
fn owed_some(cursors: &Cursors, segment: &Segment, entries: Range<u64>) -> DestMask {
    cursors.owed_some(segment.number, segment.tag, entries)
}

impl Successors {
    /// What the lane of `file` began after it.
    pub(super) fn next(&self, file: &Found) -> Next<'_> {
        match self.by_previous.get(&file.number) {
            Some((header, file)) => Next::Here(Successor {
                header,
                path: &file.path,
                bytes: file.bytes,
            }),
            None if self.unreadable.contains(&file.lane) => Next::Unknown,
            None => Next::None,
        }
    }
}

/// What to call a place without the block that belongs there.
pub(in crate::vault) fn reason(look: Look) -> &'static str {
    match look {
        Look::NoBlock(FormatError::Blank) => "block is blank",
        Look::NoBlock(FormatError::Version(_)) => "block has an unknown format version",
        Look::NoBlock(_) => "block header damaged",
        Look::Foreign => "another block is in its place",
        Look::Unreadable => "the disk can't read it",
        Look::End => "the file ends early",
        Look::BadPayload(_) => "checksum of the payload doesn't match",
        Look::Block(_) => "whole",
    }
}
