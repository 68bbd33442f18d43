//! Reading the segments of earlier runs at start: torn tails are cut off, damage is kept and counted.

mod read;
mod verdict;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use self::read::{Ended, Successors, Walk};
pub(super) use self::{
    read::reason,
    verdict::{Verdict, judge},
};
use super::{
    cursors::Cursors,
    directory::Found,
    error::{Error, io_error},
    format::{BlockHeader, PAGE, SegmentHeader},
    ledger::{Ledger, Pending},
    segment::Segment,
    shared::Shared,
    walk::{BlockSource, Chain, Identity, Position},
};

/// Reads `found` in order and adds what is there to the catalog, until the vault stops.
pub(super) fn recover(shared: &Shared, cursors: &Cursors, found: Vec<Found>) {
    let successors = read_headers(shared, &found);
    for file in found {
        if shared.is_stopping() {
            return;
        }
        if let Err(error) = recover_segment(shared, cursors, &file, &successors) {
            tracing::error!(path = %file.path.display(), error = %error, "can't recover a vault segment; it is kept");
            let segment = new_segment(&file, 0, Ledger::new(shared.destinations.len()));
            segment.begin();
            segment.quarantine();
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
    }
    shared.recovering.store(false, Ordering::Release);
    shared.cursors_wanted.raise();
    shared.segments_wanted.raise();
}

fn read_headers(shared: &Shared, found: &[Found]) -> Successors {
    let mut successors = HashMap::new();
    for file in found {
        let header = BlockSource::open(shared.platform.as_ref(), &file.path)
            .and_then(|mut source| source.bytes(0, PAGE, u64::MAX).map(SegmentHeader::decode));
        if let Ok(Ok(header)) = header {
            successors.insert(header.previous, (header, file.clone()));
        }
    }
    successors
}

fn recover_segment(
    shared: &Shared,
    cursors: &Cursors,
    file: &Found,
    successors: &Successors,
) -> Result<(), Error> {
    let mut source = BlockSource::open(shared.platform.as_ref(), &file.path)
        .map_err(io_error("opening", &file.path))?;
    let page = source
        .bytes(0, PAGE, file.bytes)
        .map_err(io_error("reading", &file.path))?;
    let header = SegmentHeader::decode(page);
    let ours = header
        .ok()
        .filter(|header| header.segment == file.number && header.lane == file.lane);
    let mut identity = Identity {
        segment: file.number,
        tag: ours.map(|header| header.tag),
    };
    if ours.is_none() {
        let before_first = Position {
            offset: 0,
            ..Position::START
        };
        let first = first_block(&mut source, identity, before_first, file.bytes);
        match first {
            Some(block) => identity.tag = Some(block.tag),
            None if source.is_blank(file.bytes) => return remove_unused(shared, file),
            None => {}
        }
    }
    let ledger = Ledger::new(shared.destinations.len());
    let segment = new_segment(file, identity.tag.unwrap_or(0), ledger);
    segment.begin();
    let mut walk = Walk {
        shared,
        cursors,
        segment,
        identity,
        limit: file.bytes,
        source,
        position: Position::START,
        chain: Chain::default(),
        decoded: Vec::new(),
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
    if ours.is_none() {
        walk.report("segment header damaged", Pending::default());
    }
    let ended = if identity.tag.is_some() {
        walk.run(successors)
    } else {
        Ended::Damaged
    };
    finish(walk, ended);
    Ok(())
}

fn first_block(
    source: &mut BlockSource,
    identity: Identity,
    from: Position,
    limit: u64,
) -> Option<BlockHeader> {
    let start = source
        .bytes(PAGE as u64, PAGE, limit)
        .ok()
        .map(BlockHeader::decode);
    match start {
        Some(Ok(header)) if header.segment == identity.segment => Some(header),
        _ => source
            .look_ahead(identity, from, limit)
            .next
            .map(|(_, header)| header),
    }
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
        ledger.forget_settled();
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

/// Removes a segment that was made ahead and never begun: it is all zeros.
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
