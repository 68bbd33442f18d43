//! Reading the segments of earlier runs at start: torn tails are cut off, damage is kept and counted.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{Arc, atomic::Ordering},
};

use super::{
    cursors::Cursors,
    directory::Found,
    entry::Pieces,
    error::{Error, io_error},
    format::{BlockHeader, BlockKind, Codec, FormatError, PAGE, SegmentHeader},
    ledger::{Ledger, Pending},
    segment::Segment,
    shared::{Damage, Shared, unix_nanos},
    walk::{Ahead, BlockSource, Chain, Identity, Joined, Look, Position, is_consistent},
};
use crate::uring::AlignedBytes;

/// What a place without the block that belongs there means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody was promised what is from here on.
    Torn,
    /// Acknowledged bytes are lost.
    Damaged,
}

/// Tells a torn tail from damage. `index` is the missing block's, `durable` the most blocks known to
/// have been durable, from all that was found.
#[must_use]
pub(super) fn judge(look: Look, index: u32, durable: u32) -> Option<Verdict> {
    match look {
        Look::Block(_) => None,
        // Never cut off what another attempt, or another version, may read: a torn header has no
        // matching checksum.
        Look::Unreadable | Look::NoBlock(FormatError::Version(_) | FormatError::Field) => {
            Some(Verdict::Damaged)
        }
        Look::BadPayload(_)
        | Look::NoBlock(
            FormatError::Short | FormatError::Blank | FormatError::Magic | FormatError::Checksum,
        )
        | Look::Foreign
        | Look::End => Some(if durable > index {
            Verdict::Damaged
        } else {
            Verdict::Torn
        }),
    }
}

/// Headers of the lanes' segments by the segment before.
type Successors = HashMap<u64, (SegmentHeader, Found)>;

/// Reads `found` in order and adds what is there to the catalog, until the vault stops.
pub(super) fn recover(shared: &Shared, cursors: &Cursors, found: Vec<Found>) {
    let successors = read_headers(&found);
    for file in found {
        if shared.is_stopping() {
            return;
        }
        if let Err(error) = recover_segment(shared, cursors, &file, &successors) {
            tracing::error!(path = %file.path.display(), error = %error, "can't recover a vault segment; it is kept");
            let segment = new_segment(&file, 0, Ledger::new(shared.destinations.len()));
            segment.begin(1);
            segment.quarantine();
            segment.close();
            shared.catalog.insert(Arc::new(segment));
        }
    }
    shared.recovering.store(false, Ordering::Release);
    shared.cursors_wanted.raise();
    shared.segments_wanted.raise();
}

fn read_headers(found: &[Found]) -> Successors {
    let mut successors = HashMap::new();
    for file in found {
        let header = BlockSource::open(&file.path)
            .and_then(|mut source| source.bytes(0, PAGE, u64::MAX).map(SegmentHeader::decode));
        if let Ok(Ok(header)) = header {
            successors.insert(header.previous, (header, file.clone()));
        }
    }
    successors
}

/// A segment while it is read.
struct Walk<'a> {
    shared: &'a Shared,
    cursors: &'a Cursors,
    segment: Segment,
    identity: Identity,
    limit: u64,
    source: BlockSource,
    position: Position,
    chain: Chain,
    decoded: Vec<u8>,
    /// CRC fields of the blocks so far.
    crc: crc32fast::Hasher,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Sealed,
    Torn,
    /// Behind damage that nothing follows.
    Damaged,
    Stopped,
}

