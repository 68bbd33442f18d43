//! The vault: a log of acknowledged requests on stable storage.
//!
//! Invariants
//! - An append resolves only when its bytes are on stable storage, together with every block of its
//!   lane before them.
//! - What comes back is what was stored, byte for byte, or it is reported as lost and counted.
//! - Only a torn tail, which was never acknowledged, is cut off. A segment with other damage is kept.
//! - Memory, files and recovery are bounded by the configuration; no stored byte is trusted.
//!
//! The formats are drawn at the top of [`mod@format`] and [`entry`], the smaller files at the top of `cursors`,
//! `destinations` and `directory`.

mod background;
mod books;
mod bytes;
pub mod chain;
mod cursors;
mod destinations;
mod directory;
pub mod entry;
mod error;
mod examine;
pub mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod inspect;
mod lane;
mod ledger;
mod life;
mod limiter;
mod outlook;
pub mod platform;
mod port;
mod quarantine;
mod reader;
mod recovery;
mod return_time;
mod scrub;
mod segment;
mod segments;
mod selection;
mod shared;
mod stats;
mod upkeep;
pub mod walk;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use self::{
    chain::Chains,
    cursors::Cursors,
    destinations::Destinations,
    platform::{Os, Platform, Rung},
    port::Port,
    segment::{Catalog, Segment},
    shared::{Retired, RetiredRecords, Shared, Signal},
    stats::LaneCounters,
};

pub use self::limiter::Limiter;
pub use self::{
    background::Background,
    books::{Books, Settlement},
    entry::{ContentEncoding, DestMask, Entry, EntryId, EntryMeta, Kind},
    error::{AppendError, Error},
    lane::{Lane, Meanwhile},
    quarantine::{Quarantine, QuarantineError},
    reader::Reader,
    segments::SegmentStats,
    selection::Selection,
    stats::{DestinationStats, RecoveryStats, SYNC_BOUNDS_US, Stats, SyncLatency},
};

/// Codec of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 or raw, block by block, from what is scarce: the CPU or the disk.
    Auto,
    /// LZ4 block format; a block that doesn't shrink is stored raw.
    Lz4,
    /// Raw.
    None,
}

/// When an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// After the bytes are on stable storage.
    Always,
    /// After the write; for benchmarks, warned about.
    Never,
}

/// What happens when `max_bytes` leave no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Appends are refused until something is delivered.
    Refuse,
    /// The oldest closed segment is removed, and what it owed is counted as dropped. A damaged segment
    /// is never dropped: somebody has to look at it.
    DropOldest,
}

/// The vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory that this process alone owns while it runs.
    pub dir: PathBuf,
    /// Most bytes of segments, over all lanes.
    pub max_bytes: u64,
    /// Bytes of one segment file; a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// A segment with entries is sealed when its first block is this old.
    pub segment_max_age: Duration,
    /// What happens when `max_bytes` leave no room.
    pub on_full: OnFull,
    /// How long a segment is kept after all in it was delivered. Kept ones go first when room is needed;
    /// a restart counts from its start.
    pub retain: Duration,
    /// Longest an entry waits for others while a write is in flight.
    pub linger: Duration,
    /// Codec of the blocks.
    pub compression: Compression,
    /// When an append counts as done.
    pub sync: Sync,
    /// How often the cursors are written.
    pub cursor_interval: Duration,
    /// Lanes, one per worker.
    pub lanes: usize,
    /// Bytes of block buffers over all lanes.
    pub budget_bytes: usize,
    /// Largest entry, in bytes.
    pub max_entry_bytes: usize,
    /// How blocks get to the disk; the best way that works if it isn't said.
    pub rung: Option<Rung>,
}

impl Config {
    /// Checks that the sizes fit together, as [`Vault::open`] does.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::TooBig`] or [`Error::Unaligned`], which name the field.
    pub fn check(&self) -> Result<(), Error> {
        lane::Geometry::new(self).map(drop)
    }
}

/// The vault of one directory; clones are the same vault.
#[derive(Debug, Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    lanes_taken: Mutex<Vec<bool>>,
    threads: Mutex<Vec<JoinHandle<Result<(), Error>>>>,
}

impl Vault {
    /// Locks the directory (made if missing), reads its tables, and starts the background threads that
    /// make segments, write cursors and read the segments of earlier runs. Appending and reading work
    /// at once.
    ///
    /// # Errors
    /// Another process has the directory, the configuration doesn't work, or a table can't be used.
    pub fn open(config: &Config, destinations: &[String]) -> Result<Self, Error> {
        config.check()?;
        directory::make_dir(&Os::on(Rung::Buffered), &config.dir)?;
        let os = config
            .rung
            .map_or_else(|| Os::best_for(&config.dir), Os::on);
        let (vault, background) = Self::open_on(Arc::new(os), config, destinations)?;
        background.start_threads(&vault)?;
        Ok(vault)
    }

