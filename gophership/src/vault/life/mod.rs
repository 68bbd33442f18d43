//! A segment's life as a file: made ahead of need, cut behind its seal, kept, used again, removed.
//!
//! ```text
//!            ┌───── filled with zeros, or recycled ◀────────────┐
//!            ▼                                                  │
//!  ready ─▶ begun ─▶ sealed ─▶ spent: nobody is owed it ─▶ spare, or removed
//!                       │        kept for `retain`              ▲
//!                       └── dropped: `on_full: drop_oldest` ────┘
//! ```
//!
//! - One thread does all of this, so nothing is cut that was used again.
//! - A file gets its name and its directory is synced before a lane sees it, and all of it was written
//!   before: from then on a durable write changes no metadata.
//! - The reserve is one ready segment for each lane, and as spares the files of spent segments, at most
//!   as many as lanes. A spare isn't made ahead: while nothing is replayed, each segment costs its zeros
//!   once in any case. All of it counts as `max_bytes`, and spares are used up or removed before
//!   anything is refused.
//! - A recycled file keeps its old blocks: they have another number and another tag. The number is never
//!   given to another segment, since only a segment is recycled of which the cursors know.

mod make;
mod room;
mod trouble;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use self::{room::Room, trouble::Trouble};
use super::{
    OnFull,
    directory::{UNFINISHED, sync_dir},
    error::Error,
    platform::{Access, Platform},
    port::{Next, Ready},
    segment::Segment,
    shared::Shared,
};
use crate::uring::AlignedBytes;

/// Bytes of zeros in one write.
const FILL_BYTES: usize = 2 << 20;
/// A failed attempt to make a segment is repeated this often at most.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Keeps the files of all segments until the vault stops; runs on its own thread.
pub(super) fn keep_segments(shared: &Shared, mut keeper: Keeper) {
    // However this ends, nobody may wait for a segment that nobody makes.
    let _last_word = LastWord(shared);
    let config = &shared.config;
    let mut pause = RETRY_EVERY.min(config.segment_max_age);
    if !config.retain.is_zero() {
        pause = pause.min(config.retain);
    }
    while !shared.is_stopping() {
        keeper.step();
        shared
            .segments_wanted
            .wait(pause.max(Duration::from_millis(1)));
    }
    keeper.finish();
}

/// Tells the lanes when the thread ends, by a panic or because the vault stops.
struct LastWord<'a>(&'a Shared);

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() {
            let reason = "the thread that makes segments has panicked; restart the daemon";
            tracing::error!("{reason}");
            // The first reason stays.
            let _ = self.0.fault.set(reason.to_owned());
            reason
        } else {
            "the vault is stopping"
        };
        for port in &self.0.ports {
            port.put(Next::Failed(reason.to_owned()));
        }
    }
}

/// The file of a spent segment, to be used again; under a name that the next start removes.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    bytes: u64,
}

