//! Reading back what is owed, oldest first, in bounded memory.

use std::sync::{Arc, atomic::Ordering};

use super::{
    entry::{DestMask, Entry, EntryId, Part, Piece, Pieces},
    error::{Error, io_error},
    format::{BlockHeader, BlockKind, Codec, PAGE},
    segment::Segment,
    selection::Selection,
    shared::{Damage, ORPHAN, SEAL_MISMATCH, Shared},
    walk::{BlockSource, Chain, Identity, Joined, Look, Position, is_consistent},
};

/// Reads entries for replay. Blocking; never use it on a worker's thread.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    selection: Selection,
    /// The segment last read.
    last: Option<u64>,
    open: Option<OpenSegment>,
    decoded: Vec<u8>,
}

#[derive(Debug)]
struct OpenSegment {
    segment: Arc<Segment>,
    source: BlockSource,
    position: Position,
    /// First entry of the block at `position` that wasn't returned yet.
    next_entry: u64,
    /// Everything passed so far is settled for good.
    all_settled: bool,
    /// Damage that nothing follows was met; what comes later here is found by the next start.
    exhausted: bool,
    /// Of the block whose payload was last decompressed, and is still there: a portion may end in it.
    decoded_at: Option<u64>,
    /// CRC fields of the blocks before `position`, while all of them were read one after the other.
    crc: Option<crc32fast::Hasher>,
}

/// Why filling a batch stopped.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The batch is full.
    Full,
    /// The segment has no more blocks to read.
    SegmentEnd,
}

/// Entries for one call.
#[derive(Debug)]
struct Batch {
    entries: Vec<Entry>,
    left: usize,
    /// Entries that none of these is owed are passed over.
    wanted: DestMask,
    /// What isn't in it is passed over, too.
    selection: Selection,
}

/// A large entry whose pieces are being joined.
#[derive(Debug)]
struct Large {
    start: Position,
    entry: Option<Entry>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            selection: Selection::default(),
            last: None,
            open: None,
            decoded: Vec::new(),
        }
    }

    /// Gives only what is selected from now on, from its start.
    pub fn select(&mut self, selection: Selection) {
        self.selection = selection;
        self.rewind();
    }

    /// The next entries that one of the destinations `wanted` is owed, oldest segment first unless selected otherwise,
    /// skipping held ones: up to `max_bytes` of content, but one entry at least. Empty at the end; what comes to a segment after it was
    /// passed is found after [`Reader::rewind`].
    ///
    /// # Errors
    /// A segment can't be opened. The next call goes on behind it, and a rewind comes back to it.
    pub fn next(&mut self, max_bytes: usize, wanted: DestMask) -> Result<Vec<Entry>, Error> {
        let mut batch = Batch {
            entries: Vec::new(),
            left: max_bytes,
            wanted: wanted & self.shared.destinations.configured(),
            selection: self.selection,
        };
        loop {
            if self.open.is_none() {
                let before = self.last;
                match self.open_next(batch.wanted) {
                    Ok(true) => {}
                    Ok(false) => return Ok(batch.entries),
                    Err(error) if batch.entries.is_empty() => return Err(error),
                    Err(_) => {
                        // Met again, and reported, by the next call.
                        self.last = before;
                        return Ok(batch.entries);
                    }
                }
            }
            let Some(mut open) = self.open.take() else {
                return Ok(batch.entries);
            };
            if open.segment.is_withheld() {
                continue;
            }
            match open.fill(&self.shared, &mut self.decoded, &mut batch) {
                Stop::Full => {
                    self.open = Some(open);
                    return Ok(batch.entries);
                }
                Stop::SegmentEnd
                    if !open.exhausted && !open.segment.is_closed() && self.is_last() =>
                {
                    // Go on here when it has grown.
                    self.open = Some(open);
                    return Ok(batch.entries);
                }
                Stop::SegmentEnd => {}
            }
        }
    }

    /// Starts again at the first entry somebody is owed.
    pub fn rewind(&mut self) {
        self.last = None;
        self.open = None;
    }

    fn is_last(&self) -> bool {
        !self.selection.newest_first && self.next_segment().is_none()
    }

    fn next_segment(&self) -> Option<Arc<Segment>> {
        match self.selection.newest_first {
            false => self.shared.catalog.next_after(self.last),
            true => self.shared.catalog.next_before(self.last),
        }
    }

    fn open_next(&mut self, wanted: DestMask) -> Result<bool, Error> {
        loop {
            let recovering = self.shared.recovering.load(Ordering::Acquire);
            let Some(segment) = self.next_segment() else {
                return Ok(false);
            };
            // Older segments may still turn up.
            if recovering
                && !self.selection.newest_first
                && segment.number >= self.shared.first_segment
            {
                return Ok(false);
            }
            self.last = Some(segment.number);
            if segment.is_withheld() || !self.selection.is_in(&segment) {
                continue;
            }
            // Nothing here, or all of it in flight or for others.
            let is_mostly_owed = {
                let ledger = segment.ledger();
                if !ledger.is_any_wanted(wanted) {
                    continue;
                }
                ledger.pending().entries * 2 >= ledger.len() as u64
            };
            let platform = self.shared.platform.as_ref();
            let opened = match segment.is_closed() && is_mostly_owed {
                true => BlockSource::open_through(platform, &segment.path),
                false => BlockSource::open(platform, &segment.path),
            };
            let source = match opened {
                Ok(source) => source,
                // Settled and removed meanwhile.
                Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(io_error("opening", &segment.path)(source)),
            };
            let position = segment.settled_to();
            self.open = Some(OpenSegment {
                segment,
                source,
                position,
                next_entry: position.entry,
                all_settled: true,
                exhausted: false,
                decoded_at: None,
                crc: (position == Position::START).then(crc32fast::Hasher::new),
            });
            return Ok(true);
        }
    }
}