fn recover_segment(
    shared: &Shared,
    cursors: &Cursors,
    file: &Found,
    successors: &Successors,
) -> Result<(), Error> {
    let mut source = BlockSource::open(&file.path).map_err(io_error("opening", &file.path))?;
    let page = source
        .bytes(0, PAGE, file.bytes)
        .map_err(io_error("reading", &file.path))?;
    let header = SegmentHeader::decode(page);
    let ours = header
        .ok()
        .filter(|header| header.segment == file.number && header.lane == file.lane);
    let mut identity = Identity {
        segment: file.number,
        tag: ours.map(|header| header.tag),
    };
    let mut created = ours.map_or(1, |header| header.created_unix_ns);
    if ours.is_none() {
        let before_first = Position {
            offset: 0,
            ..Position::START
        };
        let first = first_block(&mut source, identity, before_first, file.bytes);
        match first {
            Some(block) => {
                identity.tag = Some(block.tag);
                created = block.wall_unix_ns;
            }
            None if source.is_blank(file.bytes) => return remove_unused(shared, file),
            None => {}
        }
    }
    let ledger = Ledger::new(shared.destinations.len());
    let segment = new_segment(file, identity.tag.unwrap_or(0), ledger);
    segment.begin(created);
    let mut walk = Walk {
        shared,
        cursors,
        segment,
        identity,
        limit: file.bytes,
        source,
        position: Position::START,
        chain: Chain::default(),
        decoded: Vec::new(),
        crc: crc32fast::Hasher::new(),
    };
    if ours.is_none() {
        walk.report("segment header damaged", Pending::default());
    }
    let ended = if identity.tag.is_some() {
        walk.run(successors)
    } else {
        Ended::Damaged
    };
    finish(walk, ended);
    Ok(())
}

fn first_block(
    source: &mut BlockSource,
    identity: Identity,
    from: Position,
    limit: u64,
) -> Option<BlockHeader> {
    let start = source
        .bytes(PAGE as u64, PAGE, limit)
        .ok()
        .map(BlockHeader::decode);
    match start {
        Some(Ok(header)) if header.segment == identity.segment => Some(header),
        _ => source
            .look_ahead(identity, from, limit)
            .next
            .map(|(_, header)| header),
    }
}

/// Seals what ends at a torn tail and adds the segment to the catalog, with what is settled.
fn finish(mut walk: Walk<'_>, ended: Ended) {
    let is_whole = !walk.segment.is_quarantined();
    match ended {
        Ended::Stopped => return,
        Ended::Torn if is_whole => {
            if let Err(error) = walk.seal() {
                // The next start tries again; what was read can be delivered meanwhile.
                tracing::error!(error = %error, "a vault segment stays unsealed");
            }
        }
        // The run that sealed it may have ended before its file was cut.
        Ended::Sealed if is_whole => {
            let end = walk.position.offset + PAGE as u64;
            walk.segment.want_trim(end);
        }
        Ended::Torn | Ended::Sealed | Ended::Damaged => {}
    }
    let Walk {
        shared,
        cursors,
        segment,
        position,
        ..
    } = walk;
    // The seal isn't read again: everything before it is.
    segment.set_durable(position.offset, position.index);
    {
        let mut ledger = segment.ledger();
        cursors.apply(segment.number, segment.tag, &mut ledger);
        ledger.shrink();
    }
    segment.close();
    shared.catalog.insert(Arc::new(segment));
}

