//! Where blocks go in a segment, and giving a segment up after an error.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    block::Packed,
    core::{Core, Health, REFUSE_FOR},
    geometry::TAIL_BYTES,
    ops::{Op, Purpose, State},
    waiters::Outcome,
};
use crate::{
    uring::{Buffer, Target, Write},
    vault::{
        Sync,
        error::AppendError,
        format::{BlockHeader, BlockKind, Codec, PAGE, SegmentHeader},
        platform::DiskFile,
        port::{Next, Ready, Refusal},
        segment::Segment,
    },
};

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Current {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// Where the next block goes.
    pub(super) offset: u64,
    /// Up to where a large entry's pieces may go.
    pub(super) reserved_to: u64,
    index: u32,
    /// Entries that ended in the blocks so far.
    pub(super) entries: u64,
    records: u64,
    crc: crc32fast::Hasher,
}

impl Current {
    /// Whether everything acknowledged in it is settled.
    pub(super) fn owes_nothing(&self) -> bool {
        self.segment.ledger().pending().entries == 0
    }

    /// How long ago its first block was written; zero if none was.
    pub(super) fn data_age(&self, now: Instant) -> Duration {
        self.segment.data_age(now)
    }
}

impl Core {
    /// Begins a segment: its header is a write like any other, acknowledged before its blocks.
    pub(super) fn begin_segment(&mut self, ready: Ready) {
        let Ready { segment, file } = ready;
        let header = SegmentHeader {
            lane: self.lane,
            segment: segment.number,
            tag: segment.tag,
            previous: self.previous.as_ref().map_or(0, |before| before.number),
            // As of now: blocks of it may have been acknowledged since the lane left it.
            previous_durable: self
                .previous
                .as_ref()
                .map_or(0, |before| before.durable_blocks()),
            previous_given_up: self.previous_given_up,
            is_ready: false,
            created_unix_ns: self.shared.platform.unix_nanos(),
            bytes: self.shared.config.segment_bytes,
            host: self.shared.host,
        };
        segment.begin();
        self.starved_since = None;
        self.current = Some(Current {
            segment,
            file,
            offset: 0,
            reserved_to: 0,
            index: 0,
            entries: 0,
            records: 0,
            crc: crc32fast::Hasher::new(),
        });
        if let Some(mut page) = self.pages.acquire() {
            header.encode(&mut page);
            self.submit(page, PAGE, Purpose::Header);
        }
    }

    /// Writes a packed block at the end of the current segment, where room was reserved.
    pub(super) fn write_data(&mut self, mut packed: Packed, large: bool) {
        let (Some(mut buffer), Some(current)) = (packed.buffer.take(), self.current.as_ref())
        else {
            unreachable!("a block is packed with its buffer, into a segment reserved for it");
        };
        current.segment.note_data(self.shared.platform.now());
        let mut header = self.header_at(current, BlockKind::Data);
        header.codec = packed.codec;
        header.entries = u32::try_from(packed.entries.len()).unwrap_or(u32::MAX);
        header.records = packed.records;
        header.raw_len = packed.raw_len;
        header.stored_len = packed.stored_len;
        header.payload_crc = packed.payload_crc;
        let len = packed.padded_len();
        let first_entry = u32::try_from(header.first_entry).unwrap_or(u32::MAX);
        self.add_block(&header, &mut buffer);
        self.submit(
            buffer,
            len,
            Purpose::Data {
                packed,
                index: header.index,
                first_entry,
                large,
            },
        );
    }

    /// Writes a mark that covers the last data block, if a page is free. Between the pieces of a large entry it
    /// takes none of the room that they, another mark and the seal need.
    pub(super) fn write_mark(&mut self) {
        let limit = self.shared.config.segment_bytes;
        let Some(current) = self.current.as_mut() else {
            return;
        };
        if current.reserved_to > current.offset {
            if current.reserved_to + PAGE as u64 + TAIL_BYTES > limit {
                return;
            }
            current.reserved_to += PAGE as u64;
        }
        let (Some(current), Some(mut page)) = (self.current.as_ref(), self.pages.acquire()) else {
            return;
        };
        self.uncovered_since = None;
        let header = self.header_at(current, BlockKind::Mark);
        page.fill(0);
        self.add_block(&header, &mut page);
        self.submit(
            page,
            PAGE,
            Purpose::Mark {
                index: header.index,
            },
        );
    }

    /// Ends the current segment, if there is one.
    pub(super) fn write_seal(&mut self) {
        let (Some(current), Some(mut page)) = (self.current.as_ref(), self.pages.acquire()) else {
            return;
        };
        self.uncovered_since = None;
        let mut header = self.header_at(current, BlockKind::Seal);
        header.segment_crc = current.crc.clone().finalize();
        page.fill(0);
        self.add_block(&header, &mut page);
        self.submit(page, PAGE, Purpose::Seal);
        self.leave_segment();
    }

    fn leave_segment(&mut self) {
        self.is_aging = false;
        if let Some(current) = self.current.take() {
            self.previous = Some(current.segment);
            self.previous_given_up = false;
        }
    }

    fn header_at(&self, current: &Current, kind: BlockKind) -> BlockHeader {
        let monotonic = u64::try_from(self.age_of(self.started).as_nanos()).unwrap_or(u64::MAX);
        BlockHeader {
            kind,
            codec: Codec::Raw,
            segment: current.segment.number,
            tag: current.segment.tag,
            index: current.index,
            entries: 0,
            first_entry: current.entries,
            first_record: current.records,
            records: 0,
            raw_len: 0,
            stored_len: 0,
            durable_through: current.segment.durable_blocks(),
            wall_unix_ns: self.shared.platform.unix_nanos(),
            monotonic_ns: monotonic,
            zone: self.verdict.0,
            cause: self.verdict.1,
            segment_crc: 0,
            payload_crc: crc32fast::hash(&[]),
        }
    }