impl OpenSegment {
    fn fill(&mut self, shared: &Shared, decoded: &mut Vec<u8>, batch: &mut Batch) -> Stop {
        let identity = Identity {
            segment: self.segment.number,
            tag: Some(self.segment.tag),
        };
        let mut chain = Chain::default();
        let mut large: Option<Large> = None;
        loop {
            // In this order: the limit of a closed segment is its last.
            let is_closed = self.segment.is_closed();
            let limit = self.segment.readable_bytes();
            match self.source.look(identity, self.position, limit) {
                Look::End => {
                    if let Some(large) = large.filter(|_| !self.segment.is_closed()) {
                        self.position = large.start;
                        self.crc = None;
                    } else if is_closed {
                        self.check_seal(shared, identity);
                    }
                    return Stop::SegmentEnd;
                }
                Look::Block(header) => {
                    if header.kind == BlockKind::Data
                        && (chain.is_open()
                            || header.entries == 0
                            || self.is_any_wanted(&header, batch.wanted))
                        && let Some(stop) =
                            self.take(shared, &header, decoded, batch, (&mut chain, &mut large))
                    {
                        return stop;
                    }
                    self.pass(&header);
                    if !chain.is_open() {
                        self.note_settled(&header);
                    }
                }
                // Spent or dropped meanwhile: these are another segment's bytes.
                _ if self.segment.is_retired() => return Stop::SegmentEnd,
                bad => {
                    self.all_settled = false;
                    self.crc = None;
                    chain.break_off();
                    large = None;
                    if let Some(stop) = self.skip(shared, bad, identity, (limit, is_closed)) {
                        return stop;
                    }
                }
            }
        }
    }

    /// Compares the seal with the blocks, if all of them were read.
    fn check_seal(&mut self, shared: &Shared, identity: Identity) {
        let Some(crc) = self.crc.take().filter(|_| self.segment.is_sealed()) else {
            return;
        };
        let limit = self.position.offset + PAGE as u64;
        if let Look::Block(seal) = self.source.look(identity, self.position, limit)
            && seal.kind == BlockKind::Seal
            && seal.segment_crc != crc.finalize()
        {
            disagree(shared, &self.segment, self.position, SEAL_MISMATCH);
        }
    }

    fn pass(&mut self, header: &BlockHeader) {
        if let Some(crc) = &mut self.crc {
            crc.update(&header.own_crc_fields());
        }
        self.position = Position::after(self.position.offset, header);
        self.next_entry = self.position.entry;
    }

