//! Reading the segments of earlier runs at start: torn tails are cut off, damage is kept and counted.

mod header;
mod progress;
mod read;
mod verdict;

use std::sync::{Arc, atomic::Ordering};

use self::{
    header::Begin,
    read::{Ended, Successors, Walk, lose_known},
};
pub(super) use self::{
    header::is_tearable,
    progress::Progress,
    read::reason,
    verdict::{Verdict, Vouched, judge},
};
use super::{
    cursors::Cursors,
    directory::Found,
    error::{Error, io_error},
    format::{PAGE, SegmentHeader},
    ledger::{Ledger, Pending},
    outlook::Outlook,
    platform::Access,
    segment::Segment,
    shared::Shared,
    walk::{BlockSource, Chain, Identity, Position},
};
use crate::uring::AlignedBytes;

/// Reads `found` in order and adds what is there to the catalog, until the vault stops.
pub(super) fn recover(shared: &Shared, cursors: &Cursors, found: Vec<Found>) {
    let successors = read_headers(shared, &found);
    let mut decoded = Vec::new();
    for file in found {
        if shared.is_stopping() {
            return;
        }
        if let Err(error) = recover_segment(shared, cursors, &file, &successors, &mut decoded) {
            tracing::error!(path = %file.path.display(), error = %error, "can't recover a vault segment; it is kept");
            let segment = new_segment(
                &file,
                tag_of(cursors, &file),
                Ledger::new(shared.destinations.len()),
            );
            segment.begin();
            segment.quarantine();
            lose_known(cursors, &segment, 0);
            cursors.apply(segment.number, segment.tag, &mut segment.ledger());
            if super::quarantine::read(
                shared.platform.as_ref(),
                shared.dir(),
                file.lane,
                file.number,
            )
            .is_some()
            {
                segment.withhold();
            }
            segment.close();
            shared.catalog.insert(Arc::new(segment));
        }
        shared.recovery.passed(file.bytes);
    }
    shared.recovering.store(false, Ordering::Release);
    shared.cursors_wanted.raise();
    shared.segments_wanted.raise();
}

fn read_headers(shared: &Shared, found: &[Found]) -> Successors {
    let mut successors = Successors::default();
    for file in found {
        let header = BlockSource::open_for_headers(shared.platform.as_ref(), &file.path)
            .and_then(|mut source| source.bytes(0, PAGE, u64::MAX).map(SegmentHeader::decode));
        match header {
            // Another segment's says nothing of this one, and one that wasn't begun follows none.
            Ok(Ok(header)) if header.segment == file.number && !header.is_ready => {
                let known = &mut successors.by_previous;
                known.insert(header.previous, (header, file.clone()));
            }
            Ok(Ok(_) | Err(_)) => {}
            Err(_) => {
                successors.unreadable.insert(file.lane);
            }
        }
    }
    successors
}

fn recover_segment(
    shared: &Shared,
    cursors: &Cursors,
    file: &Found,
    successors: &Successors,
    decoded: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut source = BlockSource::open_through(shared.platform.as_ref(), &file.path)
        .map_err(io_error("opening", &file.path))?;
    let begin = header::look(shared, file, &mut source, successors)
        .map_err(io_error("reading", &file.path))?;
    let tag = match begin {
        Begin::Unused => return remove_unused(shared, file),
        Begin::Whole { tag } => Some(tag),
        Begin::Torn { tag } => {
            write_header(shared, file, tag)?;
            Some(tag)
        }
        Begin::Damaged { tag } => tag,
    };
    let identity = Identity {
        segment: file.number,
        tag,
    };
    let ledger = Ledger::new(shared.destinations.len());
    let segment = new_segment(
        file,
        identity.tag.unwrap_or_else(|| tag_of(cursors, file)),
        ledger,
    );
    segment.begin();
    let next = successors.next(file);
    let mut walk = Walk {
        shared,
        cursors,
        segment,
        identity,
        limit: file.bytes,
        outlook: Outlook::new(shared.platform.as_ref(), &source, identity, next),
        source,
        position: Position::START,
        chain: Chain::default(),
        decoded,
        crc: crc32fast::Hasher::new(),
    };
    if super::quarantine::read(
        shared.platform.as_ref(),
        shared.dir(),
        file.lane,
        file.number,
    )
    .is_some()
    {
        walk.segment.withhold();
    }
    let is_lost = identity.tag.is_none();
    if matches!(begin, Begin::Damaged { .. }) {
        // What is in the header's place may be a block of this segment, and vouch for the others.
        let from = Position::BEFORE_FIRST;
        walk.outlook.vouched_from(from, walk.limit);
        let lost = match is_lost {
            true => lose_known(cursors, &walk.segment, 0),
            false => Pending::default(),
        };
        walk.report("segment header damaged", lost);
    }
    let ended = match is_lost {
        true => Ended::Damaged,
        false => walk.run(),
    };
    finish(walk, ended);
    Ok(())
}

