//! A segment as the running daemon knows it, and the catalog of all of them.

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{format::PAGE, ledger::Ledger, walk::Position};

/// A file is cut when that frees more than this part of a segment.
const TRIM_PART: u64 = 8;

/// One segment file.
#[derive(Debug)]
pub(super) struct Segment {
    /// Number, unique in the vault.
    pub(super) number: u64,
    /// Lane that wrote it.
    pub(super) lane: u16,
    /// Random tag repeated in its blocks.
    pub(super) tag: u64,
    /// Its file.
    pub(super) path: PathBuf,
    /// A lane writes it, or wrote it.
    begun: AtomicBool,
    /// When its first block was written.
    data_since: OnceLock<Instant>,
    /// When it was first seen to be spent.
    spent_since: OnceLock<Instant>,
    /// Its file is being removed or written over.
    retired: AtomicBool,
    file_bytes: AtomicU64,
    readable_bytes: AtomicU64,
    durable_blocks: AtomicU32,
    closed: AtomicBool,
    /// Behind the acknowledged blocks is a seal.
    sealed: AtomicBool,
    /// Its file is being removed.
    condemned: AtomicBool,
    /// Length the file should be cut to, 0 if it needn't.
    trim_to: AtomicU64,
    quarantined: AtomicBool,
    /// An operator took it out of replay.
    withheld: AtomicBool,
    /// Where the first block with something unsettled may be; all before it needn't be read again.
    settled_to: Mutex<Position>,
    ledger: Mutex<Ledger>,
}

impl Segment {
    /// A segment of `file_bytes` that nothing was written to.
    #[must_use]
    pub(super) fn new(
        number: u64,
        lane: u16,
        tag: u64,
        path: PathBuf,
        file_bytes: u64,
        ledger: Ledger,
    ) -> Self {
        Self {
            number,
            lane,
            tag,
            path,
            begun: AtomicBool::new(false),
            data_since: OnceLock::new(),
            spent_since: OnceLock::new(),
            retired: AtomicBool::new(false),
            file_bytes: AtomicU64::new(file_bytes),
            readable_bytes: AtomicU64::new(PAGE as u64),
            durable_blocks: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            trim_to: AtomicU64::new(0),
            quarantined: AtomicBool::new(false),
            withheld: AtomicBool::new(false),
            settled_to: Mutex::new(Position::START),
            ledger: Mutex::new(ledger),
        }
    }

    /// Marks it as begun; from now on it can be read.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether a lane writes it, or wrote it.
    #[must_use]
    pub(super) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Notes that a block is being written to it.
    pub(super) fn note_data(&self, now: Instant) {
        self.data_since.get_or_init(|| now);
    }

    /// How long ago the first block was written to it in this run; zero if none was.
    #[must_use]
    pub(super) fn data_age(&self, now: Instant) -> Duration {
        self.data_since.get().map_or(Duration::ZERO, |since| {
            now.saturating_duration_since(*since)
        })
    }