/// Keeps the files of all segments.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    zeros: AlignedBytes,
    /// Shortest first.
    spares: Vec<Spare>,
    /// By lane.
    troubles: Vec<Trouble>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            zeros: AlignedBytes::zeroed_in_large_pages(FILL_BYTES),
            spares: Vec::new(),
            troubles: shared.ports.iter().map(|_| Trouble::default()).collect(),
            shared,
        }
    }

    /// One round over everything.
    pub(super) fn step(&mut self) {
        #[cfg(test)]
        assert!(
            !self.shared.fail_keeper.load(Ordering::Acquire),
            "as a test wants it"
        );
        self.retire_spent();
        self.trim_sealed();
        self.wake_old();
        let shared = Arc::clone(&self.shared);
        for (lane, port) in (0_u16..).zip(&shared.ports) {
            if !port.is_ready() && !shared.is_stopping() {
                port.put(self.make_next(lane, port.is_starving()));
            }
        }
    }

    /// Nothing is left but what is owed, and what is to be kept.
    fn finish(&mut self) {
        self.retire_spent();
        // What the lanes sealed last would count with its zeros against the next run's `max_bytes`.
        self.trim_sealed();
        let unused: Vec<_> = self
            .shared
            .ports
            .iter()
            .filter_map(|port| port.take_back().map(|unused| unused.segment))
            .collect();
        self.retire(&unused);
        while !self.spares.is_empty() {
            self.remove_spare();
        }
    }

    fn make_next(&mut self, lane: u16, is_starving: bool) -> Next {
        loop {
            let room = self.room();
            if room.has_for(lane) {
                break;
            }
            let may_drop = is_starving && self.shared.config.on_full == OnFull::DropOldest;
            if !(may_drop && self.drop_oldest(lane, &room)) {
                return Next::Full { asked: is_starving };
            }
        }
        while !self.fits() {
            if !self.give_way() {
                return Next::Full { asked: is_starving };
            }
        }
        let made = self.make(lane);
        self.tell(lane, &made);
        match made {
            Ok(Some(ready)) => {
                self.shared.catalog.insert(Arc::clone(&ready.segment));
                Next::Ready(ready)
            }
            Ok(None) => Next::Wanted,
            Err(error) => Next::Failed(error.to_string()),
        }
    }

    /// Logs what keeps a lane's segments from being made, but not with every attempt.
    fn tell(&mut self, lane: u16, made: &Result<Option<Ready>, Error>) {
        let (trouble, now) = (
            &mut self.troubles[usize::from(lane)],
            self.shared.platform.now(),
        );
        match made {
            Ok(Some(_)) => {
                if let Some(lasted) = trouble.ended(now) {
                    let seconds = lasted.as_secs();
                    tracing::info!(lane, seconds, "vault segments can be made again");
                }
            }
            Ok(None) => {}
            Err(error) => {
                if let Some(lasted) = trouble.failed(error, now) {
                    let seconds = lasted.as_secs();
                    tracing::error!(lane, error = %error, seconds, "can't make a vault segment; trying again");
                }
            }
        }
    }

    fn room(&self) -> Room {
        let config = &self.shared.config;
        let mut room = Room::new(config.max_bytes, config.segment_bytes, config.lanes);
        let spent_count = !self.shared.recovering.load(Ordering::Acquire);
        let mut known = 0;
        self.shared.catalog.for_each(|segment| {
            known += segment.file_bytes();
            // These give way.
            if !(spent_count && segment.is_spent()) {
                room.take(segment.lane, segment.file_bytes());
            }
        });
        // Segments that recovery hasn't reached.
        let spares: u64 = self.spares.iter().map(|spare| spare.bytes).sum();
        let committed = self.shared.committed_bytes.load(Ordering::Relaxed);
        room.take_unknown(committed.saturating_sub(known + spares));
        room
    }

    /// Whether one more segment keeps within `max_bytes`, with a spare's bytes used again.
    fn fits(&self) -> bool {
        let config = &self.shared.config;
        let again = self.spares.last().map_or(0, |spare| spare.bytes);
        let committed = self.shared.committed_bytes.load(Ordering::Relaxed);
        (committed + config.segment_bytes).saturating_sub(again) <= config.max_bytes
    }

    /// Frees what nobody is owed: spares that aren't used next, then the oldest segment kept; false if
    /// there is nothing.
    fn give_way(&mut self) -> bool {
        if self.spares.len() > 1 {
            self.remove_spare();
            return true;
        }
        let recovering = self.shared.recovering.load(Ordering::Acquire);
        let oldest = self
            .shared
            .catalog
            .select(|segment| !recovering && segment.is_spent() && !segment.is_retired())
            .into_iter()
            .min_by_key(|segment| segment.number);
        oldest.is_some_and(|oldest| self.retire(&[oldest]))
    }

    /// Drops the oldest closed segment whose room `lane` may have; false if there is none.
    fn drop_oldest(&mut self, lane: u16, room: &Room) -> bool {
        let shared = Arc::clone(&self.shared);
        let recovering = shared.recovering.load(Ordering::Acquire);
        let oldest = shared
            .catalog
            .select(|segment| {
                segment.is_closed()
                    && !segment.is_quarantined()
                    && !segment.is_retired()
                    && room.gains_from(lane, segment.lane)
                    // Older ones may still turn up.
                    && (!recovering || segment.number < shared.first_segment)
            })
            .into_iter()
            .min_by_key(|segment| segment.number);
        let Some(oldest) = oldest else { return false };
        let dropped = oldest.ledger().drop_owed();
        if dropped.entries > 0 {
            tracing::warn!(
                path = %oldest.path.display(),
                entries = dropped.entries,
                records = dropped.records,
                "the vault is full: dropped its oldest segment"
            );
            let mut sums = shared.retired();
            sums.dropped_segments += 1;
            sums.dropped_entries += dropped.entries;
            sums.dropped_records += dropped.records;
        }
        shared.cursors_dirty.store(true, Ordering::Release);
        self.retire(&[oldest])
    }

    /// Retires segments that nobody is owed and that were kept long enough.
    fn retire_spent(&mut self) {
        // Recovery judges a segment by its successors too, so none goes before it is through.
        if self.shared.recovering.load(Ordering::Acquire) {
            return;
        }
        let retain = self.shared.config.retain;
        let now = self.shared.platform.now();
        let mut spent = self.shared.catalog.select(|segment| {
            segment.is_spent() && !segment.is_retired() && segment.spent_for(now) >= retain
        });
        spent.sort_unstable_by_key(|segment| segment.number);
        self.retire(&spent);
    }

    /// Takes segments' files away, as spares or for good, and then forgets the segments; true if all are
    /// gone.
    fn retire(&mut self, segments: &[Arc<Segment>]) -> bool {
        let shared = Arc::clone(&self.shared);
        let platform = shared.platform.as_ref();
        shared.chains.note_removal(platform, shared.dir(), segments);
        let mut gone = Vec::new();
        for segment in segments {
            segment.set_retired();
            if let Some(spare) = self.put_aside(segment) {
                gone.push((segment, Some(spare)));
            } else if remove(platform, &segment.path) {
                gone.push((segment, None));
            }
        }
        // Durably, before the next cursors leave them out: after a power loss a file that came back
        // would be delivered again as a whole.
        let dirs: BTreeSet<_> = gone
            .iter()
            .filter_map(|(gone, _)| gone.path.parent())
            .collect();
        let mut unsure = Vec::new();
        for dir in dirs {
            if let Err(error) = sync_dir(platform, dir) {
                tracing::error!(error = %error, "the removal of vault segments may not be durable");
                unsure.push(dir.to_path_buf());
            }
        }
        let all = gone.len() == segments.len();
        for (segment, spare) in gone {
            self.shared.retire(segment);
            let bytes = segment.note_removed();
            match spare {
                // It may come back under its old name, so nothing may be written to it.
                Some(path) if unsure.iter().any(|dir| path.starts_with(dir)) => {
                    self.remove_file(&path, bytes);
                }
                Some(path) => self.spares.push(Spare { path, bytes }),
                None => self.uncommit(bytes),
            }
        }
        self.spares.sort_by_key(|spare| spare.bytes);
        while self.spares.len() > self.shared.ports.len() {
            self.remove_spare();
        }
        all
    }

    /// Makes the file of a segment a spare, if it can be used again: its new name.
    fn put_aside(&self, segment: &Segment) -> Option<PathBuf> {
        let usable = !self.shared.is_stopping()
            && segment.number < self.shared.numbers_used.load(Ordering::Acquire)
            && segment.file_bytes() <= self.shared.config.segment_bytes;
        let path = segment.path.with_extension(format!("gsv.{UNFINISHED}"));
        (usable && self.shared.platform.rename(&segment.path, &path).is_ok()).then_some(path)
    }

    /// Removes the shortest spare.
    fn remove_spare(&mut self) {
        let spare = self.spares.remove(0);
        self.remove_file(&spare.path, spare.bytes);
    }

    /// If it can't be removed, the next start tries again; until then its bytes count.
    fn remove_file(&self, path: &Path, bytes: u64) {
        if remove(self.shared.platform.as_ref(), path) {
            self.uncommit(bytes);
        }
    }

    fn uncommit(&self, bytes: u64) {
        let committed = &self.shared.committed_bytes;
        committed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Cuts sealed segments behind their seal, where that is worth it.
    fn trim_sealed(&self) {
        for segment in self
            .shared
            .catalog
            .select(|segment| segment.is_closed() && segment.trim_wanted())
        {
            let length = segment.take_trim(self.shared.config.segment_bytes);
            segment.ledger().shrink();
            let Some(length) = length else { continue };
            let cut = self
                .shared
                .platform
                .open(&segment.path, Access::Write)
                .and_then(|file| file.set_bytes(length).and_then(|()| file.sync_all()));
            match cut {
                Ok(()) => {
                    self.shared
                        .committed_bytes
                        .fetch_sub(segment.note_cut(length), Ordering::Relaxed);
                }
                // The zeros behind the seal only take room.
                Err(error) => {
                    tracing::warn!(path = %segment.path.display(), error = %error, "can't shorten a sealed segment");
                }
            }
        }
    }

    /// Wakes lanes whose segment is due to be sealed: an idle one has no other reason to wake.
    fn wake_old(&self) {
        let max_age = self.shared.config.segment_max_age;
        let now = self.shared.platform.now();
        self.shared.catalog.for_each(|segment| {
            if !segment.is_closed() && segment.data_age(now) >= max_age {
                self.shared.ports[usize::from(segment.lane)]
                    .driver
                    .notify_one();
            }
        });
    }
}

/// Removes a file; true if it is gone.
fn remove(platform: &dyn Platform, path: &Path) -> bool {
    match platform.remove(path) {
        Ok(()) => true,
        Err(missing) if missing.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            tracing::error!(path = %path.display(), error = %error, "can't remove a vault segment");
            false
        }
    }
}