    fn add_block(&mut self, header: &BlockHeader, block: &mut [u8]) {
        // What `reserve` and `Waiters` promise is checked again here: a header that recovery would
        // refuse must never reach the disk.
        debug_assert!(header.durable_through <= header.index, "{header:?}");
        let header_crc = header.encode(block);
        if header.kind == BlockKind::Data {
            // Read by the data path only, so a block that fails this was never written.
            debug_assert_eq!(BlockHeader::decode(block), Ok(*header));
        }
        if let Some(current) = self.current.as_mut() {
            current.crc.update(&header.crc_fields(header_crc));
            current.index += 1;
            current.entries += u64::from(header.entries);
            current.records += u64::from(header.records);
        }
    }

    fn submit(&mut self, buffer: Buffer, len: usize, purpose: Purpose) {
        let Some(current) = self.current.as_mut() else {
            return;
        };
        let token = self.first_token + self.ops.len() as u64;
        let offset = current.offset;
        assert!(
            offset + len as u64 <= self.shared.config.segment_bytes,
            "room was reserved"
        );
        current.offset += len as u64;
        self.ops.push_back(Op {
            purpose,
            segment: Arc::clone(&current.segment),
            offset,
            len,
            state: State::Writing,
            started: self.shared.platform.now(),
        });
        let write = Write {
            file: Arc::clone(&current.file) as Arc<dyn Target>,
            buffer,
            len,
            offset,
            durable: self.shared.config.sync == Sync::Always,
            token,
        };
        if let Err(error) = self.writer.write(write) {
            self.break_down(&error.to_string());
        }
    }

    /// Takes the next step after an error, if there was one.
    pub(super) fn recover(&mut self) {
        if let Health::Draining { reason } = &self.health
            && self.writer.writes() == 0
        {
            let reason = reason.clone();
            self.give_up_segments(reason);
        }
        if let Health::Moving { reason } = &self.health {
            let reason = reason.clone();
            self.move_blocks(&reason);
        }
    }

    /// Leaves every segment with an unacknowledged block behind, and keeps the blocks.
    fn give_up_segments(&mut self, reason: String) {
        let refused_before = self.moved;
        self.epoch += 1;
        self.uncovered_since = None;
        while let Some(op) = self.ops.pop_front() {
            self.first_token += 1;
            op.segment.close();
            match op.purpose {
                Purpose::Header | Purpose::Mark { .. } | Purpose::Seal => {}
                Purpose::Data {
                    packed,
                    large: true,
                    ..
                } => self.end_waits(packed, &Outcome::Again),
                Purpose::Data {
                    packed,
                    large: false,
                    ..
                } => self.again.push_back(packed),
            }
        }
        if let Some(current) = &self.current {
            current.segment.close();
        }
        self.leave_segment();
        self.previous_given_up = true;
        if refused_before {
            self.refuse(reason);
        } else {
            self.health = Health::Moving { reason };
        }
    }

    /// Writes the kept blocks into a fresh segment. They fit: see [`super::geometry`].
    fn move_blocks(&mut self, reason: &str) {
        match self.port().take(&self.shared) {
            Next::Wanted => {}
            Next::Full { asked } if self.port().ask(&self.shared, asked) => {}
            Next::Full { .. } => self.refuse(format!("{reason}; no room for another segment")),
            Next::Failed(second) => self.refuse(format!("{reason}; then {second}")),
            Next::Ready(ready) => {
                self.health = Health::Good;
                self.moved = true;
                self.begin_segment(ready);
                while let Some(packed) = self.again.pop_front() {
                    if self.health != Health::Good {
                        // The ring broke down meanwhile.
                        self.end_waits(
                            packed,
                            &Outcome::Refused(AppendError::Failed {
                                reason: reason.to_owned(),
                            }),
                        );
                        continue;
                    }
                    self.write_data(packed, false);
                }
            }
        }
    }

    fn refuse(&mut self, reason: String) {
        self.fail_kept(&reason);
        self.moved = false;
        let since = self.now();
        self.port().refuse(Refusal::Disk {
            until: since + REFUSE_FOR,
            reason: reason.clone(),
        });
        self.health = Health::Refusing { since, reason };
    }

    /// Gives up for good: nothing more can be written, and every append that waits is told so.
    pub(super) fn break_down(&mut self, reason: &str) {
        tracing::error!(
            lane = self.lane,
            error = reason,
            "the lane's ring is broken: the lane refuses entries"
        );
        self.port().refuse(Refusal::Broken(reason.to_owned()));
        self.health = Health::Broken {
            reason: reason.to_owned(),
        };
        while let Some(op) = self.ops.pop_front() {
            self.first_token += 1;
            op.segment.close();
            if let Purpose::Data { packed, .. } = op.purpose {
                self.again.push_back(packed);
            }
        }
        self.fail_kept(reason);
    }

    fn fail_kept(&mut self, reason: &str) {
        let outcome = Outcome::Refused(AppendError::Failed {
            reason: reason.to_owned(),
        });
        while let Some(packed) = self.again.pop_front() {
            self.end_waits(packed, &outcome);
        }
        if let Some(open) = self.open.take() {
            for entry in &open.entries {
                self.waiters.finish(entry.ticket, outcome.clone());
            }
            self.recycle(open.entries);
        }
    }

    fn end_waits(&mut self, packed: Packed, outcome: &Outcome) {
        for entry in &packed.entries {
            self.waiters.finish(entry.ticket, outcome.clone());
        }
        self.recycle(packed.entries);
    }
}
