//! One segment from its start to its end, block by block and entry by entry, through damage.
//!
//! The rules are those of recovery, which the verdict's table is shared with; but nothing is changed.

use std::{io, ops::ControlFlow};

use super::{
    Directory, FILES, Header, Owner, SegmentFile,
    account::Account,
    seen::{Damage, Depth, Ending, Visitor, Walked},
};
use crate::vault::{
    error::{Error, io_error},
    format::{BlockHeader, BlockKind, FormatError, PAGE},
    recovery::{Verdict, judge, reason},
    walk::{BlockSource, Identity, Look, Position, is_consistent},
};

/// How far a quick walk looks for blocks behind a blank page: more than what a lane has in flight.
const QUICK_AHEAD: u64 = 8 << 20;

/// Walks `segment` of `directory`.
///
/// # Errors
/// The file can't be opened, other than because it is gone.
pub fn walk(
    directory: &Directory,
    segment: &SegmentFile,
    depth: Depth,
    visitor: &mut dyn Visitor,
) -> Result<Walked, Error> {
    let opened = BlockSource::open(&FILES, &segment.path).and_then(|blocks| {
        Ok((
            blocks,
            BlockSource::open_for_headers(&FILES, &segment.path)?,
        ))
    });
    let (blocks, headers) = match opened {
        Ok(sources) => sources,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
            return Ok(walked(Ending::Gone, Position::START));
        }
        Err(error) => return Err(io_error("opening", &segment.path)(error)),
    };
    let mut walk = Walk {
        depth,
        blocks,
        headers,
        decoded: Vec::new(),
        durable: 0,
        looked_again: None,
        account: Account::new(directory, segment, visitor),
    };
    let ending = match walk.begin() {
        ControlFlow::Continue(()) => walk.run(),
        ControlFlow::Break(ending) => ending,
    };
    Ok(walked(ending, walk.account.position))
}

fn walked(ending: Ending, position: Position) -> Walked {
    Walked {
        ending,
        blocks: position.index,
        entries: position.entry,
        records: position.record,
        end: position.offset,
    }
}

struct Walk<'a> {
    depth: Depth,
    /// For payloads and for looking ahead: one large window.
    blocks: BlockSource,
    /// For headers alone: a page.
    headers: BlockSource,
    decoded: Vec<u8>,
    /// Most blocks that something said were durable, of what was looked at so far.
    durable: u32,
    looked_again: Option<u64>,
    account: Account<'a>,
}

