//! Finished writes, and acknowledging what they hold in the order in which it was placed.

use std::sync::atomic::Ordering;

use super::{
    block::Packed,
    core::{Core, Health},
    ops::{Purpose, State},
    waiters::Outcome,
};
use crate::{
    uring::Completion,
    vault::{EntryId, Settlement, format::Codec, segment::Segment, stats::LaneCounters},
};

impl Core {
    /// Notes how a write ended.
    pub(super) fn finish_write(&mut self, done: Completion) {
        let at = usize::try_from(done.token.wrapping_sub(self.first_token)).unwrap_or(usize::MAX);
        let Some(op) = self.ops.get_mut(at) else {
            // Of a lane that broke down; its waiters know already.
            return;
        };
        op.return_buffer(done.buffer);
        let counters = &self.shared.counters[usize::from(self.lane)];
        match done.result {
            Ok(()) => {
                let now = self.shared.platform.now();
                let took = now.saturating_duration_since(op.started);
                counters.sync_took(took);
                self.pace.took(took, now);
                op.state = State::Done;
            }
            Err(source) => {
                LaneCounters::add(&counters.write_errors, 1);
                tracing::error!(
                    path = %op.segment.path.display(), offset = op.offset, bytes = op.len, error = %source,
                    "vault write failed: its segment is given up"
                );
                op.state = State::Failed;
                if self.health == Health::Good {
                    self.health = Health::Draining {
                        reason: source.to_string(),
                    };
                }
            }
        }
    }

    /// Acknowledges finished writes, in order, up to the first that isn't.
    pub(super) fn acknowledge(&mut self) {
        while self.ops.front().is_some_and(|op| op.state == State::Done) {
            let Some(op) = self.ops.pop_front() else {
                return;
            };
            self.first_token += 1;
            self.port().has_written();
            let end = op.offset + op.len as u64;
            match op.purpose {
                Purpose::Header => {}
                Purpose::Data {
                    packed,
                    index,
                    first_entry,
                    ..
                } => {
                    self.acknowledge_block(&op.segment, packed, first_entry);
                    op.segment.set_durable(end, index + 1);
                    self.uncovered_since = Some(self.now());
                    self.moved = false;
                }
                Purpose::Mark { index } => op.segment.set_durable(end, index + 1),
                Purpose::Seal => {
                    op.segment.close_sealed();
                    op.segment.want_trim(end);
                    self.shared.segments_wanted.raise();
                    if op.segment.is_spent() {
                        self.shared.cursors_wanted.raise();
                    }
                }
            }
        }
    }

    fn acknowledge_block(&mut self, segment: &Segment, packed: Packed, first_entry: u32) {
        let counters = &self.shared.counters[usize::from(self.lane)];
        LaneCounters::add(&counters.blocks, 1);
        LaneCounters::add(&counters.lz4_blocks, u64::from(packed.codec == Codec::Lz4));
        LaneCounters::add(&counters.raw_bytes, u64::from(packed.raw_len));
        LaneCounters::add(&counters.stored_bytes, packed.padded_len() as u64);
        LaneCounters::add(&counters.entries, packed.entries.len() as u64);
        LaneCounters::add(&counters.records, u64::from(packed.records));
        {
            let mut ledger = segment.ledger();
            debug_assert_eq!(
                ledger.len(),
                first_entry as usize,
                "entries are numbered as they are acknowledged"
            );
            for (index, entry) in (first_entry..).zip(&packed.entries) {
                let cancelled = self.waiters.cancelled(entry.ticket);
                // Nobody will release what a cancelled request holds.
                let held = entry.held && cancelled.is_none();
                ledger.push(entry.owed, entry.records, held);
                if let Some(accepted) = cancelled.filter(|&accepted| accepted != 0) {
                    ledger.settle(index, accepted, Settlement::WHOLE);
                }
            }
        }
        for (index, entry) in (first_entry..).zip(&packed.entries) {
            let id = EntryId {
                lane: self.lane,
                segment: segment.number,
                index,
            };
            self.waiters.finish(entry.ticket, Outcome::Stored(id));
        }
        if !packed.entries.is_empty() {
            self.shared.cursors_dirty.store(true, Ordering::Release);
        }
        self.recycle(packed.entries);
    }
}
