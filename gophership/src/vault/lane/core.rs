//! State of one lane: gathering entries, and when a block is written.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    block::{BLOCK_ENTRIES_MAX, Compressor, OpenBlock, Packed, Pending, Span},
    codec::Chooser,
    geometry::{Geometry, TAIL_BYTES},
    ops::Op,
    pace::Pace,
    place::Current,
    waiters::{Ticket, Waiters},
};
use crate::{
    jitter::jittered,
    uring::{BufferPool, Event, Notifier, Timer, Writer},
    vault::{
        EntryMeta, Error,
        entry::Part,
        error::AppendError,
        format::{ENTRIES_MAX, PAGE},
        port::{Next, Port, Refusal},
        return_time::EARLIEST,
        segment::Segment,
        shared::Shared,
    },
};

/// Pages for segment headers, marks and seals in flight.
const CONTROL_PAGES: usize = 8;
/// An idle lane writes a mark this long after its last block.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// After the disk refused twice, the next attempt is made this long after.
pub(super) const REFUSE_FOR: Duration = Duration::from_secs(1);
const LINGER: Timer = Timer::A;
const MARK: Timer = Timer::B;

/// What a lane can do right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// Write.
    Good,
    /// A write failed: wait for the ones in flight.
    Draining { reason: String },
    /// Nothing is in flight: write again, into a fresh segment, what isn't acknowledged.
    Moving { reason: String },
    /// That failed too, at this time: refuse for a while.
    Refusing { since: Instant, reason: String },
    /// The ring takes no more operations.
    Broken { reason: String },
    /// Shut down.
    Closed,
}

/// Whether an append got its place.
#[derive(Debug)]
pub(super) enum Placed<T> {
    /// Yes.
    Here(T),
    /// Not yet: wait until the port's `room` is notified.
    Wait,
    /// The segment that has the entry's first pieces was given up.
    Again,
}

pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) lane: u16,
    pub(super) geometry: Geometry,
    pub(super) writer: Box<dyn Writer>,
    pub(super) blocks: BufferPool,
    pub(super) pages: BufferPool,
    entry_lists: Vec<Vec<Pending>>,
    pub(super) open: Option<OpenBlock>,
    pub(super) current: Option<Current>,
    /// The segment that the lane wrote before.
    pub(super) previous: Option<Arc<Segment>>,
    /// That one was given up.
    pub(super) previous_given_up: bool,
    /// The segment is old: it is sealed as soon as nothing is in flight, and takes nothing more.
    pub(super) is_aging: bool,
    /// Writes in the order in which they are acknowledged.
    pub(super) ops: VecDeque<Op>,
    /// Token of the first of `ops`.
    pub(super) first_token: u64,
    /// Blocks of given-up segments that must be written again.
    pub(super) again: VecDeque<Packed>,
    pub(super) waiters: Waiters,
    pub(super) health: Health,
    /// Blocks were moved after an error and none of them is acknowledged yet.
    pub(super) moved: bool,
    /// Counts given-up segments.
    pub(super) epoch: u64,
    compressor: Option<Compressor>,
    pub(super) chooser: Chooser,
    linger_armed: bool,
    mark_armed: bool,
    /// When the last data block that no later block covers was acknowledged.
    pub(super) uncovered_since: Option<Instant>,
    /// How long writes take.
    pub(super) pace: Pace,
    /// Since when appends wait for the next segment to be made.
    pub(super) starved_since: Option<Instant>,
    pub(super) started: Instant,
    /// Zone and cause that go into block headers.
    pub(super) verdict: (u8, u8),
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, lane: u16) -> Result<(Self, Notifier), Error> {
        let geometry = Geometry::new(&shared.config)?;
        let blocks = BufferPool::new(geometry.blocks, geometry.buffer_bytes);
        let pages = BufferPool::new(CONTROL_PAGES, PAGE);
        let writer = shared
            .platform
            .writer(vec![blocks.clone(), pages.clone()])?;
        let notifier = writer.notifier()?;
        let now = shared.platform.now();
        let core = Self {
            lane,
            writer,
            entry_lists: (0..geometry.blocks)
                .map(|_| Vec::with_capacity(BLOCK_ENTRIES_MAX))
                .collect(),
            open: None,
            current: None,
            previous: None,
            is_aging: false,
            previous_given_up: false,
            ops: VecDeque::with_capacity(geometry.blocks + CONTROL_PAGES),
            first_token: 0,
            again: VecDeque::with_capacity(geometry.blocks),
            waiters: Waiters::new(),
            health: Health::Good,
            moved: false,
            epoch: 0,
            compressor: Compressor::new(shared.config.compression, geometry.block_bytes),
            chooser: Chooser::new(shared.config.compression, now),
            linger_armed: false,
            mark_armed: false,
            uncovered_since: None,
            pace: Pace::new(now),
            starved_since: None,
            started: now,
            verdict: (0, 0),
            shared,
            geometry,
            blocks,
            pages,
        };
        Ok((core, notifier))
    }

    pub(super) fn now(&self) -> Instant {
        self.shared.platform.now()
    }

    pub(super) fn age_of(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }

    pub(super) fn port(&self) -> &Port {
        &self.shared.ports[usize::from(self.lane)]
    }

    /// Puts an entry that fits into one block into the open one.
    pub(super) fn place_whole<P: AsRef<[u8]>>(
        &mut self,
        meta: &EntryMeta,
        parts: &[P],
        len: usize,
    ) -> Result<Placed<Ticket>, AppendError> {
        if !self.is_writable()? {
            return Ok(Placed::Wait);
        }
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| !open.fits(len) || !self.has_entry_numbers(open.entries.len() + 1));
        if full {
            self.write_open();
            if !self.is_writable()? {
                return Ok(Placed::Wait);
            }
        }
        if self.open.is_none() {
            if !self.reserve(self.geometry.block_bytes as u64)? {
                return Ok(Placed::Wait);
            }
            let Some(open) = self.new_block() else {
                return Ok(Placed::Wait);
            };
            self.open = Some(open);
        }
        let ticket = self.waiters.take();
        let open = self.open.as_mut().expect("opened above");
        let total = u32::try_from(len).expect("checked against the largest piece");
        open.push(
            self.compressor.as_mut(),
            meta,
            Part::Whole,
            Span {
                offset: 0,
                len: total,
                total,
            },
            parts,
        );
        open.entries.push(Pending {
            owed: meta.owed,
            records: meta.records,
            held: meta.held,
            ticket,
        });
        self.pump();
        Ok(Placed::Here(ticket))
    }

    /// Makes room for an entry larger than a block, in one segment; returns the epoch it holds for.
    pub(super) fn begin_large(&mut self, len: usize) -> Result<Placed<u64>, AppendError> {
        if !self.is_writable()? {
            return Ok(Placed::Wait);
        }
        self.write_open();
        let bytes = self.geometry.bytes_for(len);
        if self.is_writable()? && self.reserve(bytes)? {
            if let Some(current) = &mut self.current {
                current.reserved_to = current.offset + bytes;
            }
            Ok(Placed::Here(self.epoch))
        } else {
            Ok(Placed::Wait)
        }
    }

    /// Writes one piece of a large entry; the last one gets the ticket.
    pub(super) fn place_piece<P: AsRef<[u8]>>(
        &mut self,
        epoch: u64,
        meta: &EntryMeta,
        span: Span,
        parts: &[P],
    ) -> Result<Placed<Option<Ticket>>, AppendError> {
        if !self.is_writable()? {
            return Ok(Placed::Wait);
        }
        if epoch != self.epoch {
            return Ok(Placed::Again);
        }
        let Some(mut block) = self.new_block() else {
            return Ok(Placed::Wait);
        };
        let is_last = span.offset + span.len == span.total;
        let part = match (span.offset, is_last) {
            (0, _) => Part::First,
            (_, false) => Part::Middle,
            (_, true) => Part::Last,
        };
        block.push(self.compressor.as_mut(), meta, part, span, parts);
        let ticket = is_last.then(|| self.waiters.take());
        if let Some(ticket) = ticket {
            block.entries.push(Pending {
                owed: meta.owed,
                records: meta.records,
                held: meta.held,
                ticket,
            });
        }
        let packed = self.pack(block);
        self.write_data(packed, true);
        Ok(Placed::Here(ticket))
    }

    /// Whether an append may go on now (`false`: wait).
    fn is_writable(&mut self) -> Result<bool, AppendError> {
        match &self.health {
            Health::Good => Ok(!self.is_aging),
            Health::Draining { .. } | Health::Moving { .. } => Ok(false),
            Health::Refusing { since, reason } if self.age_of(*since) < REFUSE_FOR => {
                Err(AppendError::Failed {
                    reason: reason.clone(),
                })
            }
            Health::Refusing { .. } => {
                self.health = Health::Good;
                Ok(true)
            }
            Health::Broken { reason } => Err(AppendError::Failed {
                reason: reason.clone(),
            }),
            Health::Closed => Err(AppendError::Closed),
        }
    }

    fn has_entry_numbers(&self, more: usize) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.entries + more as u64 <= u64::from(ENTRIES_MAX))
    }

    /// Makes sure that `bytes` of blocks fit into the current segment, if need be by beginning the
    /// next one; `false` when that isn't ready.
    fn reserve(&mut self, bytes: u64) -> Result<bool, AppendError> {
        let limit = self.shared.config.segment_bytes;
        let fits = self
            .current
            .as_ref()
            .is_some_and(|current| current.offset + bytes + TAIL_BYTES <= limit)
            && self.has_entry_numbers(1);
        if fits {
            self.port().has_segment();
            return Ok(true);
        }
        if self.pages.available() < 2 {
            return Ok(false);
        }
        match self.port().take(&self.shared) {
            Next::Wanted => {
                let now = self.now();
                self.starved_since.get_or_insert(now);
                Ok(false)
            }
            Next::Ready(ready) => {
                self.write_seal();
                self.begin_segment(ready);
                self.is_writable()
            }
            Next::Full { asked } => {
                self.seal_if_used_up();
                if self.port().ask(&self.shared, asked) {
                    let now = self.now();
                    self.starved_since.get_or_insert(now);
                    return Ok(false);
                }
                let reason = "max_bytes leave no room for another segment".to_owned();
                self.port().refuse(Refusal::NoSegment(reason));
                Err(AppendError::Full {
                    retry_after: self.return_after(),
                })
            }
            Next::Failed(reason) => {
                self.seal_if_used_up();
                self.port().refuse(Refusal::NoSegment(reason.clone()));
                Err(AppendError::Failed { reason })
            }
        }
    }

    /// When to try again, told to each who is refused a little differently.
    fn return_after(&self) -> Duration {
        let shared = &self.shared;
        let room_in = Duration::from_millis(shared.room_in_ms.load(Ordering::Relaxed));
        let chance = shared.platform.unix_nanos() ^ u64::from(self.lane).rotate_right(8);
        jittered(room_in.max(EARLIEST), chance)
    }

    /// Ends a segment that would keep a full vault, or disk, full: only a closed one is removed once all of it is
    /// settled.
    fn seal_if_used_up(&mut self) {
        let block = self.geometry.block_bytes as u64;
        let limit = self.shared.config.segment_bytes;
        let used_up = self.current.as_ref().is_some_and(|current| {
            current.offset + block + TAIL_BYTES > limit
                || current.entries >= u64::from(ENTRIES_MAX)
                || (self.ops.is_empty() && self.open.is_none() && current.owes_nothing())
        });
        if used_up {
            self.write_seal();
        }
    }

    fn new_block(&mut self) -> Option<OpenBlock> {
        let buffer = self.blocks.acquire()?;
        // As many lists as buffers, so there is one.
        let entries = self.entry_lists.pop().unwrap_or_default();
        let now = self.now();
        let codec = self
            .chooser
            .next(now, self.writer.writes(), self.geometry.blocks);
        self.shared.counters[usize::from(self.lane)].set_codec(codec);
        let block_bytes = self.geometry.block_bytes;
        Some(OpenBlock::new(buffer, block_bytes, codec, entries, now))
    }

    pub(super) fn recycle(&mut self, mut entries: Vec<Pending>) {
        entries.clear();
        self.entry_lists.push(entries);
    }

    /// Writes the open block if there is one.
    pub(super) fn write_open(&mut self) {
        if let Some(open) = self.open.take() {
            let packed = self.pack(open);
            self.write_data(packed, false);
        }
    }

    fn pack(&mut self, block: OpenBlock) -> Packed {
        let (began, codec) = (self.now(), block.codec);
        let packed = block.pack(self.compressor.as_mut());
        let took = self.age_of(began);
        self.chooser.packed(codec, u64::from(packed.raw_len), took);
        packed
    }

    /// Takes in what the ring reports, and does what follows from it.
    pub(super) fn advance(&mut self) {
        while let Some(event) = self.writer.next_event() {
            match event {
                Event::Written(done) => self.finish_write(done),
                Event::Elapsed(timer) if timer == LINGER => self.linger_armed = false,
                Event::Elapsed(_) => self.mark_armed = false,
            }
        }
        self.acknowledge();
        self.recover();
        self.pump();
        self.port().room.notify_one();
    }

    /// Writes the open block when it is time, and a mark when the lane idles.
    pub(super) fn pump(&mut self) {
        if self.health != Health::Good {
            return;
        }
        let now = self.now();
        self.seal_if_old(now);
        let linger = self.shared.config.linger;
        let opened = self.open.as_ref().map(|open| open.opened);
        let waited = opened.map(|opened| now.saturating_duration_since(opened));
        match waited {
            Some(waited) if self.writer.writes() == 0 || waited >= linger => self.write_open(),
            Some(waited) => self.arm_linger(linger - waited),
            None => self.mark_if_idle(),
        }
    }

    /// Seals the segment when its first block is `segment_max_age` old; the next append begins another
    /// one, so an idle lane has none. Whoever keeps the files wakes an idle lane for it.
    fn seal_if_old(&mut self, now: Instant) {
        let max_age = self.shared.config.segment_max_age;
        let is_old = self
            .current
            .as_ref()
            .is_some_and(|current| current.data_age(now) >= max_age);
        if !is_old || self.pages.available() == 0 {
            return;
        }
        self.is_aging = true;
        self.write_open();
        // The seal vouches for what is durable when it is built, and an idle lane writes nothing behind it: so
        // it comes last, when the writes in flight are done.
        if self.health == Health::Good && self.ops.is_empty() {
            // An entry of which only the first pieces are written begins again in the next one.
            self.epoch += 1;
            self.write_seal();
        }
    }

    fn arm_linger(&mut self, after: Duration) {
        if !self.linger_armed {
            // If it can't be armed, the completion of the write in flight pumps instead.
            self.linger_armed = self.writer.arm(LINGER, after).is_ok();
        }
    }

    fn mark_if_idle(&mut self) {
        let Some(since) = self.uncovered_since.filter(|_| self.ops.is_empty()) else {
            return;
        };
        let idle = self.age_of(since);
        if idle >= MARK_AFTER {
            self.write_mark();
        } else if !self.mark_armed {
            self.mark_armed = self.writer.arm(MARK, MARK_AFTER - idle).is_ok();
        }
    }

    /// Whether everything that was appended is acknowledged or refused.
    pub(super) fn is_settled(&self) -> bool {
        match self.health {
            Health::Good => self.open.is_none() && self.ops.is_empty(),
            Health::Draining { .. } | Health::Moving { .. } => false,
            Health::Refusing { .. } | Health::Broken { .. } | Health::Closed => true,
        }
    }
}
