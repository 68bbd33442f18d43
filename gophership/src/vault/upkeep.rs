//! Cursors in the background, and the figures.

use std::sync::atomic::Ordering;

use super::{
    Sync,
    books::Books,
    cursors::CursorWriter,
    error::Error,
    format::Codec,
    return_time::time_to_room,
    segment::Segment,
    shared::Shared,
    stats::{DestinationStats, Stats},
};

/// Writes cursors every `cursor_interval` if something changed, and once more at the end; runs on its
/// own thread.
pub(super) fn keep_up(shared: &Shared, mut writer: CursorWriter) -> Result<(), Error> {
    loop {
        shared.cursors_wanted.wait(shared.config.cursor_interval);
        let is_last = shared.is_stopping();
        let written = pass(shared, &mut writer);
        if is_last {
            return written;
        }
        if let Err(error) = written {
            tracing::error!(error = %error, "can't write the vault's cursors; trying again");
        }
    }
}

/// Writes the cursors if something changed.
///
/// # Errors
/// The cursors can't be written; the next pass tries again.
pub(super) fn pass(shared: &Shared, writer: &mut CursorWriter) -> Result<(), Error> {
    let written = write_cursors(shared, writer);
    // What is spent can go now, and its file be used again: its number is known to be used.
    shared.segments_wanted.raise();
    written
}

fn write_cursors(shared: &Shared, writer: &mut CursorWriter) -> Result<(), Error> {
    if !shared.cursors_dirty.swap(false, Ordering::AcqRel) {
        return Ok(());
    }
    let next_segment = shared.next_segment.load(Ordering::Relaxed);
    gather(shared, writer, next_segment);
    let written = writer.write(shared.platform.as_ref());
    match written {
        Ok(()) => shared.numbers_used.store(next_segment, Ordering::Release),
        Err(_) => shared.cursors_dirty.store(true, Ordering::Release),
    }
    written
}

/// Gathers the cursors, and the books of the same moment: what is settled meanwhile is in both or in
/// neither, and no segment is removed.
fn gather(shared: &Shared, writer: &mut CursorWriter, next_segment: u64) {
    let retired = shared.retired();
    let books = shared
        .earlier
        .iter()
        .zip(shared.direct.iter().zip(&shared.unstored))
        .zip(shared.direct_rejected.iter().zip(&retired.by_destination))
        .map(|((earlier, (direct, unstored)), (rejected, retired))| {
            let direct = Books {
                direct: direct.load(Ordering::Relaxed) + unstored.load(Ordering::Relaxed),
                direct_rejected: rejected.load(Ordering::Relaxed),
                ..Books::default()
            };
            earlier.plus(direct).plus(retired.books)
        })
        .collect();
    // In this order: what recovery hasn't read is in the catalog or known from before.
    if !shared.recovering.load(Ordering::Acquire) {
        writer.recovered();
    }
    let begun = shared.catalog.select(Segment::is_begun);
    writer.gather(next_segment, books, &begun);
}

/// Predicts when the oldest segment that owes anything will owe nothing, and so can go.
pub(super) fn expect_room(shared: &Shared, records_per_second: u64) {
    let oldest = shared.catalog.first(|segment| {
        segment.is_begun() && !segment.is_quarantined() && segment.ledger().pending().entries > 0
    });
    // Each destination is sent its own, and all of them count as what replay delivers.
    let owed = oldest.map_or(0, |oldest| {
        let ledger = oldest.ledger();
        let bits = 0..shared.destinations.len();
        bits.map(|bit| ledger.owed_records(bit)).sum()
    });
    let after = time_to_room(owed, records_per_second);
    let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    shared.room_in_ms.store(after_ms, Ordering::Relaxed);
}

/// Sums of all counters and ledgers.
pub(super) fn stats(shared: &Shared) -> Stats {
    let mut stats = Stats {
        bytes: shared.committed_bytes.load(Ordering::Relaxed),
        max_bytes: shared.config.max_bytes,
        recycled_segments_total: shared.recycled.load(Ordering::Relaxed),
        checksum_errors_total: shared.checksum_errors.load(Ordering::Relaxed),
        scrubbed_bytes_total: shared.scrubbed.bytes.load(Ordering::Relaxed),
        scrubbed_segments_total: shared.scrubbed.segments.load(Ordering::Relaxed),
        last_scrub_unix_ns: Some(shared.scrubbed.last_pass_unix_ns.load(Ordering::Relaxed))
            .filter(|&at| at != 0),
        rung: shared.platform.rung(),
        synced: shared.config.sync == Sync::Always,
        fault: shared.fault.get().cloned(),
        recovering: shared.recovering.load(Ordering::Acquire),
        recovery: shared.recovery.stats(),
        ..Stats::default()
    };
    add_lanes(shared, &mut stats);
    let retired = shared.retired();
    stats.dropped_segments_total = retired.dropped_segments;
    stats.dropped_entries_total = retired.dropped_entries;
    stats.dropped_records_total = retired.dropped_records;
    let mut by_destination: Vec<_> = shared
        .destinations
        .names()
        .zip(shared.earlier.iter().zip(&shared.unstored))
        .zip(&retired.by_destination)
        .map(|((name, (&earlier, unstored)), retired)| DestinationStats {
            name: name.to_owned(),
            unstored_records: unstored.load(Ordering::Relaxed),
            stored_records: retired.stored,
            settled: retired.books,
            earlier,
            ..DestinationStats::default()
        })
        .collect();
    shared.catalog.for_each(|segment| {
        if !segment.is_begun() {
            stats.unused_segments += 1;
            return;
        }
        stats.retained_segments += u64::from(segment.is_spent());
        let ledger = segment.ledger();
        let (pending, lost) = (ledger.pending(), ledger.lost());
        stats.segments += 1;
        stats.quarantined_segments += u64::from(segment.is_quarantined());
        stats.quarantined_entries += lost.entries;
        stats.quarantined_records += lost.records;
        // What an operator withholds is whole, but nobody gets it: it counts as quarantined.
        let is_withheld = segment.is_withheld();
        if is_withheld {
            stats.quarantined_entries += pending.entries;
            stats.quarantined_records += pending.records;
        } else {
            stats.entries_pending += pending.entries;
            stats.records_pending += pending.records;
        }
        for (bit, sums) in by_destination.iter_mut().enumerate() {
            sums.stored_records += ledger.stored_records(bit);
            sums.lost_records += ledger.lost_records(bit);
            if is_withheld {
                sums.lost_records += ledger.owed_records(bit);
            } else {
                sums.owed_records += ledger.owed_records(bit);
            }
            sums.settled = sums.settled.plus(ledger.books(bit));
        }
    });
    drop(retired);
    stats.by_destination = by_destination;
    stats
}

fn add_lanes(shared: &Shared, stats: &mut Stats) {
    for lane in &shared.counters {
        stats.blocks_total += lane.blocks.load(Ordering::Relaxed);
        stats.lz4_blocks_total += lane.lz4_blocks.load(Ordering::Relaxed);
        match lane.codec() {
            Some(Codec::Lz4) => stats.lanes_lz4 += 1,
            Some(Codec::Raw) => stats.lanes_raw += 1,
            None => {}
        }
        stats.raw_bytes_total += lane.raw_bytes.load(Ordering::Relaxed);
        stats.stored_bytes_total += lane.stored_bytes.load(Ordering::Relaxed);
        stats.entries_total += lane.entries.load(Ordering::Relaxed);
        stats.records_total += lane.records.load(Ordering::Relaxed);
        stats.write_errors_total += lane.write_errors.load(Ordering::Relaxed);
        stats.sync.add(lane);
    }
}