    /// How long it has been known to be spent; the first call begins to count.
    #[must_use]
    pub(super) fn spent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.spent_since.get_or_init(|| now))
    }

    /// Notes that nobody may rely on its file any more.
    pub(super) fn set_retired(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// Whether its file may be gone or hold another segment. What was read before this was false is
    /// the segment's.
    #[must_use]
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Sets how far the acknowledged blocks reach.
    pub(super) fn set_durable(&self, bytes: u64, blocks: u32) {
        self.durable_blocks.store(blocks, Ordering::Relaxed);
        self.readable_bytes.store(bytes, Ordering::Release);
    }

    /// End of the acknowledged blocks: a byte offset in the file.
    #[must_use]
    pub(super) fn readable_bytes(&self) -> u64 {
        self.readable_bytes.load(Ordering::Acquire)
    }

    /// Acknowledged blocks.
    #[must_use]
    pub(super) fn durable_blocks(&self) -> u32 {
        self.durable_blocks.load(Ordering::Relaxed)
    }

    /// Nothing will be added.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Nothing will be added, and the seal behind the acknowledged blocks is on stable storage.
    pub(super) fn close_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
        self.close();
    }

    /// Whether a seal is behind the acknowledged blocks. A segment that its lane gave up has none
    /// until the next start.
    #[must_use]
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Notes that its file is about to be removed.
    pub(super) fn condemn(&self) {
        self.condemned.store(true, Ordering::Release);
    }

    /// Whether its file is being removed, or is gone.
    #[must_use]
    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// Asks the background to cut the file behind the seal, at `bytes`.
    pub(super) fn want_trim(&self, bytes: u64) {
        self.trim_to.store(bytes, Ordering::Release);
    }

    /// Whether the file should be cut.
    #[must_use]
    pub(super) fn trim_wanted(&self) -> bool {
        self.trim_to.load(Ordering::Acquire) != 0
    }

    /// Length the file should be cut to, once. What fills nearly all of `segment_bytes` stays as it is:
    /// little room would be gained, and filled again when the file is recycled.
    #[must_use]
    pub(super) fn take_trim(&self, segment_bytes: u64) -> Option<u64> {
        let least = segment_bytes / TRIM_PART;
        Some(self.trim_to.swap(0, Ordering::AcqRel))
            .filter(|&bytes| bytes != 0 && bytes + least < self.file_bytes())
    }

    /// Whether nothing will be added.
    #[must_use]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Marks it as damaged, so that it stays on disk; true the first time.
    pub(super) fn quarantine(&self) -> bool {
        !self.quarantined.swap(true, Ordering::AcqRel)
    }

    /// Whether it is kept as it is: damaged, or taken out of replay by an operator.
    #[must_use]
    pub(super) fn is_quarantined(&self) -> bool {
        self.is_damaged() || self.is_withheld()
    }

    /// Whether it is damaged.
    #[must_use]
    pub(super) fn is_damaged(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Takes it out of replay; true if it was in.
    pub(super) fn withhold(&self) -> bool {
        !self.withheld.swap(true, Ordering::AcqRel)
    }

    /// Puts it back into replay.
    pub(super) fn readmit(&self) {
        self.withheld.store(false, Ordering::Release);
    }

    /// Whether an operator took it out of replay.
    #[must_use]
    pub(super) fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// Bytes of the file.
    #[must_use]
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Notes that the file was cut to `bytes`; returns how many that freed, 0 if it was removed
    /// meanwhile.
    pub(super) fn note_cut(&self, bytes: u64) -> u64 {
        self.file_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
                (before > bytes).then_some(bytes)
            })
            .map_or(0, |before| before - bytes)
    }

    /// Notes that the file was removed; returns how many bytes that freed.
    pub(super) fn note_removed(&self) -> u64 {
        self.file_bytes.swap(0, Ordering::Relaxed)
    }

    /// Where a reader begins.
    #[must_use]
    pub(super) fn settled_to(&self) -> Position {
        *self
            .settled_to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that every block before `position` is settled, and stays so.
    pub(super) fn set_settled_to(&self, position: Position) {
        *self
            .settled_to
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = position;
    }

    /// What it owes.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic elsewhere can't leave a ledger half changed in a way that loses an entry.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody needs it any more: closed, whole, and everything in it settled.
    #[must_use]
    pub(super) fn is_spent(&self) -> bool {
        self.is_closed() && !self.is_quarantined() && self.ledger().pending().entries == 0
    }
}

/// All segments, by number.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
}

impl Catalog {
    /// Adds a segment.
    pub(super) fn insert(&self, segment: Arc<Segment>) {
        self.write().insert(segment.number, segment);
    }

    /// Takes a segment out.
    pub(super) fn remove(&self, number: u64) {
        self.write().remove(&number);
    }

    /// The segment with that number.
    #[must_use]
    pub(super) fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.read().get(&number).cloned()
    }

    /// Calls `visit` for each segment, in the order of their numbers.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Arc<Segment>)) {
        self.read().values().for_each(&mut visit);
    }

    /// The segment with the lowest number that `wanted` accepts.
    #[must_use]
    pub(super) fn first(&self, mut wanted: impl FnMut(&Segment) -> bool) -> Option<Arc<Segment>> {
        let segments = self.read();
        segments.values().find(|segment| wanted(segment)).cloned()
    }

    /// The segments `keep` accepts, in the order of their numbers.
    #[must_use]
    pub(super) fn select(&self, mut keep: impl FnMut(&Segment) -> bool) -> Vec<Arc<Segment>> {
        self.read()
            .values()
            .filter(|segment| keep(segment))
            .cloned()
            .collect()
    }

    /// The first begun segment after `number`: segments are read in the order of their numbers, which
    /// all lanes draw from one sequence. The wall clock, which may step back, has no say.
    #[must_use]
    pub(super) fn next_after(&self, number: Option<u64>) -> Option<Arc<Segment>> {
        let after = number.map_or(Bound::Unbounded, Bound::Excluded);
        self.read()
            .range((after, Bound::Unbounded))
            .map(|(_, segment)| segment)
            .find(|segment| segment.is_begun())
            .cloned()
    }

    /// The last begun segment before `number`.
    #[must_use]
    pub(super) fn next_before(&self, number: Option<u64>) -> Option<Arc<Segment>> {
        let before = number.map_or(Bound::Unbounded, Bound::Excluded);
        self.read()
            .range((Bound::Unbounded, before))
            .map(|(_, segment)| segment)
            .rfind(|segment| segment.is_begun())
            .cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_and_removed_at_once_frees_its_bytes_once() {
        for cut_first in [true, false] {
            let segment = Segment::new(1, 0, 1, PathBuf::new(), 1000, Ledger::new(1));
            let mut freed = if cut_first { segment.note_cut(300) } else { 0 };
            freed += segment.note_removed();
            freed += segment.note_cut(300);
            assert_eq!(freed, 1000);
        }
    }
}
