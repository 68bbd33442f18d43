//! Counters of the lanes, each on its own cache lines, and what they sum up to.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use super::{books::Books, format::Codec};

/// Upper bounds of the sync latency buckets, in microseconds; one more bucket has the rest.
pub const SYNC_BOUNDS_US: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];
const BUCKETS: usize = SYNC_BOUNDS_US.len() + 1;

/// What one lane counts; written by its worker alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct LaneCounters {
    /// Data blocks acknowledged.
    pub blocks: AtomicU64,
    /// Of those, blocks stored compressed.
    pub lz4_blocks: AtomicU64,
    /// The lane compresses now: 0 nothing written yet, 1 raw, 2 LZ4.
    codec: AtomicU8,
    /// Bytes of their payloads before compression.
    pub raw_bytes: AtomicU64,
    /// Bytes of the blocks on disk.
    pub stored_bytes: AtomicU64,
    /// Entries acknowledged.
    pub entries: AtomicU64,
    /// Records acknowledged.
    pub records: AtomicU64,
    /// Writes that failed.
    pub write_errors: AtomicU64,
    sync_buckets: [AtomicU64; BUCKETS],
    sync_nanos: AtomicU64,
}

impl LaneCounters {
    /// Adds to a counter that only this thread writes.
    pub(super) fn add(counter: &AtomicU64, value: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(value),
            Ordering::Relaxed,
        );
    }

    /// Sets the codec chosen for the lane's next block.
    pub(super) fn set_codec(&self, codec: Codec) {
        let code = match codec {
            Codec::Raw => 1,
            Codec::Lz4 => 2,
        };
        self.codec.store(code, Ordering::Relaxed);
    }

    /// The codec chosen for the lane's last block; `None` before the first.
    #[must_use]
    pub(super) fn codec(&self) -> Option<Codec> {
        match self.codec.load(Ordering::Relaxed) {
            1 => Some(Codec::Raw),
            2 => Some(Codec::Lz4),
            _ => None,
        }
    }

    /// Counts one durable write that took `took`.
    pub(super) fn sync_took(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = SYNC_BOUNDS_US.partition_point(|&bound| bound < micros);
        Self::add(&self.sync_buckets[bucket], 1);
        Self::add(
            &self.sync_nanos,
            u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        );
    }
}

/// Latency of durable writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncLatency {
    /// Writes by bucket of [`SYNC_BOUNDS_US`], not cumulative; the last bucket has no bound.
    pub buckets: [u64; BUCKETS],
    /// Sum of all latencies, nanoseconds.
    pub sum_nanos: u64,
}

impl SyncLatency {
    pub(super) fn add(&mut self, lane: &LaneCounters) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&lane.sync_buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        self.sum_nanos += lane.sync_nanos.load(Ordering::Relaxed);
    }
}

/// Records that the vault holds or held for one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationStats {
    /// Its name.
    pub name: String,
    /// Records stored for it since the start, those that an earlier run left owed included.
    pub stored_records: u64,
    /// Of those, records still owed.
    pub owed_records: u64,
    /// Of those, records that damage made unreadable before they were delivered, or that an operator withholds.
    pub lost_records: u64,
    /// What became of the others.
    pub settled: Books,
    /// Records that it had in this run before the vault refused them: their producers were answered by then.
    pub unstored_records: u64,
    /// What became of records in earlier runs, as far as their cursors tell.
    pub earlier: Books,
}

/// How far the segments of earlier runs are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryStats {
    /// Segments read.
    pub segments: u64,
    /// Segments there were at the start.
    pub segments_total: u64,
    /// Bytes of them read or passed over.
    pub bytes: u64,
    /// Bytes there were.
    pub bytes_total: u64,
}

/// A reading of the vault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all segment files, those made ahead included.
    pub bytes: u64,
    /// Most bytes they may have.
    pub max_bytes: u64,
    /// Segments that were begun.
    pub segments: u64,
    /// Segments made ahead of need.
    pub unused_segments: u64,
    /// Entries some destination hasn't accepted.
    pub entries_pending: u64,
    /// Records of those.
    pub records_pending: u64,
    /// Segments that owe nothing any more: kept for `retain`, or about to be used again.
    pub retained_segments: u64,
    /// Segments since start whose file was a spent segment's before.
    pub recycled_segments_total: u64,
    /// Segments that are kept on disk: damaged, or taken out of replay by an operator.
    pub quarantined_segments: u64,
    /// Entries that damage made unreadable, or that an operator withholds.
    pub quarantined_entries: u64,
    /// Records of those.
    pub quarantined_records: u64,
    /// Data blocks acknowledged since start.
    pub blocks_total: u64,
    /// Of those, blocks stored compressed.
    pub lz4_blocks_total: u64,
    /// Lanes that compress their blocks now. A lane that wrote nothing yet isn't counted.
    pub lanes_lz4: u64,
    /// Lanes that store their blocks raw now.
    pub lanes_raw: u64,
    /// Bytes of their payloads before compression.
    pub raw_bytes_total: u64,
    /// Bytes they have on disk.
    pub stored_bytes_total: u64,
    /// Entries acknowledged since start.
    pub entries_total: u64,
    /// Records acknowledged since start.
    pub records_total: u64,
    /// Blocks whose checksum didn't match when read, since start.
    pub checksum_errors_total: u64,
    /// Writes that failed since start.
    pub write_errors_total: u64,
    /// Bytes of sealed segments that were read again since start.
    pub scrubbed_bytes_total: u64,
    /// Sealed segments that were read again, to their ends, since start.
    pub scrubbed_segments_total: u64,
    /// When all sealed segments there were had last been read again, Unix nanoseconds; `None`: not
    /// since start.
    pub last_scrub_unix_ns: Option<u64>,
    /// Segments dropped since start, because the vault was full and `on_full` is `drop_oldest`.
    pub dropped_segments_total: u64,
    /// Entries in those that some destination was owed.
    pub dropped_entries_total: u64,
    /// Records of those entries.
    pub dropped_records_total: u64,
    /// Whether appends wait for stable storage (`sync: always`).
    pub synced: bool,
    /// Why no more segments can be made until a restart; `None` in health.
    pub fault: Option<String>,
    /// How blocks get to the disk.
    pub rung: &'static str,
    /// Of every destination ever known.
    pub by_destination: Vec<DestinationStats>,
    /// Segments of an earlier run are still being read; the figures above grow until this is false.
    pub recovering: bool,
    /// How far that has come.
    pub recovery: RecoveryStats,
    /// Latency of durable writes.
    pub sync: SyncLatency,
}