impl Walk<'_> {
    /// Finds out which blocks are the segment's if its own header doesn't say.
    fn begin(&mut self) -> ControlFlow<Ending> {
        let segment = self.account.segment;
        let reason = match segment.header {
            Header::Whole(_) => return ControlFlow::Continue(()),
            Header::Foreign(_) => "the header is of another segment",
            Header::Damaged(_) => "segment header damaged",
            Header::Unreadable(_) => "the disk can't read the segment's header",
        };
        let limit = segment.bytes;
        let first = self.headers.bytes(PAGE as u64, PAGE, limit);
        let first = first.map(BlockHeader::decode);
        // A recycled file has the header of the segment it was, until it is used again.
        let is_recycled = matches!(&segment.header, Header::Foreign(other) if other.segment != segment.number)
            && !matches!(&first, Ok(Ok(header)) if header.segment == segment.number);
        if is_recycled {
            return ControlFlow::Break(Ending::Unused);
        }
        let is_blank = segment.header == Header::Damaged(FormatError::Blank)
            && matches!(first, Ok(Err(FormatError::Blank | FormatError::Short)));
        if is_blank && (self.is_quick() || self.blocks.is_blank(limit)) {
            return ControlFlow::Break(Ending::Unused);
        }
        let before_first = Position {
            offset: 0,
            ..Position::START
        };
        let identity = self.account.identity;
        self.account.identity.tag = match first {
            Ok(Ok(header)) if header.segment == segment.number => Some(header.tag),
            Ok(_) | Err(_) => self
                .blocks
                .next_block(identity, before_first, limit)
                .map(|(_, header)| header.tag),
        };
        let is_lost = self.account.identity.tag.is_none();
        let end = if is_lost { limit } else { PAGE as u64 };
        self.account.report(&Damage {
            open_ended: is_lost,
            ..self.account.damage(0, end, reason)
        });
        match is_lost {
            true => ControlFlow::Break(Ending::Lost),
            false => ControlFlow::Continue(()),
        }
    }

    fn run(&mut self) -> Ending {
        loop {
            let header = match self.look() {
                Look::Block(header) => header,
                bad => match self.skip(bad) {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(ending) => return ending,
                },
            };
            let offset = self.account.position.offset;
            if self.account.meet(&header).is_break() {
                return Ending::Stopped;
            }
            if header.kind == BlockKind::Seal {
                self.account.check_seal(&header);
                self.account.position.offset += header.padded_len() as u64;
                return Ending::Sealed;
            }
            if self.take(&header).is_break() {
                return Ending::Stopped;
            }
            self.account.position = Position::after(offset, &header);
        }
    }

    fn look(&mut self) -> Look {
        let Account {
            identity,
            position,
            segment,
            ..
        } = self.account;
        if !self.is_quick() {
            return self.blocks.look(identity, position, segment.bytes);
        }
        match self
            .headers
            .look_at_header(identity, position, segment.bytes)
        {
            Look::Block(header) if self.wants_payload(&header) => {
                self.blocks.look(identity, position, segment.bytes)
            }
            look => look,
        }
    }

    fn is_quick(&self) -> bool {
        match self.depth {
            Depth::Headers | Depth::Needed => true,
            Depth::Everything => false,
        }
    }

    fn wants_payload(&mut self, header: &BlockHeader) -> bool {
        match self.depth {
            Depth::Headers => false,
            Depth::Needed => self.account.wants_payload(header),
            Depth::Everything => true,
        }
    }

    /// Tells what is in a block.
    fn take(&mut self, header: &BlockHeader) -> ControlFlow<()> {
        if header.kind != BlockKind::Data {
            return ControlFlow::Continue(());
        }
        if !self.wants_payload(header) {
            self.account.pass_over(header);
            return ControlFlow::Continue(());
        }
        let offset = self.account.position.offset;
        let payload = self
            .blocks
            .payload(offset, header, &mut self.decoded)
            .filter(|payload| is_consistent(header, payload));
        if let Some(payload) = payload {
            return self.account.take_pieces(header, payload);
        }
        self.account
            .lose_block(header, "payload is not a run of entries");
        ControlFlow::Continue(())
    }

    /// Deals with a place that has no block.
    fn skip(&mut self, look: Look) -> ControlFlow<Ending> {
        let Account {
            identity,
            position: from,
            segment,
            ..
        } = self.account;
        let is_blank = matches!(look, Look::NoBlock(FormatError::Blank) | Look::End);
        let limit = match self.is_quick() && is_blank {
            true => segment.bytes.min(from.offset.saturating_add(QUICK_AHEAD)),
            false => segment.bytes,
        };
        // The whole rest is looked at only until something vouches for this block: not again and again where
        // much is damaged.
        let next = if self.durable > from.index {
            self.blocks.next_block(identity, from, limit)
        } else {
            let ahead = self.blocks.look_ahead(identity, from, limit);
            self.durable = self.known_durable(ahead.durable_through, ahead.seal);
            ahead.next
        };
        if judge(look, from.index, self.durable) != Some(Verdict::Damaged) {
            let is_clean = is_blank && next.is_none();
            return ControlFlow::Break(if is_clean { Ending::Open } else { Ending::Torn });
        }
        if self.look_again() {
            return ControlFlow::Continue(());
        }
        if let Look::BadPayload(header) = look {
            if self.account.meet(&header).is_break() {
                return ControlFlow::Break(Ending::Stopped);
            }
            self.account
                .lose_block(&header, "checksum of the payload doesn't match");
            self.account.position = Position::after(from.offset, &header);
            return ControlFlow::Continue(());
        }
        match self.account.lose_gap(next, reason(look)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(Ending::Lost),
        }
    }

    /// Whether to look at this place once more, afresh: a daemon may have written it since.
    fn look_again(&mut self) -> bool {
        let offset = self.account.position.offset;
        let is_again = self.looked_again == Some(offset);
        if is_again || self.account.directory.owner == Owner::Nobody {
            return false;
        }
        self.looked_again = Some(offset);
        let path = &self.account.segment.path;
        match (
            BlockSource::open(&FILES, path),
            BlockSource::open_for_headers(&FILES, path),
        ) {
            (Ok(blocks), Ok(headers)) => (self.blocks, self.headers) = (blocks, headers),
            _ => return false,
        }
        true
    }

    /// Most blocks that are known to have been durable, from this segment and the lane's next.
    fn known_durable(&self, ahead: u32, seal: Option<u32>) -> u32 {
        let next = self
            .account
            .directory
            .successor(self.account.segment.number);
        let Some((file, header)) = next.and_then(|next| Some((next, next.header.whole()?))) else {
            return ahead;
        };
        let known = ahead.max(header.previous_durable);
        let is_left_whole = !header.previous_given_up;
        let Some(seal) = seal.filter(|&seal| seal > known && is_left_whole) else {
            return known;
        };
        // Blocks are acknowledged in order over segments too.
        let identity = Identity {
            segment: header.segment,
            tag: Some(header.tag),
        };
        let is_durable = BlockSource::open(&FILES, &file.path).is_ok_and(|mut source| {
            let ahead = source.look_ahead(identity, Position::START, file.bytes);
            ahead.durable_through > 0
        });
        if is_durable { seal } else { known }
    }
}