    /// Lets the next reading begin behind the block just passed, if all up to it is settled.
    fn note_settled(&mut self, header: &BlockHeader) {
        self.all_settled = self.all_settled
            && self
                .segment
                .ledger()
                .is_settled(header.first_entry..self.position.entry);
        if self.all_settled {
            self.segment.set_settled_to(self.position);
        }
    }

    /// Takes the wanted entries of a block; `Some` when the batch is full, with the position such
    /// that the next call goes on there.
    fn take(
        &mut self,
        shared: &Shared,
        header: &BlockHeader,
        decoded: &mut Vec<u8>,
        batch: &mut Batch,
        (chain, large): (&mut Chain, &mut Option<Large>),
    ) -> Option<Stop> {
        let position = self.position;
        let payload = if self.decoded_at == Some(position.offset) {
            decoded.get(..header.raw_len as usize)
        } else {
            let is_decoded = header.codec == Codec::Lz4;
            self.decoded_at = is_decoded.then_some(position.offset);
            self.source.payload(position.offset, header, decoded)
        };
        let Some(payload) = payload.filter(|payload| is_consistent(header, payload)) else {
            if self.segment.is_retired() {
                return Some(Stop::SegmentEnd);
            }
            chain.break_off();
            *large = None;
            lose(
                shared,
                &self.segment,
                position,
                Some(header),
                None,
                "payload is not a run of entries",
            );
            return None;
        };
        let mut index = position.entry;
        let mut orphans = Vec::new();
        for piece in Pieces::new(payload).flatten() {
            let joined = chain.join(&piece.header);
            let number = index;
            index += u64::from(piece.header.part.ends_entry());
            if number < self.next_entry {
                continue;
            }
            let wanted = wanted_entry(&self.segment, number, &piece, batch);
            let len = piece.header.total as usize;
            match piece.header.part {
                Part::Whole | Part::First if wanted.is_some() && !batch.has_room(len) => {
                    self.next_entry = number;
                    return Some(Stop::Full);
                }
                Part::Whole => {
                    *large = None;
                    batch.add(wanted.map(|entry| with_bytes(entry, piece.bytes)));
                }
                Part::First => {
                    *large = Some(Large {
                        start: position,
                        entry: wanted.map(|entry| with_bytes(entry, piece.bytes)),
                    });
                }
                Part::Middle | Part::Last => {
                    if joined == Joined::Orphan {
                        *large = None;
                        orphans.extend(piece.header.part.ends_entry().then_some(number));
                    }
                    if let Some(entry) = large.as_mut().and_then(|large| large.entry.as_mut()) {
                        entry.bytes.extend_from_slice(piece.bytes);
                    }
                    if joined == Joined::Complete {
                        batch.add(large.take().and_then(|large| large.entry));
                    }
                }
            }
        }
        for entry in orphans {
            let position = Position { entry, ..position };
            lose_entries(shared, &self.segment, position, entry + 1, ORPHAN);
        }
        None
    }

    fn is_any_wanted(&self, header: &BlockHeader, wanted: DestMask) -> bool {
        let ledger = self.segment.ledger();
        let first = header.first_entry.max(self.next_entry);
        (first..header.first_entry + u64::from(header.entries)).any(|index| {
            usize::try_from(index)
                .is_ok_and(|index| ledger.wanted(index) & wanted != 0 && !ledger.is_held(index))
        })
    }

    /// Goes on behind a damaged block; `Some` if nothing follows.
    fn skip(
        &mut self,
        shared: &Shared,
        look: Look,
        identity: Identity,
        (limit, is_closed): (u64, bool),
    ) -> Option<Stop> {
        let position = self.position;
        if let Look::BadPayload(header) = look {
            lose(
                shared,
                &self.segment,
                position,
                Some(&header),
                None,
                "checksum of the payload doesn't match",
            );
            self.pass(&header);
            return None;
        }
        let next = self.source.next_block(identity, position, limit);
        if next.is_none() && !is_closed {
            // What is lost is known when a block follows; entries are being added meanwhile.
            self.report_gap(shared);
            return Some(Stop::SegmentEnd);
        }
        let following = next.as_ref().map(|(_, header)| header);
        lose(
            shared,
            &self.segment,
            position,
            None,
            following,
            "block header damaged or unreadable",
        );
        let Some((offset, header)) = next else {
            self.exhausted = true;
            return Some(Stop::SegmentEnd);
        };
        self.position = Position {
            offset,
            index: header.index,
            entry: header.first_entry,
            record: header.first_record,
        };
        self.next_entry = header.first_entry;
        None
    }