    /// As [`Vault::open`], on any machine, and without threads: what they would do is done by whoever
    /// calls the [`Background`]'s steps.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn open_on(
        platform: Arc<dyn Platform>,
        config: &Config,
        destinations: &[String],
    ) -> Result<(Self, Background), Error> {
        config.check()?;
        let dir = &config.dir;
        let on = platform.as_ref();
        directory::make_dir(on, dir)?;
        let lock = directory::lock(on, dir)?;
        for lane in (0_u16..).take(config.lanes) {
            directory::make_dir(on, &directory::lane_dir(dir, lane))?;
        }
        directory::sync_dir(on, dir)?;
        let found = directory::scan(on, dir)?;
        let cursors = Cursors::read(on, dir)?;
        let next_segment = found
            .last()
            .map_or(1, |last| last.number.saturating_add(1))
            .max(cursors.next_segment);
        if config.sync == Sync::Never {
            tracing::warn!(
                "vault.sync is never: entries are acknowledged before they are on stable storage"
            );
        }
        tracing::info!(dir = %dir.display(), rung = on.rung(), "vault");
        let destinations = Destinations::open(on, dir, destinations, !found.is_empty())?;
        let count = destinations.len();
        let shared = Arc::new(Shared {
            retired: Mutex::new(Retired {
                by_destination: vec![RetiredRecords::default(); count],
                ..Retired::default()
            }),
            earlier: (0..count).map(|bit| cursors.books(bit)).collect(),
            direct: (0..count).map(|_| AtomicU64::new(0)).collect(),
            direct_rejected: (0..count).map(|_| AtomicU64::new(0)).collect(),
            unstored: (0..count).map(|_| AtomicU64::new(0)).collect(),
            numbers_used: AtomicU64::new(cursors.next_segment),
            recycled: AtomicU64::new(0),
            fault: OnceLock::new(),
            #[cfg(test)]
            fail_keeper: AtomicBool::new(false),
            destinations,
            config: config.clone(),
            catalog: Catalog::default(),
            ports: (0..config.lanes).map(|_| Port::default()).collect(),
            counters: (0..config.lanes).map(|_| LaneCounters::default()).collect(),
            next_segment: AtomicU64::new(next_segment),
            committed_bytes: AtomicU64::new(found.iter().map(|found| found.bytes).sum()),
            checksum_errors: AtomicU64::new(0),
            recovering: AtomicBool::new(true),
            recovery: recovery::Progress::of(&found),
            first_segment: next_segment,
            cursors_dirty: AtomicBool::new(false),
            segments_wanted: Signal::default(),
            cursors_wanted: Signal::default(),
            background_weight: AtomicU32::new(0),
            room_in_ms: AtomicU64::new(0),
            scrub_wanted: Signal::default(),
            scrubbed: scrub::Counters::default(),
            chains: Chains::default(),
            stopping: AtomicBool::new(false),
            host: on.host_id(),
            lock: Mutex::new(Some(lock)),
            platform,
        });
        let background = Background::new(Arc::clone(&shared), cursors, found);
        let vault = Self {
            inner: Arc::new(Inner {
                lanes_taken: Mutex::new(vec![false; config.lanes]),
                threads: Mutex::new(Vec::new()),
                shared,
            }),
        };
        Ok((vault, background))
    }

    /// Bit of a configured destination.
    #[must_use]
    pub fn mask_of(&self, destination: &str) -> Option<DestMask> {
        self.inner.shared.destinations.mask_of(destination)
    }

    /// The lane of a worker, once. Call it on the worker's thread, inside its `LocalSet`; the lane
    /// stays there.
    ///
    /// # Errors
    /// There is no such lane, it is taken, or the kernel refuses its ring.
    pub fn lane(&self, index: usize) -> Result<Lane, Error> {
        let mut taken = self
            .inner
            .lanes_taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let lanes = taken.len();
        let number = u16::try_from(index).map_err(|_| Error::Lane { index, lanes })?;
        match taken.get_mut(index) {
            Some(free) if !*free => *free = true,
            Some(_) | None => return Err(Error::Lane { index, lanes }),
        }
        Lane::start(Arc::clone(&self.inner.shared), number)
    }

    /// Notes that the destinations of `accepted` have the whole entry. Bits it isn't owed to change nothing. Its hold stays as
    /// long as it is owed to others, whose exports may go on: see [`Vault::release`].
    pub fn settle(&self, id: EntryId, accepted: DestMask) {
        self.settle_as(id, accepted, Settlement::WHOLE);
    }

    /// As [`Vault::settle`], for `mask`, and for the books in another way.
    pub fn settle_as(&self, id: EntryId, mask: DestMask, how: Settlement) {
        self.inner.shared.settle(id, mask, how);
    }

    /// Notes how many records each destination, by its bit, has had without the vault since the start, and how many it
    /// rejected of what it got so; the cursors carry them, too. What is never noted is missing in the books of the next
    /// run.
    pub fn note_direct(&self, delivered: &[u64], rejected: &[u64]) {
        let shared = &self.inner.shared;
        let noted = shared.direct.iter().zip(delivered);
        for (noted, &records) in noted.chain(shared.direct_rejected.iter().zip(rejected)) {
            if noted.swap(records, Ordering::Relaxed) != records {
                shared.cursors_dirty.store(true, Ordering::Release);
            }
        }
    }

    /// Drops the hold on an entry whose export is over: replay may take it for those that it is owed to.
    pub fn release(&self, id: EntryId) {
        self.inner.shared.release(id);
    }

    /// Readers leave the entry out for `mask`, until [`Vault::unpark`], [`Vault::unpark_entry`] or the next start; it stays owed.
    pub fn park(&self, id: EntryId, mask: DestMask) {
        if let Some(segment) = self.inner.shared.catalog.get(id.segment) {
            segment.ledger().park(id.index, mask);
        }
    }

    /// Takes back a [`Vault::park`].
    pub fn unpark_entry(&self, id: EntryId, mask: DestMask) {
        if let Some(segment) = self.inner.shared.catalog.get(id.segment) {
            segment.ledger().unpark_entry(id.index, mask);
        }
    }

    /// Takes back every [`Vault::park`].
    pub fn unpark(&self) {
        let shared = &self.inner.shared;
        shared.catalog.for_each(|segment| segment.ledger().unpark());
    }

    /// A reader from the oldest entry on; for one replay thread, never a worker's.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.inner.shared))
    }

    /// Id of the machine, which its segments name as their maker's.
    #[must_use]
    pub fn host_id(&self) -> [u8; 16] {
        self.inner.shared.host
    }

    /// Whether anything is owed to one of `mask`, whether or not it can be sent now.
    #[must_use]
    pub fn owes(&self, mask: DestMask) -> bool {
        let owes = |segment: &Segment| {
            segment.is_begun() && !segment.is_withheld() && segment.ledger().is_any_owed(mask)
        };
        self.inner.shared.catalog.first(owes).is_some()
    }

    /// Whether all that earlier runs left has been read.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        !self.inner.shared.recovering.load(Ordering::Acquire)
    }

    /// Sums of all counters; walks the segments, so for scrapes, not for hot paths.
    #[must_use]
    pub fn stats(&self) -> Stats {
        upkeep::stats(&self.inner.shared)
    }

    /// Why entries are refused, in all lanes or in one; `None` if they are taken, as far as is known.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let shared = &self.inner.shared;
        let now = shared.platform.now();
        shared.fault.get().cloned().or_else(|| {
            let mut refusals = shared.ports.iter().map(|port| port.refusal(now)).zip(0..);
            refusals.find_map(|(reason, lane)| Some(format!("lane {lane}: {}", reason?)))
        })
    }

    /// Sets how much background work may be done, in thousandths of each work's own full rate: 0, as
    /// at first, is none, 1000 or more all of it.
    pub fn set_background_weight(&self, thousandths: u32) {
        let shared = &self.inner.shared;
        let weight = thousandths.min(shared::WEIGHT_FULL);
        let before = shared.background_weight.swap(weight, Ordering::Relaxed);
        if before == 0 && weight > 0 {
            shared.scrub_wanted.raise();
        }
    }

    /// Takes note of how fast replay delivers, so that those whom a full vault refuses are told when to
    /// come again.
    pub fn expect_room(&self, records_per_second: u64) {
        upkeep::expect_room(&self.inner.shared, records_per_second);
    }

    /// How much background work may be done, in thousandths.
    #[must_use]
    pub fn background_weight(&self) -> u32 {
        self.inner.shared.background_weight.load(Ordering::Relaxed)
    }

    /// Ends the background threads, writes the cursors durably and unlocks the directory. Shut the
    /// lanes down first.
    ///
    /// # Errors
    /// The cursors can't be written; what was settled since the last time will be delivered again.
    pub fn close(&self) -> Result<(), Error> {
        let result = self.inner.stop_threads();
        self.inner.shared.unlock();
        result
    }
}

impl Inner {
    fn start(
        &self,
        name: &'static str,
        body: impl FnOnce(&Shared) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&shared))
            .map_err(|source| Error::Thread { name, source })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    fn stop_threads(&self) -> Result<(), Error> {
        self.shared.stop();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(_) => result = result.and(Err(Error::Panicked)),
            }
        }
        result
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.stop_threads() {
            tracing::error!(error = %error, "the vault's last cursors weren't written");
        }
    }
}
