//! What a segment's first page amounts to, from all that was found: the table, and the looking.

use super::{read::Successors, verdict::Vouched};
use crate::vault::{
    directory::Found,
    format::{BlockHeader, FormatError, PAGE, SegmentHeader},
    outlook::Outlook,
    shared::Shared,
    walk::{BlockSource, Identity, Position},
};

/// What is known of a segment before its blocks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Its header is there.
    Whole { tag: u64 },
    /// The lane never had anything acknowledged in it: there are no blocks. The file can go.
    Unused,
    /// The crash tore the header, and with it blocks that nobody was promised. They are read all the
    /// same, once the header is written again.
    Torn { tag: u64 },
    /// Something acknowledged may have been in it.
    Damaged { tag: Option<u64> },
}

/// What is in place of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Ours(u64),
    /// Made ahead; the lane has not written its own yet, or that write was lost.
    Ready(u64),
    /// A crash while it was written leaves this, and so does a file that was made ahead, from zeros or
    /// from another segment's.
    Tearable,
    /// It was whole once, and of another version, or of another place.
    Foreign,
}

/// What is known of the blocks: the tag of the first, and how many were known to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    tag: Option<u64>,
    durable: u32,
    /// The disk couldn't read all of it.
    unsure: bool,
}

const fn judge(first: First, blocks: Blocks) -> Begin {
    let Blocks {
        tag,
        durable,
        unsure,
    } = blocks;
    match (first, tag) {
        (First::Ours(tag), _) | (First::Ready(tag), Some(_)) => Begin::Whole { tag },
        (First::Ready(_), None) if durable == 0 && !unsure => Begin::Unused,
        (First::Ready(tag), None) => Begin::Damaged { tag: Some(tag) },
        (First::Tearable, None) if durable == 0 && !unsure => Begin::Unused,
        (First::Tearable, Some(tag)) if durable == 0 && !unsure => Begin::Torn { tag },
        (First::Tearable | First::Foreign, tag) => Begin::Damaged { tag },
    }
}

/// Whether a crash while a header was written may have left what isn't one.
pub(in crate::vault) const fn is_tearable(error: FormatError) -> bool {
    match error {
        FormatError::Short | FormatError::Blank | FormatError::Magic | FormatError::Checksum => {
            true
        }
        FormatError::Version(_) | FormatError::Field => false,
    }
}

/// Reads the first page of `file`, and what vouches for its blocks if that isn't its header.
pub(super) fn look(
    shared: &Shared,
    file: &Found,
    source: &mut BlockSource,
    successors: &Successors,
) -> std::io::Result<Begin> {
    let first = match SegmentHeader::decode(source.bytes(0, PAGE, file.bytes)?) {
        Ok(header) if header.segment != file.number => First::Tearable,
        Ok(header) if header.lane != file.lane => First::Foreign,
        Ok(header) if header.is_ready => First::Ready(header.tag),
        Ok(header) => First::Ours(header.tag),
        Err(error) if is_tearable(error) => First::Tearable,
        Err(_) => First::Foreign,
    };
    if let First::Ours(tag) = first {
        return Ok(Begin::Whole { tag });
    }
    let tag = match first {
        First::Ready(tag) => Some(tag),
        First::Ours(_) | First::Tearable | First::Foreign => None,
    };
    Ok(judge(first, blocks(shared, file, tag, source, successors)))
}

fn blocks(
    shared: &Shared,
    file: &Found,
    tag: Option<u64>,
    source: &mut BlockSource,
    successors: &Successors,
) -> Blocks {
    let identity = Identity {
        segment: file.number,
        tag,
    };
    let start = source
        .bytes(PAGE as u64, PAGE, file.bytes)
        .ok()
        .and_then(|page| BlockHeader::decode(page).ok())
        .filter(|header| header.segment == file.number)
        .filter(|header| tag.is_none_or(|tag| tag == header.tag));
    let next = successors.next(file);
    let mut outlook = Outlook::new(shared.platform.as_ref(), source, identity, next);
    outlook.vouched_from(Position::BEFORE_FIRST, file.bytes);
    let is_seal_acknowledged = outlook.is_seal_acknowledged();
    // What was found until now, with what couldn't be read on the way.
    let Vouched { durable, unsure } = outlook.vouched_from(Position::BEFORE_FIRST, file.bytes);
    Blocks {
        tag: start
            .or_else(|| {
                let first = source.next_block(identity, Position::BEFORE_FIRST, file.bytes);
                first.map(|(_, header)| header)
            })
            .map(|header| header.tag),
        durable: durable.max(u32::from(is_seal_acknowledged)),
        unsure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_crash_leaves_and_nobody_vouches_for_is_no_damage() {
        use First::{Foreign, Ours, Ready, Tearable};
        let blocks = |tag, durable, unsure| Blocks {
            tag,
            durable,
            unsure,
        };
        let damaged = |tag| Begin::Damaged { tag };
        let table = [
            (Ours(7), blocks(None, 3, true), Begin::Whole { tag: 7 }),
            (Ready(7), blocks(None, 0, false), Begin::Unused),
            (Ready(7), blocks(None, 0, true), damaged(Some(7))),
            (Ready(7), blocks(None, 1, false), damaged(Some(7))),
            (Ready(7), blocks(Some(7), 0, false), Begin::Whole { tag: 7 }),
            (Ready(7), blocks(Some(7), 2, true), Begin::Whole { tag: 7 }),
            (Tearable, blocks(None, 0, false), Begin::Unused),
            (Tearable, blocks(None, 0, true), damaged(None)),
            (Tearable, blocks(None, 1, false), damaged(None)),
            (Tearable, blocks(Some(5), 0, false), Begin::Torn { tag: 5 }),
            (Tearable, blocks(Some(5), 0, true), damaged(Some(5))),
            (Tearable, blocks(Some(5), 1, false), damaged(Some(5))),
            (Foreign, blocks(None, 0, false), damaged(None)),
            (Foreign, blocks(Some(5), 0, false), damaged(Some(5))),
        ];
        for (first, blocks, begin) in table {
            assert_eq!(judge(first, blocks), begin, "{first:?} {blocks:?}");
        }
    }
}