    /// Keeps the segment and says so, once.
    fn report_gap(&self, shared: &Shared) {
        if self.segment.is_damaged() {
            return;
        }
        let damage = Damage {
            offset: self.position.offset,
            block: self.position.index,
            first_entry: self.position.entry,
            entries: 0,
            first_record: self.position.record,
            records: 0,
            reason: "block header damaged or unreadable, and nothing follows yet",
        };
        shared.quarantine(&self.segment, &damage);
    }
}

impl Batch {
    fn has_room(&self, len: usize) -> bool {
        self.entries.is_empty() || len <= self.left
    }

    fn add(&mut self, entry: Option<Entry>) {
        if let Some(entry) = entry {
            self.left = self.left.saturating_sub(entry.bytes.len());
            self.entries.push(entry);
        }
    }
}

/// The entry a piece belongs to, without its bytes, if it is wanted and selected, and nobody holds it.
fn wanted_entry(segment: &Segment, number: u64, piece: &Piece<'_>, batch: &Batch) -> Option<Entry> {
    let index = u32::try_from(number).ok()?;
    let ledger = segment.ledger();
    let owed = ledger.wanted(index as usize) & batch.wanted;
    if owed == 0
        || !batch.selection.has(piece.header.arrival_unix_ns)
        || ledger.is_held(index as usize)
    {
        return None;
    }
    Some(Entry {
        id: EntryId {
            lane: segment.lane,
            segment: segment.number,
            index,
        },
        kind: piece.header.kind,
        encoding: piece.header.encoding,
        owed,
        arrival_unix_ns: piece.header.arrival_unix_ns,
        records: piece.header.records,
        bytes: Vec::new(),
    })
}

fn with_bytes(mut entry: Entry, bytes: &[u8]) -> Entry {
    entry.bytes.extend_from_slice(bytes);
    entry
}

/// Reports a segment that is whole and yet isn't what was sealed, unless it is quarantined already.
pub(super) fn disagree(shared: &Shared, segment: &Segment, position: Position, reason: &str) {
    if segment.is_quarantined() {
        return;
    }
    let damage = Damage {
        offset: position.offset,
        block: position.index,
        first_entry: position.entry,
        entries: 0,
        first_record: position.record,
        records: 0,
        reason,
    };
    shared.quarantine(segment, &damage);
}

/// Counts and reports a block that can't be read, unless that was done before.
pub(super) fn lose(
    shared: &Shared,
    segment: &Segment,
    position: Position,
    header: Option<&BlockHeader>,
    following: Option<&BlockHeader>,
    reason: &str,
) {
    let end = match (header, following) {
        (Some(header), _) => position.entry + u64::from(header.entries),
        (None, Some(following)) => following.first_entry,
        (None, None) => u64::MAX,
    };
    lose_entries(shared, segment, position, end, reason);
}

/// Counts and reports the known entries from `position` to `end`, unless that was done before.
fn lose_entries(shared: &Shared, segment: &Segment, position: Position, end: u64, reason: &str) {
    let mut ledger = segment.ledger();
    let known = ledger.len() as u64;
    let number = |entry: u64| u32::try_from(entry.min(known)).unwrap_or(u32::MAX);
    let lost = ledger.lose(number(position.entry)..number(end));
    drop(ledger);
    if lost.entries == 0 && segment.is_damaged() {
        return;
    }
    let damage = Damage {
        offset: position.offset,
        block: position.index,
        first_entry: position.entry,
        entries: lost.entries,
        first_record: position.record,
        records: lost.records,
        reason,
    };
    shared.quarantine(segment, &damage);
}