impl Walk<'_> {
    fn run(&mut self, successors: &Successors) -> Ended {
        loop {
            if self.shared.is_stopping() {
                return Ended::Stopped;
            }
            let look = self.source.look(self.identity, self.position, self.limit);
            match look {
                Look::Block(header) if header.kind == BlockKind::Seal => return Ended::Sealed,
                Look::Block(header) => self.take(&header),
                bad => {
                    if let Some(ended) = self.skip(bad, successors) {
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
            .payload(offset, header, &mut self.decoded)
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
                        ledger.push_lost(1, lost.records);
                        orphans.push(lost);
                    }
                    Joined::Orphan | Joined::Partial => {}
                }
            }
        }
        for lost in orphans {
            self.report("an entry's earlier pieces are lost", lost);
        }
        self.position = Position::after(offset, header);
    }

    /// Deals with a place that has no block; `None` to go on behind it.
    fn skip(&mut self, look: Look, successors: &Successors) -> Option<Ended> {
        let ahead = self
            .source
            .look_ahead(self.identity, self.position, self.limit);
        let durable = self.known_durable(&ahead, successors);
        if judge(look, self.position.index, durable) != Some(Verdict::Damaged) {
            return Some(Ended::Torn);
        }
        if let Look::BadPayload(header) = look {
            let offset = self.position.offset;
            self.note_crc(&header);
            self.lose(&header, "checksum of the payload doesn't match");
            self.position = Position::after(offset, &header);
            return None;
        }
        let Some((offset, next)) = ahead.next else {
            self.report(reason(look), Pending::default());
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
        self.segment.ledger().push_lost(entries, lost.records);
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

    /// Most blocks that are known to have been durable.
    fn known_durable(&self, ahead: &Ahead, successors: &Successors) -> u32 {
        let Some((next, file)) = successors.get(&self.segment.number) else {
            return ahead.durable_through;
        };
        let known = ahead.durable_through.max(next.previous_durable);
        // Blocks are acknowledged in order over segments too: once one of the next segment was, all
        // of this one were.
        match ahead.seal {
            Some(seal) if seal > known && has_durable_block(file, next) => seal,
            Some(_) | None => known,
        }
    }

    fn lose(&mut self, header: &BlockHeader, why: &str) {
        let entries = header.first_entry..header.first_entry + u64::from(header.entries);
        let lost = lost_with(
            self.cursors,
            &self.segment,
            entries,
            u64::from(header.records),
        );
        self.segment
            .ledger()
            .push_lost(header.entries, lost.records);
        self.report(why, lost);
        self.chain.break_off();
    }

    fn report(&self, reason: &str, lost: Pending) {
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
        let mut encoded = [0; super::format::BLOCK_HEADER];
        let crc = header.encode(&mut encoded);
        self.crc.update(&header.crc_fields(crc));
    }

    /// Ends a whole segment at its torn tail.
    fn seal(&mut self) -> Result<(), Error> {
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
            wall_unix_ns: unix_nanos(),
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
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .and_then(|file| {
                file.sync_data()?;
                file.write_all_at(&page, offset)?;
                file.set_len(end)?;
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

fn has_durable_block(file: &Found, header: &SegmentHeader) -> bool {
    let identity = Identity {
        segment: header.segment,
        tag: Some(header.tag),
    };
    BlockSource::open(&file.path).is_ok_and(|mut source| {
        source
            .look_ahead(identity, Position::START, file.bytes)
            .durable_through
            > 0
    })
}

fn reason(look: Look) -> &'static str {
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

fn new_segment(file: &Found, tag: u64, ledger: Ledger) -> Segment {
    Segment::new(
        file.number,
        file.lane,
        tag,
        file.path.clone(),
        file.bytes,
        ledger,
    )
}

/// Removes a segment that was made ahead and never begun: it is all zeros.
fn remove_unused(shared: &Shared, file: &Found) -> Result<(), Error> {
    fs::remove_file(&file.path).map_err(io_error("removing", &file.path))?;
    shared
        .committed_bytes
        .fetch_sub(file.bytes, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_was_promised_and_nobody_can_read_is_torn() {
        use Verdict::{Damaged, Torn};
        let looks = [
            (Look::NoBlock(FormatError::Blank), Torn),
            (Look::NoBlock(FormatError::Short), Torn),
            (Look::NoBlock(FormatError::Magic), Torn),
            (Look::NoBlock(FormatError::Checksum), Torn),
            (Look::Foreign, Torn),
            (Look::End, Torn),
            (Look::NoBlock(FormatError::Version(2)), Damaged),
            (Look::NoBlock(FormatError::Field), Damaged),
            (Look::Unreadable, Damaged),
        ];
        for (look, unpromised) in looks {
            assert_eq!(judge(look, 5, 5), Some(unpromised), "{look:?}");
            assert_eq!(judge(look, 5, 6), Some(Damaged), "{look:?}, durable");
        }
    }
}
