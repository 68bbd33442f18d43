//! Reading the segments of earlier runs at start: torn tails are cut off, damage is kept and counted.

mod read;
mod verdict;

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, atomic::Ordering},
};

use self::read::{Ended, Successors, Walk};
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
    let successors = read_headers(&found);
    for file in found {
        if shared.is_stopping() {
            return;
        }
        if let Err(error) = recover_segment(shared, cursors, &file, &successors) {
            tracing::error!(path = %file.path.display(), error = %error, "can't recover a vault segment; it is kept");
            let segment = new_segment(&file, 0, Ledger::new(shared.destinations.len()));
            segment.begin();
            segment.quarantine();
            segment.close();
            shared.catalog.insert(Arc::new(segment));
        }
    }
    shared.recovering.store(false, Ordering::Release);
    shared.cursors_wanted.raise();
    shared.segments_wanted.raise();
}

fn read_headers(found: &[Found]) -> Successors {
    let mut successors = HashMap::new();
    for file in found {
        let header = BlockSource::open(&file.path)
            .and_then(|mut source| source.bytes(0, PAGE, u64::MAX).map(SegmentHeader::decode));
        // The header of another segment is left in a recycled file.
        if let Ok(Ok(header)) = header
            && header.segment == file.number
        {
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
    let mut source = BlockSource::open(&file.path).map_err(io_error("opening", &file.path))?;
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
        let is_recycled = header.is_ok_and(|header| header.segment != file.number);
        match first_block(&mut source, identity, file.bytes) {
            First::Block(tag) => identity.tag = Some(tag),
            First::None if is_recycled => return remove_unused(shared, file),
            First::None | First::Unsure if source.is_blank(file.bytes) => {
                return remove_unused(shared, file);
            }
            First::None | First::Unsure => {}
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

/// Whether a segment without its header was written to.
enum First {
    /// By a block with this tag.
    Block(u64),
    /// No.
    None,
    /// The disk can't read all of it.
    Unsure,
}

fn first_block(source: &mut BlockSource, identity: Identity, limit: u64) -> First {
    let start = source
        .bytes(PAGE as u64, PAGE, limit)
        .ok()
        .map(BlockHeader::decode);
    if let Some(Ok(header)) = start
        && header.segment == identity.segment
    {
        return First::Block(header.tag);
    }
    let before_first = Position {
        offset: 0,
        ..Position::START
    };
    let ahead = source.look_ahead(identity, before_first, limit);
    match ahead.next {
        Some((_, header)) => First::Block(header.tag),
        None if ahead.unreadable => First::Unsure,
        None => First::None,
    }
}

/// Seals what ends at a torn tail and adds the segment to the catalog, with what is settled.
fn finish(mut walk: Walk<'_>, ended: Ended) {
    let is_whole = !walk.segment.is_quarantined();
    match ended {
        Ended::Stopped => return,
        Ended::Torn if is_whole => {
            if let Err(error) = walk.seal() {
                // The next start tries again; what was read can be delivered meanwhile.
                tracing::error!(error = %error, "a vault segment stays unsealed");
            }
        }
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
    segment.close();
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
    fs::remove_file(&file.path).map_err(io_error("removing", &file.path))?;
    shared
        .committed_bytes
        .fetch_sub(file.bytes, Ordering::Relaxed);
    Ok(())
}