/// Tag of a segment that doesn't tell it itself, from the cursors; 0 if they don't know it either.
fn tag_of(cursors: &Cursors, file: &Found) -> u64 {
    cursors.known(file.number).map_or(0, |(tag, _)| tag)
}

/// Writes a header anew that a crash has torn: the next start must not take its blocks, which are sealed
/// now, for what a damaged header has left.
fn write_header(shared: &Shared, file: &Found, tag: u64) -> Result<(), Error> {
    let header = SegmentHeader {
        lane: file.lane,
        segment: file.number,
        tag,
        previous: 0,
        previous_durable: 0,
        previous_given_up: false,
        is_ready: false,
        created_unix_ns: shared.platform.unix_nanos(),
        bytes: file.bytes,
        host: shared.host,
    };
    let mut page = AlignedBytes::zeroed(PAGE);
    header.encode(&mut page);
    shared
        .platform
        .open(&file.path, Access::Write)
        .and_then(|opened| {
            opened.write_all_at(&page, 0)?;
            opened.sync_data()
        })
        .map_err(io_error("writing the header of", &file.path))
}

/// Seals what ends at a torn tail and adds the segment to the catalog, with what is settled.
fn finish(mut walk: Walk<'_>, ended: Ended) {
    let is_whole = !walk.segment.is_quarantined();
    let mut is_sealed = ended == Ended::Sealed;
    match ended {
        Ended::Stopped => return,
        Ended::Torn if is_whole => match walk.seal() {
            Ok(()) => is_sealed = true,
            // The next start tries again; what was read can be delivered meanwhile.
            Err(error) => {
                tracing::error!(error = %error, "a vault segment stays unsealed");
            }
        },
        // The run that sealed it may have ended before its file was cut.
        Ended::Sealed if is_whole => {
            let end = walk.position.offset + PAGE as u64;
            walk.segment.want_trim(end);
        }
        Ended::Torn | Ended::Sealed | Ended::Damaged => {}
    }
    let Walk {
        shared,
        cursors,
        segment,
        position,
        ..
    } = walk;
    // The seal isn't read again: everything before it is.
    segment.set_durable(position.offset, position.index);
    {
        let mut ledger = segment.ledger();
        cursors.apply(segment.number, segment.tag, &mut ledger);
        ledger.shrink();
    }
    if is_sealed {
        segment.close_sealed();
    } else {
        segment.close();
    }
    shared.catalog.insert(Arc::new(segment));
}

fn new_segment(file: &Found, tag: u64, ledger: Ledger) -> Segment {
    Segment::new(
        file.number,
        file.lane,
        tag,
        file.path.clone(),
        file.bytes,
        ledger,
    )
}

/// Removes a segment that was made ahead and never begun: it is all zeros, or was recycled and still has
/// the header of the segment it was.
fn remove_unused(shared: &Shared, file: &Found) -> Result<(), Error> {
    shared
        .platform
        .remove(&file.path)
        .map_err(io_error("removing", &file.path))?;
    shared
        .committed_bytes
        .fetch_sub(file.bytes, Ordering::Relaxed);
    Ok(())
}
