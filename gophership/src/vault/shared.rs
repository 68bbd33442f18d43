//! What the lanes, the background threads and the readers of one vault share.

use std::{
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Config,
    books::{Books, Settlement},
    chain::Chains,
    destinations::Destinations,
    entry::{DestMask, EntryId},
    platform::{Lock, Platform},
    port::Port,
    recovery::Progress,
    scrub::Counters,
    segment::{Catalog, Segment},
    stats::LaneCounters,
};

/// State shared by all threads of a vault.
#[derive(Debug)]
pub(super) struct Shared {
    /// The machine.
    pub(super) platform: Arc<dyn Platform>,
    /// The validated configuration.
    pub(super) config: Config,
    /// Bits of the destinations.
    pub(super) destinations: Destinations,
    /// All segments.
    pub(super) catalog: Catalog,
    /// One for each lane: where it gets its segments.
    pub(super) ports: Vec<Port>,
    /// One for each lane.
    pub(super) counters: Vec<LaneCounters>,
    /// Number of the next segment.
    pub(super) next_segment: AtomicU64,
    /// Bytes of all segment files.
    pub(super) committed_bytes: AtomicU64,
    /// What removed segments had stored and what became of it.
    pub(super) retired: Mutex<Retired>,
    /// What earlier runs have settled, by destination.
    pub(super) earlier: Vec<Books>,
    /// Records delivered without the vault in this run, by destination.
    pub(super) direct: Vec<AtomicU64>,
    /// Records rejected without the vault in this run, by destination.
    pub(super) direct_rejected: Vec<AtomicU64>,
    /// No segment with a lower number will ever be made, whatever crashes: the cursors say so.
    pub(super) numbers_used: AtomicU64,
    /// Records that a destination had before the vault refused them, by destination: nobody waited for the
    /// vault any more.
    pub(super) unstored: Vec<AtomicU64>,
    /// Segments made of a spent one's file.
    pub(super) recycled: AtomicU64,
    /// Why no more segments can be made in this run.
    pub(super) fault: OnceLock<String>,
    /// Blocks whose checksum didn't match.
    pub(super) checksum_errors: AtomicU64,
    /// Makes the thread that keeps the segments panic.
    #[cfg(test)]
    pub(super) fail_keeper: AtomicBool,
    /// Segments found at open are still being read.
    pub(super) recovering: AtomicBool,
    /// How far that has come.
    pub(super) recovery: Progress,
    /// Least number of the segments that this run makes.
    pub(super) first_segment: u64,
    /// Something changed that the cursors don't say yet.
    pub(super) cursors_dirty: AtomicBool,
    /// Wakes the thread that makes segments.
    pub(super) segments_wanted: Signal,
    /// Wakes the thread that writes cursors.
    pub(super) cursors_wanted: Signal,
    /// Share of their full rate that paced background threads may use, in thousandths.
    pub(super) background_weight: AtomicU32,
    /// When replay will have emptied the oldest segment, in milliseconds from the last time that was asked.
    pub(super) room_in_ms: AtomicU64,
    /// Wakes the thread that reads sealed segments again.
    pub(super) scrub_wanted: Signal,
    /// What that thread has done.
    pub(super) scrubbed: Counters,
    /// The lanes' manifests.
    pub(super) chains: Chains,
    /// All background threads end.
    pub(super) stopping: AtomicBool,
    /// The machine's id.
    pub(super) host: [u8; 16],
    /// The right to the directory; `None` after the vault was closed.
    pub(super) lock: Mutex<Option<Box<dyn Lock>>>,
}

impl Shared {
    /// Whether background threads should end.
    #[must_use]
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks background threads to end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.segments_wanted.raise();
        self.cursors_wanted.raise();
        self.scrub_wanted.raise();
    }

    /// `full_rate`, a second, weighted as all background work is; at least 1 unless the weight is 0.
    #[must_use]
    pub(super) fn background_rate(&self, full_rate: u64) -> u64 {
        let weight = self.background_weight.load(Ordering::Relaxed);
        let rate = full_rate / u64::from(WEIGHT_FULL) * u64::from(weight);
        rate.max(u64::from(weight != 0))
    }

    /// Marks a segment as damaged; `what` and where go to the log.
    pub(super) fn quarantine(&self, segment: &Segment, damage: &Damage<'_>) {
        self.checksum_errors.fetch_add(1, Ordering::Relaxed);
        segment.quarantine();
        tracing::error!(
            path = %segment.path.display(),
            offset = damage.offset,
            block = damage.block,
            first_entry = damage.first_entry,
            entries = damage.entries,
            first_record = damage.first_record,
            records = damage.records,
            reason = damage.reason,
            "damaged vault block: its segment is quarantined, the rest of it stays readable"
        );
    }

    /// Directory of the vault.
    #[must_use]
    pub(super) fn dir(&self) -> &PathBuf {
        &self.config.dir
    }

    /// Notes that the entry is settled for `mask`; drops its hold once it is owed to nobody. Before, others may still be
    /// at it.
    pub(super) fn settle(&self, id: EntryId, mask: DestMask, how: Settlement) {
        let Some(segment) = self.catalog.get(id.segment) else {
            return;
        };
        let (changed, spent) = {
            let mut ledger = segment.ledger();
            let changed = ledger.settle(id.index, mask, how);
            if ledger.owed(id.index as usize) == 0 {
                ledger.release(id.index);
            }
            (changed, ledger.pending().entries == 0)
        };
        if changed {
            self.cursors_dirty.store(true, Ordering::Release);
            if spent && segment.is_closed() {
                self.cursors_wanted.raise();
            }
        }
    }

    /// Notes that `accepted` have an entry of `records`, and the vault doesn't.
    pub(super) fn note_unstored(&self, accepted: DestMask, records: u32) {
        for (bit, unstored) in self.unstored.iter().enumerate() {
            if accepted & (1 << bit) != 0 {
                unstored.fetch_add(u64::from(records), Ordering::Relaxed);
                self.cursors_dirty.store(true, Ordering::Release);
            }
        }
    }

    /// Drops the hold on an entry.
    pub(super) fn release(&self, id: EntryId) {
        if let Some(segment) = self.catalog.get(id.segment) {
            segment.ledger().release(id.index);
        }
    }

    /// Takes a segment out of the catalog; what it had stored stays in the sums.
    pub(super) fn retire(&self, segment: &Segment) {
        let mut retired = self.retired();
        let ledger = segment.ledger();
        for (bit, sums) in retired.by_destination.iter_mut().enumerate() {
            sums.stored += ledger.stored_records(bit);
            sums.books = sums.books.plus(ledger.books(bit));
        }
        drop(ledger);
        self.catalog.remove(segment.number);
    }

    /// Sums over removed segments; while it is held, no segment is removed.
    pub(super) fn retired(&self) -> MutexGuard<'_, Retired> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the right to the directory.
    pub(super) fn unlock(&self) {
        self.lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// The weight at which background work goes at its full rate.
pub(super) const WEIGHT_FULL: u32 = 1000;

/// Why a segment is quarantined all of whose blocks are whole: some aren't those it was sealed with.
/// Nothing in it is unreadable, so nothing counts as lost.
pub(super) const SEAL_MISMATCH: &str =
    "the seal's checksum of the whole segment doesn't match its blocks";

/// Why an entry is lost whose last piece is whole.
pub(super) const ORPHAN: &str = "an entry's earlier pieces are lost";

/// Sums over the segments that were removed in this run.
#[derive(Debug, Default)]
pub(super) struct Retired {
    /// Records, by destination.
    pub(super) by_destination: Vec<RetiredRecords>,
    /// Segments dropped though entries in them were owed.
    pub(super) dropped_segments: u64,
    /// Entries dropped that some destination was owed.
    pub(super) dropped_entries: u64,
    /// Records of those.
    pub(super) dropped_records: u64,
}

/// Records of one destination in removed segments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RetiredRecords {
    /// Stored for it.
    pub(super) stored: u64,
    /// What became of them.
    pub(super) books: Books,
}

/// A block that can't be read, and what was in it as far as the blocks around it tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Damage<'a> {
    /// Where in the file.
    pub(super) offset: u64,
    /// Index of the block.
    pub(super) block: u32,
    /// First entry lost.
    pub(super) first_entry: u64,
    /// Entries lost.
    pub(super) entries: u64,
    /// First record lost, in the segment.
    pub(super) first_record: u64,
    /// Records lost.
    pub(super) records: u64,
    /// What is wrong.
    pub(super) reason: &'a str,
}

/// A flag to wait for.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Wakes the waiter, or makes its next wait return at once. Allocates nothing.
    pub(super) fn raise(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until raised or for `timeout`, and lowers the flag.
    pub(super) fn wait(&self, timeout: Duration) {
        let (mut raised, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |raised| !*raised)
            .unwrap_or_else(PoisonError::into_inner);
        *raised = false;
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
